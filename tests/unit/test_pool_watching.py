"""What a pooler's agent makes of what the API shows, and of its silence."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig
from pgcluster.api.reports import PoolerReport
from pgcluster.kube.errors import Unavailable
from pgcluster.pooler import watching
from pgcluster.pooler.reporting import Reporter
from pgcluster.pooler.source import Listener
from pgcluster.pooler.watching import Observed
from pgcluster.render.pgbouncer import PoolTarget, databases_ini
from pgcluster.topology.lease import LeaseRecord, Mark

CONFIG = ClusterConfig(name="shop", namespace="default", uid="u", instances=3)
SECTION = databases_ini(CONFIG, PoolTarget("shop-0", "10.0.0.1", (), epoch=1, timeline=1))


def record(holder: str = "shop-0", epoch: int = 1, renewed: int = 0) -> LeaseRecord:
    return LeaseRecord(holder, epoch, 6.0, str(renewed), Mark(None, None))


class Api:
    """Answers as it is told to."""

    def __init__(self) -> None:
        self.record: LeaseRecord | None = record()
        self.answers = True
        self.reports: list[PoolerReport] = []

    async def follow(self, listener: Listener) -> None:
        raise NotImplementedError

    async def lease(self) -> LeaseRecord | None:
        if not self.answers:
            raise Unavailable(0, "Unreachable", "the API server does not answer")
        return self.record

    async def report(self, report: PoolerReport) -> None:
        await self.lease()
        self.reports.append(report)


class World:
    def __init__(self) -> None:
        self.now_s = 1000.0
        self.api = Api()
        self.woken = 0
        self.doubts = 0
        self.observed = Observed(self.api, wake=self._wake, doubt=self._doubt)

    def _wake(self) -> None:
        self.woken += 1

    def _doubt(self) -> None:
        self.doubts += 1

    async def passes(self, seconds: float) -> None:
        """Time passes, and the agent looks at the Lease meanwhile."""
        self.now_s += seconds
        looking = asyncio.create_task(self.observed.check_lease())
        await asyncio.sleep(0.05)
        looking.cancel()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(watching, "monotonic_s", lambda: made.now_s)
    monkeypatch.setattr(watching, "_LOOK_EVERY_S", 0.005)
    return made


async def test_a_lease_that_is_renewed_is_no_news(world: World) -> None:
    world.observed.lease_seen(record())
    woken = world.woken
    for renewed in range(1, 20):
        world.observed.lease_seen(record(renewed=renewed))
        await world.passes(1)
    assert world.woken == woken
    assert world.observed.lease.free_since_s is None
    assert world.observed.lease.current


async def test_a_lease_that_runs_out_is_doubted_after_the_api_was_asked(world: World) -> None:
    world.observed.lease_seen(record())
    await world.passes(5.9)
    assert world.observed.lease.free_since_s is None
    await world.passes(0.2)
    assert world.observed.lease.free_since_s == world.now_s
    assert world.doubts == 1
    world.observed.lease_seen(record(renewed=1))
    assert world.observed.lease.free_since_s is None


async def test_an_api_that_does_not_answer_says_nothing_about_the_lease(world: World) -> None:
    """A watch that hangs looks like a Lease that nobody renews."""
    world.observed.lease_seen(record())
    world.api.answers = False
    await world.passes(60)
    assert world.observed.lease.free_since_s is None
    assert not world.observed.lease.current
    assert world.doubts == 0
    # It answers again, and the Lease has been renewed all along.
    world.api.answers, world.api.record = True, record(renewed=9)
    await world.passes(3)
    assert world.observed.lease.free_since_s is None
    assert world.observed.lease.current


async def test_a_lease_that_was_given_up_is_doubted_at_once(world: World) -> None:
    world.observed.lease_seen(record())
    world.observed.lease_seen(record(""))
    assert world.observed.lease.free_since_s == world.now_s
    world.now_s += 1
    world.observed.lease_seen(record(""))
    assert world.observed.lease.free_since_s == world.now_s - 1
    world.observed.lease_seen(record("shop-1", 2))
    assert world.observed.lease.free_since_s is None
    assert world.observed.lease.record == record("shop-1", 2)


async def test_what_was_known_of_the_lease_survives_the_loss_of_the_api(world: World) -> None:
    world.observed.lease_seen(record("shop-1", 2))
    world.observed.api_lost()
    assert world.observed.lease.record == record("shop-1", 2)
    assert not world.observed.lease.current


async def test_an_announced_stop_is_news_and_its_renewals_are_not(world: World) -> None:
    def pausing(renewed: int, *, epoch: int = 1) -> LeaseRecord:
        return replace(record(renewed=renewed, epoch=epoch), pausing=True)

    world.observed.lease_seen(record())
    woken, began_s = world.woken, world.now_s
    world.observed.lease_seen(pausing(1))
    assert world.woken == woken + 1
    assert world.observed.lease.pausing_since_s == began_s
    world.now_s += 3
    world.observed.lease_seen(pausing(2))
    world.observed.api_lost()
    world.observed.lease_seen(pausing(3))
    assert world.observed.lease.pausing_since_s == began_s, "it does not begin anew"
    assert world.woken == woken + 1
    world.observed.lease_seen(record(renewed=4))
    assert world.observed.lease.pausing_since_s is None
    assert world.woken == woken + 2
    world.observed.lease_seen(pausing(5))
    assert world.observed.lease.pausing_since_s == world.now_s, "a new one counts anew"
    world.now_s += 1
    world.observed.lease_seen(pausing(6, epoch=2))
    assert world.observed.lease.pausing_since_s == world.now_s, "so does one of another epoch"
    world.observed.lease_seen(None)
    assert world.observed.lease.pausing_since_s is None


async def test_a_lease_that_was_deleted_is_forgotten(world: World) -> None:
    world.observed.lease_seen(record())
    world.observed.lease_seen(None)
    await world.passes(60)
    assert world.observed.lease.record is None
    assert world.observed.lease.free_since_s is None


async def test_a_section_that_cannot_be_read_leaves_the_last_one(world: World) -> None:
    world.observed.files_seen({names.DATABASES_KEY: SECTION, names.PGBOUNCER_INI_KEY: "x"})
    wanted = world.observed.wanted
    assert wanted is not None
    for broken in ({names.DATABASES_KEY: "nonsense"}, {names.DATABASES_KEY: SECTION[:-9]}):
        world.observed.files_seen(broken)
        assert world.observed.wanted is wanted
        assert "cannot be read" in world.observed.trouble
    world.observed.files_seen({names.DATABASES_KEY: SECTION})
    assert world.observed.trouble == ""
    # Keys that are missing change nothing.
    world.observed.files_seen({})
    assert world.observed.wanted == wanted
    assert world.observed.settings == "x"


async def test_a_report_is_written_on_change_only_and_again_after_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pgcluster.pooler.reporting._LOOK_EVERY_S", 0.005)
    monkeypatch.setattr("pgcluster.pooler.reporting._AFTER_FAILURE_S", 0.005)
    api = Api()
    reporter = Reporter(api, PoolerReport(pod="p"))
    running = asyncio.create_task(reporter.run())
    await asyncio.sleep(0.05)
    assert len(api.reports) == 1
    api.answers = False
    reporter.current = PoolerReport(pod="p", ready=True)
    await asyncio.sleep(0.05)
    assert len(api.reports) == 1
    api.answers = True
    await asyncio.sleep(0.05)
    assert [report.ready for report in api.reports] == [False, True]
    running.cancel()


async def test_settings_with_tls_go_before_those_for_agents_without(world: World) -> None:
    both = {names.PGBOUNCER_INI_KEY: "plain", names.PGBOUNCER_TLS_INI_KEY: "encrypted"}
    world.observed.files_seen(both)
    assert world.observed.settings == "encrypted"
    world.observed.files_seen({names.PGBOUNCER_INI_KEY: "plain"})
    assert world.observed.settings == "plain", "of an operator that knows no TLS"
