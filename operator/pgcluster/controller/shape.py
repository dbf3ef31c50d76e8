"""The shape that a cluster is to have now: awake or not, how many, and who is left alone. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pgcluster.api.config import Orders
from pgcluster.api.models import PgCluster
from pgcluster.controller import hibernation, maintenance, scale
from pgcluster.controller.observe import Observed
from pgcluster.controller.orders import told
from pgcluster.controller.wishes import Wish


@dataclass(frozen=True, slots=True)
class Shape:
    """What the three plans come to together."""

    size: scale.Plan
    sleep: hibernation.Plan
    upkeep: maintenance.Plan

    @property
    def orders(self) -> Orders:
        """What the agents are told of it."""
        return Orders(self.size.remaining, self.upkeep.held, self.sleep.primary)

    @property
    def wishes(self) -> tuple[Wish, ...]:
        """Who is to hand over for it."""
        return tuple(wish for wish in (self.size.wish, self.upkeep.wish) if wish is not None)

    @property
    def in_the_way(self) -> str | None:
        """Why no rolling change goes on: somebody is missing on purpose."""
        if self.sleep.asleep or self.sleep.step:
            return "the cluster is put to sleep, sleeps, or wakes"
        if self.upkeep.held:
            return f"somebody works on {', '.join(self.upkeep.held)}"
        return "the number of instances is changing" if self.size.under_way else None

    @property
    def pending(self) -> tuple[str, str] | None:
        """What is under way or has to wait, the weightiest: reason and message."""
        return (
            self.sleep.step
            or self.sleep.refused
            or self.size.refused
            or self.size.under_way
            or self.upkeep.refused
        )


def plan(
    observed: Observed, cluster: PgCluster, live: Mapping[str, Any] | None, now: datetime
) -> Shape:
    """The shape now, given the StatefulSet as it is."""
    sleep = hibernation.plan(observed, cluster, live, now)
    if sleep.frozen:
        current = scale.replicas(observed, live)
        replicas = current if sleep.replicas is None else sleep.replicas
        return Shape(scale.Plan(current, replicas), sleep, _as_before(observed))
    upkeep = maintenance.plan(observed, cluster, now)
    if sleep.replicas is not None:
        return Shape(scale.Plan(cluster.spec.instances, sleep.replicas), sleep, upkeep)
    size = scale.plan(observed, cluster, live, held=upkeep.held, now=now)
    if size.replicas < sleep.floor:
        size = scale.Plan(sleep.floor, sleep.floor)
    return Shape(size, sleep, upkeep)


def _as_before(observed: Observed) -> maintenance.Plan:
    return maintenance.Plan(tuple(p for p in told(observed).maintenance if p != observed.holder))


def sized(cluster: PgCluster, instances: int) -> PgCluster:
    """The cluster as if the spec asked for so many instances."""
    if cluster.spec.instances == instances:
        return cluster
    spec = cluster.spec.model_copy(update={"instances": instances})
    return cluster.model_copy(update={"spec": spec})
