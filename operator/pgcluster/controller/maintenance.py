"""Instances that somebody works on: which of them keep postgres down now, and why not all. Pure."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from pgcluster.api import conditions, names
from pgcluster.api.models import PgCluster
from pgcluster.controller import attempts
from pgcluster.controller.observe import Observed
from pgcluster.controller.orders import told
from pgcluster.controller.wishes import Wish


@dataclass(frozen=True, slots=True)
class Plan:
    """`held` keep postgres down; `refused` says for whom not, or not yet, and why: reason and
    message."""

    held: tuple[str, ...] = ()
    wish: Wish | None = None
    refused: tuple[str, str] | None = None


def plan(observed: Observed, cluster: PgCluster, now: datetime) -> Plan:
    """Who is held now. Whoever is already stays so, whatever becomes of the others.

    The holder of the Lease is not: it hands over first.
    """
    asked = sorted({entry.instance for entry in cluster.spec.maintenance})
    if not asked:
        return Plan()
    before = told(observed).maintenance
    held: list[str] = []
    wish = None
    refused, waits = [], []
    for pod in asked:
        if pod not in [names.pod(cluster.name, n) for n in range(names.MAX_INSTANCES)]:
            refused.append(f"{pod} is no instance of this cluster")
        elif pod == observed.holder:
            if cluster.spec.instances == 1:
                refused.append(f"{pod} is the only instance, so that nobody can take over from it")
            else:
                wish = _wish(observed, pod, asked, now)
                waits.append(f"{pod} is the primary, and hands over first")
        elif pod == attempts.becoming(observed):
            waits.append(f"{pod} is becoming the primary, and hands over first")
        elif pod in before:
            held.append(pod)
        elif reason := _not_now(observed, cluster, {*held, *before, pod}):
            refused.append(f"{pod}: {reason}")
        else:
            held.append(pod)
    told_of = None
    if refused or waits:
        reason = conditions.MAINTENANCE_REFUSED if refused else conditions.IN_MAINTENANCE
        told_of = (reason, "; ".join([*waits, *refused]))
    return Plan(tuple(held), wish, told_of)


def _wish(observed: Observed, pod: str, asked: Collection[str], now: datetime) -> Wish | None:
    prefix = f"maintenance-{attempts.digest(observed.uid, pod, observed.epoch)}"
    request = attempts.request(observed, prefix, now)
    if request is None:
        return None
    reason = f"spec.maintenance names {pod}, the primary"
    return Wish("maintenance", request, reason, avoid=frozenset(asked))


def _not_now(observed: Observed, cluster: PgCluster, held: Collection[str]) -> str | None:
    primary = observed.primary
    if primary is None:
        return "it may be needed, since no instance is the primary"
    synchronous = cluster.spec.replication.synchronous
    if synchronous.mode != "quorum" or synchronous.when_unavailable != "block":
        return None
    left = [pod for pod in observed.pods if pod.ready and pod.name not in (primary.name, *held)]
    if len(left) >= synchronous.standbys:
        return None
    return (
        f"commits wait for {synchronous.standbys} standbys, and only {len(left)} would be left:"
        " add an instance, or set replication.synchronous.whenUnavailable to degrade"
    )
