"""Changing what commits wait for: at no step may a promotion miss an acknowledged commit."""

from __future__ import annotations

import itertools

from pgcluster.api.config import ClusterConfig, SynchronousConfig
from pgcluster.node.synchronous import Synchronous, as_primary, target
from pgcluster.topology import quorum
from pgcluster.topology.quorum import Quorum

ME = "shop-0"


def config(instances: int = 3, *, standbys: int = 1, degrade: bool = False) -> ClusterConfig:
    return ClusterConfig(
        name="shop",
        namespace="prod",
        uid="u",
        instances=instances,
        synchronous=SynchronousConfig(mode="quorum", standbys=standbys, degrade=degrade),
    )


OFF = ClusterConfig(name="shop", namespace="prod", uid="u", instances=3)
BOTH = ("shop-1", "shop-2")


def test_commits_of_a_primary_wait_for_any_of_the_others() -> None:
    assert as_primary(config(), ME) == Quorum(1, BOTH, ME)
    assert as_primary(OFF, ME) == Quorum(0)
    assert as_primary(config(2, standbys=5), ME) == Quorum(1, ("shop-1",), ME)


def test_they_block_or_degrade_as_the_spec_says() -> None:
    for streaming in ((), ("shop-1",), BOTH):
        assert target(config(), ME, streaming) == Quorum(1, BOTH, ME)
    degrading = config(standbys=2, degrade=True)
    assert target(degrading, ME, BOTH) == Quorum(2, BOTH, ME)
    assert target(degrading, ME, ("shop-1",)) == Quorum(1, BOTH, ME)
    assert target(degrading, ME, ()) == Quorum(0)


class World:
    """postgres and the Lease of one primary, each a step behind or not."""

    def __init__(self, wanted: ClusterConfig) -> None:
        self.synchronous = Synchronous(ME)
        self.file = self.synchronous.setting(wanted)
        self.loaded = self.file
        self.synchronous.loaded(self.loaded)
        self.listed = self.synchronous.quorums(wanted)

    def step(self, wanted: ClusterConfig, streaming: tuple[str, ...] = BOTH) -> None:
        self.synchronous.loaded(self.loaded)
        if self.synchronous.lead(wanted, streaming, self.listed):
            self.file = self.synchronous.setting(wanted)
            assert_listed(self)

    def write_lease(self, wanted: ClusterConfig) -> None:
        self.listed = self.synchronous.quorums(wanted)


def assert_listed(world: World) -> None:
    for setting in (world.file, world.loaded):
        assert setting in {each.setting() for each in world.listed}, (setting, world.listed)


def test_a_change_is_listed_before_it_is_loaded_and_the_old_until_it_is_gone() -> None:
    before, after = config(3), config(5, standbys=2)
    world = World(before)
    world.step(before)
    assert world.listed == (as_primary(before, ME),)
    everybody = tuple(f"shop-{n}" for n in range(1, 5))
    world.step(after, everybody)
    assert world.file == as_primary(before, ME).setting(), "the Lease does not list it yet"
    world.write_lease(after)
    assert set(world.listed) == {as_primary(before, ME), as_primary(after, ME)}
    world.step(after, everybody)
    assert world.file == as_primary(after, ME).setting()
    world.write_lease(after)
    assert as_primary(before, ME) in world.listed, "postgres has not loaded the new one yet"
    world.loaded = world.file
    world.step(after, everybody)
    world.write_lease(after)
    assert world.listed == (as_primary(after, ME),)


def test_a_change_that_is_changed_again_half_way_ends_right() -> None:
    first, second = config(3, degrade=True), OFF
    world = World(first)
    world.step(first, streaming=())
    world.write_lease(first)
    world.step(first, streaming=())
    for _ in range(5):
        world.step(second)
        assert_listed(world)
        world.write_lease(second)
        world.loaded = world.file
    assert world.loaded == ""
    assert world.listed == (Quorum(0),)


def test_a_standby_is_ready_to_lead_at_any_time() -> None:
    synchronous = Synchronous("shop-1")
    assert synchronous.setting(config()) == 'ANY 1 ("shop-0", "shop-2")'
    assert not synchronous.follow(config(), None)
    assert synchronous.follow(config(5), None)
    assert len(synchronous.quorums(config(5))) == 1
    synchronous.loaded('ANY 1 ("shop-0", "shop-2")')
    assert len(synchronous.quorums(config(5))) == 2, "until postgres has loaded it, both count"


