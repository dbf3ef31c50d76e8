"""Which poolers get new clients: the label that the pools' Services select. Pure.

Kubernetes takes a pod of a lost node out of its Services after 50 s. The primary does not hear its
agent after 4 s and reports that; the operator takes the label from the pod and gives it back when
it is heard again. No Service is left without a pod by that: where nobody else is ready, a pooler
that may be alive is better than none.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pgcluster.api import names
from pgcluster.controller.observe import Observed, pod_ready
from pgcluster.kube.client import Manifest
from pgcluster.kube.resources import SERVICES

# What the last primary said of the poolers is believed this long after its end.
FORGET_AFTER_S = 30.0


@dataclass(frozen=True, slots=True)
class Change:
    """One pod's label, on or off, and why."""

    pod: str
    serve: bool
    reason: str


def silent(observed: Observed) -> frozenset[str] | None:
    """Pods of the poolers that the primary does not hear; None where no primary could tell."""
    primary = observed.primary
    if primary is None or primary.report is None:
        return None
    return frozenset(primary.report.silent_poolers)


def serves(pod: Mapping[str, Any]) -> bool:
    """Whether a pod carries the label."""
    labels = pod["metadata"].get("labels") or {}
    return bool(labels.get(names.LABEL_SERVING) == names.SERVING)


def changes(observed: Observed, *, untold_s: float) -> tuple[Change, ...]:
    """What to change; `untold_s` is for how long no primary has been there to tell."""
    pods = _staying(observed)
    unheard = silent(observed)
    if unheard is None and untold_s < FORGET_AFTER_S:
        if any(serves(pod) and pod_ready(pod) for pod in pods):
            return ()
        return _all(pods, "no other pooler is ready")
    if unheard is None:
        return _all(pods, "no primary could tell who is silent")
    if not others(observed):
        return _all(pods, "no other pooler is ready")
    made = []
    for pod in pods:
        is_silent = _name(pod) in unheard
        if not is_silent and not serves(pod):
            made.append(Change(_name(pod), True, "the primary hears it"))
        # One that is not ready gets no clients, and will be heard before it is.
        elif is_silent and serves(pod) and pod_ready(pod):
            made.append(Change(_name(pod), False, "the primary does not hear it"))
    return tuple(made)


def others(observed: Observed) -> bool:
    """Whether a pooler that the primary hears is ready: then a silent one can be done without."""
    unheard = silent(observed) or frozenset()
    return any(pod_ready(pod) and _name(pod) not in unheard for pod in _staying(observed))


def adjusted(manifest: Manifest, observed: Observed) -> Manifest:
    """A Service that selects the label only when the pods that serve have it.

    Those of an earlier version get it first: otherwise their clients would find nobody for the
    moment in which the change of the Service is known and that of the pods is not.
    """
    selector = (manifest.get("spec") or {}).get("selector") or {}
    if manifest["kind"] != SERVICES.kind or names.LABEL_SERVING not in selector:
        return manifest
    live = observed.child(SERVICES, manifest["metadata"]["name"]) or {}
    selects = names.LABEL_SERVING in ((live.get("spec") or {}).get("selector") or {})
    if selects or not _lacking(observed, silent(observed) or frozenset()):
        return manifest
    kept = {key: value for key, value in selector.items() if key != names.LABEL_SERVING}
    return {**manifest, "spec": {**manifest["spec"], "selector": kept}}


def _staying(observed: Observed) -> list[Manifest]:
    return [pod for pod in observed.pooler_pods if "deletionTimestamp" not in pod["metadata"]]


def _lacking(observed: Observed, unheard: Collection[str]) -> bool:
    return any(
        pod_ready(pod) and not serves(pod) and _name(pod) not in unheard
        for pod in observed.pooler_pods
    )


def _all(pods: Collection[Mapping[str, Any]], reason: str) -> tuple[Change, ...]:
    return tuple(Change(_name(pod), True, reason) for pod in pods if not serves(pod))


def _name(pod: Mapping[str, Any]) -> str:
    return str(pod["metadata"]["name"])
