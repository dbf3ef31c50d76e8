"""A planned hand-over as a pool and its clients see it: who waits, and who is told."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

import psycopg

from tests.data.pool import Pool, Writers
from tests.data.servers import Postgres, eventually
from tests.data.test_pooler import off_loop, running, writing

ACKNOWLEDGED = (
    "SELECT count(*) FROM pg_stat_activity WHERE usename = 'pgcluster_pooler'"
    " AND query LIKE '%/* paused {epoch} */'"
)


def announce(pool: Pool, *, pausing: bool, epoch: int = 1) -> None:
    """What the primary's agent writes into the Lease."""
    pool.show(
        lease={
            "holder": "shop-0",
            "epoch": epoch,
            "duration_s": 600.0,
            "pausing": pausing,
            "successor": "shop-1" if pausing else None,
        }
    )


class Acknowledgements:
    """Looks into pg_stat_activity over one connection, as the primary's agent does."""

    def __init__(self, primary: Postgres) -> None:
        self._connection = psycopg.connect(
            host=primary.address, port=primary.port, user="postgres", autocommit=True
        )

    def there(self, epoch: int = 1) -> bool:
        row = self._connection.execute(ACKNOWLEDGED.format(epoch=epoch).encode()).fetchone()
        return row == (1,)

    def close(self) -> None:
        self._connection.close()


async def logins(pool: Pool, database: str, told: list[str], stop: asyncio.Event) -> None:
    """Clients that log in for each transaction, one after the other."""
    while not stop.is_set():
        try:
            async with await psycopg.AsyncConnection.connect(
                pool.uri(database), autocommit=True, connect_timeout=20
            ) as connection:
                await connection.execute("SELECT 1")
        except psycopg.Error as error:
            told.append(f"{database}: {str(error).strip()}")
        await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def logging_in(pool: Pool, *databases: str) -> AsyncIterator[list[str]]:
    """Three such clients a database; what they were told."""
    told: list[str] = []
    stop = asyncio.Event()
    tasks = [
        asyncio.create_task(logins(pool, database, told, stop))
        for database in databases
        for _ in range(3)
    ]
    try:
        yield told
    finally:
        stop.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 30)


def unharmed(pool: Pool, writers: Writers, told: list[str]) -> None:
    """Nobody who is connected got an error.

    Whoever logs in may hear of the last login of a server that failed, until the next one succeeds:
    pgbouncer tells that where a pool has no server. 1.18, of Debian 12, closes all servers that it
    reaches by TLS at each RELOAD, so that it tells others, too.
    """
    if pool.version >= (1, 21):
        assert not writers.errors, writers.errors
    texts = [*told, *(text for _, text in writers.errors)]
    assert not [text for text in texts if "server login has been failing" not in text], texts


async def test_a_planned_hand_over_gives_nobody_an_error(
    pool: Pool, primary: Postgres, standby: Postgres
) -> None:
    """Writers with prepared statements, clients that log in meanwhile, and readers."""
    running(pool, primary, standby)
    seen = Acknowledgements(primary)
    async with logging_in(pool, "app", "app_ro") as told, writing(pool) as writers:
        began = time.monotonic()
        announce(pool, pausing=True)
        await off_loop(
            lambda: eventually(seen.there, within=5, what=f"acknowledged: {pool.agent_log()}")
        )
        acknowledged = time.monotonic()
        await off_loop(
            lambda: eventually(
                lambda: (
                    primary.query(
                        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'"
                        " AND state <> 'idle'"
                    )
                    == [(0,)]
                ),
                within=2,
                what="nothing runs",
            )
        )
        seen.close()
        await off_loop(primary.stop)
        pool.show(lease={"holder": "", "epoch": 1, "duration_s": 600.0})
        await off_loop(standby.promote)
        named = time.monotonic()
        pool.point_at(standby, (), epoch=2, name="shop-1")
        await off_loop(
            lambda: eventually(
                lambda: any(at > named for at in writers.succeeded_at),
                within=10,
                what=f"writes go on: {pool.agent_log()}",
            )
        )
        first = min(at for at in writers.succeeded_at if at > named)
        # Nobody is left to read from: readers wait for the former primary to come back.
        await asyncio.sleep(0.5)
        primary.follow(standby)
        await off_loop(primary.start)
        pool.point_at(standby, (primary,), epoch=2, name="shop-1")
        await off_loop(
            lambda: eventually(lambda: not pool.paused(), within=10, what=pool.agent_log())
        )
    print(
        f"announced->acknowledged={1000 * (acknowledged - began):.0f}ms"
        f" section->first write={1000 * (first - named):.0f}ms gap={writers.gap_s():.3f}s"
    )
    unharmed(pool, writers, told)
    assert acknowledged - began < 0.5
    assert first - named < 0.5
    assert [word for word in pool.commands() if word != "RELOAD"][:2] == ["PAUSE", "RESUME"]
    kept = {number for (number,) in standby.query_in("app", "SELECT number FROM writes")}
    assert set(writers.acknowledged) <= kept


