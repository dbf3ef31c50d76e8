"""A cluster that is put to sleep, and woken: the next step, from what is. Pure.

To sleep: the poolers go, the standbys stop postgres and stay so, then all pods go. So the primary
is the last whose postgres runs, nobody can take over from it, and its clean stop leaves the final
mark in the Lease. Awake: all pods are there again, and the standbys stay down until that primary
is one again, so that none is elected while its pod is still being made.

What is remembered is in the objects: the primary's name in what the agents are told, the number of
replicas in the StatefulSet, and who was the last primary in the Lease.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pgcluster.api import conditions, names
from pgcluster.api.models import PgCluster
from pgcluster.api.times import time_of
from pgcluster.controller.observe import Observed
from pgcluster.controller.orders import told
from pgcluster.controller.scale import replicas

# A primary that has not come back by then is not waited for: the others may elect one of them.
_WAKES_WITHIN = timedelta(seconds=120)
# States in which an instance could serve, or be about to.
_AWAKE = ("starting", "running", "promoting", "rewinding", "bootstrapping")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is different from a cluster that is awake.

    `primary` is whom the others stay down for; `poolers` and `replicas` are as many, None: as
    usual; `floor` is how many instances must be there at least. `frozen`: nothing else is changed
    meanwhile. `step` is what is under way, `refused` why nothing is, `asleep` that all is done and
    how: reason and message.
    """

    primary: str | None = None
    poolers: int | None = None
    replicas: int | None = None
    floor: int = 0
    frozen: bool = False
    step: tuple[str, str] | None = None
    refused: tuple[str, str] | None = None
    asleep: tuple[str, str] | None = None


def plan(
    observed: Observed, cluster: PgCluster, live: Mapping[str, Any] | None, now: datetime
) -> Plan:
    """The next step."""
    if cluster.spec.hibernated:
        return _to_sleep(observed, live)
    return _awake(observed, live, now)


def _to_sleep(observed: Observed, live: Mapping[str, Any] | None) -> Plan:
    if observed.system_identifier is None:
        return Plan(refused=_refusal("there is no database yet: it is made first"))
    known = told(observed).hibernation
    if replicas(observed, live) == 0:
        return _asleep(observed, known or _last_primary(observed))
    primary = observed.primary.name if observed.primary else None
    if primary is None:
        if known is None:
            return Plan(
                refused=_refusal("no instance is the primary: one has to be, to stop in order")
            )
        waits = f"{known} is the primary no more: it is waited for, to stop in order; with"
        waits += " spec.hibernated: false the others may take over"
        return Plan(known, poolers=0, frozen=True, step=(conditions.HIBERNATING, waits))
    if observed.pooler_pods and known is None:
        left = f"{len(observed.pooler_pods)} poolers are still there; then the standbys stop"
        return Plan(poolers=0, frozen=True, step=(conditions.HIBERNATING, left))
    awake = [
        pod.name
        for pod in observed.pods
        if pod.name != primary and pod.running and pod.report and pod.report.state in _AWAKE
    ]
    if awake or known != primary:
        stops = f"the standbys stop, then {primary}, the primary"
        return Plan(primary, poolers=0, frozen=True, step=(conditions.HIBERNATING, stops))
    stops = f"{primary}, the primary, stops last"
    return Plan(primary, 0, 0, frozen=True, step=(conditions.HIBERNATING, stops))


def _refusal(reason: str) -> tuple[str, str]:
    return conditions.HIBERNATE_REFUSED, f"spec.hibernated: {reason}"


def _asleep(observed: Observed, primary: str | None) -> Plan:
    if observed.pods:
        left = ", ".join(pod.name for pod in observed.pods)
        return Plan(primary, 0, 0, step=(conditions.HIBERNATING, f"{left} are being stopped"))
    annotations = ((observed.lease or {}).get("metadata") or {}).get("annotations") or {}
    how = (
        "it stopped in order"
        if annotations.get(names.ANNOTATION_FINAL) == "true"
        else "it did not stop in order, and recovers when it wakes"
    )
    message = f"no pods run and the volumes are kept; {primary} was the primary, and {how}"
    return Plan(primary, 0, 0, asleep=(conditions.HIBERNATED, message))


def _awake(observed: Observed, live: Mapping[str, Any] | None, now: datetime) -> Plan:
    known = told(observed).hibernation
    if replicas(observed, live) == 0 and observed.system_identifier is not None:
        known = known or _last_primary(observed)
    if known is None or observed.primary is not None:
        return Plan()
    born = [time_of(pod.manifest["metadata"].get("creationTimestamp")) for pod in observed.pods]
    if born and all(at is not None and now - at > _WAKES_WITHIN for at in born):
        return Plan()
    return Plan(
        known,
        floor=names.ordinal(known) + 1,
        step=(conditions.WAKING, f"waiting for {known}, which was the primary"),
    )


def _last_primary(observed: Observed) -> str | None:
    annotations = ((observed.lease or {}).get("metadata") or {}).get("annotations") or {}
    last: str | None = annotations.get(names.ANNOTATION_WRITER)
    return last or annotations.get(names.ANNOTATION_LAST_HOLDER)
