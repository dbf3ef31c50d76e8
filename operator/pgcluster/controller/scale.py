"""How many instances there may be now, and the next step towards as many as the spec says. Pure.

The StatefulSet removes the highest ordinals first, whoever they are. So the primary hands over
first; then no commit waits for the ones that go and no client reads from them; only then are they
removed, all at once, since the others do without them by then. Each step is derived from what is:
a crash of the operator, or a failover in between, only makes the next look decide anew.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pgcluster.api import conditions, names
from pgcluster.api.models import PgCluster
from pgcluster.controller import attempts
from pgcluster.controller.observe import InstancePod, Observed, pod_ready
from pgcluster.controller.wishes import Wish
from pgcluster.kube.client import Manifest
from pgcluster.kube.resources import CONFIG_MAPS, DEPLOYMENTS, STATEFUL_SETS
from pgcluster.render.pgbouncer import content_hash
from pgcluster.topology import quorum


@dataclass(frozen=True, slots=True)
class Plan:
    """How many there are to be now, and what is to come before there are as many as asked for.

    `instances` is what the agents count, `replicas` what the StatefulSet runs; `remaining` is how
    many of them stay, where some are about to go. `refused` and `under_way` are reason and message.
    """

    instances: int
    replicas: int
    remaining: int | None = None
    wish: Wish | None = None
    refused: tuple[str, str] | None = None
    under_way: tuple[str, str] | None = None


def replicas(observed: Observed, stateful_set: Mapping[str, Any] | None) -> int:
    """How many instances there are to be as it is now.

    While the StatefulSet is being made anew, or somebody has deleted it without its pods, it would
    be as many as the pods say.
    """
    if stateful_set is None:
        return max((names.ordinal(pod.name) + 1 for pod in observed.pods), default=0)
    return int((stateful_set.get("spec") or {}).get("replicas") or 0)


def plan(
    observed: Observed,
    cluster: PgCluster,
    live: Mapping[str, Any] | None,
    *,
    held: Collection[str] = (),
    now: datetime,
) -> Plan:
    """The next step. `held` are instances whose postgres is kept down."""
    wanted, current = cluster.spec.instances, replicas(observed, live)
    if wanted >= current:
        return Plan(wanted, wanted)
    primary = observed.primary
    if primary is None:
        return _refused(current, f"{current} instances stay until a primary is known")
    if reason := _not_without(observed, cluster, held):
        return _refused(current, reason)
    going = tuple(pod for pod in observed.pods if names.ordinal(pod.name) >= wanted)
    if names.ordinal(primary.name) >= wanted:
        return _hand_over(observed, primary.name, wanted, current, now)
    reason = _leaned_on(observed, going)
    if (next_ := attempts.becoming(observed)) in {pod.name for pod in going}:
        # Begun before they were to go; once it is the primary it hands over like any other.
        reason = f"a switchover to {next_} is under way"
    if reason:
        told = f"{_list(going)} are about to be removed: {reason}"
        return Plan(current, current, wanted, under_way=(conditions.SCALING, told))
    return Plan(wanted, wanted)


def _hand_over(observed: Observed, primary: str, wanted: int, current: int, now: datetime) -> Plan:
    reason = f"spec.instances is {wanted}, so that {primary}, the primary, is to be removed"
    cluster = observed.key.name
    prefix = f"scale-{attempts.digest(observed.uid, wanted, primary, observed.epoch)}"
    request = attempts.request(observed, prefix, now)
    avoid = frozenset(names.pod(cluster, ordinal) for ordinal in range(wanted, current))
    return Plan(
        current,
        current,
        wanted,
        wish=None if request is None else Wish("scale", request, reason, avoid=avoid),
        under_way=(
            conditions.SCALING,
            f"{reason}: {current} instances stay until another one has taken over",
        ),
    )


def _refused(current: int, reason: str) -> Plan:
    return Plan(current, current, refused=(conditions.SCALE_REFUSED, f"spec.instances: {reason}"))


def _not_without(observed: Observed, cluster: PgCluster, held: Collection[str]) -> str | None:
    """Why those that would stay cannot do without the others yet."""
    wanted = cluster.spec.instances
    synchronous = cluster.spec.replication.synchronous
    needed = wanted // 2 + 1
    if synchronous.mode == "quorum" and synchronous.when_unavailable == "block":
        needed = max(needed, min(synchronous.standbys + 1, wanted))
    ready = {
        pod.name
        for pod in observed.pods
        if pod.ready and pod.report is not None and pod.report.ready and pod.name not in held
    }
    staying = [names.pod(observed.key.name, ordinal) for ordinal in range(wanted)]
    away = [pod for pod in staying if pod not in ready]
    if wanted - len(away) >= needed:
        return None
    return (
        f"of the {wanted} that would stay, {', '.join(away)} {'is' if len(away) == 1 else 'are'}"
        f" not ready, and {needed} must be: nothing is removed before"
    )


def _leaned_on(observed: Observed, going: Collection[InstancePod]) -> str | None:
    """Who still counts on the ones that go."""
    annotations = ((observed.lease or {}).get("metadata") or {}).get("annotations") or {}
    listed = quorum.parse(annotations.get(names.ANNOTATION_SYNCHRONOUS))
    if listed is None:
        return "the Lease does not say readably whom commits wait for"
    members = {pod for each in listed if each.standbys for pod in (each.primary, *each.members)}
    if waiting := sorted(members & {pod.name for pod in going}):
        return f"commits may still wait for {', '.join(waiting)}"
    section = observed.child(CONFIG_MAPS, names.config_map_pgbouncer(observed.key.name))
    text = ((section or {}).get("data") or {}).get(names.DATABASES_KEY) or ""
    words = set(re.findall(r"[0-9A-Fa-f.:]+", text))
    if read := sorted(pod.name for pod in going if pod.address in words):
        return f"clients still read from {', '.join(read)}"
    late = []
    for pod in observed.pooler_pods:
        name = pod["metadata"]["name"]
        report = observed.pooler_reports.get(name)
        if pod_ready(pod) and (report is None or report.applied_hash != content_hash(text)):
            late.append(name)
    return f"{', '.join(late)} may still let clients read from them" if late else None


def _list(pods: Collection[InstancePod]) -> str:
    return ", ".join(pod.name for pod in pods)


def adjusted(
    manifest: Mapping[str, Any],
    *,
    replicas: int,
    live: Mapping[str, Any] | None,
    poolers: int | None = None,
) -> Manifest:
    """The StatefulSet, and the Deployment, as they can be applied; any other manifest as it is.

    The StatefulSet's volume claim templates are fixed once it exists: a volume that grows, grows by
    its claim. `poolers`: as many, whatever the spec says.
    """
    changed = copy.deepcopy(dict(manifest))
    if manifest["kind"] == DEPLOYMENTS.kind and poolers is not None:
        changed["spec"]["replicas"] = poolers
    if manifest["kind"] != STATEFUL_SETS.kind:
        return changed
    changed["spec"]["replicas"] = replicas
    if live is not None:
        sizes = {
            claim["metadata"]["name"]: claim["spec"]["resources"]
            for claim in live["spec"].get("volumeClaimTemplates") or ()
        }
        for claim in changed["spec"].get("volumeClaimTemplates") or ():
            if claim["metadata"]["name"] in sizes:
                claim["spec"]["resources"] = sizes[claim["metadata"]["name"]]
    return changed
