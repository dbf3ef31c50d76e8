"""Scaling, sleep and maintenance: the next step in each situation."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgcluster.api import names
from pgcluster.api.config import Orders
from pgcluster.api.models import PgCluster, to_config
from pgcluster.api.reports import InstanceReport, PoolerReport
from pgcluster.controller import shape
from pgcluster.controller.observe import InstancePod, Observed
from pgcluster.render.pgbouncer import PoolTarget, content_hash, databases_ini
from pgcluster.topology import quorum
from pgcluster.topology.quorum import Quorum

NOW = datetime(2026, 5, 1, 10, 0, tzinfo=UTC)


def instance(
    ordinal: int, *, role: str | None = "standby", ready: bool = True, state: str = "running"
) -> InstancePod:
    name = f"shop-{ordinal}"
    report = InstanceReport.model_validate(
        {"pod": name, "state": state, "role": role, "ready": ready}
    )
    manifest = {
        "metadata": {"name": name, "creationTimestamp": "2026-05-01T09:59:00Z"},
        "status": {
            "podIP": f"10.0.0.{ordinal}",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [{"state": {"running": {}}}],
        },
    }
    return InstancePod(name, manifest, report)


class World:
    """A cluster `shop` as it is; each test changes what matters to it."""

    def __init__(self, instances: int, *, primary: int | None = 0, **spec: Any) -> None:
        self.spec = {"instances": instances, "storage": {"size": "1Gi"}, **spec}
        self.status: dict[str, Any] = {"systemIdentifier": "77"}
        self.primary = primary
        self.replicas: int | None = instances
        self.pods = [
            instance(n, role="primary" if n == primary else "standby") for n in range(instances)
        ]
        self.holder = "" if primary is None else f"shop-{primary}"
        self.epoch = 3
        self.lease_notes: dict[str, str] = {}
        self.orders = Orders()
        self.section = ""
        self.pooler_pods: list[dict[str, Any]] = []
        self.pooler_reports: dict[str, PoolerReport] = {}

    @property
    def cluster(self) -> PgCluster:
        metadata = {"name": "shop", "namespace": "test", "uid": "u"}
        return PgCluster.parse({"metadata": metadata, "spec": self.spec, "status": self.status})

    def observed(self) -> Observed:
        told = to_config(self.cluster, system_identifier="77", orders=self.orders)
        lease = {
            "metadata": {"annotations": self.lease_notes},
            "spec": {"holderIdentity": self.holder, "leaseTransitions": self.epoch},
        }
        return Observed(
            cluster={
                "metadata": {"name": "shop", "namespace": "test", "uid": "u"},
                "spec": self.spec,
                "status": self.status,
            },
            children={
                ("Lease", "shop-primary"): lease,
                ("ConfigMap", "shop-config"): {"data": {names.CONFIG_KEY: told.model_dump_json()}},
                ("ConfigMap", "shop-pgbouncer"): {"data": {names.DATABASES_KEY: self.section}},
            },
            pods=tuple(self.pods),
            pooler_pods=tuple(self.pooler_pods),
            pooler_reports=self.pooler_reports,
        )

    def plan(self, now: datetime = NOW) -> shape.Shape:
        live = None if self.replicas is None else {"spec": {"replicas": self.replicas}}
        return shape.plan(self.observed(), self.cluster, live, now)

    def take(self, now: datetime = NOW) -> shape.Shape:
        """Plan, and have the agents told of it."""
        made = self.plan(now)
        self.orders = made.orders
        return made


def reads_from(world: World, *ordinals: int) -> None:
    """Point the pools; one pooler has applied that."""
    standbys = tuple(f"10.0.0.{n}" for n in ordinals)
    target = PoolTarget("shop-0", "10.0.0.0", standbys, epoch=3, timeline=1)
    world.section = databases_ini(to_config(world.cluster, system_identifier="77"), target)
    ready = [{"type": "Ready", "status": "True"}]
    world.pooler_pods = [{"metadata": {"name": "pool"}, "status": {"conditions": ready}}]
    report = PoolerReport(pod="pool", ready=True, applied_hash=content_hash(world.section))
    world.pooler_reports = {"pool": report}


def switches_over(world: World, to: str, state: str = "Running") -> None:
    """A switchover that was asked for before the spec changed."""
    world.status = {**world.status, "lastSwitchover": {"request": "a", "to": to, "state": state}}


# --- scaling --------------------------------------------------------------------------------------
def test_more_instances_are_made_at_once() -> None:
    world = World(3)
    world.spec["instances"] = 5
    made = world.plan()
    assert (made.size.instances, made.size.replicas) == (5, 5)
    assert made.orders == Orders()


def test_nobody_leans_on_those_that_go_before_they_are_removed() -> None:
    world = World(5)
    world.spec["instances"] = 3
    reads_from(world, 1, 2, 3, 4)
    both = (Quorum(1, ("shop-1", "shop-4"), "shop-0"), Quorum(1, ("shop-1",), "shop-0"))
    world.lease_notes[names.ANNOTATION_SYNCHRONOUS] = quorum.dump(both)
    made = world.plan()
    assert (made.size.instances, made.size.replicas, made.size.remaining) == (5, 5, 3)
    assert made.pending is not None
    assert "shop-4" in made.pending[1]
    world.lease_notes[names.ANNOTATION_SYNCHRONOUS] = quorum.dump(both[1:])
    assert "read from shop-3, shop-4" in str(world.plan().pending)
    applied = world.pooler_reports
    reads_from(world, 1, 2)
    current, world.pooler_reports = world.pooler_reports, applied
    assert "pool may still" in str(world.plan().pending)
    world.pooler_reports = current
    made = world.plan()
    assert (made.size.instances, made.size.replicas, made.size.remaining) == (3, 3, None)
    assert made.pending is None


def test_the_primary_hands_over_before_its_ordinal_goes() -> None:
    world = World(5, primary=4)
    world.spec["instances"] = 3
    made = world.plan()
    assert (made.size.instances, made.size.replicas) == (5, 5)
    (wish,) = made.wishes
    assert wish.cause == "scale"
    assert wish.avoid == {"shop-3", "shop-4"}
    assert "shop-4" in wish.reason


def test_who_is_becoming_the_primary_is_neither_removed_nor_put_down() -> None:
    world = World(3)
    switches_over(world, "shop-2")
    world.spec["instances"] = 2
    size = world.plan().size
    assert size.replicas == 3
    assert size.under_way is not None
    assert "a switchover to shop-2 is under way" in size.under_way[1]
    world.spec |= {"instances": 3, "maintenance": [{"instance": "shop-2"}]}
    upkeep = world.plan().upkeep
    assert upkeep.held == ()
    assert upkeep.refused is not None
    assert "becoming the primary" in upkeep.refused[1]
    switches_over(world, "shop-2", "Failed")
    assert world.plan().upkeep.held == ("shop-2",)
    world.spec |= {"instances": 2, "maintenance": []}
    assert "a switchover to" not in str(world.plan().size)


def test_a_refused_hand_over_is_asked_for_again_later_as_another_request() -> None:
    world = World(3, primary=2)
    world.spec["instances"] = 1
    (first,) = world.plan().wishes
    assert world.plan().wishes == (first,), "the same as long as nothing is known of it"
    world.status["lastSwitchover"] = {
        "request": first.request,
        "state": "Refused",
        "endedAt": "2026-05-01T09:59:55Z",
    }
    assert world.plan().wishes == ()
    (second,) = world.plan(NOW + timedelta(seconds=15)).wishes
    assert second.request != first.request
    assert world.plan().size.replicas == 3


@pytest.mark.parametrize(
    ("wanted", "away", "synchronous", "refused"),
    [
        (3, {1}, None, False),
        (3, {1, 2}, None, True),
        (1, set(), None, False),
        (2, {1}, None, True),
        (4, {1}, {"mode": "quorum", "standbys": 3}, True),
        (4, {1}, {"mode": "quorum", "standbys": 2}, False),
        (4, {1}, {"mode": "quorum", "standbys": 3, "whenUnavailable": "degrade"}, False),
    ],
)
def test_those_that_stay_must_be_able_to_do_without(
    wanted: int, away: set[int], synchronous: dict[str, Any] | None, refused: bool
) -> None:
    world = World(5)
    world.spec["instances"] = wanted
    world.spec["replication"] = {"synchronous": synchronous or {}}
    for ordinal in away:
        world.pods[ordinal] = instance(ordinal, role=None, ready=False)
    made = world.plan()
    assert made.size.replicas == (5 if refused else wanted)
    assert (made.size.refused is not None) == refused
    if refused:
        assert "shop-1" in made.size.refused[1]  # type: ignore[index]


def test_without_a_primary_nobody_is_removed() -> None:
    world = World(3, primary=None)
    world.spec["instances"] = 1
    assert world.plan().size.replicas == 3


def test_a_stateful_set_that_is_made_anew_removes_nobody() -> None:
    world = World(3, primary=2)
    world.replicas = None
    world.spec["instances"] = 1
    assert world.plan().size.replicas == 3


# --- sleep ----------------------------------------------------------------------------------------
def test_a_cluster_goes_to_sleep_in_order_and_its_primary_last() -> None:
    world = World(3, primary=1)
    reads_from(world, 0, 2)
    world.spec["hibernated"] = True
    made = world.take()
    assert (made.size.replicas, made.sleep.poolers, made.orders.hibernation) == (3, 0, None)
    world.pooler_pods = []
    made = world.take()
    assert (made.size.replicas, made.orders.hibernation) == (3, "shop-1")
    made = world.take()
    assert made.size.replicas == 3, "the standbys still run"
    for ordinal in (0, 2):
        world.pods[ordinal] = instance(ordinal, role=None, ready=False, state="maintenance")
    made = world.take()
    assert (made.size.replicas, made.orders.hibernation) == (0, "shop-1")
    world.replicas, world.holder = 0, ""
    assert world.take().sleep.asleep is None, "its pods are still there"
    world.pods = []
    world.lease_notes = {names.ANNOTATION_FINAL: "true", names.ANNOTATION_WRITER: "shop-1"}
    made = world.take()
    assert made.sleep.asleep is not None
    assert "shop-1" in made.sleep.asleep[1]
    assert made.pending is None
    assert made.size.replicas == 0


def asleep(instances: int = 3, primary: int = 1) -> World:
    world = World(instances, primary=None, hibernated=True)
    world.pods, world.replicas = [], 0
    world.orders = Orders(hibernation=f"shop-{primary}")
    world.lease_notes = {
        names.ANNOTATION_FINAL: "true",
        names.ANNOTATION_WRITER: f"shop-{primary}",
    }
    return world


def test_it_wakes_with_the_same_primary() -> None:
    world = asleep()
    world.spec["hibernated"] = False
    made = world.take()
    assert (made.size.replicas, made.orders.hibernation) == (3, "shop-1")
    world.replicas = 3
    world.pods = [instance(n, role=None, ready=False, state="waiting") for n in range(3)]
    assert world.take().orders.hibernation == "shop-1", "nobody else is elected meanwhile"
    world.pods[1], world.holder = instance(1, role="primary"), "shop-1"
    made = world.take()
    assert made.orders.hibernation is None
    assert made.sleep.poolers is None


def test_the_others_do_not_wait_for_ever_for_a_primary_that_does_not_come_back() -> None:
    world = asleep()
    world.spec["hibernated"] = False
    world.replicas = 3
    world.pods = [instance(n, role=None, ready=False, state="waiting") for n in (0, 2)]
    assert world.plan().orders.hibernation == "shop-1"
    assert world.plan(NOW + timedelta(minutes=2)).orders.hibernation is None


def test_fewer_instances_after_the_sleep_still_begin_with_the_primary_that_was() -> None:
    world = asleep(3, primary=2)
    world.spec |= {"hibernated": False, "instances": 1}
    made = world.take()
    assert (made.size.instances, made.size.replicas) == (3, 3)
    world.replicas, world.holder = 3, "shop-2"
    world.pods = [instance(n, role="primary" if n == 2 else "standby") for n in range(3)]
    made = world.take()
    assert made.size.replicas == 3
    assert [wish.cause for wish in made.wishes] == ["scale"]


def test_no_sleep_begins_without_a_primary_and_one_that_is_lost_is_waited_for() -> None:
    world = World(3, primary=None, hibernated=True)
    made = world.plan()
    assert made.size.replicas == 3
    assert made.sleep.refused is not None
    world.orders = Orders(hibernation="shop-1")
    made = world.plan()
    assert made.size.replicas == 3
    assert made.orders.hibernation == "shop-1"
    assert "spec.hibernated: false" in str(made.pending)


def test_a_cluster_that_is_born_to_sleep_is_made_first() -> None:
    world = World(3, primary=None, hibernated=True)
    world.status, world.pods, world.replicas = {}, [], None
    made = world.plan()
    assert made.size.replicas == 3
    assert made.sleep.refused is not None


def test_while_it_goes_to_sleep_nothing_else_changes() -> None:
    world = World(3, primary=2, hibernated=True)
    world.spec["instances"] = 1
    made = world.plan()
    assert made.size.replicas == 3
    assert made.wishes == ()


def test_a_change_of_mind_wakes_it_from_every_step() -> None:
    world = World(3, primary=1, hibernated=True)
    for _ in range(3):
        world.take()
        world.spec["hibernated"] = False
        made = world.plan()
        assert made.orders.hibernation is None
        assert (made.size.replicas, made.sleep.poolers) == (3, None)
        world.spec["hibernated"] = True
        world.pooler_pods = []


# --- maintenance ----------------------------------------------------------------------------------
def test_a_standby_is_held_and_stays_so() -> None:
    world = World(3)
    world.spec["maintenance"] = [{"instance": "shop-2"}]
    assert world.take().orders.maintenance == ("shop-2",)
    world.primary, world.holder = None, ""
    world.pods[0] = instance(0, role=None, ready=False)
    assert world.take().orders.maintenance == ("shop-2",), "whatever becomes of the others"
    world.spec["maintenance"] = []
    assert world.take().orders.maintenance == ()


def test_the_primary_hands_over_before_somebody_works_on_it() -> None:
    world = World(3)
    world.spec["maintenance"] = [{"instance": "shop-0"}, {"instance": "shop-2"}]
    made = world.take()
    assert made.orders.maintenance == ("shop-2",)
    (wish,) = made.wishes
    assert (wish.cause, wish.avoid) == ("maintenance", {"shop-0", "shop-2"})
    assert made.upkeep.refused is not None
    assert made.upkeep.refused[0] == "InMaintenance", "it is not refused, it waits"
    world.holder, world.epoch = "shop-1", 4
    world.pods[:2] = [instance(0), instance(1, role="primary")]
    made = world.take()
    assert made.orders.maintenance == ("shop-0", "shop-2")
    assert made.wishes == ()


@pytest.mark.parametrize(
    ("instances", "pod", "spec", "says"),
    [
        (1, "shop-0", {}, "only instance"),
        (3, "other-0", {}, "no instance of this cluster"),
        (2, "shop-1", {"synchronous": {"mode": "quorum"}}, "commits wait for 1"),
    ],
)
def test_what_cannot_be_is_told(instances: int, pod: str, spec: dict[str, Any], says: str) -> None:
    world = World(instances, replication=spec)
    world.spec["maintenance"] = [{"instance": pod}]
    made = world.plan()
    assert made.orders.maintenance == ()
    assert made.upkeep.refused is not None
    assert says in made.upkeep.refused[1]
    assert made.wishes == ()


def test_without_a_primary_no_maintenance_begins() -> None:
    world = World(3, primary=None)
    world.spec["maintenance"] = [{"instance": "shop-2"}]
    assert world.plan().orders.maintenance == ()
