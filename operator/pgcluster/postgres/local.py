"""The instance's own PostgreSQL, asked over the local socket as superuser `postgres`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from pgcluster.api import names
from pgcluster.api.errors import RetryError
from pgcluster.api.wal import Lsn, WalPoint

# What a healthy server answers in far less; a frozen one must not hold up the agent's loop.
_DEADLINE_S = 3.0

# One round trip for everything that the agent looks at each second.
_OBSERVE: LiteralString = """
SELECT r AS in_recovery,
       CASE WHEN r THEN greatest(w.received_tli, t.timeline_id, c.min_recovery_end_timeline)
            -- the control file names the new timeline only after the first checkpoint on it
            ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int
       END AS timeline,
       -- what is received starts over at a segment's beginning with each new timeline
       CASE WHEN r THEN greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
            ELSE pg_current_wal_flush_lsn() END::text AS lsn,
       CASE WHEN r THEN pg_last_wal_replay_lsn() END::text AS replayed,
       r AND pg_last_wal_receive_lsn() IS NOT NULL AS received,
       current_setting('synchronous_standby_names') AS synchronous,
       (SELECT array_agg(application_name ORDER BY application_name) FROM pg_stat_replication
        WHERE state = 'streaming') AS standbys,
       w.status AS receiver, w.sender_host AS upstream_host, w.latest_end_lsn::text AS latest_end,
       (SELECT array_agg(name ORDER BY name) FROM pg_settings WHERE pending_restart) AS pending,
       current_setting('server_version') AS version, pg_conf_load_time()::text AS loaded,
       (SELECT json_object_agg(name, setting::int) FROM pg_settings
        WHERE name IN ('max_connections', 'max_locks_per_transaction', 'max_prepared_transactions',
                       'max_wal_senders', 'max_worker_processes')) AS demanding,
       s.system_identifier::text AS system_identifier
FROM pg_is_in_recovery() AS r, pg_control_checkpoint() AS t, pg_control_recovery() AS c,
     pg_control_system() AS s
     LEFT JOIN pg_stat_wal_receiver AS w ON true
