"""Becoming the primary as the successor of a hand-over, and what repmgr finds when it comes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from pgcluster.api.config import ClusterConfig
from pgcluster.api.errors import RetryError
from pgcluster.api.wal import Lsn, WalPoint
from pgcluster.clock import monotonic_s
from pgcluster.node import server as server_module
from pgcluster.node.lease import LeaseKeeper
from pgcluster.node.members import Members
from pgcluster.node.promotion import Promotion
from pgcluster.node.server import Server, promote
from pgcluster.node.standing import Standing
from pgcluster.postgres.local import LocalPostgres, Observation
from pgcluster.proc import Result
from pgcluster.topology.lease import LeaseRecord, LeaseView, Mark

END = WalPoint(4, Lsn.parse("0/5000028"))


class World:
    """A standby and the Lease that was given up for it; `done` is what it did."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.has = END
        self.in_recovery = True
        self.held = False
        self.outrun = False  # by its own gate
        self.reserved: int | None = 5
        record = LeaseRecord(
            "",
            7,
            6.0,
            "t",
            Mark("7001", END, final=True),
            last_holder="shop-0",
            handover=True,
            successor="shop-1",
        )
        self.lease = SimpleNamespace(
            view=LeaseView(record, monotonic_s()),
            epoch=8,
            valid_until_s=monotonic_s() + 4,
            holding=lambda: self.held,
            succeed=self._succeed,
            reserve=self._reserve,
        )
        self.standing = Standing()
        self.leaving = False
        server = SimpleNamespace(
            running=True, local=SimpleNamespace(observe=self._observe), promote=self._promote
        )
        self.promotion = Promotion(
            me="shop-1",
            config=lambda: ClusterConfig(name="shop", namespace="test", uid="u", instances=3),
            lease=cast(LeaseKeeper, self.lease),
            members=cast(Members, SimpleNamespace()),
            server=cast(Server, server),
            standing=self.standing,
            leaving=lambda: self.leaving,
        )

    async def _succeed(self, timeline: int) -> int | None:
        self.done.append(f"take from {timeline}")
        self.held = self.reserved is not None or self.outrun
        return self.reserved

    async def _reserve(self, timeline: int) -> int:
        self.done.append(f"reserve from {timeline}")
        return 6

    async def _promote(self, until_s: float, *, after: int, timeline: int) -> str | None:
        self.done.append(f"promote {after} to {timeline}")
        self.in_recovery = False
        self.has = WalPoint(timeline, END.lsn)
        return None

    async def _observe(self) -> Observation:
        return Observation(
            in_recovery=self.in_recovery,
            system_identifier="7001",
            point=self.has,
            streaming=False,
            upstream_host=None,
            lag_bytes=0,
            pending_restart=(),
            version="17.1",
            received=True,
        )


async def test_a_successor_takes_over_at_once_and_says_from_whom() -> None:
    world = World()
    assert await world.promotion.succeed() == (True, "promoted")
    assert world.done == ["take from 4", "promote 4 to 5"]
    told = world.standing.promotion
    assert told is not None
    assert (told.cause, told.previous, told.primary) == ("switchover", "shop-0", "shop-1")
    assert (told.timeline, told.epoch) == (5, 8)
    assert told.detected
    assert told.gate
    assert told.promoted


async def test_repmgr_that_comes_afterwards_finds_it_done() -> None:
    world = World()
    await world.promotion.succeed()
    before = list(world.done)
    done, message = await world.promotion.promote()
    assert done
    assert "already" in message
    assert world.done == before


@pytest.mark.parametrize("why", ["it lacks something", "it leaves", "another is named", "too late"])
async def test_who_may_not_succeed_takes_nothing(why: str) -> None:
    world = World()
    view = world.lease.view
    if why == "it lacks something":
        world.has = WalPoint(4, Lsn.parse("0/5000000"))
    if why == "it leaves":
        world.leaving = True
    if why == "another is named":
        record: Any = SimpleNamespace(holder="", handover=True, successor="shop-2")
        world.lease.view = LeaseView(record, monotonic_s())
    if why == "too late":
        world.lease.view = LeaseView(view.record, monotonic_s() - 11)
    done, reason = await world.promotion.succeed()
    assert not done
    assert reason
    assert world.done == []


async def test_a_lease_that_was_taken_by_another_ends_the_attempt() -> None:
    world = World()
    world.reserved = None
    done, _ = await world.promotion.succeed()
    assert not done
    assert world.done == ["take from 4"]
    assert world.standing.promotion is None


async def test_where_the_gate_was_faster_the_promotion_goes_on() -> None:
    world = World()
    world.reserved = None
    world.outrun = True
    assert (await world.promotion.succeed())[0]
    assert world.done == ["take from 4", "reserve from 4", "promote 4 to 6"]


# --- the promotion itself -----------------------------------------------------------------------
class Recovering:
    """A server that ends its recovery after so many looks; None: it does not answer."""

    def __init__(self, looks: int | None) -> None:
        self.looks = looks
        self.asked: list[str] = []

    async def query(self, statement: str) -> list[dict[str, bool]]:
        self.asked.append(statement)
        if self.looks is None:
            raise RetryError("no answer")
        if "pg_promote" in statement:
            return [{"pg_promote": True}]
        self.looks -= 1
        return [{"r": self.looks > 0}]


async def test_a_promotion_is_waited_for() -> None:
    server = Recovering(3)
    await promote(cast(LocalPostgres, server), within_s=5)
    assert "pg_promote" in server.asked[0]
    assert len(server.asked) == 4


async def test_a_promotion_that_does_not_end_is_given_up() -> None:
    with pytest.raises(RetryError, match="did not end"):
        await promote(cast(LocalPostgres, Recovering(10_000)), within_s=0.02)


@pytest.mark.parametrize(("status", "trouble"), [(0, None), (1, "pg_ctl promote failed: no")])
async def test_where_sql_does_not_answer_pg_ctl_promotes(
    monkeypatch: pytest.MonkeyPatch, status: int, trouble: str | None
) -> None:
    ran: list[str] = []

    async def run(arguments: list[str], *, deadline_s: float) -> Result:
        ran.append(arguments[-1])
        return Result(status, "no")

    async def no_answer() -> Observation:
        raise RetryError("no answer")

    monkeypatch.setattr(server_module, "run", run)
    silent = Recovering(None)
    fake: Any = SimpleNamespace(
        child=SimpleNamespace(pid=1),
        data=SimpleNamespace(
            use_up_timelines=lambda _: None, tell_timelines=lambda *_: None, current="/data"
        ),
        fence=SimpleNamespace(arm=lambda _: None),
        local=SimpleNamespace(query=silent.query, observe=no_answer),
        _bindir="/bin",
    )
    fake._is_primary = lambda: Server._is_primary(fake)
    assert await Server.promote(fake, 1.0, after=1, timeline=2) == trouble
    assert ran == ["promote"]
