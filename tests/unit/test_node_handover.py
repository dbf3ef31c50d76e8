"""The planned hand-over: whom it chooses, when it stops, and what it puts back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig, SwitchoverConfig
from pgcluster.api.errors import RetryError
from pgcluster.api.reports import HandoverReport
from pgcluster.api.wal import Lsn, WalPoint
from pgcluster.node import handover as module
from pgcluster.node.draining import CONNECTIONS, Connection, acknowledgement, undrained
from pgcluster.node.handover import Handover, due, heir, interrupted
from pgcluster.node.hearing import Pooler
from pgcluster.node.instance import Instance
from pgcluster.node.members import Status
from pgcluster.postgres.local import Observation
from pgcluster.proc import Result
from pgcluster.repmgr import refusal
from pgcluster.topology.election import Candidate
from pgcluster.topology.succession import MAXIMUM_LAG_BYTES, Heir, choose

POINT = WalPoint(4, Lsn.parse("0/5000028"))
FIT = Candidate("7001", POINT)
EPOCH = 7

# --- whom ---------------------------------------------------------------------------------------
SOUND = Heir("shop-1", 0, FIT)


def chosen(*heirs: Heir, target: str | None = None) -> tuple[str | None, str]:
    choice = choose(heirs, target=target, system_identifier="7001", timeline=4)
    return choice.pod, choice.reason


def test_the_most_advanced_takes_over_then_the_lowest_ordinal() -> None:
    second = replace(SOUND, pod="shop-2")
    assert chosen(replace(SOUND, lag_bytes=9), second)[0] == "shop-2"
    assert chosen(second, SOUND)[0] == "shop-1"


def test_a_target_is_taken_though_another_is_ahead() -> None:
    assert chosen(SOUND, Heir("shop-2", 500, FIT), target="shop-2")[0] == "shop-2"


@pytest.mark.parametrize(
    ("heir", "reason"),
    [
        (replace(SOUND, candidate=None), "the agent of shop-1 does not answer"),
        (replace(SOUND, candidate=replace(FIT, barred=True)), "shop-1 is not fit"),
        (replace(SOUND, follows_plans=False), "knows no hand-over"),
        (replace(SOUND, candidate=replace(FIT, system_identifier="9")), "another system"),
        (replace(SOUND, lag_bytes=None), "shop-1 does not stream from this primary"),
        (
            replace(SOUND, candidate=replace(FIT, point=WalPoint(3, POINT.lsn))),
            "shop-1 is on another timeline than 4",
        ),
        (replace(SOUND, lag_bytes=MAXIMUM_LAG_BYTES + 1), "has yet to replay 16777217 bytes"),
        (replace(SOUND, disk_full=True), "the volume of shop-1 is full"),
    ],
)
def test_who_cannot_take_over_is_refused_with_the_reason(heir: Heir, reason: str) -> None:
    for target in (None, "shop-1"):
        pod, told = chosen(heir, target=target)
        assert pod is None
        assert reason in told


def test_without_anybody_there_is_nobody() -> None:
    assert chosen() == (None, "there is no other instance")
    pod, told = chosen(SOUND, target="shop-8")
    assert pod is None
    assert "shop-8 is no other instance" in told


# --- when ---------------------------------------------------------------------------------------
POOLERS = (Pooler("pool-a", "10.0.0.1"), Pooler("pool-b", "10.0.0.2"))


def agent(pooler: Pooler, epoch: int | None = EPOCH) -> Connection:
    told = f"SELECT 1 {acknowledgement(epoch)}" if epoch else "SELECT 1"
    return Connection(names.pooler_application(pooler.pod), pooler.address, "active", told)


ACKNOWLEDGED = [agent(pooler) for pooler in POOLERS]
IDLE = Connection("", "10.0.0.1", "idle", "")
BUSY = replace(IDLE, state="idle in transaction")


def waits(*seen: Connection, poolers: tuple[Pooler, ...] = POOLERS, waited_s: float = 0.1) -> str:
    return undrained(poolers, seen, epoch=EPOCH, waited_s=waited_s) or ""


def test_it_is_time_when_all_have_acknowledged_and_nothing_is_left() -> None:
    assert waits(*ACKNOWLEDGED) == ""


def test_an_idle_connection_may_have_a_query_under_way_but_sessions_are_not_waited_for() -> None:
    assert waits(*ACKNOWLEDGED, IDLE) == "1 connections of the pools are still there"
    assert waits(*ACKNOWLEDGED, IDLE, waited_s=0.3) == ""


def test_each_pooler_is_waited_for_but_not_for_long() -> None:
    seen = (ACKNOWLEDGED[0], agent(POOLERS[1], None))
    assert waits(*seen) == "pool-b has not acknowledged yet"
    assert waits(*seen, waited_s=1.0) == ""


def test_an_acknowledgement_of_another_epoch_is_none() -> None:
    assert "pool-a has not" in waits(agent(POOLERS[0], 77), agent(POOLERS[1]))


def test_transactions_are_waited_for_and_then_cut() -> None:
    assert "1 connections of the pools" in waits(*ACKNOWLEDGED, BUSY)
    assert "1 connections" in waits(*ACKNOWLEDGED, replace(BUSY, state="active"), waited_s=4.9)
    assert waits(*ACKNOWLEDGED, BUSY, waited_s=5.0) == ""


def test_transactions_of_a_pooler_that_does_not_pause_are_not_waited_for() -> None:
    seen = (agent(POOLERS[0], None), ACKNOWLEDGED[1], BUSY)
    assert waits(*seen, waited_s=1.0) == ""


def test_a_mute_pooler_cannot_acknowledge_but_its_transactions_count() -> None:
    mute = (replace(POOLERS[0], mute=True), POOLERS[1])
    assert "1 connections" in waits(ACKNOWLEDGED[1], BUSY, poolers=mute)
    assert waits(ACKNOWLEDGED[1], poolers=mute) == ""


def test_without_poolers_nobody_is_waited_for() -> None:
    assert waits(poolers=()) == ""


# --- an order -----------------------------------------------------------------------------------
ORDER = SwitchoverConfig(request="r1", target="shop-1", epoch=EPOCH)


def test_an_order_is_carried_out_once_in_its_epoch_only() -> None:
    assert due(ORDER, me="shop-0", epoch=EPOCH, dealt=frozenset())
    assert not due(None, me="shop-0", epoch=EPOCH, dealt=frozenset())
    assert not due(ORDER, me="shop-0", epoch=EPOCH + 1, dealt=frozenset())
    assert not due(ORDER, me="shop-0", epoch=EPOCH, dealt=frozenset({("r1", EPOCH)}))
    assert due(ORDER, me="shop-0", epoch=EPOCH, dealt=frozenset({("r1", EPOCH - 1)}))
    assert not due(ORDER, me="shop-1", epoch=EPOCH, dealt=frozenset())


@pytest.mark.parametrize("state", ["checking", "holding", "stopping"])
def test_a_handover_that_died_with_its_agent_has_failed(state: str) -> None:
    report = HandoverReport.model_validate({"request": "r1", "state": state})
    found = interrupted(report)
    assert found.state == "failed"
    assert state in found.reason
    done = HandoverReport(request="r1", state="done")
    assert interrupted(done) == done


def test_what_repmgr_refuses_is_told_in_one_line() -> None:
    output = "NOTICE: checking\nERROR: unable to connect\nHINT: try again\n"
    assert refusal(Result(1, output)) == "unable to connect"
    assert refusal(Result(124, "repmgr did not end within 15 s")).endswith("within 15 s")


def test_what_is_known_of_an_heir_is_what_streams_and_what_its_agent_says() -> None:
    assert heir("shop-1", 3, Status(FIT, follows_plans=True, disk_full=True)) == Heir(
        "shop-1", 3, FIT, disk_full=True
    )
    assert heir("shop-1", None, None) == Heir("shop-1", None, None)


# --- the steps ----------------------------------------------------------------------------------
class World:
    """A primary with one standby and one pooler; `log` is what was done to them, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.lags = [{"pod": "shop-1", "lag": 10}]
        self.status: Status | None = Status(FIT, follows_plans=True, disk_full=False)
        self.mute = 0  # how many times its agent does not answer
        self.answers: dict[str, Mapping[str, Any] | None] = {
            "/ready-for-switchover": {},
            "/complete": {},
        }
        self.heard = True
        self.clean = True
        self.acknowledges = True
        self.config = ClusterConfig(name="shop", namespace="test", uid="u", instances=2)
        self.lease = SimpleNamespace(
            epoch=EPOCH,
            failsafe_since_s=None,
            holding=lambda: True,
            announce=self._announce,
            withdraw=self._withdraw,
            release=self._release,
        )
        self.local = SimpleNamespace(observe=self._observe, query=self._query)
        self.instance = SimpleNamespace(
            me="shop-0",
            config=self.config,
            lease=self.lease,
            standing=SimpleNamespace(primary=True, handover=None),
            server=SimpleNamespace(local=self.local, running=True),
            members=SimpleNamespace(statuses=self._statuses, request=self._request),
            poolers=SimpleNamespace(heard=lambda: (Pooler("pool-a", "10.0.0.1"),)),
            wake=asyncio.Event(),
            hands_off_until_s=0.0,
            handing_over=False,
            final_point=None,
            quieten_repmgrd=self._noted("repmgrd stops"),
            stop_postgres=self._stop,
        )
        self.handover = Handover(cast(Instance, self.instance))

    def _noted(self, what: str) -> Any:
        async def step() -> None:
            self.log.append(what)

        return step

    async def _announce(self, successor: str | None) -> bool:
        self.log.append(f"announce {successor}")
        return self.heard

    async def _withdraw(self) -> bool:
        self.log.append("withdraw")
        return True

    async def _release(self, *, handover: bool, successor: str) -> bool:
        assert handover
        self.log.append(f"release to {successor}")
        return self.heard

    async def _observe(self) -> Observation:
        return Observation(
            in_recovery=False,
            system_identifier="7001",
            point=POINT,
            streaming=False,
            upstream_host=None,
            lag_bytes=None,
            pending_restart=(),
            version="17.1",
        )

    async def _query(self, statement: str, *_: object) -> list[dict[str, Any]]:
        return self.lags

    async def _statuses(self, only: str | None) -> dict[str, Status | None]:
        if self.mute:
            self.mute -= 1
            return {"shop-1": None}
        return {"shop-1": self.status}

    async def _request(
        self, pod: str, path: str, body: Mapping[str, Any], *, deadline_s: float
    ) -> Mapping[str, Any]:
        self.log.append(f"{path} {pod}")
        answer = self.answers[path]
        if answer is None:
            raise RetryError("no answer")
        return answer

    async def _stop(self, *, checkpoint: bool) -> None:
        assert not checkpoint
        assert self.instance.hands_off_until_s > 0, "the loop would take it for a crash"
        self.log.append("stop")
        self.instance.final_point = POINT if self.clean else None

    @property
    def report(self) -> HandoverReport:
        found = self.instance.standing.handover
        assert isinstance(found, HandoverReport)
        return found

    def is_as_before(self) -> bool:
        return not self.instance.handing_over and self.instance.hands_off_until_s == 0.0


