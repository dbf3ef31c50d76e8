"""pgbouncer's files: the settings, and the databases section that repmgr's events rewrite. Pure.

The databases section is rendered by the promoted instance's agent and by the operator, from the
same facts by this same function, so that each finds nothing to change after the other. The pooler's
agent reads it back with `parse_section` to know what pgbouncer has to show afterwards.
Source: pgbouncer 1.24 documentation, config.md, and what 1.18 and 1.24.1 really accept.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig, TlsConfig

_HEADER = "; pgcluster "
# Where logins are looked up: `postgres` through the primary, its read-only twin through a standby.
AUTH_DATABASE = "postgres"
AUTH_DATABASE_READ_ONLY = AUTH_DATABASE + names.READ_ONLY_SUFFIX
# Serves every database that has no entry of its own, such as those made by SQL.
FALLBACK = "*"
# pgbouncer wants a host even where there is none to give. Nothing listens there, so connecting to
# it is refused at once; port 5432 of the pod would be pgbouncer itself.
NOWHERE = "127.0.0.1"
_PORT_NOWHERE = 1
# What pgbouncer starts with while no section was rendered.
EMPTY_SECTION = f"[databases]\n{FALLBACK} = host={NOWHERE} port={_PORT_NOWHERE}\n"

# The documentation's quoted names are a syntax error to the parser (1.18, 1.24.1), and one longer
# than 63 bytes ends the loading of the whole file. Such databases are reached by the fallback.
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,63}", re.ASCII)
# What SHOW CONFIG (1.24.1) calls not changeable, of what a spec may set.
_AT_START = frozenset({"disable_pqexec", "listen_backlog", "pkt_buf", "track_extra_parameters"})
_BARE_VALUE = re.compile(r"[A-Za-z0-9_.,:-]+", re.ASCII)
_PAIR = re.compile(r"(\w+)=(?:'((?:[^']|'')*)'|([^ ']+))(?: |$)", re.ASCII)


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
    epoch: int
    timeline: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One database of the section: `host` as pgbouncer shows it, several joined by commas."""

    name: str
    host: str
    port: int
    dbname: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class Section:
    """A databases section read back; without a header it names no primary."""

    header: Header | None
    entries: tuple[Entry, ...]

    @property
    def primary_host(self) -> str | None:
        """Address of the primary that it names."""
        if self.header is None:
            return None
        return next((entry.host for entry in self.entries if not entry.read_only), None)

    @property
    def primary_port(self) -> int:
        """Port of the primary that it names."""
        ports = (entry.port for entry in self.entries if not entry.read_only)
        return next(ports, names.PORT_POSTGRES)

    @property
    def standbys(self) -> tuple[tuple[str, int], ...]:
        """Addresses and ports of the standbys that it names."""
        found = {
            (host, entry.port)
            for entry in self.entries
            if entry.read_only and entry.host != NOWHERE
            for host in entry.host.split(",")
        }
        return tuple(sorted(found))

    def entry(self, database: str) -> Entry | None:
        """What serves a database: its own entry, else the fallback."""
        own = {entry.name: entry for entry in self.entries}
        return own.get(database) or own.get(FALLBACK)


def databases_ini(config: ClusterConfig, target: PoolTarget | None) -> str:
    """The `[databases]` section; without a target it names no server, and the pools stay paused.

    No database disappears from it while it is declared, because pgbouncer would disconnect its
    clients: only hosts change. The read-only entries never contain the primary.
    """
    primary = target.primary_host if target else NOWHERE
    standbys = _standbys(target)
    lines = []
    if target:
        document = {"primary": target.primary, "epoch": target.epoch, "timeline": target.timeline}
        lines.append(_HEADER + json.dumps(document))
    lines.append("[databases]")
    declared = {AUTH_DATABASE, *(database.name for database in config.databases)}
    databases = sorted(filter(_may_have_entry, declared))
    lines += [_entry(database, host=primary) for database in databases]
    if config.read_only_pool:
        for database in databases:
            read_only = database + names.READ_ONLY_SUFFIX
            if _may_have_entry(read_only) and read_only not in declared:
                lines.append(
                    _entry(
                        read_only,
                        host=standbys,
                        dbname=database,
                        auth_dbname=AUTH_DATABASE_READ_ONLY,
                    )
                )
    lines.append(_entry(FALLBACK, host=primary))
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
            epoch=int(document["epoch"]),
            timeline=int(document["timeline"]),
        )
    except (ValueError, KeyError, TypeError):
        return None


def parse_section(text: str) -> Section:
    """Read a rendered section back; ValueError for what pgbouncer would not load or we not write.

    It is stricter than pgbouncer: a file that it refuses is never put before pgbouncer.
    """
    entries = []
    lines = [line for line in text.split("\n") if line and not line.startswith(";")]
    if not lines or lines[0] != "[databases]":
        raise ValueError("the databases section does not start with [databases]")
    for line in lines[1:]:
        name, equals, rest = line.partition(" = ")
        if not equals or not (name == FALLBACK or _NAME.fullmatch(name)):
            raise ValueError(f"not an entry of a database: {line!r}")
        entries.append(_parse_entry(name, rest))
    if not text.endswith("\n") or not any(entry.name == FALLBACK for entry in entries):
        # It is written last, so a file that was cut off lacks it.
        raise ValueError("the databases section is incomplete: it has no fallback entry")
    return Section(parse_header(text), tuple(entries))


