"""Changing what commits wait for: at no step may a promotion miss an acknowledged commit."""

from __future__ import annotations

from pgcluster.api.config import ClusterConfig, SynchronousConfig
from pgcluster.node.synchronous import Synchronous, as_primary, target
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
    world.step(after)
    assert world.file == as_primary(before, ME).setting(), "the Lease does not list it yet"
    world.write_lease(after)
    assert set(world.listed) == {as_primary(before, ME), as_primary(after, ME)}
    world.step(after)
    assert world.file == as_primary(after, ME).setting()
    world.write_lease(after)
    assert as_primary(before, ME) in world.listed, "postgres has not loaded the new one yet"
    world.loaded = world.file
    world.step(after)
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
    assert not synchronous.follow(config())
    assert synchronous.follow(config(5))
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