class Server:
    """Takes the place of the hand-over's own connections."""

    def __init__(self, world: World) -> None:
        self._world = world

    def __call__(self, *, deadline_s: float) -> Server:
        return self

    async def query(self, statement: str, *_: object) -> list[dict[str, str]]:
        if statement != CONNECTIONS:
            self._world.log.append(statement)
            return []
        told = acknowledgement(EPOCH) if self._world.acknowledges else ""
        application = names.pooler_application("pool-a")
        row = {"application": application, "address": "10.0.0.1", "state": "idle", "query": told}
        return [row]

    async def close(self) -> None:
        """Nothing is open."""


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    server = Server(made)
    monkeypatch.setattr(module, "LocalPostgres", server)
    made.handover._local = server  # type: ignore[assignment] # speaks its interface
    return made


BEGUN = ["CHECKPOINT", "repmgrd stops", "announce shop-1"]


async def test_a_handover_goes_through_its_steps_in_order(world: World) -> None:
    outcome = await world.handover.give("shop-1", request="r1", rehearse=True)
    assert outcome.done
    assert world.log == [
        "/ready-for-switchover shop-1",
        *BEGUN,
        "stop",
        "/complete shop-1",
        "release to shop-1",
    ]
    report = world.report
    assert (report.request, report.target, report.epoch) == ("r1", "shop-1", EPOCH)
    assert report.state == "done"
    assert not world.instance.handing_over
    assert world.instance.hands_off_until_s > 0, "it stays down until its caller says otherwise"


