"""What the schema cannot say about a spec: parameters and pg_hba lines that are refused, and why.

Pure. The operator puts the first problem into a condition and leaves the running cluster alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from pgcluster.api import hba, holes, names
from pgcluster.api.models import PgClusterSpec
from pgcluster.api.quantities import parse_bytes, parse_seconds

_REPLICATION = "the operator sizes and sets replication itself"
_FAILOVER = "repmgr and the operator write it"
_PATHS = "the operator decides where files live"
_NETWORK = "Services and pools rely on it"
_LOGS = "logs go to the container's output"
_ARCHIVE = "archiving is the operator's"
_SECURITY = "it would open a hole"

# Parameter → why the operator keeps it for itself.
REFUSED_PARAMETERS: dict[str, str] = {
    "allow_alter_system": _FAILOVER,
    "archive_cleanup_command": _ARCHIVE,
    "archive_command": _ARCHIVE,
    "archive_library": _ARCHIVE,
    "archive_mode": _ARCHIVE,
    "bonjour": _NETWORK,
    "cluster_name": _REPLICATION,
    "config_file": _PATHS,
    "data_directory": _PATHS,
    "data_sync_retry": "a failed fsync must end the server",
    "external_pid_file": _PATHS,
    "fsync": "without it a crash loses acknowledged writes",
    "full_page_writes": "pg_rewind and crash recovery need it",
    "hba_file": _PATHS,
    "hot_standby": _REPLICATION,
    "ident_file": _PATHS,
    "include": _PATHS,
    "include_dir": _PATHS,
    "include_if_exists": _PATHS,
    "listen_addresses": _NETWORK,
    "log_destination": _LOGS,
    "log_directory": _LOGS,
    "log_file_mode": _LOGS,
    "log_filename": _LOGS,
    "logging_collector": _LOGS,
    "max_slot_wal_keep_size": "spec.replication.maxSlotWalKeepSize sets it",
    "port": _NETWORK,
    "primary_conninfo": _FAILOVER,
    "primary_slot_name": _FAILOVER,
    "promote_trigger_file": _FAILOVER,
    "recovery_end_command": _FAILOVER,
    "recovery_min_apply_delay": _FAILOVER,
    "recovery_target": _FAILOVER,
    "recovery_target_action": _FAILOVER,
    "recovery_target_inclusive": _FAILOVER,
    "recovery_target_lsn": _FAILOVER,
    "recovery_target_name": _FAILOVER,
    "recovery_target_time": _FAILOVER,
    "recovery_target_timeline": _FAILOVER,
    "recovery_target_xid": _FAILOVER,
    "restart_after_crash": _FAILOVER,
    "restore_command": _ARCHIVE,
    "ssl": _SECURITY,
    "ssl_ca_file": _PATHS,
    "ssl_cert_file": _PATHS,
    "ssl_crl_dir": _PATHS,
    "ssl_crl_file": _PATHS,
    "ssl_key_file": _PATHS,
    "ssl_max_protocol_version": "spec.tls.minVersion sets the least, and there is no most",
    "ssl_min_protocol_version": "spec.tls.minVersion sets it",
    "ssl_passphrase_command": "no key of a cluster has a passphrase",
    "ssl_passphrase_command_supports_reload": "no key of a cluster has a passphrase",
    "synchronous_standby_names": _REPLICATION,
    "syslog_facility": _LOGS,
    "syslog_ident": _LOGS,
    "unix_socket_directories": _PATHS,
    "unix_socket_group": _PATHS,
    "unix_socket_permissions": _PATHS,
    "wal_log_hints": "pg_rewind needs it",
}

# The only values of these that PostgreSQL takes, or that leave replication working.
_ALLOWED_VALUES: dict[str, frozenset[str]] = {
    "password_encryption": frozenset({"scram-sha-256", "md5"}),
    "wal_level": frozenset({"replica", "logical"}),
}

# The standbys of all instances need these; fewer, and a clone or a follow finds none free.
_AT_LEAST = frozenset({"max_replication_slots", "max_wal_senders"})

# pgbouncer settings that cannot break the cluster: sizes, timeouts, logging.
ALLOWED_PGBOUNCER: frozenset[str] = frozenset(
    {
        "application_name_add_host",
        "autodb_idle_timeout",
        "cancel_wait_timeout",
        "client_idle_timeout",
        "client_login_timeout",
        "default_pool_size",
        "disable_pqexec",
        "idle_transaction_timeout",
        "ignore_startup_parameters",
        "listen_backlog",
        "log_connections",
        "log_disconnections",
        "log_pooler_errors",
        "log_stats",
        "max_client_conn",
        "max_db_client_connections",
        "max_db_connections",
        "max_packet_size",
        "max_prepared_statements",
        "max_user_client_connections",
        "max_user_connections",
        "min_pool_size",
        "pkt_buf",
        "query_timeout",
        "query_wait_notify",
        "query_wait_timeout",
        "reserve_pool_size",
        "reserve_pool_timeout",
        "sbuf_loopcnt",
        "server_check_delay",
        "server_check_query",
        "server_idle_timeout",
        "server_lifetime",
        "server_reset_query",
        "server_reset_query_always",
        "server_round_robin",
        "stats_period",
        "suspend_timeout",
        "tcp_defer_accept",
        "tcp_socket_buffer",
        "track_extra_parameters",
        "transaction_timeout",
        "verbose",
    }
)

_PARAMETER_NAME = re.compile(r"[a-z_][a-z0-9_]*(\.[a-z_][a-z0-9_]*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: which field, and what to do."""

    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.field}: {self.message}"


