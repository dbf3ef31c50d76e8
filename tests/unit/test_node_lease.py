"""Keeping the Lease: two keepers against one API in memory, which may go away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest

from pgcluster.api import names
from pgcluster.api.config import LeaseConfig
from pgcluster.api.wal import Lsn, WalPoint
from pgcluster.kube.client import KubeClient
from pgcluster.kube.errors import Unavailable
from pgcluster.kube.resources import LEASES, Resource
from pgcluster.node import lease as module
from pgcluster.node.lease import LeaseKeeper
from pgcluster.topology.lease import LeaseRecord, Mark
from pgcluster.topology.quorum import Quorum
from tests.unit.fakekube import FakeKube

QUORUM = Quorum(1, ("shop-1", "shop-2"), "shop-0")


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Api(FakeKube):
    """`away`: nobody answers; `mute`: requests take effect, and their answers never come."""

    away = False
    mute = False
    # Happens between a write and its answer.
    meanwhile: Callable[[], Awaitable[None]] | None = None

    def _request(self) -> None:
        if self.away:
            raise Unavailable(0, "Unreachable", "the API server does not answer")
        super()._request()

    async def replace(self, resource: Resource, manifest: Mapping[str, Any]) -> dict[str, Any]:
        written = await super().replace(resource, manifest)
        if self.mute:
            await asyncio.sleep(3600)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            await meanwhile()
        return written


class Member(LeaseKeeper):
    """A keeper with what an instance would give it; `others` are asked in a failsafe."""

    def __init__(self, api: Api, me: str) -> None:
        self.others: list[Member] = []
        self.reachable = True
        self.fence_s: list[float] = []
        self.mark = Mark("7001", WalPoint(2, Lsn(1000)))
        self.inherited: tuple[Quorum, ...] = ()
        super().__init__(
            api,  # type: ignore[arg-type] # speaks the client's interface
            cluster="shop",
            namespace="test",
            me=me,
            timing=LeaseConfig,
            mark=lambda: self.mark,
            quorums=lambda: (QUORUM,),
            inherit=self._inherits,
            container=f"word of {me}",
            failsafe=self._ask_others,
            renewed=self.fence_s.append,
            changed=asyncio.Event(),
        )

    def _inherits(self, quorums: tuple[Quorum, ...]) -> None:
        self.inherited = quorums

    async def _ask_others(self, record: LeaseRecord) -> bool:
        return all(other.reachable and other.acknowledge(record) is None for other in self.others)

    async def look(self) -> None:
        await self._read()

    async def take(self, decided_on: LeaseRecord | None = None, **how: Any) -> bool:
        """Decided on what it has seen, unless told otherwise."""
        seen = self.view.record if self.view else None
        return await super().take(decided_on or seen, **how)

    async def renew(self) -> None:
        await self._renew(LeaseConfig())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "monotonic_s", clock)
    return clock


@pytest.fixture
def api() -> Api:
    api = Api()
    put_lease(api)
    return api


def put_lease(api: Api, *, holder: str = "", epoch: int = 0, uid: str = "first") -> None:
    api.put(
        LEASES,
        {
            "metadata": {"name": names.primary_lease("shop"), "namespace": "test", "uid": uid},
            "spec": {"holderIdentity": holder, "leaseTransitions": epoch},
        },
    )


async def members(api: Api) -> tuple[Member, Member, Member]:
    found = [Member(api, f"shop-{n}") for n in range(3)]
    for member in found:
        member.others = [other for other in found if other is not member]
        await member.look()
    first, second, third = found
    assert await first.take(writes=True)
    for member in found:
        await member.look()
    return first, second, third


def test_the_client_is_what_the_keeper_takes() -> None:
    assert all(hasattr(KubeClient, name) for name in ("get", "replace", "watch"))


async def test_the_holder_writes_its_mark_its_quorum_and_its_containers_word(
    api: Api, clock: Clock
) -> None:
    first, second, _ = await members(api)
    assert second.view is not None
    record = second.view.record
    assert (record.holder, record.epoch, record.container) == ("shop-0", 1, "word of shop-0")
    assert record.mark == first.mark
    assert record.quorums == (QUORUM,)
    first.mark = Mark("7001", WalPoint(2, Lsn(2000)), final=True)
    assert await first.release()
    await second.look()
    record = second.view.record
    assert (record.holder, record.last_holder) == ("", "shop-0")
    assert record.mark == first.mark


async def test_who_only_takes_the_lease_leaves_what_the_last_primary_wrote(
    api: Api, clock: Clock
) -> None:
    first, second, third = await members(api)
    assert await first.release()
    second.mark = Mark("7001", None)
    await second.look()
    assert await second.take()
    await third.look()
    assert third.view is not None
    assert third.view.record.quorums == (QUORUM,)
    assert (third.view.record.holder, third.view.record.writer) == ("shop-1", "shop-0")
    assert await second.reserve(2) == 3
    assert second.inherited == (QUORUM,)
    await third.look()
    assert third.view.record.writer == "shop-1"
    assert third.view.record.reserved == 3
    assert await second.reserve(2) == 4, "each promotion has a number of its own"


async def seen(member: Member) -> LeaseRecord:
    await member.look()
    assert member.view is not None
    return member.view.record


async def test_an_announcement_stands_until_it_is_withdrawn(api: Api, clock: Clock) -> None:
    first, second, _ = await members(api)
    assert await first.announce("shop-1")
    for _ in range(3):
        clock.now_s += 1
        await first.renew()
        record = await seen(second)
        assert (record.pausing, record.successor) == (True, "shop-1")
    assert await first.withdraw()
    for _ in range(2):
        record = await seen(second)
        assert (record.pausing, record.successor, record.holder) == (False, None, "shop-0")
        await first.renew()


async def test_a_restart_in_place_is_announced_without_a_successor(api: Api, clock: Clock) -> None:
    first, second, _ = await members(api)
    assert await first.announce()
    record = await seen(second)
    assert (record.pausing, record.successor) == (True, None)


async def test_nobody_but_the_holder_announces(api: Api, clock: Clock) -> None:
    first, second, _ = await members(api)
    assert not await second.announce("shop-2")
    clock.now_s += 5
    assert not await first.announce("shop-1"), "its right to write has run out"


async def test_an_announcement_that_was_not_heard_is_not_repeated(api: Api, clock: Clock) -> None:
    first, second, _ = await members(api)
    api.away = True
    assert not await first.announce("shop-1")
    api.away = False
    await first.renew()
    assert not (await seen(second)).pausing


async def test_a_withdrawal_that_was_not_heard_is_told_by_the_next_renewal(
    api: Api, clock: Clock
) -> None:
    first, second, _ = await members(api)
    assert await first.announce("shop-1")
    api.away = True
    assert not await first.withdraw()
    api.away = False
    await first.renew()
    assert not (await seen(second)).pausing


async def test_a_new_process_of_the_holder_announces_nothing(api: Api, clock: Clock) -> None:
    first, second, _ = await members(api)
    assert await first.announce("shop-1")
    again = Member(api, "shop-0")
    await again.look()
    assert await again.take(writes=True)
    record = await seen(second)
    assert (record.holder, record.pausing, record.successor) == ("shop-0", False, None)


async def test_a_lease_that_is_handed_over_names_its_successor_alone(
    api: Api, clock: Clock
) -> None:
    first, second, third = await members(api)
    assert await first.announce("shop-1")
    assert await first.release(handover=True, successor="shop-1")
    for member in (second, third):
        record = await seen(member)
        assert (record.holder, record.handover) == ("", True)
        assert (record.pausing, record.successor) == (False, "shop-1")
    assert second.named.is_set()
    assert not third.named.is_set()
    assert not first.holding()


async def test_the_successor_takes_the_lease_and_its_timeline_in_one_write(
    api: Api, clock: Clock
) -> None:
    first, second, third = await members(api)
    assert await first.release(handover=True, successor="shop-1")
    await second.look()
    assert await third.succeed(2) is None
    before = api.requests
    second.mark = Mark("7001", None)
    assert await second.succeed(2) == 3
    assert api.requests == before + 1
    assert second.holding()
    assert second.inherited == (QUORUM,)
    record = await seen(third)
    assert (record.holder, record.writer, record.reserved) == ("shop-1", "shop-1", 3)
    assert (record.successor, record.handover, record.mark.final) == (None, False, False)
    assert record.mark.point == first.mark.point


async def test_a_successor_that_was_outrun_takes_nothing(api: Api, clock: Clock) -> None:
    first, second, third = await members(api)
    assert await first.release(handover=True, successor="shop-1")
    await second.look()
    await third.look()
    assert await third.take()
    assert await second.succeed(2) is None
    assert not second.holding()
    record = await seen(second)
    assert (record.holder, record.successor) == ("shop-2", None)


async def test_a_release_without_a_plan_names_nobody(api: Api, clock: Clock) -> None:
    first, second, _ = await members(api)
    assert await first.announce("shop-1")
    assert await first.release()
    record = await seen(second)
    assert (record.handover, record.successor, record.pausing) == (False, None, False)
    assert not second.named.is_set()


async def test_validity_counts_from_before_the_request(api: Api, clock: Clock) -> None:
    first, _, _ = await members(api)
    clock.now_s += 1
    await first.renew()
    assert first.fence_s[-1] == clock.now_s + 4
    clock.now_s += 4
    assert not first.holding()


async def test_a_held_lease_is_not_taken_until_it_was_watched_for_its_duration(
    api: Api, clock: Clock
) -> None:
    _, second, _ = await members(api)
    clock.now_s += 5.9
    assert not await second.take()
    clock.now_s += 0.2
    assert await second.take()
    assert second.epoch == 2
    assert second.taken_over


async def test_while_the_api_is_away_all_others_words_keep_a_primary_writing(
    api: Api, clock: Clock
) -> None:
    first, second, third = await members(api)
    api.away = True
    for _ in range(20):
        clock.now_s += 1
        await first.renew()
        assert first.holding()
    assert first.failsafe_since_s is not None
    for other in (second, third):
        assert other.view is not None
        assert not other.view.free(clock.now_s), "who acknowledges does not take it"
    api.away = False
    assert not await second.take()
    await first.renew()
    assert first.failsafe_since_s is None


async def test_one_silent_instance_is_enough_to_end_a_failsafe(api: Api, clock: Clock) -> None:
    first, second, third = await members(api)
    api.away = True
    third.reachable = False
    clock.now_s += 1
    await first.renew()
    clock.now_s += 3
    await first.renew()
    assert not first.holding(), "the one that was not heard may be taking the Lease"
    api.away = False
    clock.now_s += 6.1
    assert await third.take()
    clock.now_s += 0.1
    assert not await second.take()


async def test_a_promise_outlives_a_lost_answer_of_the_api(api: Api, clock: Clock) -> None:
    first, second, _ = await members(api)
    # The second one takes an expired Lease; the API does it, but its answer is lost.
    clock.now_s += 6.1
    api.mute = True
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await second.take()
    api.mute = False
    # Meanwhile the first was heard directly, and goes on for as long as it was promised.
    assert second.acknowledge(LeaseRecord("shop-0", 1, 6.0, "", first.mark)) is None
    assert not await second.take(), "although the API server names it as the holder"
    clock.now_s += 6.1
    assert await second.take()


async def test_a_holder_is_not_acknowledged_once_another_is_known(api: Api, clock: Clock) -> None:
    first, second, third = await members(api)
    clock.now_s += 6.1
    assert await second.take()
    await third.look()
    assert first.view is not None
    old = first.view.record
    for other in (second, third):
        assert other.acknowledge(old) is not None
    current = LeaseRecord("shop-1", 2, 6.0, "", first.mark)
    assert third.acknowledge(current) is None
    assert third.acknowledge(LeaseRecord("shop-0", 2, 6.0, "", first.mark)) is not None


async def test_an_agent_that_starts_without_the_api_learns_of_the_holder(
    api: Api, clock: Clock
) -> None:
    first, _, _ = await members(api)
    api.away = True
    fresh = Member(api, "shop-2")
    first.others[-1] = fresh
    clock.now_s += 1
    await first.renew()
    assert fresh.view is not None
    assert fresh.view.record.holder == "shop-0"
    assert not fresh.view.free(clock.now_s)


async def test_a_conflict_of_ones_own_making_costs_one_more_request(api: Api, clock: Clock) -> None:
    first, _, _ = await members(api)
    stored = api.find(LEASES, "shop-primary")
    assert stored is not None
    api.put(LEASES, {**stored, "metadata": {**stored["metadata"], "labels": {"touched": "yes"}}})
    clock.now_s += 3
    await first.renew()
    assert first.fence_s[-1] == clock.now_s + 4


async def test_a_deleted_lease_is_taken_back_by_its_holder_and_by_nobody_else_at_once(
    api: Api, clock: Clock
) -> None:
    first, second, _ = await members(api)
    del api.objects["leases", "test", "shop-primary"]
    for member in (first, second):
        await member.look()
    clock.now_s += 1
    await first.renew()
    assert first.holding(), "by the word of the others"
    put_lease(api, uid="second", epoch=1)
    for member in (second, first):
        await member.look()
    assert not await second.take()
    clock.now_s += 1
    await first.renew()
    assert first.holding()
    assert first.epoch == 2
    await second.look()
    assert second.view is not None
    assert second.view.record.holder == "shop-0"


@pytest.mark.parametrize("request_of", ["renewal", "taking", "reservation"])
async def test_an_answer_that_comes_after_the_loss_takes_nothing_back(
    api: Api, clock: Clock, request_of: str
) -> None:
    """The whole instance stood still; on its wake the watch was faster than the answer."""
    first, second, _ = await members(api)

    async def taken_over() -> None:
        await second.look()
        clock.now_s += 7
        assert await second.take()
        await first.look()

    api.meanwhile = taken_over
    if request_of == "renewal":
        await first.renew()
    elif request_of == "taking":
        assert not await first.take()
    else:
        assert await first.reserve(2) is None
    assert first.valid_until_s is None
    await first.renew()
    assert second.holding()
    await second.look()
    assert second.holding(), "nobody took it from there"


async def test_a_lease_that_has_changed_hands_since_the_decision_is_not_taken(
    api: Api, clock: Clock
) -> None:
    """Its last holder stood still, and would put itself on record as its last writer."""
    first, second, _ = await members(api)
    await second.look()
    assert first.view is not None
    held = first.view.record
    clock.now_s += 7
    assert await second.take(writes=True)
    assert await second.release()
    assert not await first.take(held, writes=True), "as the last holder, which it is not any more"
    stored = api.find(LEASES, "shop-primary")
    assert stored is not None
    assert stored["metadata"]["annotations"][names.ANNOTATION_WRITER] == "shop-1"
    assert await first.take(), "decided on what it has seen by then"


async def test_a_lease_made_again_is_not_taken_back_from_who_has_it_by_then(
    api: Api, clock: Clock
) -> None:
    first, second, _ = await members(api)
    put_lease(api, uid="second", epoch=2, holder="shop-1")
    clock.now_s += 20
    await first.look()
    assert first.valid_until_s is None
    await first.renew()
    await second.look()
    assert second.view is not None
    assert second.view.record.holder == "shop-1"


async def test_the_proven_end_of_a_container_frees_its_lease(api: Api, clock: Clock) -> None:
    _, second, _ = await members(api)
    assert not await second.take(ended="word of somebody else")
    assert await second.take(ended="word of shop-0")