async def test_a_pod_that_leaves_hands_over_to_the_best_without_a_rehearsal(world: World) -> None:
    outcome = await world.handover.leave()
    assert outcome.done
    assert world.log == [*BEGUN, "stop", "/complete shop-1", "release to shop-1"]
    assert world.report.target == "shop-1"


async def test_a_refusal_begins_nothing(world: World) -> None:
    world.lags = []
    outcome = await world.handover.give("shop-1", request="r1", rehearse=True)
    assert not outcome.done
    assert "does not stream" in outcome.reason
    assert world.log == []
    assert (world.report.state, world.report.reason) == ("refused", outcome.reason)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [({"refused": "no walsender"}, "repmgr on shop-1 refuses: no walsender"), (None, "asked")],
)
async def test_what_repmgr_refuses_holds_no_pool(
    world: World, answer: Mapping[str, Any] | None, reason: str
) -> None:
    world.answers["/ready-for-switchover"] = answer
    outcome = await world.handover.give("shop-1", rehearse=True)
    assert not outcome.done
    assert reason in outcome.reason
    assert world.log == ["/ready-for-switchover shop-1"]
    assert world.report.state == "refused"


@pytest.mark.parametrize("what", ["not primary", "not holding", "failsafe"])
async def test_only_a_primary_that_is_heard_by_the_api_hands_over(world: World, what: str) -> None:
    world.instance.standing.primary = what != "not primary"
    world.lease.holding = lambda: what != "not holding"
    world.lease.failsafe_since_s = 1.0 if what == "failsafe" else None
    assert not (await world.handover.give("shop-1")).done
    assert world.log == []