def check(spec: PgClusterSpec) -> list[Problem]:
    """Everything that is wrong with a spec that the schema has let through."""
    return [
        *_parameters(spec),
        *_hba(spec),
        *_pgbouncer(spec),
        *_quantities(spec),
        *_references(spec),
        *_network(spec),
    ]


def _parameters(spec: PgClusterSpec) -> list[Problem]:
    problems = []
    for name, value in sorted(spec.postgres.parameters.items()):
        field = f"spec.postgres.parameters.{name}"
        if not _PARAMETER_NAME.fullmatch(name):
            problems.append(
                Problem(field, "a parameter's name has lower-case letters, digits, underscores")
            )
        elif name in REFUSED_PARAMETERS:
            problems.append(Problem(field, f"{REFUSED_PARAMETERS[name]}: remove it"))
        elif (allowed := _ALLOWED_VALUES.get(name)) and value not in allowed:
            problems.append(Problem(field, f"must be one of {', '.join(sorted(allowed))}"))
        elif name in _AT_LEAST and not _reaches(value, least := _walsenders(spec.instances)):
            problems.append(
                Problem(
                    field, f"must be a number of at least {least} for {spec.instances} instances"
                )
            )
        elif any(character in value for character in "\r\n\0"):
            problems.append(Problem(field, "a value must not contain a line break"))
        else:
            found = holes.in_parameter(name, value)
            meant = spec.postgres.allow_insecure
            problems += [Problem(field, why) for why in holes.refusals(found, meant)]
    return problems


def _hba(spec: PgClusterSpec) -> list[Problem]:
    problems = []
    for index, text in enumerate(spec.postgres.hba):
        field = f"spec.postgres.hba[{index}]"
        try:
            line = hba.parse(text)
        except ValueError as error:
            problems.append(Problem(field, str(error)))
            continue
        if role := holes.without_effect(line):
            problems.append(
                Problem(
                    field,
                    f"a line for role {role} has no effect: the operator's own stand before it",
                )
            )
            continue
        found = holes.in_line(line)
        meant = spec.postgres.allow_insecure
        problems += [Problem(field, why) for why in holes.refusals(found, meant)]
    return problems


def _walsenders(instances: int) -> int:
    """Two a standby (streaming, and a base backup that streams beside it) and some to spare."""
    return 2 * instances + 4


def _reaches(value: str, least: int) -> bool:
    return value.isascii() and value.isdecimal() and int(value) >= least


