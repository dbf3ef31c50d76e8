"""One replica leads; the next follows at once, or after a whole Lease, never before."""

from __future__ import annotations

from typing import cast

import pytest

from pgcluster.controller import elector
from pgcluster.controller.elector import DURATION_S, RENEW_DEADLINE_S, Elector
from pgcluster.kube.client import KubeClient
from pgcluster.kube.resources import LEASES
from tests.unit.fakekube import FakeKube


class World:
    """An API, a clock, and replicas that share both."""

    def __init__(self) -> None:
        self.kube = FakeKube()
        self.now_s = 100.0

    def replica(self, name: str) -> Elector:
        client = cast(KubeClient, self.kube)
        return Elector(client, namespace="system", identity=name, clock=lambda: self.now_s)

    def lease(self) -> tuple[str, int]:
        found = self.kube.find(LEASES, elector.NAME, "system")
        assert found is not None
        return found["spec"]["holderIdentity"], found["spec"]["leaseTransitions"]


@pytest.fixture
def world() -> World:
    return World()


async def test_the_first_one_leads_and_the_second_is_a_hot_standby(world: World) -> None:
    one, two = world.replica("one"), world.replica("two")
    assert await one.attempt()
    assert not await two.attempt()
    assert one.leads
    assert not two.leads
    assert two.watches
    assert world.lease() == ("one", 0)


async def test_a_lease_that_was_given_up_is_taken_at_once(world: World) -> None:
    one, two = world.replica("one"), world.replica("two")
    await one.attempt()
    await one.release()
    assert not one.leads
    assert await two.attempt()
    assert world.lease() == ("two", 1)


async def test_a_silent_leader_is_followed_only_after_it_was_watched_for_a_whole_lease(
    world: World,
) -> None:
    one, two = world.replica("one"), world.replica("two")
    await one.attempt()
    world.now_s += 3600  # the newcomer has not watched that
    assert not await two.attempt()
    world.now_s += DURATION_S - 1
    assert not await two.attempt()
    world.now_s += 2
    assert await two.attempt()
    assert world.lease() == ("two", 1)


async def test_a_leader_that_cannot_renew_stops_well_before_another_may_lead(world: World) -> None:
    one, two = world.replica("one"), world.replica("two")
    await one.attempt()
    assert not await two.attempt()
    world.kube.dies_after = 0
    world.now_s += RENEW_DEADLINE_S + 0.1
    assert not await one.attempt()
    assert not one.leads
    world.kube.dies_after = None
    assert not await two.attempt(), "two leaders at a time"


async def test_hold_ends_when_another_took_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elector, "RETRY_S", 0)
    one = world.replica("one")
    await one.attempt()
    found = world.kube.find(LEASES, elector.NAME, "system")
    assert found is not None
    found["spec"]["holderIdentity"] = "somebody"
    await one.hold()
    await one.release()
    assert world.lease()[0] == "somebody", "what is another's is not given up"
