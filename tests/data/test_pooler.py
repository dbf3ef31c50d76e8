"""What clients see while the real agent steers a real pgbouncer between real servers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator

import psycopg
import pytest

from pgcluster.api import names
from tests.data.pool import ADDRESS, Pool, Writers, own_file
from tests.data.servers import Postgres, eventually


def running(pool: Pool, primary: Postgres, *standbys: Postgres) -> Pool:
    """The pool in front of a healthy cluster."""
    pool.show(data={names.PGBOUNCER_INI_KEY: pool.settings()})
    pool.point_at(primary, standbys, epoch=1, name="shop-0")
    pool.start_agent()
    pool.start_pgbouncer()
    eventually(
        lambda: pool.report().get("ready") and not pool.report().get("paused"),
        within=10,
        what=f"the pool is ready: {pool.agent_log()}",
    )
    return pool


@contextlib.asynccontextmanager
async def writing(pool: Pool) -> AsyncIterator[Writers]:
    """Clients that write all along."""
    with pool.connect() as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS writes (number bigint)")
    writers = Writers(pool.uri(), prepared=pool.version >= (1, 21))
    task = asyncio.create_task(writers.run())
    await asyncio.sleep(1.0)
    try:
        yield writers
        await asyncio.sleep(1.0)
        writers.stop()
        await asyncio.wait_for(task, 20)
    finally:
        task.cancel()


async def off_loop(function, *arguments):
    """Run something that blocks while the writers go on."""
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


async def test_a_failover_costs_the_transactions_in_flight_and_nothing_else(
    pool: Pool, primary: Postgres, standby: Postgres
) -> None:
    running(pool, primary, standby)
    primary.query("CREATE DATABASE other OWNER app")
    of_sql = pool.connect("other")
    of_sql.execute("SELECT 1")
    async with writing(pool) as writers:
        began = time.monotonic()
        primary.crash()
        await asyncio.sleep(0.3)
        assert "app" in await off_loop(pool.paused), pool.agent_log()
        await off_loop(standby.promote)
        promoted = time.monotonic()
        pool.point_at(standby, epoch=2, name="shop-1")
        await off_loop(
            lambda: eventually(
                lambda: any(at > promoted for at in writers.succeeded_at),
                within=10,
                what=f"writes go on: {pool.agent_log()}",
            )
        )
        first = min(at for at in writers.succeeded_at if at > promoted)
    print(
        f"errors={len(writers.errors)} gap={writers.gap_s():.3f}s"
        f" promoted->first write={first - promoted:.3f}s"
        f" last error after crash={max((at - began for at, _ in writers.errors), default=0):.3f}s"
    )
    assert len(writers.errors) <= 4 * writers.count, writers.errors
    assert first - promoted < 1.0
    assert pool.commands() == ["PAUSE", "RELOAD", "RESUME"], pool.agent_log()
    servers = pool.console("SHOW SERVERS")
    assert {row["addr"] for row in servers} <= {standby.address}
    assert pool.databases()["app"] == (standby.address, False)
    assert pool.databases()["other"] == (standby.address, False)
    assert of_sql.execute("SELECT inet_server_addr()::text").fetchone() == (
        f"{standby.address}/32",
    )
    of_sql.close()
    # With one standby that is promoted, nobody is left to read from.
    if "app_ro" in pool.databases():
        assert pool.databases()["app_ro"][1]
    eventually(lambda: pool.report()["first_transaction_at"], within=2, what=str(pool.report()))
    report = pool.report()
    assert (report["primary"], report["epoch"], report["paused"]) == ("shop-1", 2, False)
    stamps = [report[key] for key in ("paused_at", "reloaded_at", "resumed_at")]
    assert stamps == sorted(stamps)
    assert report["first_transaction_at"] >= report["resumed_at"]
    kept = {number for (number,) in standby.query_in("app", "SELECT number FROM writes")}
    # Asynchronous replication: what was acknowledged in the last instant may be gone.
    assert len(set(writers.acknowledged) - kept) <= 2 * writers.count


async def test_a_crash_in_place_is_waited_for(pool: Pool, primary: Postgres) -> None:
    running(pool, primary)
    async with writing(pool) as writers:
        primary.crash()
        await asyncio.sleep(0.5)
        assert "app" in await off_loop(pool.paused)
        await off_loop(primary.start)
        await off_loop(
            lambda: eventually(lambda: not _rw(pool), within=5, what=f"resumed: {pool.agent_log()}")
        )
    print(f"errors={len(writers.errors)} gap={writers.gap_s():.3f}s")
    assert len(writers.errors) <= 4 * writers.count, writers.errors
    assert pool.commands()[-2:] == ["PAUSE", "RESUME"]
    assert pool.report().get("paused_at") is None, "it was no repointing"
    kept = {number for (number,) in primary.query_in("app", "SELECT number FROM writes")}
    assert set(writers.acknowledged) <= kept


def _rw(pool: Pool) -> set[str]:
    return {name for name in pool.paused() if not name.endswith("_ro")}


async def test_a_fast_shutdown_and_a_promotion_cost_no_more_than_a_crash(
    pool: Pool, primary: Postgres, standby: Postgres
) -> None:
    running(pool, primary, standby)
    async with writing(pool) as writers:
        await off_loop(primary.stop)
        await off_loop(standby.promote)
        pool.point_at(standby, (), epoch=2, name="shop-1")
    print(f"errors={len(writers.errors)} gap={writers.gap_s():.3f}s")
    assert len(writers.errors) <= 4 * writers.count, writers.errors
    kept = {number for (number,) in standby.query_in("app", "SELECT number FROM writes")}
    assert set(writers.acknowledged) <= kept


@pytest.mark.parametrize("how", ["killed", "terminated"])
def test_a_pause_that_an_agent_left_behind_is_ended_by_the_next(
    pool: Pool, primary: Postgres, how: str
) -> None:
    running(pool, primary)
    primary.crash()
    eventually(lambda: "app" in pool.paused(), within=5, what="the pool is paused")
    if how == "killed":
        pool.kill_agent()
        assert "app" in pool.paused()
    else:
        pool.stop_agent()
        assert not pool.paused()
    primary.start()
    pool.start_agent()
    eventually(lambda: not _rw(pool), within=10, what=f"resumed: {pool.agent_log()}")
    with pool.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_pool_whose_primary_answers_is_resumed_though_the_api_is_away(
    pool: Pool, primary: Postgres
) -> None:
    running(pool, primary)
    pool.show(api=False)
    time.sleep(0.3)
    assert not _rw(pool)
    primary.crash()
    eventually(lambda: "app" in pool.paused(), within=5, what="the pool is paused")
    primary.start()
    eventually(lambda: not _rw(pool), within=5, what=f"resumed: {pool.agent_log()}")


def test_a_lease_that_another_holds_keeps_the_pool_from_the_old_primary(
    pool: Pool, primary: Postgres, standby: Postgres
) -> None:
    running(pool, primary, standby)
    pool.show(lease={"holder": "shop-1", "epoch": 2})
    eventually(lambda: "app" in pool.paused(), within=2, what=f"paused: {pool.agent_log()}")
    time.sleep(1.5)
    assert "app" in pool.paused(), pool.agent_log()
    standby.promote()
    pool.point_at(standby, (), epoch=2, name="shop-1")
    eventually(lambda: not _rw(pool), within=5, what=f"resumed: {pool.agent_log()}")
    assert pool.databases()["app"][0] == standby.address


def test_a_lease_that_is_given_up_while_the_primary_answers_is_a_false_alarm(
    pool: Pool, primary: Postgres
) -> None:
    running(pool, primary)
    pool.show(lease={"holder": "", "epoch": 1})
    eventually(lambda: pool.commands()[-2:] == ["PAUSE", "RESUME"], within=3, what=pool.agent_log())
    time.sleep(1)
    assert not _rw(pool)


def test_a_frozen_primary_is_noticed_and_a_thawed_one_taken_back(
    pool: Pool, primary: Postgres
) -> None:
    running(pool, primary)
    primary.freeze()
    began = time.monotonic()
    eventually(lambda: "app" in pool.paused(), within=6, what=pool.agent_log())
    print(f"noticed after {time.monotonic() - began:.2f}s")
    primary.thaw()
    eventually(lambda: not _rw(pool), within=6, what=pool.agent_log())


def test_a_section_of_a_lower_epoch_is_not_applied(
    pool: Pool, primary: Postgres, standby: Postgres
) -> None:
    running(pool, primary, standby)
    pool.point_at(primary, (standby,), epoch=5, name="shop-0")
    eventually(lambda: pool.report()["epoch"] == 5, within=5, what=pool.agent_log())
    stale = pool.section(standby, (), epoch=4, name="shop-1")
    pool.show(data={**pool.api["data"], names.DATABASES_KEY: stale})
    time.sleep(1)
    assert pool.databases()["app"][0] == primary.address
    assert pool.report()["epoch"] == 5


def test_a_broken_section_is_noticed_and_changes_nothing(pool: Pool, primary: Postgres) -> None:
    running(pool, primary)
    good = pool.section(primary, epoch=2)
    for broken in (good.replace("app = ", "a b = "), good[: len(good) // 2], "nonsense"):
        pool.show(data={**pool.api["data"], names.DATABASES_KEY: broken})
        eventually(
            lambda: "cannot be read" in pool.report()["reason"], within=5, what=pool.agent_log()
        )
        assert pool.databases()["app"] == (primary.address, False)
        pool.show(data={**pool.api["data"], names.DATABASES_KEY: good})
        eventually(lambda: not pool.report()["reason"], within=5, what=pool.agent_log())


def test_settings_that_pgbouncer_refuses_are_noticed_and_taken_back(
    pool: Pool, primary: Postgres
) -> None:
    running(pool, primary)
    before = (pool.directory / "run" / "pgbouncer.ini").read_text()
    pool.show(
        data={**pool.api["data"], names.PGBOUNCER_INI_KEY: pool.settings(default_pool_size="lots")}
    )
    eventually(
        lambda: "did not take the settings" in pool.report()["reason"],
        within=5,
        what=pool.agent_log(),
    )
    assert (pool.directory / "run" / "pgbouncer.ini").read_text() == before
    # It was never told to load them: what stands behind a wrong line is at its default after that.
    assert "pgbouncer.ini:" not in pool.pgbouncer_log()
    with pool.connect() as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    # Repointing works on, though the settings wait to be corrected.
    pool.show(
        data={**pool.api["data"], names.PGBOUNCER_INI_KEY: pool.settings(default_pool_size="7")}
    )
    eventually(lambda: not pool.report()["reason"], within=10, what=pool.agent_log())
    shown = {row["key"]: row["value"] for row in pool.console("SHOW CONFIG")}
    assert shown["default_pool_size"] == "7"


def test_a_changed_password_is_taken_over(pool: Pool, primary: Postgres) -> None:
    running(pool, primary)
    own_file(pool.directory / "secrets" / "stats-password", "another")
    path = pool.directory / "run" / "userlist.txt"
    eventually(lambda: "another" in path.read_text(), within=10, what=pool.agent_log())
    assert path.stat().st_mode & 0o777 == 0o600


def test_pgbouncer_started_anew_is_brought_into_line(pool: Pool, primary: Postgres) -> None:
    running(pool, primary)
    assert pool.pgbouncer
    pool.pgbouncer.end()
    eventually(lambda: not pool.report()["ready"], within=5, what=pool.agent_log())
    primary.crash()
    pool.start_pgbouncer()
    eventually(lambda: "app" in pool.paused(), within=5, what=pool.agent_log())
    primary.start()
    eventually(lambda: not _rw(pool) and pool.report()["ready"], within=5, what=pool.agent_log())


def test_a_pgbouncer_that_is_told_to_end_is_not_held_up_by_its_agent(
    pool: Pool, primary: Postgres, standby: Postgres
) -> None:
    """Since 1.23 it serves its clients until they leave, and has to follow the primary so long."""
    if pool.version < (1, 23):
        pytest.skip("ends at once")
    running(pool, primary, standby)
    assert pool.pgbouncer
    with pool.connect() as last:
        last.execute("SELECT 1")
        pool.pgbouncer.signal(signal.SIGTERM)
        time.sleep(1.5)
        assert last.execute("SELECT inet_server_addr()::text").fetchone() == (
            f"{primary.address}/32",
        )
        primary.crash()
        standby.promote()
        pool.point_at(standby, (), epoch=2, name="shop-1")
        eventually(lambda: pool.report()["epoch"] == 2, within=5, what=pool.agent_log())
        assert last.execute("SELECT inet_server_addr()::text").fetchone() == (
            f"{standby.address}/32",
        )
    assert pool.pgbouncer.wait(5) == 0
    assert "PAUSE" not in pool.commands()


async def test_clients_that_wait_while_pgbouncer_is_told_to_end_are_served_before_it_does(
    pool: Pool, primary: Postgres
) -> None:
    """A drain of its node in the middle of a failover: nobody else could resume it then."""
    if pool.version < (1, 23):
        pytest.skip("ends at once")
    running(pool, primary)
    assert pool.pgbouncer
    with pool.connect() as last:
        last.execute("SELECT 1")
        primary.crash()
        eventually(lambda: "app" in pool.paused(), within=5, what=pool.agent_log())
        waiting = asyncio.create_task(off_loop(last.execute, "SELECT 1"))
        await asyncio.sleep(0.3)
        pool.pgbouncer.signal(signal.SIGTERM)
        await asyncio.sleep(1)
        assert not waiting.done()
        await off_loop(primary.start)
        answer = await asyncio.wait_for(waiting, 10)
        assert answer.fetchone() == (1,)
    assert pool.pgbouncer.wait(5) == 0


def test_the_agent_says_how_it_is_over_http(pool: Pool, primary: Postgres) -> None:
    running(pool, primary)

    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{pool.agent_port}{path}") as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    assert get("/livez")[0] == 200
    assert get("/readyz") == (200, "\n")
    assert json.loads(get("/status")[1])["primary"] == "shop-0"
    with pool.connect() as connection:
        connection.execute("SELECT 1")
        metrics = get("/metrics")[1]
    assert "pgcluster_pooler_primary_up 1.0" in metrics
    assert "pgcluster_pooler_epoch 1.0" in metrics
    assert re.search(r'pgcluster_pooler_pool_cl_active{database="app",user="app"} \d', metrics)
    assert re.search(r'pgcluster_pooler_database_xact_count{database="app"} \d', metrics)
    primary.crash()
    eventually(lambda: "pgcluster_pooler_paused 1.0" in get("/metrics")[1], within=5, what="paused")
    # New clients wait as the others do: there is nowhere better to send them.
    assert get("/readyz") == (200, "the primary shop-0 does not answer\n")
    assert 'pgcluster_pooler_command_seconds_count{command="PAUSE"}' in get("/metrics")[1]
    assert pool.pgbouncer
    pool.pgbouncer.end()
    eventually(lambda: get("/readyz")[0] == 503, within=5, what="not ready")


def test_any_role_can_log_in_and_any_database_is_reached(pool: Pool, primary: Postgres) -> None:
    running(pool, primary)
    primary.query("CREATE ROLE late LOGIN PASSWORD 'late'")
    primary.query('CREATE DATABASE "made by SQL" OWNER late')
    with psycopg.connect(
        host=ADDRESS,
        port=pool.port,
        user="late",
        password="late",
        dbname="made by SQL",
        autocommit=True,
    ) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("late",)
        # Its entry, made by the fallback, is paused and resumed like the declared ones. Without a
        # client it would not be shown, and need neither.
        primary.crash()
        eventually(lambda: "made by SQL" in pool.paused(), within=5, what="it is paused")
        primary.start()
        assert connection.execute("SELECT current_user").fetchone() == ("late",)
    eventually(lambda: not _rw(pool), within=5, what="the pool is resumed")


def test_the_read_only_pool_reads_from_standbys_and_waits_where_there_is_none(
    pool: Pool, primary: Postgres, standby: Postgres
) -> None:
    running(pool, primary, standby)
    with pool.connect("app_ro") as connection:
        assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
    pool.point_at(primary, (), epoch=1, name="shop-0")
    eventually(lambda: {"app_ro", "postgres_ro"} == pool.paused(), within=5, what=pool.agent_log())
    pool.point_at(primary, (standby,), epoch=1, name="shop-0")
    eventually(lambda: not pool.paused(), within=5, what=pool.agent_log())
    with pool.connect("app_ro") as connection:
        assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)


@pytest.mark.parametrize("agent", ["lives on", "is killed"])
def test_a_transaction_on_a_former_primary_that_lives_on_is_cut_off(
    pool: Pool, primary: Postgres, standby: Postgres, agent: str
) -> None:
    running(pool, primary, standby)
    with pool.connect() as stuck:
        stuck.execute("BEGIN")
        stuck.execute("SELECT 1")
        standby.promote()
        pool.point_at(standby, (), epoch=2, name="shop-1")
        eventually(lambda: not _rw(pool), within=5, what=pool.agent_log())
        if agent == "is killed":
            pool.kill_agent()
            pool.start_agent()
        with pytest.raises(psycopg.OperationalError):
            stuck.execute("SELECT pg_sleep(12)")
    eventually(
        lambda: all(
            row["addr"] != primary.address or row["database"].endswith("_ro")
            for row in pool.console("SHOW SERVERS")
        ),
        within=3,
        what=str(pool.console("SHOW SERVERS")),
    )
    eventually(lambda: not _rw(pool), within=3, what=pool.agent_log())
