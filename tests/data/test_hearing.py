"""What servers see of the real agent of a pooler, and that they notice when it falls silent."""

from __future__ import annotations

import signal
import time

import psycopg
import pytest
from psycopg.rows import dict_row

from pgcluster.api import names
from pgcluster.node.hearing import SILENT_AFTER_S, Backend, Hearing, Pooler
from pgcluster.node.poolers import CONNECTIONS
from tests.data.pool import Pool
from tests.data.servers import Postgres
from tests.data.test_pooler import running

POOLER = Pooler("shop-pgbouncer-0", "127.0.0.1")


class Listener:
    """The half of an instance's agent that listens."""

    def __init__(self, server: Postgres, *, primary: bool) -> None:
        self._server = server
        self._primary = primary
        self._hearing = Hearing()

    def look(self) -> tuple[tuple[str, ...], list[Backend]]:
        with psycopg.connect(
            host=str(self._server.data.parent),
            port=self._server.port,
            user="postgres",
            dbname="postgres",
            row_factory=dict_row,
        ) as connection:
            rows = connection.execute(CONNECTIONS, (names.ROLE_POOLER, [POOLER.address]))
            seen = [Backend(**row) for row in rows.fetchall()]
        silent = self._hearing.look(time.monotonic(), [POOLER], seen, primary=self._primary)
        return silent, seen

    def after(self, seconds: float) -> tuple[str, ...]:
        """Look once a second, as the agent does; what the last look said."""
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            silent, _ = self.look()
            time.sleep(0.5)
        return silent


@pytest.mark.parametrize("of", ["primary", "standby"])
def test_an_agent_is_heard_and_one_that_stands_still_is_not(
    pool: Pool, primary: Postgres, standby: Postgres, of: str
) -> None:
    running(pool, primary, standby)
    assert pool.agent
    listener = Listener(primary if of == "primary" else standby, primary=of == "primary")
    assert listener.after(3) == ()
    _, seen = listener.look()
    assert [each.application for each in seen].count(names.pooler_application(POOLER.pod)) == 1
    pool.agent.signal(signal.SIGSTOP)
    began_s = time.monotonic()
    while not listener.look()[0]:
        time.sleep(0.2)
        assert time.monotonic() - began_s < SILENT_AFTER_S + 3
    assert time.monotonic() - began_s > SILENT_AFTER_S - 1.5
    pool.agent.signal(signal.SIGCONT)
    assert listener.after(3) == ()


def test_a_pgbouncer_with_clients_is_heard_while_its_agent_is_gone(
    pool: Pool, primary: Postgres
) -> None:
    running(pool, primary)
    listener = Listener(primary, primary=True)
    listener.look()
    pool.kill_agent()
    with pool.connect() as client:
        end_s = time.monotonic() + SILENT_AFTER_S + 2
        while time.monotonic() < end_s:
            client.execute("SELECT 1")
            assert listener.look()[0] == ()
            time.sleep(0.5)
    assert listener.after(SILENT_AFTER_S + 1) == (POOLER.pod,)


def test_an_agent_that_is_refused_says_so_in_its_report(pool: Pool, primary: Postgres) -> None:
    running(pool, primary)
    assert pool.report()["mute"] is False
    assert pool.report()["address"] == POOLER.address
    primary.query("ALTER ROLE pgcluster_pooler NOLOGIN")
    primary.query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'pgcluster_pooler'"
    )
    end_s = time.monotonic() + SILENT_AFTER_S
    while not pool.report()["mute"]:
        assert time.monotonic() < end_s, pool.agent_log()
        time.sleep(0.1)
