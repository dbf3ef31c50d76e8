"""Telling what was found: the status where it differs, Events, metrics."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from pgcluster.api import conditions, names
from pgcluster.api.errors import RetryError
from pgcluster.api.models import FailoverRecord, PgCluster
from pgcluster.controller import events, status
from pgcluster.controller.metrics import Metrics
from pgcluster.controller.observe import Observed
from pgcluster.kube.client import KubeClient
from pgcluster.kube.errors import Conflict, NotFound
from pgcluster.kube.events import EventRate
from pgcluster.kube.resources import PGCLUSTERS

log = logging.getLogger(__name__)

_PHASES = ("gate", "promoted", "config", "reloaded", "resumed", "first_transaction")


async def tell(
    client: KubeClient,
    metrics: Metrics,
    observed: Observed,
    cluster: PgCluster | None,
    outcome: status.Outcome,
    *,
    identity: str,
    rate: EventRate,
    now_s: float,
) -> bool:
    """Write the status where it differs; True where the cluster is as it should be.

    Events go first: their names come from what they tell, so that after a crash between the two
    they are posted again without effect.

    RetryError where the PgCluster has changed since it was read. What is stored says which
    switchovers are done: a replica that stood still, and writes what it had decided before another
    one led, would make a done one new.
    """
    key = observed.key
    now = datetime.now(UTC)
    before = status.known_status(observed)
    after = status.compute(observed, cluster, outcome, now=now.strftime("%Y-%m-%dT%H:%M:%SZ"))
    ready = next(x for x in after.conditions if x.type == conditions.READY).status == "True"
    metrics.ready.labels(namespace=key.namespace, name=key.name).set(ready)
    left = sum(member.up_to_date is False for member in after.members)
    metrics.outdated.labels(namespace=key.namespace, name=key.name).set(left)
    if after == before:
        return ready
    await events.post(
        client,
        observed,
        events.between(before, after),
        rate=rate,
        now_s=now_s,
        reporter=identity,
        now=now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    )
    manifest = {
        "metadata": {
            "name": key.name,
            "namespace": key.namespace,
            "uid": observed.uid,
            "resourceVersion": observed.cluster["metadata"].get("resourceVersion"),
        },
        "status": after.model_dump(mode="json", by_alias=True, exclude_none=True),
    }
    try:
        await client.apply(PGCLUSTERS, manifest, manager=names.MANAGER_STATUS, subresource="status")
    except NotFound:
        return ready
    except Conflict as error:
        raise RetryError("the PgCluster changed meanwhile", delay_s=0.2) from error
    for record in events.new_failovers(before, after):
        metrics.failover(key.namespace, key.name, record.cause)
    if (ended := events.ended_switchover(before, after)) is not None:
        metrics.switchover(key.namespace, key.name, ended.cause, ended.state)
    _observe_phases(metrics, before.last_failover, after.last_failover)
    log.info(
        "status: %s, primary %s, %s of %s instances ready",
        after.summary,
        after.primary,
        after.ready_instances,
        after.instances,
    )
    return ready


def _observe_phases(
    metrics: Metrics, before: FailoverRecord | None, after: FailoverRecord | None
) -> None:
    """Each phase counts once, when it is first known."""
    if after is None:
        return
    known = before if before is not None and before.epoch == after.epoch else None
    for phase in _PHASES:
        ms = getattr(after, f"{phase}_ms")
        if ms is not None and (known is None or getattr(known, f"{phase}_ms") is None):
            metrics.failover_seconds.labels(phase=phase).observe(ms / 1000)