def _pgbouncer(spec: PgClusterSpec) -> list[Problem]:
    problems = []
    for name, value in sorted(spec.pgbouncer.parameters.items()):
        field = f"spec.pgbouncer.parameters.{name}"
        if name not in ALLOWED_PGBOUNCER:
            problems.append(
                Problem(field, "is not among the settings that may be changed: remove it")
            )
        elif any(character in value for character in "\r\n\0"):
            problems.append(Problem(field, "a value must not contain a line break"))
        elif name == "query_wait_timeout" and not _bounded(value):
            problems.append(
                Problem(
                    field,
                    "must be a number of seconds above 0: it bounds how long clients wait while"
                    " there is no primary, and 0 would let them wait for ever",
                )
            )
    return problems


def _bounded(value: str) -> bool:
    try:
        return 0 < float(value) < float("inf")
    except ValueError:
        return False


def _quantities(spec: PgClusterSpec) -> list[Problem]:
    problems = []
    sizes = {
        "spec.storage.size": spec.storage.size,
        "spec.storage.walSize": spec.storage.wal_size,
        "spec.replication.maxSlotWalKeepSize": spec.replication.max_slot_wal_keep_size,
        "spec.failover.maximumLag": spec.failover.maximum_lag,
    }
    for field, text in sizes.items():
        if text is not None:
            try:
                parse_bytes(text)
            except ValueError as error:
                problems.append(Problem(field, str(error)))
    lease = spec.failover.lease
    for field, text in {
        "spec.pgbouncer.drainTimeout": spec.pgbouncer.drain_timeout,
        "spec.failover.lease.duration": lease.duration,
        "spec.failover.lease.renewInterval": lease.renew_interval,
        "spec.failover.lease.renewDeadline": lease.renew_deadline,
    }.items():
        try:
            parse_seconds(text)
        except ValueError as error:
            problems.append(Problem(field, str(error)))
    return problems


def _references(spec: PgClusterSpec) -> list[Problem]:
    known = {user.name for user in spec.users} | {database.owner for database in spec.databases}
    problems = []
    roles = {f"spec.users[{index}].name": user.name for index, user in enumerate(spec.users)} | {
        f"spec.databases[{index}].owner": database.owner
        for index, database in enumerate(spec.databases)
    }
    for field, role in roles.items():
        if role in names.RESERVED_ROLES or role.startswith("pg_") or role in ("public", "none"):
            problems.append(Problem(field, f"role {role} is reserved: choose another name"))
    for index, user in enumerate(spec.users):
        for group in user.member_of:
            if group not in known and not group.startswith("pg_"):
                problems.append(
                    Problem(
                        f"spec.users[{index}].memberOf",
                        f"role {group} is neither declared in spec.users nor PostgreSQL's own",
                    )
                )
    return problems


def _network(spec: PgClusterSpec) -> list[Problem]:
    """A selector that says nothing selects everything: what is misspelt must not open a door."""
    wanted = spec.network_policy
    problems = []
    for field, peers in (
        ("poolClients", wanted.pool_clients),
        ("directClients", wanted.direct_clients),
        ("metricsClients", wanted.metrics_clients),
    ):
        for index, peer in enumerate(peers):
            place = f"spec.networkPolicy.{field}[{index}]"
            selectors = {
                "namespaceSelector": peer.namespace_selector,
                "podSelector": peer.pod_selector,
            }
            for name, selector in selectors.items():
                unknown = sorted(set(selector or {}) - {"matchLabels", "matchExpressions"})
                if unknown:
                    problems.append(
                        Problem(
                            f"{place}.{name}",
                            f"has matchLabels and matchExpressions, and not {', '.join(unknown)}",
                        )
                    )
            if peer.ip_block is not None:
                problems += [
                    Problem(f"{place}.ipBlock", f"{cidr} is no range such as 10.0.0.0/8")
                    for cidr in (peer.ip_block.cidr, *peer.ip_block.except_)
                    if not hba.is_network(cidr)
                ]
    if wanted.egress and not wanted.restrict_egress:
        problems.append(
            Problem(
                "spec.networkPolicy.egress",
                "means nothing without restrictEgress: true; set that, or remove it",
            )
        )
    return problems
