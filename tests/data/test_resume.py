"""After a RESUME no client gets the failure that pgbouncer remembers of the outage.

pgbouncer remembers that a pool's last connection to its server failed, and until one succeeds it
refuses each query that finds no server, without trying first.
Source: pgbouncer, objects.c, check_fast_fail.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from pgcluster.api import names
from tests.data.pool import Pool
from tests.data.servers import Postgres, eventually
from tests.data.test_pooler import running

REMEMBERED = "server login has been failing"


def outage(pool: Pool, primary: Postgres) -> None:
    """The primary crashes, and clients want it before the agent has paused the pool.

    One has logged in before and gives its query up, one does not get in: now pgbouncer remembers
    the failure for the database and for the logins.
    """
    assert pool.agent
    with pool.connect() as impatient, ThreadPoolExecutor(1) as asking:
        impatient.execute("SELECT 1")
        pool.agent.signal(signal.SIGSTOP)
        primary.crash()
        time.sleep(0.3)
        asked = asking.submit(impatient.execute, "SELECT 1")
        time.sleep(0.2)
        with socket.socket(fileno=os.dup(impatient.fileno())) as line:
            line.shutdown(socket.SHUT_RDWR)
        with pytest.raises(psycopg.OperationalError):
            asked.result(5)
    with pytest.raises(psycopg.OperationalError):
        pool.connect(connect_timeout=2)
    pool.agent.signal(signal.SIGCONT)
    eventually(lambda: {"app", "postgres"} <= pool.paused(), within=5, what=pool.agent_log())


def log_in_and_ask(pool: Pool) -> str:
    """What a client is told that comes anew."""
    try:
        with pool.connect() as connection:
            connection.execute("SELECT 1")
    except psycopg.Error as error:
        return str(error).strip()
    return ""


def setting(pool: Pool, name: str) -> str:
    """A setting in force."""
    return next(row["value"] for row in pool.console("SHOW CONFIG") if row["key"] == name)


@pytest.mark.parametrize("outage_is", ["short", "longer than clients wait"])
def test_clients_that_log_in_during_an_outage_are_served_after_it(
    pool: Pool, primary: Postgres, outage_is: str
) -> None:
    """Also where nobody is left whose waiting makes pgbouncer connect before they ask."""
    running(pool, primary)
    long = outage_is != "short"
    if long:
        settings = pool.settings(query_wait_timeout="1")
        pool.show(data={**pool.api["data"], names.PGBOUNCER_INI_KEY: settings})
        eventually(
            lambda: setting(pool, "query_wait_timeout") == "1",
            within=5,
            what=pool.agent_log(),
        )
    outage(pool, primary)
    time.sleep(2.0 if long else 0.5)
    assert pool.agent
    pool.agent.signal(signal.SIGSTOP)
    primary.start()
    with ThreadPoolExecutor(16) as clients:
        waiting = [clients.submit(log_in_and_ask, pool) for _ in range(16)]
        time.sleep(0.3)
        pool.agent.signal(signal.SIGCONT)
        told = [client.result(20) for client in waiting]
    assert not any(told), [text for text in told if text]


def test_logins_do_not_wait_for_a_database_that_cannot_be_reached(
    pool: Pool, primary: Postgres
) -> None:
    running(pool, primary)
    outage(pool, primary)
    assert pool.agent
    pool.agent.signal(signal.SIGSTOP)
    primary.start()
    primary.query("ALTER DATABASE app CONNECTION LIMIT 0")
    pool.agent.signal(signal.SIGCONT)
    eventually(
        lambda: not pool.paused() - {"app_ro", "postgres_ro"}, within=5, what=pool.agent_log()
    )
