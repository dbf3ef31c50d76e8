"""PostgreSQL's configuration files of one instance. Pure and deterministic.

All files live outside the data directory, so that pg_rewind and clones never carry one instance's
configuration to another. What repmgr itself writes (primary_conninfo, primary_slot_name) stays in
the data directory's postgresql.auto.conf.
"""

from __future__ import annotations

from collections.abc import Mapping

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig

# What an instance's own processes and repmgr need beside the standbys' two walsenders each
# (streaming, and a base backup that streams WAL beside it).
_SPARE_WALSENDERS = 4
_MIB = 1 << 20


def sized() -> dict[str, str]:
    """The parameters that follow from how many instances there can ever be.

    Not from how many there are: a change of these needs a restart, and so scaling would.
    Source: repmgr documentation, "Configuration of PostgreSQL".
    """
    senders = 2 * names.MAX_INSTANCES + _SPARE_WALSENDERS
    return {"max_wal_senders": str(senders), "max_replication_slots": str(senders)}


# What a standby must hold at least as high as the primary under whose WAL it runs, and what
# PostgreSQL has them at by itself.
# Source: PostgreSQL, "Hot Standby", "Administrator's Overview".
_AT_LEAST_AS_HIGH = {
    "max_connections": 100,
    "max_locks_per_transaction": 64,
    "max_prepared_transactions": 0,
    "max_wal_senders": 10,
    "max_worker_processes": 8,
}


def raised(values: Mapping[str, str], floor: Mapping[str, int]) -> dict[str, str]:
    """`values` with none of those that WAL demands below `floor`.

    A value that is no number is left for PostgreSQL to refuse.
    """
    made = dict(values)
    for name, least in floor.items():
        value = _number(made.get(name), _AT_LEAST_AS_HIGH.get(name))
        if value is not None and value < least:
            made[name] = str(least)
    return made


def lowering(values: Mapping[str, str], running: Mapping[str, int]) -> tuple[str, ...]:
    """Which of the parameters that WAL demands are higher in the `running` server."""
    found = []
    for name, own in _AT_LEAST_AS_HIGH.items():
        wanted, now = _number(values.get(name), own), running.get(name)
        if wanted is not None and now is not None and wanted < now:
            found.append(name)
    return tuple(found)


def demanding() -> tuple[str, ...]:
    """The parameters that standbys must hold at least as high as their primary."""
    return tuple(_AT_LEAST_AS_HIGH)


def _number(text: str | None, default: int | None) -> int | None:
    if text is None:
        return default
    text = text.strip()
    return int(text) if text.isascii() and text.isdecimal() else None


