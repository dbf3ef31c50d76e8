"""repmgr.conf and connection strings of one instance. Pure and deterministic.

Facts behind each setting: repmgr 5.5 `repmgr.conf.sample` and configdata.c.
"""

from __future__ import annotations

from collections.abc import Mapping

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig

# Without these, a cut network blocks repmgrd for a quarter of an hour in a plain PQexec.
_TCP = {
    "connect_timeout": "2",
    "keepalives": "1",
    "keepalives_idle": "2",
    "keepalives_interval": "1",
    "keepalives_count": "3",
    "tcp_user_timeout": "3000",
}

# An instance shows that it is one, and asks the same of whom it connects to, by name.
ENCRYPTED = {
    "sslmode": "verify-full",
    "sslrootcert": names.CA_PEM,
    "sslcert": names.CLIENT_PEM,
    "sslkey": names.CLIENT_PEM,
}

# The gate blocks for less than this, and a loser of the election waits this long for its winner.
PRIMARY_NOTIFICATION_TIMEOUT_S = 60


def bindir(postgres_major: int) -> str:
    """Where Debian keeps the programs of PostgreSQL and repmgr of one major version."""
    return f"/usr/lib/postgresql/{postgres_major}/bin"


def conninfo(host: str, config: ClusterConfig, *, address: str | None = None) -> str:
    """How everybody reaches the instance `host` as repmgr; at `address`, where that is known.

    Never a password: repmgr stores the string in its table and prints it. The password file stays
    in it for the moment in which a server may not ask for certificates yet.
    """
    parts = {
        "host": host,
        **({"hostaddr": address} if address else {}),
        "port": str(names.PORT_POSTGRES),
        "user": names.ROLE_REPMGR,
        "dbname": names.DB_REPMGR,
        "passfile": names.PASSFILE,
        **(ENCRYPTED if config.tls_enforced else {}),
        **_TCP,
    }
    return " ".join(f"{key}={value}" for key, value in parts.items())


def passfile(password: str) -> str:
    """libpq's password file for role repmgr on every instance."""
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    return f"*:*:*:{names.ROLE_REPMGR}:{escaped}\n"


def hosts_file(addresses: Mapping[str, tuple[str, ...]]) -> str:
    """A hosts file (address → names), so that an election needs no DNS."""
    lines = [f"{address} {' '.join(hosts)}" for address, hosts in sorted(addresses.items())]
    return "".join(line + "\n" for line in lines)


def repmgr_conf(config: ClusterConfig, *, instance: str, data_directory: str = names.PGDATA) -> str:
    """`repmgr.conf` of an instance; `data_directory` differs while a clone is made aside."""
    bin_ = bindir(config.postgres_major)
    repmgr = f"{bin_}/repmgr -f {names.REPMGR_CONF}"
    client = names.AGENT_CLIENT
    settings = {
        "node_id": str(names.node_id(instance)),
        "node_name": instance,
        "conninfo": conninfo(names.pod_host(instance, config.name, config.namespace), config),
        "data_directory": data_directory,
        "passfile": names.PASSFILE,
        "pg_bindir": bin_,
        "repmgr_bindir": bin_,
        "use_replication_slots": "yes",
        "replication_user": names.ROLE_REPMGR,
        "log_level": "INFO",
        "monitoring_history": "no",
        # repmgrd: fast, since a false alarm only waits at the gate
        "failover": "automatic" if config.failover.automatic else "manual",
        "monitor_interval_secs": "1",
        "reconnect_attempts": "1",
        "reconnect_interval": "0",
        "election_rerun_interval": "1",
        "primary_notification_timeout": str(PRIMARY_NOTIFICATION_TIMEOUT_S),
        "degraded_monitoring_timeout": "-1",
        "repmgrd_standby_startup_timeout": "60",
        "promote_command": f"{repmgr} standby promote",
        "follow_command": f"{repmgr} standby follow --upstream-node-id=%n",
        # The gate. No `exec` in front: a signal would then count as consent.
        "failover_validation_command": f"{client} gate",
        "service_promote_command": f"{client} promote",
        # %d, the event's details, is left out: repmgr quotes it for nothing but double quotes,
        # so `$(…)` in a server's message would reach the shell.
        "event_notification_command": f"{client} event %n %e %s",
        "service_start_command": f"{client} service start",
        "service_stop_command": f"{client} service stop",
        "service_restart_command": f"{client} service restart",
        "service_reload_command": f"{client} service reload",
        # `ssh` is the agent's own program: node/ssh.py.
        "ssh_options": "-q -o ConnectTimeout=5",
    }
    return "".join(f"{key}='{_escape(value)}'\n" for key, value in settings.items())


def _escape(value: str) -> str:
    return value.replace("'", "''")
