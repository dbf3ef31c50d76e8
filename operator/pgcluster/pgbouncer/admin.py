"""pgbouncer's admin console: every call has a deadline, and PAUSE never holds anything up.

Over the Unix socket a process of pgbouncer's own user is let in as `pgbouncer` without a password;
the password is for where the users differ.
Source: pgbouncer documentation, "Admin console".
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from pgcluster.api import names
from pgcluster.pgbouncer.link import Link, LinkLost, Refused, Row
from pgcluster.pgbouncer.rows import Database, Server, Setting, Waiting

_CONSOLE = "pgbouncer"
_OPEN_S = 2.0
_QUERY_S = 2.0
# What SHOW POOLS calls servers that are connected and logged in.
_LOGGED_IN = ("sv_active", "sv_idle", "sv_used", "sv_tested")


class Admin:
    """The console of one pgbouncer. LinkLost: it does not answer. Refused: it said no."""

    def __init__(
        self,
        *,
        socket_dir: str,
        port: int,
        password: Callable[[], str | None] = lambda: None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self._parameters: dict[str, str | int] = {
            "host": socket_dir,
            "port": port,
            "user": names.PGBOUNCER_ADMIN,
            "dbname": _CONSOLE,
            "application_name": "pgcluster-pooler",
        }
        self._password = password
        self._socket = Path(socket_dir) / f".s.PGSQL.{port}"
        self._link: Link | None = None
        self._opening = asyncio.Lock()
        self._on_lost = on_lost

    @property
    def leaving(self) -> bool:
        """Whether pgbouncer was told to end: it still answers here, but takes no connection.

        Since 1.23 it waits for its clients then, of which this connection is one.
        """
        return self._link is not None and self._link.is_open and not self._socket.exists()

    async def version(self) -> str:
        """Such as `1.24.1`."""
        rows = await self._query("SHOW VERSION")
        return (rows[0].get("version") or "").removeprefix("PgBouncer ") if rows else ""

    async def databases(self) -> list[Database]:
        """SHOW DATABASES without the console."""
        return [
            Database(
                name=row["name"] or "",
                host=row["host"] or "",
                port=int(row["port"] or 0),
                dbname=row["database"] or "",
                paused=row["paused"] == "1",
            )
            for row in await self._query("SHOW DATABASES")
            if row["name"] != _CONSOLE
        ]

    async def servers(self) -> list[Server]:
        """SHOW SERVERS."""
        return [
            Server(
                database=row["database"] or "",
                address=row["addr"] or "",
                state=row["state"] or "",
                client=row["link"] or "",
            )
            for row in await self._query("SHOW SERVERS")
        ]

    async def clients(self) -> list[Row]:
        """SHOW CLIENTS without those of the console."""
        rows = await self._query("SHOW CLIENTS")
        return [row for row in rows if row["database"] != _CONSOLE]

    async def config(self) -> dict[str, Setting]:
        """SHOW CONFIG."""
        return {
            row["key"] or "": Setting(row["value"] or "", row["changeable"] == "yes")
            for row in await self._query("SHOW CONFIG")
        }

    async def totals(self) -> list[Row]:
        """SHOW STATS_TOTALS."""
        return await self._query("SHOW STATS_TOTALS")

    async def pools(self) -> list[Row]:
        """SHOW POOLS."""
        return await self._query("SHOW POOLS")

    async def waiting(self) -> list[Waiting]:
        """SHOW POOLS, as far as it says who waits for what."""
        return [
            Waiting(
                database=row["database"] or "",
                clients=int(row["cl_waiting"] or 0),
                servers=sum(int(row[column] or 0) for column in _LOGGED_IN),
            )
            for row in await self.pools()
        ]

    async def reconnect(self, database: str) -> None:
        """RECONNECT: no server connection is used again, nor what was known of the server."""
        await self._query(f"RECONNECT {_identifier(database)}")

    async def set(self, key: str, value: str) -> None:
        """SET: one setting, in force at once; Refused, and nothing has changed, where it is wrong.

        Lost with the process, and with the next RELOAD of a file that says otherwise.
        """
        await self._query(f"SET {key} = {_literal(value)}")

    async def reload(self) -> None:
        """RELOAD. Before 1.25 it says yes to a broken file too: look at what is in force."""
        await self._query("RELOAD")

    async def pause(self, database: str, *, wait_s: float) -> bool:
        """PAUSE; whether its servers were drained within `wait_s`.

        It is in force as soon as pgbouncer reads it, and stays so when the connection ends; only
        the answer waits for the transactions that run, and would for ever after a RESUME from
        elsewhere (pgbouncer issue 715). So it has a connection of its own that is dropped.
        """
        link = await self._connect()
        try:
            await link.query(f"PAUSE {_identifier(database)}", deadline_s=wait_s)
        except LinkLost:
            return False
        finally:
            link.close()
        return True

    async def resume(self, database: str) -> None:
        """RESUME; a database that was not paused is fine."""
        try:
            await self._query(f"RESUME {_identifier(database)}")
        except Refused as refusal:
            if "not paused" not in str(refusal):
                raise

    async def kill(self, database: str) -> None:
        """KILL: drop all clients and servers of a database, which stays paused after it."""
        await self._query(f"KILL {_identifier(database)}")

    async def kill_client(self, client_id: int) -> None:
        """KILL_CLIENT, of pgbouncer 1.24 and later: drop one client with its server."""
        await self._query(f"KILL_CLIENT {client_id}")

    async def shutdown(self) -> None:
        """SHUTDOWN WAIT_FOR_SERVERS, of pgbouncer 1.23 and later: end between two transactions."""
        await self._query("SHUTDOWN WAIT_FOR_SERVERS")

    def close(self) -> None:
        """Drop the connection."""
        if self._link is not None:
            self._link.close()
            self._link = None

    async def _query(self, statement: str) -> list[Row]:
        async with self._opening:
            link = self._link
            if link is None or not link.is_open:
                link = self._link = await self._connect(self._on_lost)
        return await link.query(statement, deadline_s=_QUERY_S)

    async def _connect(self, on_lost: Callable[[], None] | None = None) -> Link:
        parameters = dict(self._parameters)
        if password := self._password():
            parameters["password"] = password
        return await Link.open(parameters, deadline_s=_OPEN_S, on_lost=on_lost)


def _identifier(database: str) -> str:
    """The console's parser knows SQL's quoted identifiers."""
    return '"' + database.replace('"', '""') + '"'


def _literal(value: str) -> str:
    """And SQL's quoted strings."""
    return "'" + value.replace("'", "''") + "'"
