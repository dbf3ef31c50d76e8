"""pgbouncer's files: the settings, and the databases section that repmgr's events rewrite. Pure.

The databases section is rendered by the promoted instance's agent and by the operator, from the
same facts by this same function, so that each finds nothing to change after the other.
Source: pgbouncer 1.24 documentation, config.md.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig

_HEADER = "; pgcluster "
# Where logins are looked up: `postgres` through the primary, its read-only twin through a standby.
AUTH_DATABASE = "postgres"
# pgbouncer wants a host even where there is none to give; connecting to it fails at once.
NOWHERE = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class PoolTarget:
    """Where the pools are to point: addresses, and which primary of which epoch they are of."""

    primary: str
    primary_host: str
    standby_hosts: tuple[str, ...]
    epoch: int
    timeline: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a databases section says of itself in its first line."""

    primary: str
    primary_host: str
    standby_hosts: tuple[str, ...]
    epoch: int
    timeline: int


def databases_ini(config: ClusterConfig, target: PoolTarget | None) -> str:
    """The `[databases]` section; without a target it names no server, and the pools stay paused.

    No database ever disappears from it while it is declared: pgbouncer would disconnect its
    clients. Only hosts change.
    """
    primary = target.primary_host if target else NOWHERE
    standbys = ",".join(target.standby_hosts) if target and target.standby_hosts else NOWHERE
    lines = []
    if target:
        document = {
            "primary": target.primary,
            "primaryHost": target.primary_host,
            "standbyHosts": list(target.standby_hosts),
            "epoch": target.epoch,
            "timeline": target.timeline,
        }
        lines.append(_HEADER + json.dumps(document))
    lines.append("[databases]")
    databases = sorted({AUTH_DATABASE, *(database.name for database in config.databases)})
    for database in databases:
        lines.append(_entry(database, {"host": primary, "dbname": database}))
    if config.read_only_pool:
        for database in databases:
            lines.append(
                _entry(
                    database + names.READ_ONLY_SUFFIX,
                    {
                        "host": standbys,
                        "dbname": database,
                        "auth_dbname": AUTH_DATABASE + names.READ_ONLY_SUFFIX,
                    },
                )
            )
    # Databases that were made by SQL, on the primary.
    lines.append(f"* = host={primary} port={names.PORT_POSTGRES}")
    return "\n".join(lines) + "\n"


def parse_header(text: str) -> Header | None:
    """What a rendered section says of itself; None for one without a target, or not ours."""
    first, _, _ = text.partition("\n")
    if not first.startswith(_HEADER):
        return None
    try:
        document = json.loads(first.removeprefix(_HEADER))
        return Header(
            primary=str(document["primary"]),
            primary_host=str(document["primaryHost"]),
            standby_hosts=tuple(map(str, document["standbyHosts"])),
            epoch=int(document["epoch"]),
            timeline=int(document["timeline"]),
        )
    except (ValueError, KeyError, TypeError):
        return None


def content_hash(text: str) -> str:
    """A short name for a file's content."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def pgbouncer_ini(parameters: Mapping[str, str], *, pool_mode: str = "transaction") -> str:
    """`pgbouncer.ini`: our defaults, the user's (already checked), then what the operator owns."""
    defaults = {
        "default_pool_size": "25",
        "ignore_startup_parameters": "extra_float_digits,options",
        "log_connections": "0",
        "log_disconnections": "0",
        "max_client_conn": "1000",
        "max_prepared_statements": "200",
        "query_wait_timeout": "120",
        "server_idle_timeout": "600",
        "stats_period": "60",
    }
    owned = {
        "admin_users": names.PGBOUNCER_ADMIN,
        "auth_dbname": AUTH_DATABASE,
        "auth_file": names.PGBOUNCER_USERLIST,
        "auth_query": "SELECT usename, passwd FROM pgcluster.user_lookup($1)",
        "auth_type": "scram-sha-256",
        "auth_user": names.ROLE_POOLER,
        "dns_max_ttl": "1",
        "listen_addr": "*",
        "listen_port": str(names.PORT_PGBOUNCER),
        "pool_mode": pool_mode,
        "server_connect_timeout": "2",
        # A server that answered a moment ago is trusted; a repointed one is closed at once.
        "server_fast_close": "1",
        # The default of 15 s would be most of an outage: a failed login is cached for that long.
        "server_login_retry": "0.2",
        "stats_users": names.PGBOUNCER_STATS,
        "tcp_keepalive": "1",
        "tcp_keepcnt": "3",
        "tcp_keepidle": "2",
        "tcp_keepintvl": "1",
        # Without it, clients whose server vanished without a word would hang for minutes.
        "tcp_user_timeout": "3000",
        "unix_socket_dir": names.PGBOUNCER_DIR,
    }
    settings = {**defaults, **parameters, **owned}
    lines = [
        "[pgbouncer]",
        *(f"{key} = {_value(value)}" for key, value in sorted(settings.items())),
    ]
    return "\n".join([*lines, "", f"%include {names.PGBOUNCER_DATABASES}"]) + "\n"


def userlist(users: Mapping[str, str]) -> str:
    """`userlist.txt`: role → clear text or verifier, for the roles that auth_query cannot serve."""
    return "".join(f"{_quoted(user)} {_quoted(secret)}\n" for user, secret in sorted(users.items()))


def _entry(database: str, settings: Mapping[str, str]) -> str:
    """One database. Names in double quotes, values in single ones, the quotes inside doubled."""
    values = {**settings, "port": str(names.PORT_POSTGRES)}
    rendered = " ".join(
        f"{key}='{_value(value).replace(chr(39), chr(39) * 2)}'"
        if key == "dbname"
        else f"{key}={value}"
        for key, value in sorted(values.items())
    )
    return f"{_quoted(database)} = {rendered}"


def _quoted(name: str) -> str:
    return '"' + _value(name).replace('"', '""') + '"'


def _value(value: str) -> str:
    """A line break would start an entry of its own."""
    if any(character in value for character in "\n\r\0"):
        raise ValueError("a name or value for pgbouncer must not contain a line break")
    return value