def content_hash(text: str) -> str:
    """A short name for a file's content."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def encryption(config: TlsConfig) -> dict[str, str]:
    """The settings of TLS.

    pgbouncer compares the name in a certificate with the host of the databases section, which is an
    address: names would need a DNS that notices a failover. But no certificate could be renewed
    within a failover for a pod's new address. So it verifies who has signed: that authority signs
    for nobody but the instances of this cluster. While one of them has no certificate yet, it
    encrypts where it can.
    """
    made = {
        "client_tls_sslmode": config.clients,
        "server_tls_ca_file": names.PGBOUNCER_SERVER_CA,
        "server_tls_protocols": "tlsv1.3",
        "server_tls_sslmode": "verify-ca" if config.enforced else "prefer",
    }
    if config.clients != "disable":
        older = "tlsv1.2," if config.min_version == "1.2" else ""
        made |= {
            # Clients are asked for no certificate; pgbouncer reads a file of authorities all the
            # same, by default the system's, which our image has not.
            "client_tls_ca_file": names.PGBOUNCER_SERVER_CA,
            "client_tls_cert_file": names.PGBOUNCER_PEM,
            "client_tls_key_file": names.PGBOUNCER_PEM,
            "client_tls_protocols": f"{older}tlsv1.3",
        }
    return made


def pgbouncer_ini(
    parameters: Mapping[str, str],
    *,
    pool_mode: str = "transaction",
    tls: TlsConfig | None = None,
) -> str:
    """`pgbouncer.ini`: our defaults, the user's (already checked), then what the operator owns.

    Without `tls` for an agent of a version without. ValueError for a parameter that would break
    the file.
    """
    defaults = {
        "default_pool_size": "25",
        # Drivers send it and it changes only how floats look. `options` is not in the list: what
        # a client asks for in it (a search_path, a timeout) would be dropped without a word.
        "ignore_startup_parameters": "extra_float_digits",
        "log_connections": "0",
        "log_disconnections": "0",
        "max_client_conn": "1000",
        "max_prepared_statements": "200",
        # Bounds the wait of clients while there is no primary.
        "query_wait_timeout": "120",
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
        # A server that was repointed is closed at the end of its transaction, in session mode too.
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
    settings = {**defaults, **parameters, **owned, **(encryption(tls) if tls else {})}
    lines = [f"{_setting(key)} = {_one_line(value)}" for key, value in sorted(settings.items())]
    return "\n".join(["[pgbouncer]", *lines, "", f"%include {names.PGBOUNCER_DATABASES}"]) + "\n"


def restart_settings(parameters: Mapping[str, str]) -> str | None:
    """The hash of those settings that pgbouncer reads only when it starts; None without any."""
    chosen = {key: value for key, value in parameters.items() if key in _AT_START}
    return content_hash(json.dumps(chosen, sort_keys=True)) if chosen else None


def server_tls(text: str | None) -> dict[str, str]:
    """How a pgbouncer with these settings connects to its servers, in libpq's words."""
    settings = settings_of(text or "")
    ca = settings.get("server_tls_ca_file")
    if ca is None:
        return {}
    return {"sslmode": settings.get("server_tls_sslmode", "prefer"), "sslrootcert": ca}


def settings_of(text: str) -> dict[str, str]:
    """The settings in a rendered `pgbouncer.ini`, as they are written there."""
    pairs = (line.partition(" = ") for line in text.split("\n"))
    return {key: value for key, equals, value in pairs if equals and not key.startswith(";")}


def userlist(users: Mapping[str, str]) -> str:
    """`userlist.txt`: role → clear text or verifier, for the roles that auth_query cannot serve."""

    def quoted(value: str) -> str:
        return '"' + _one_line(value).replace('"', '""') + '"'

    return "".join(f"{quoted(user)} {quoted(secret)}\n" for user, secret in sorted(users.items()))


def _standbys(target: PoolTarget | None) -> str:
    hosts = sorted(set(target.standby_hosts) - {target.primary_host}) if target else []
    return ",".join(hosts) or NOWHERE


def _may_have_entry(database: str) -> bool:
    return bool(_NAME.fullmatch(database)) and database != names.PGBOUNCER_ADMIN


def _entry(database: str, *, host: str, **more: str) -> str:
    port = _PORT_NOWHERE if host == NOWHERE else names.PORT_POSTGRES
    values = {"host": host, "port": str(port), **more}
    pairs = " ".join(f"{key}={_quoted_if_needed(value)}" for key, value in values.items())
    return f"{database} = {pairs}"


def _parse_entry(name: str, rest: str) -> Entry:
    pairs: dict[str, str] = {}
    at = 0
    while at < len(rest):
        pair = _PAIR.match(rest, at)
        if pair is None:
            raise ValueError(f"not a connection string: {rest!r}")
        pairs[pair[1]] = pair[3] if pair[2] is None else pair[2].replace("''", "'")
        at = pair.end()
    if "host" not in pairs:
        raise ValueError(f"database {name} has no host")
    return Entry(
        name=name,
        host=pairs["host"],
        port=int(pairs.get("port", names.PORT_POSTGRES)),
        dbname=pairs.get("dbname", name),
        read_only="dbname" in pairs and name == pairs["dbname"] + names.READ_ONLY_SUFFIX,
    )


def _quoted_if_needed(value: str) -> str:
    if _BARE_VALUE.fullmatch(value):
        return value
    return "'" + _one_line(value).replace("'", "''") + "'"


def _setting(key: str) -> str:
    if not re.fullmatch(r"[a-z][a-z0-9_]*", key, re.ASCII):
        raise ValueError(f"not a parameter of pgbouncer: {key!r}")
    return key


def _one_line(value: str) -> str:
    """A line break would start an entry of its own."""
    if any(character in value for character in "\n\r\0"):
        raise ValueError("a name or value for pgbouncer must not contain a line break")
    return value
