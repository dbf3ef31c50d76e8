"""Which pods of the StatefulSet lag behind it, and which of them may be replaced at once. Pure.

The StatefulSet is `OnDelete`: Kubernetes replaces nothing by itself, not even a pod whose image
does not exist. A pod that has never got to run holds nobody's data in memory, so that replacing it
is harmless and lets a corrected spec take effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pgcluster.controller import problems
from pgcluster.controller.observe import InstancePod

_REVISION = "controller-revision-hash"


def outdated(
    stateful_set: Mapping[str, Any] | None, pods: Iterable[InstancePod]
) -> tuple[InstancePod, ...]:
    """Pods of an earlier revision; none while the StatefulSet's controller has not caught up."""
    if stateful_set is None:
        return ()
    status = stateful_set.get("status") or {}
    revision = status.get("updateRevision")
    if not revision or status.get("observedGeneration") != stateful_set["metadata"]["generation"]:
        return ()
    return tuple(
        pod
        for pod in pods
        if (pod.manifest["metadata"].get("labels") or {}).get(_REVISION, revision) != revision
    )


def replaceable(pods: Iterable[InstancePod]) -> tuple[InstancePod, ...]:
    """Of the outdated ones, those that are stuck before their container runs."""
    return tuple(
        pod for pod in pods if not pod.running and problems.of_pod(pod.manifest) is not None
    )
