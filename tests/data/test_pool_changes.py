"""Changes of a pool under its clients: settings in turn, a pooler that leaves, databases."""

from __future__ import annotations

import asyncio
import subprocess
import time

import psycopg
import pytest

from pgcluster.api import names
from pgcluster.api.config import DatabaseConfig
from pgcluster.render.pgbouncer import content_hash
from tests.data.pool import CONFIG, Pool
from tests.data.servers import Postgres, as_user, eventually
from tests.data.test_pooler import off_loop, running, writing


# --- settings -------------------------------------------------------------------------------------
def in_force(pool: Pool, key: str) -> str:
    return next(row["value"] for row in pool.console("SHOW CONFIG") if row["key"] == key)


async def test_settings_are_taken_in_turn_and_cost_no_client_anything(
    pool: Pool, primary: Postgres
) -> None:
    running(pool, primary)
    text = pool.settings(default_pool_size="7")
    wanted, other = content_hash(text), "shop-pgbouncer-"  # before this one, by name
    async with writing(pool) as writers:
        pool.show(
            reports={other: {"pod": other, "ready": True, "settings_hash": "an earlier one"}},
            data={**pool.api["data"], names.PGBOUNCER_INI_KEY: text},
        )
        await off_loop(
            lambda: eventually(
                lambda: "takes the changed settings first" in pool.report()["reason"],
                within=5,
                what=pool.agent_log(),
            )
        )
        assert await off_loop(in_force, pool, "default_pool_size") != "7"
        pool.show(
            reports={other: {"pod": other, "settings_refused": wanted, "settings_reason": "no"}}
        )
        await off_loop(
            lambda: eventually(
                lambda: "did not take the changed settings: no" in pool.report()["reason"],
                within=5,
                what=pool.agent_log(),
            )
        )
        assert await off_loop(in_force, pool, "default_pool_size") != "7"
        pool.show(reports={other: {"pod": other, "ready": True, "settings_hash": wanted}})
        await off_loop(
            lambda: eventually(
                lambda: pool.report()["settings_hash"] == wanted, within=5, what=pool.agent_log()
            )
        )
        assert await off_loop(in_force, pool, "default_pool_size") == "7"
    assert not writers.errors, writers.errors
    assert not pool.report()["reason"]


def test_settings_that_pgbouncer_refuses_are_told_by_their_hash(
    pool: Pool, primary: Postgres
) -> None:
    running(pool, primary)
    before = pool.report()["settings_hash"]
    text = pool.settings(default_pool_size="lots")
    pool.show(data={**pool.api["data"], names.PGBOUNCER_INI_KEY: text})
    eventually(
        lambda: pool.report().get("settings_refused") == content_hash(text),
        within=5,
        what=pool.agent_log(),
    )
    report = pool.report()
    assert "default_pool_size" in report["settings_reason"]
    assert (report["settings_hash"], report["ready"]) == (before, True)
    # Taken back, it is as it was.
    pool.show(data={**pool.api["data"], names.PGBOUNCER_INI_KEY: pool.settings()})
    eventually(lambda: not pool.report().get("settings_refused"), within=5, what=pool.agent_log())
    assert not pool.report()["reason"]


# --- a pooler that leaves -------------------------------------------------------------------------
def leaves(pool: Pool) -> subprocess.Popen[bytes]:
    """What the kubelet does: the preStop hook, and SIGTERM when that has ended."""
    door = pool.directory / "run" / "leave"
    return subprocess.Popen(as_user(["cat", door]))


def test_a_pooler_without_clients_leaves_soon(pool: Pool, primary: Postgres) -> None:
    if pool.version < (1, 23):
        pytest.skip("knows no such shutdown")
    running(pool, primary)
    assert pool.pgbouncer
    began = time.monotonic()
    hook = leaves(pool)
    assert pool.pgbouncer.wait(8) == 0
    assert hook.wait(3) == 0
    assert 2.5 < time.monotonic() - began < 8


async def test_clients_of_a_pooler_that_leaves_go_on_through_a_hand_over_and_lose_no_transaction(
    pool: Pool, primary: Postgres, standby: Postgres
) -> None:
    if pool.version < (1, 23):
        pytest.skip("knows no such shutdown")
    running(pool, primary, standby)
    assert pool.pgbouncer
    async with writing(pool) as writers:
        hook = leaves(pool)
        await asyncio.sleep(0.5)
        # It still takes who has not heard that it left, and is repointed as any other.
        with pool.connect() as late:
            late.execute("SELECT 1")
        pool.show(lease={"holder": "shop-0", "epoch": 1, "duration_s": 600.0, "pausing": True})
        await off_loop(
            lambda: eventually(lambda: "app" in pool.paused(), within=3, what=pool.agent_log())
        )
        await off_loop(primary.stop)
        await off_loop(standby.promote)
        pool.point_at(standby, (), epoch=2, name="shop-1")
        await asyncio.sleep(1.0)
        assert not writers.errors, writers.errors
        through = len(writers.acknowledged)
        assert await off_loop(pool.pgbouncer.wait, 20) == 0
        assert len(writers.acknowledged) > through
        assert hook.wait(3) == 0
        writers.stop()
    # The connections end between two transactions: each commit that was begun is acknowledged.
    (stored,) = standby.query_in("app", "SELECT count(*) FROM writes")[0]
    assert stored == len(writers.acknowledged)


def test_a_pooler_whose_agent_is_gone_is_left_to_the_kubelet(pool: Pool, primary: Postgres) -> None:
    running(pool, primary)
    hook = leaves(pool)
    time.sleep(1.5)
    assert hook.poll() is None
    pool.kill_agent()
    assert hook.wait(3) == 0


# --- databases ------------------------------------------------------------------------------------
async def test_a_database_comes_and_goes_and_clients_of_the_others_do_not_notice(
    pool: Pool, primary: Postgres, standby: Postgres
) -> None:
    running(pool, primary, standby)
    primary.query("CREATE DATABASE more OWNER app")
    config = CONFIG.model_copy(
        update={"databases": (*CONFIG.databases, DatabaseConfig(name="more", owner="app"))}
    )
    # By the fallback, before it has an entry.
    early = pool.connect("more")
    early.execute("SELECT 1")
    reader = pool.connect("app_ro")
    async with writing(pool) as writers:
        section = pool.section(primary, (standby,), config=config)
        pool.show(data={**pool.api["data"], names.DATABASES_KEY: section})
        await off_loop(
            lambda: eventually(
                lambda: {"more", "more_ro"} <= pool.databases().keys(),
                within=5,
                what=pool.agent_log(),
            )
        )
        assert early.execute("SELECT 1").fetchone() == (1,)
        with pool.connect("more_ro") as more:
            assert more.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
            held = pool.connect("more")
            held.execute("SELECT 1")
            section = pool.section(primary, (standby,))
            pool.show(data={**pool.api["data"], names.DATABASES_KEY: section})
            await off_loop(
                lambda: eventually(
                    lambda: "more_ro" not in pool.databases(), within=5, what=pool.agent_log()
                )
            )
            for gone in (more, held, early):
                with pytest.raises(psycopg.OperationalError):
                    gone.execute("SELECT 1")
        eventually(
            lambda: pool.report()["applied_hash"] == content_hash(section),
            within=5,
            what=pool.agent_log(),
        )
        assert reader.execute("SELECT 1").fetchone() == (1,)
    reader.close()
    assert not writers.errors, writers.errors
    assert pool.report()["ready"]
    assert "KILL" not in pool.commands()