async def test_a_hand_over_that_is_given_up_lets_clients_go_on(
    pool: Pool, primary: Postgres
) -> None:
    running(pool, primary)
    seen = Acknowledgements(primary)
    async with logging_in(pool, "app") as told, writing(pool) as writers:
        for _ in range(3):
            announce(pool, pausing=True)
            await off_loop(
                lambda: eventually(seen.there, within=5, what=f"acknowledged: {pool.agent_log()}")
            )
            assert {"app", "postgres"} <= await off_loop(pool.paused)
            announce(pool, pausing=False)
            await off_loop(
                lambda: eventually(lambda: not seen.there(), within=1, what="it is taken back")
            )
            await off_loop(
                lambda: eventually(
                    lambda: not {"app", "postgres"} & pool.paused(), within=3, what=pool.agent_log()
                )
            )
    seen.close()
    unharmed(pool, writers, told)
    assert writers.gap_s() < 1.0


def test_a_transaction_that_runs_on_does_not_keep_a_pool_from_acknowledging(
    pool: Pool, primary: Postgres
) -> None:
    """Who hands over sees by itself what still runs, and waits for that as long as it wants to."""
    running(pool, primary)
    seen = Acknowledgements(primary)
    with pool.connect() as long:
        long.execute("BEGIN")
        long.execute("SELECT 1")
        began = time.monotonic()
        announce(pool, pausing=True)
        eventually(seen.there, within=2, what=pool.agent_log())
        print(f"announced->acknowledged={1000 * (time.monotonic() - began):.0f}ms")
        long.execute("SELECT 2")
        long.execute("COMMIT")
        announce(pool, pausing=False)
        eventually(lambda: "app" not in pool.paused(), within=3, what=pool.agent_log())
        assert long.execute("SELECT 3").fetchone() == (3,)
    seen.close()


def test_a_hold_that_nobody_takes_back_ends_by_itself(pool: Pool, primary: Postgres) -> None:
    running(pool, primary)
    announce(pool, pausing=True)
    eventually(lambda: "app" in pool.paused(), within=2, what=pool.agent_log())
    pool.show(api=False)
    began = time.monotonic()
    with psycopg.connect(pool.uri(), autocommit=True, connect_timeout=30) as waiting:
        assert waiting.execute("SELECT 1").fetchone() == (1,)
    assert 10 < time.monotonic() - began < 20


def test_an_agent_that_is_killed_in_a_hold_is_followed_by_one_that_goes_on_holding(
    pool: Pool, primary: Postgres
) -> None:
    running(pool, primary)
    seen = Acknowledgements(primary)
    announce(pool, pausing=True)
    eventually(seen.there, within=2, what=pool.agent_log())
    pool.kill_agent()
    eventually(lambda: not seen.there(), within=3, what="its connection ends")
    assert "app" in pool.paused()
    pool.start_agent()
    eventually(seen.there, within=10, what=pool.agent_log())
    announce(pool, pausing=False)
    eventually(lambda: not {"app", "postgres"} & pool.paused(), within=3, what=pool.agent_log())
    seen.close()