async def test_an_announcement_that_is_not_heard_is_taken_back(world: World) -> None:
    world.heard = False
    assert not (await world.handover.give("shop-1")).done
    assert world.log == [*BEGUN, "withdraw"]
    assert world.report.state == "failed"
    assert world.is_as_before()


async def test_a_stop_that_was_not_in_order_is_no_handover(world: World) -> None:
    world.clean = False
    assert not (await world.handover.give("shop-1")).done
    assert world.log == [*BEGUN, "stop", "withdraw"]
    assert "in order" in world.report.reason
    assert world.is_as_before()


@pytest.mark.parametrize(("answer", "asked"), [({"refused": "it has 0/4"}, 1), (None, 2)])
async def test_a_successor_that_lacks_something_gets_nothing(
    world: World, answer: Mapping[str, Any] | None, asked: int
) -> None:
    world.answers["/complete"] = answer
    assert not (await world.handover.give("shop-1")).done
    assert world.log == [*BEGUN, "stop", *["/complete shop-1"] * asked, "withdraw"]
    assert world.report.state == "failed"
    assert world.is_as_before(), "the loop starts it as the primary again"


@pytest.mark.parametrize(("lost", "done"), [(1, True), (2, True), (3, False)])
async def test_one_answer_that_is_lost_refuses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, lost: int, *, done: bool
) -> None:
    monkeypatch.setattr(module, "_ASK_AGAIN_S", 0.001)
    world.mute = lost
    outcome = await world.handover.give(None)
    assert outcome.done is done
    if not done:
        assert outcome.reason == "the agent of shop-1 does not answer"
        assert world.log == []