def test_the_former_primarys_quorum_counts_until_enough_standbys_have_caught_up() -> None:
    former = Quorum(1, (ME, "shop-2"), "shop-1")
    world = World(config())
    world.synchronous.inherit((former,))
    world.write_lease(config())
    assert former in world.listed
    world.step(config(), streaming=())
    world.write_lease(config())
    assert former in world.listed
    world.step(config(), streaming=("shop-2",))
    world.write_lease(config())
    assert world.listed == (as_primary(config(), ME),)


# --- members that come and go ---------------------------------------------------------------------
def settle(world: World, wanted: ClusterConfig, streaming: tuple[str, ...]) -> None:
    """Let every step be taken that is to be; at each, what may be in force is listed."""
    for _ in range(5):
        world.step(wanted, streaming)
        assert_listed(world)
        world.write_lease(wanted)
        world.loaded = world.file


def test_a_new_instance_is_a_member_from_when_it_first_streams() -> None:
    world, larger = World(config(3)), config(5)
    settle(world, larger, BOTH)
    assert world.loaded == 'ANY 1 ("shop-1", "shop-2")', "one that is cloned proves nothing"
    settle(world, larger, (*BOTH, "shop-3"))
    assert world.loaded == 'ANY 1 ("shop-1", "shop-2", "shop-3")'
    settle(world, larger, ("shop-1",))
    assert world.loaded == 'ANY 1 ("shop-1", "shop-2", "shop-3")', "who is away stays a member"


def test_commits_never_wait_for_an_instance_that_has_yet_to_be_cloned() -> None:
    off = config(1).model_copy(update={"synchronous": SynchronousConfig()})
    world, larger = World(off), config(3)
    settle(world, larger, ())
    assert world.loaded == ""
    settle(world, larger, ("shop-2",))
    assert world.loaded == 'ANY 1 ("shop-2")'
    settle(world, larger, BOTH)
    assert world.loaded == 'ANY 1 ("shop-1", "shop-2")'


def test_whoever_may_block_blocks_again_after_a_time_without() -> None:
    world = World(config(3))
    settle(world, config(3), BOTH)
    settle(world, config(3, degrade=True), ())
    assert world.loaded == ""
    settle(world, config(3), ())
    assert world.loaded == 'ANY 1 ("shop-1", "shop-2")'


def test_no_commit_waits_for_instances_that_are_about_to_be_removed() -> None:
    five = config(5)
    world = World(five)
    settle(world, five, tuple(f"shop-{n}" for n in range(1, 5)))
    going = five.model_copy(update={"remaining": 3})
    settle(world, going, tuple(f"shop-{n}" for n in range(1, 5)))
    assert world.loaded == 'ANY 1 ("shop-1", "shop-2")'
    assert {pod for each in world.listed for pod in each.members} == set(BOTH)
    settle(world, config(5), BOTH)
    assert world.loaded == 'ANY 1 ("shop-1", "shop-2")', "who comes back has to stream first"


def test_a_standby_leads_with_those_that_the_lease_lists() -> None:
    synchronous = Synchronous("shop-1")
    listed = (Quorum(1, BOTH, ME),)
    assert synchronous.follow(config(5), listed)
    assert synchronous.setting(config(5)) == 'ANY 1 ("shop-0", "shop-2")'
    assert synchronous.follow(config(5, standbys=3), listed), "too few have joined"
    assert synchronous.setting(config(5, standbys=3)).startswith("ANY 3 (")


def test_whatever_two_agents_think_of_the_size_what_was_acknowledged_is_seen() -> None:
    """3 to 5 and back: at each step, any set that any agent may elect from has every commit.

    The proof is by who the Lease lists, not by how many instances an agent believes there are.
    """
    pods = [f"shop-{n}" for n in range(5)]
    world = World(config(3))
    for wanted, streaming in (
        (config(5), BOTH),
        (config(5), tuple(pods[1:])),
        (config(5).model_copy(update={"remaining": 3}), tuple(pods[1:])),
        (config(3), BOTH),
    ):
        for _ in range(5):
            world.step(wanted, streaming)
            for setting in (world.file, world.loaded):
                assert_every_election_sees(setting, world.listed, pods)
            world.write_lease(wanted)
            for setting in (world.file, world.loaded):
                assert_every_election_sees(setting, world.listed, pods)
            world.loaded = world.file


def assert_every_election_sees(setting: str, listed: tuple[Quorum, ...], pods: list[str]) -> None:
    waits_for = quorum.of_setting(setting, primary=ME)
    acknowledged = list(itertools.combinations(waits_for.members, waits_for.standbys))
    for believes in (3, 5):
        known = [pod for pod in pods[:believes] if pod != ME]
        for size in range(len(known) + 1):
            for visible in itertools.combinations(known, size):
                if quorum.unproven(listed, visible) is None:
                    assert all(set(each) & set(visible) for each in acknowledged)
