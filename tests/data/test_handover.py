"""What a hand-over asks of real servers: a promotion without polling, and who still works."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from pgcluster.api import names
from pgcluster.node.draining import CONNECTIONS, Connection, acknowledgement, undrained
from pgcluster.node.hearing import Pooler
from pgcluster.node.server import promote
from pgcluster.postgres import local as module
from pgcluster.postgres.local import LocalPostgres
from tests.data.servers import Postgres

POOLER = Pooler("shop-pgbouncer-0", "127.0.0.1")
EPOCH = 7


def test_a_promotion_is_seen_at_once(
    primary: Postgres, standby: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket = f"host={standby.data.parent} port={standby.port} user=postgres"
    monkeypatch.setattr(module, "socket_conninfo", lambda database: f"{socket} dbname={database}")
    primary.stop()
    began_s = time.monotonic()

    async def promoted() -> None:
        server = LocalPostgres()
        try:
            await promote(server, within_s=10)
        finally:
            await server.close()

    asyncio.run(promoted())
    print(f"promoted after {1000 * (time.monotonic() - began_s):.0f} ms")
    assert standby.query("SELECT pg_is_in_recovery()") == [(False,)]


def connected(server: Postgres, **more: Any) -> psycopg.Connection[Any]:
    given = {"host": server.address, "port": server.port, "user": "postgres", **more}
    return psycopg.connect(dbname="postgres", autocommit=True, **given)


def rows(server: Postgres, pooler: str, address: str) -> list[Connection]:
    with psycopg.connect(
        host=str(server.data.parent), port=server.port, user="postgres", dbname="postgres"
    ) as connection:
        cursor = connection.execute(CONNECTIONS, (pooler, pooler, [address]))
        assert cursor.description
        keys = [column.name for column in cursor.description]
        return [Connection(**dict(zip(keys, row, strict=True))) for row in cursor.fetchall()]


def eventually_none(waits: Callable[[], str | None]) -> None:
    """A backend is seen for a moment after its client has gone."""
    deadline_s = time.monotonic() + 5
    while (reason := waits()) is not None:
        assert time.monotonic() < deadline_s, reason
        time.sleep(0.01)


def test_a_server_shows_who_holds_its_clients_and_who_still_works(primary: Postgres) -> None:
    """The superuser stands for the pooler's role, whose password is beside the point."""
    agent = connected(primary, application_name=names.pooler_application(POOLER.pod))
    pool = connected(primary)
    address = agent.info.host
    with agent, pool:
        (source,) = primary.query(
            "SELECT host(client_addr) FROM pg_stat_activity WHERE client_addr IS NOT NULL LIMIT 1"
        )
        pooler = Pooler(POOLER.pod, source[0])

        def waits() -> str | None:
            seen = rows(primary, "postgres", pooler.address)
            return undrained([pooler], seen, epoch=EPOCH, waited_s=0.0)

        question = "SELECT pg_catalog.pg_is_in_recovery() AS in_recovery"
        agent.execute(question)
        assert waits() == f"{POOLER.pod} has not acknowledged yet", address
        agent.execute(f"{question} {acknowledgement(EPOCH)}".encode())
        assert waits() == "1 connections of the pools are still there"
        pool.execute("BEGIN")
        assert waits() == "1 connections of the pools are in a transaction"
        pool.execute("COMMIT")
        pool.close()
        eventually_none(waits)
        agent.execute(question)
        assert waits() == f"{POOLER.pod} has not acknowledged yet"