async def test_a_pooler_that_is_late_is_waited_for(world: World) -> None:
    world.acknowledges = False

    async def later() -> None:
        await asyncio.sleep(0.05)
        assert world.log == BEGUN
        assert world.report.state == "holding"
        world.acknowledges = True

    outcome, _ = await asyncio.gather(world.handover.give("shop-1"), later())
    assert outcome.done


async def test_one_at_a_time(world: World) -> None:
    world.acknowledges = False
    first = asyncio.create_task(world.handover.give("shop-1"))
    await asyncio.sleep(0.02)
    second = await world.handover.give("shop-1")
    assert not second.done
    assert await world.handover.hold() == "another hand-over is under way"
    world.acknowledges = True
    assert (await first).done


async def test_holding_the_pools_for_a_restart_and_letting_go(world: World) -> None:
    assert await world.handover.hold() is None
    assert world.log == ["CHECKPOINT", "repmgrd stops", "announce None"]
    assert world.instance.handing_over
    await world.handover.let_go()
    assert world.log[-1] == "withdraw"
    assert world.is_as_before()


async def test_pools_that_cannot_be_held_go_on(world: World) -> None:
    world.heard = False
    assert await world.handover.hold() == "the API server did not hear of it"
    assert world.log[-1] == "withdraw"
    assert world.is_as_before()


async def test_a_person_who_stops_the_primary_holds_the_pools_if_somebody_can_take_over(
    world: World,
) -> None:
    assert await world.handover.stop() is None
    assert "announce None" in world.log
    await world.handover.let_go()
    world.log.clear()
    world.lags = []
    assert await world.handover.stop() is not None
    assert world.log == []


async def test_an_order_waits_for_what_a_former_process_has_told(world: World) -> None:
    world.instance.config = world.config.model_copy(update={"switchover": ORDER})
    world.handover.obey()
    assert world.handover._order is None
    world.handover.recall(HandoverReport(request="r1", epoch=EPOCH, state="refused"))
    world.handover.obey()
    assert world.handover._order is None, "it was refused, and is not tried again"
    assert world.report.state == "refused"


async def test_an_order_is_carried_out_and_the_loop_goes_on_afterwards(world: World) -> None:
    world.instance.config = world.config.model_copy(update={"switchover": ORDER})
    world.handover.recall(None)
    world.handover.obey()
    assert world.handover._order is not None
    await world.handover._order
    assert world.report.state == "done"
    assert world.instance.hands_off_until_s == 0.0
    assert world.instance.wake.is_set()
    before = list(world.log)
    world.handover.obey()
    await asyncio.sleep(0)
    assert world.log == before, "one order is carried out once"


async def test_a_pod_that_leaves_during_an_orders_checks_hands_over_by_itself(
    world: World,
) -> None:
    world.instance.config = world.config.model_copy(update={"switchover": ORDER})
    asked = asyncio.Event()
    request = world.instance.members.request

    async def slow(pod: str, path: str, body: Any, *, deadline_s: float) -> Any:
        if path == "/ready-for-switchover":
            asked.set()
            await asyncio.sleep(3600)
        return await request(pod, path, body, deadline_s=deadline_s)

    world.instance.members.request = slow
    world.handover.recall(None)
    world.handover.obey()
    await asked.wait()
    assert (await world.handover.leave()).done
    assert world.log[-1] == "release to shop-1"