"""


# Settings under which no statement of a session gets into the server's log, whatever the spec's
# parameters say: for statements with password verifiers, which are worth guessing at.
QUIET: Mapping[str, str] = {
    "log_min_duration_sample": "-1",
    "log_min_duration_statement": "-1",
    "log_min_error_statement": "panic",
    "log_statement": "none",
    "log_transaction_sample_rate": "0",
}


@dataclass(frozen=True, slots=True)
class Observation:
    """The local server at one moment.

    `point` is what a primary has flushed, or what a standby has received (replayed, where it has
    received nothing since it started); a standby that is not connected may name an older timeline
    than it has reached, never a newer one. `received` is whether it has received any WAL since it
    started. `lag_bytes` is between what the upstream last announced and what is replayed here.
    `standbys` are the instances that stream from here, `synchronous` is what commits wait for.
    `loaded` is when the configuration was last read, `demanding` what it says of the parameters
    that standbys must hold as high.
    """

    in_recovery: bool
    system_identifier: str
    point: WalPoint
    streaming: bool
    upstream_host: str | None
    lag_bytes: int | None
    pending_restart: tuple[str, ...]
    version: str
    received: bool = False
    synchronous: str = ""
    standbys: tuple[str, ...] = ()
    loaded: str = ""
    demanding: Mapping[str, int] = field(default_factory=dict)


def socket_conninfo(database: str) -> str:
    """How the agent itself connects: peer authentication, no password.

    It may write also while a full volume makes others read-only, and does not wait for standbys
    that it may have yet to let in.
    """
    return (
        f"host={names.PG_SOCKET_DIR} port={names.PORT_POSTGRES} user=postgres dbname={database} "
        "connect_timeout=2 application_name=pgcluster-node "
        "options='-c synchronous_commit=local -c default_transaction_read_only=off'"
    )


class LocalPostgres:
    """A connection to the local server that is opened when needed and dropped on any doubt."""

    def __init__(self, database: str = "postgres", *, deadline_s: float = _DEADLINE_S) -> None:
        self._database = database
        self._deadline_s = deadline_s
        self._connection: psycopg.AsyncConnection[dict[str, Any]] | None = None
        self._lock = asyncio.Lock()

    async def observe(self) -> Observation:
        """Look at the server; RetryError where it does not answer in time."""
        rows = await self.query(_OBSERVE)
        return _observation(rows[0])

    async def query(self, statement: LiteralString, *values: object) -> list[dict[str, Any]]:
        """Run one statement; RetryError where its answer cannot be had."""
        return await self._run(statement, *values)

    async def _run(
        self, statement: LiteralString | sql.Composed, *values: object
    ) -> list[dict[str, Any]]:
        async with self._lock:
            try:
                async with asyncio.timeout(self._deadline_s):
                    connection = await self._connected()
                    cursor = await connection.execute(statement, values or None)
                    return await cursor.fetchall() if cursor.description else []
            except (psycopg.Error, OSError, TimeoutError) as error:
                await self._drop()
                raise RetryError(f"postgres does not answer: {_sentence(error)}") from error
            except BaseException:
                await self._drop()
                raise

    async def alter_system(self, parameter: str, value: str) -> None:
        """Write a parameter into postgresql.auto.conf; it takes a reload to have its effect."""
        await self._run(
            sql.SQL("ALTER SYSTEM SET {} = {}").format(
                sql.Identifier(parameter), sql.Literal(value)
            )
        )

    async def close(self) -> None:
        """Drop the connection, for instance because the server is about to stop."""
        await self._drop()

    async def _connected(self) -> psycopg.AsyncConnection[dict[str, Any]]:
        if self._connection is None or self._connection.closed:
            self._connection = await psycopg.AsyncConnection.connect(
                socket_conninfo(self._database), autocommit=True, row_factory=dict_row
            )
        return self._connection

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


def _observation(row: dict[str, Any]) -> Observation:
    in_recovery = bool(row["in_recovery"])
    lag = None
    if in_recovery and row["latest_end"] and row["replayed"]:
        lag = max(0, Lsn.parse(row["latest_end"]) - Lsn.parse(row["replayed"]))
    return Observation(
        in_recovery=in_recovery,
        system_identifier=row["system_identifier"],
        point=WalPoint(int(row["timeline"]), Lsn.parse(row["lsn"] or "0/0")),
        streaming=row["receiver"] == "streaming",
        upstream_host=row["upstream_host"],
        lag_bytes=lag,
        pending_restart=tuple(row["pending"] or ()),
        version=str(row["version"]).split()[0],
        received=bool(row["received"]),
        synchronous=row["synchronous"] or "",
        standbys=tuple(row["standbys"] or ()),
        loaded=row["loaded"],
        demanding=row["demanding"] or {},
    )


def _sentence(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


# Until its first checkpoint on a new timeline a primary's control file names the old one, and
# pg_rewind, which reads that, would find nothing to do.
_SERVES: LiteralString = "SELECT NOT pg_is_in_recovery()"
_SERVES_AND_IS_SETTLED: LiteralString = """
SELECT CASE WHEN pg_is_in_recovery() THEN false
       ELSE left(pg_walfile_name(pg_current_wal_lsn()), 8)
            = lpad(upper(to_hex((pg_control_checkpoint()).timeline_id)), 8, '0')
       END
"""


async def serves_as_primary(
    conninfo: str, *, settled: bool = False, deadline_s: float = 2.5
) -> bool:
    """Whether another instance answers and is not in recovery; with `settled`, whether its control
    file knows of its timeline too."""
    try:
        async with (
            asyncio.timeout(deadline_s),
            await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection,
        ):
            cursor = await connection.execute(_SERVES_AND_IS_SETTLED if settled else _SERVES)
            row = await cursor.fetchone()
            return bool(row and row[0])
    except (psycopg.Error, OSError, TimeoutError):
        return False


async def size_bytes(conninfo: str, *, deadline_s: float = 30.0) -> int | None:
    """How large another instance's databases are; None where it cannot be asked."""
    try:
        async with (
            asyncio.timeout(deadline_s),
            await psycopg.AsyncConnection.connect(conninfo, autocommit=True) as connection,
        ):
            cursor = await connection.execute(
                "SELECT sum(pg_database_size(oid))::bigint FROM pg_database"
            )
            row = await cursor.fetchone()
            return int(row[0]) if row and row[0] is not None else None
    except (psycopg.Error, OSError, TimeoutError):
        return None