def wal_sized(config: ClusterConfig) -> dict[str, str]:
    """The parameters that follow from the size of the volume that WAL lives on.

    PostgreSQL's own defaults would fill a small volume without anybody's fault: checkpoints let
    WAL grow to `max_wal_size`, and what is kept for standbys comes on top.
    """
    room = config.wal_room_bytes
    largest = 1024 if room is None else min(1024, max(64, room // 4 // _MIB))
    kept = 512 if room is None else min(512, max(16, room // 10 // _MIB))
    made = {
        "max_wal_size": f"{largest}MB",
        "min_wal_size": f"{min(80, largest)}MB",
        "wal_keep_size": f"{kept}MB",
    }
    limit = slot_limit_bytes(config)
    if limit is not None:
        made["max_slot_wal_keep_size"] = f"{max(1, limit // _MIB)}MB"
    return made


def slot_limit_bytes(config: ClusterConfig) -> int | None:
    """How much WAL a slot may hold back; None where that is unlimited.

    Without a limit an absent standby fills the primary's volume, which stops everybody; with one
    it has to be cloned anew, which it does by itself. So there always is one: what the user says,
    else half of a volume that holds nothing but WAL, or a quarter of one that holds the data too.
    """
    if config.max_slot_wal_keep_size_bytes is not None:
        return config.max_slot_wal_keep_size_bytes
    if config.wal_room_bytes is None:
        return None
    return config.wal_room_bytes // (2 if config.wal_volume else 4)


_LIBRARIES = ("repmgr", "pgcluster_fence")


def preload_libraries(config: ClusterConfig) -> str:
    """`repmgr`, which repmgrd needs, the fence, and then the user's libraries."""
    wanted = [
        name.strip() for name in config.parameters.get("shared_preload_libraries", "").split(",")
    ]
    return ",".join([*_LIBRARIES, *(name for name in wanted if name and name not in _LIBRARIES)])


def parameters(
    config: ClusterConfig,
    *,
    instance: str,
    synchronous: str = "",
    floor: Mapping[str, int] | None = None,
) -> dict[str, str]:
    """Every parameter of an instance: our defaults, the user's, then what the operator owns.

    `synchronous` is what its commits are to wait for when it is the primary; `floor` is what the
    WAL that it follows as a standby demands.
    """
    defaults = {
        **sized(),
        **wal_sized(config),
        "checkpoint_completion_target": "0.9",
        "log_checkpoints": "on",
        "log_line_prefix": "%m [%p] %q%u@%d ",
        "log_lock_waits": "on",
        "max_connections": "100",
        "password_encryption": "scram-sha-256",
        "tcp_keepalives_count": "3",
        "tcp_keepalives_idle": "5",
        "tcp_keepalives_interval": "2",
        "wal_level": "replica",
        # With the default of 5 s a standby that lost its primary idles before it looks again.
        "wal_retrieve_retry_interval": "500ms",
        # A peer that vanished without a word frees its walsender or walreceiver this soon.
        "wal_receiver_timeout": "5s",
        "wal_sender_timeout": "5s",
    }
    owned = {
        # archive_mode needs a restart, archive_command only a reload: backups can be switched on
        # later without one.
        "archive_command": "/bin/true",
        "archive_mode": "on",
        "cluster_name": instance,
        "full_page_writes": "on",
        "hba_file": names.PG_HBA_CONF,
        "hot_standby": "on",
        # Written by the agent while a volume is full. Read after the user's parameters of lower
        # rank in the alphabet, of which default_transaction_read_only is one.
        "include_if_exists": names.SPACE_CONF,
        "ident_file": names.PG_IDENT_CONF,
        "listen_addresses": "*",
        "log_destination": "stderr",
        "logging_collector": "off",
        "pgcluster.lease": names.LEASE_FILE,
        "port": str(names.PORT_POSTGRES),
        "restart_after_crash": "on",
        "shared_preload_libraries": preload_libraries(config),
        "synchronous_standby_names": synchronous,
        "unix_socket_directories": names.PG_SOCKET_DIR,
        # pg_rewind needs it where data checksums are off.
        "wal_log_hints": "on",
    }
    return {**raised({**defaults, **config.parameters}, floor or {}), **owned, **encryption(config)}


def encryption(config: ClusterConfig) -> dict[str, str]:
    """The parameters of TLS; each of them takes a reload only."""
    if config.tls is None:
        return {}
    return {
        "ssl": "on",
        "ssl_ca_file": names.CA_PEM,
        "ssl_cert_file": names.SERVER_PEM,
        "ssl_key_file": names.SERVER_PEM,
        "ssl_min_protocol_version": f"TLSv{config.tls.min_version}",
    }


def quote(value: str) -> str:
    """A value as postgresql.conf wants it: in single quotes, quotes and backslashes doubled.

    Source: PostgreSQL, "Setting Parameters": inside quotes `''` and `\\\\` stand for themselves.
    A line break would end the entry, so it is refused.
    """
    if "\n" in value or "\r" in value or "\0" in value:
        raise ValueError("a parameter's value must not contain a line break")
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


def postgresql_conf(
    config: ClusterConfig,
    *,
    instance: str,
    synchronous: str = "",
    floor: Mapping[str, int] | None = None,
) -> str:
    """`postgresql.conf` of an instance; see `parameters`."""
    values = parameters(config, instance=instance, synchronous=synchronous, floor=floor)
    lines = [f"{name} = {quote(value)}" for name, value in sorted(values.items())]
    return "\n".join(lines) + "\n"


def pg_hba_conf(config: ClusterConfig) -> str:
    """`pg_hba.conf`: the agent by peer, the other instances by certificate, everybody else by SCRAM
    under TLS, and nobody by trust.

    The superuser `postgres` has no password and logs in over the local socket only, unless the spec
    says that more is meant (`hba_superuser`). The first line that fits decides, so the user's other
    lines cannot open what stands above them.
    """
    repmgr = names.ROLE_REPMGR
    network, instances = ("hostssl", "cert") if config.tls_enforced else ("host", "scram-sha-256")
    clients = "hostssl" if config.tls_required else "host"
    lines = [
        "local all postgres peer",
        f"local all {repmgr} scram-sha-256",
        f"local replication {repmgr} scram-sha-256",
        *config.hba_superuser,
        "host all postgres all reject",
        f"{network} {names.DB_REPMGR} {repmgr} all {instances}",
        f"{network} postgres {repmgr} all {instances}",
        f"{network} replication {repmgr} all {instances}",
        f"host all {repmgr} all reject",
        f"{network} postgres {names.ROLE_POOLER} all scram-sha-256",
        f"host all {names.ROLE_POOLER} all reject",
        *config.hba,
        f"{clients} all all all scram-sha-256",
    ]
    return "\n".join(lines) + "\n"
