"""Volumes: which claims are to grow, to go, or to go with the PgCluster. Pure.

A StatefulSet's templates are fixed: each claim is told by itself, and the StatefulSet is made anew
around its pods, so that later instances get the larger size. Neither does the StatefulSet delete
claims: it would take all of a cluster that sleeps, and of one whose StatefulSet is deleted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pgcluster.api import names
from pgcluster.api.models import PgCluster
from pgcluster.api.quantities import parse_bytes
from pgcluster.controller.observe import Observed
from pgcluster.controller.scale import replicas
from pgcluster.kube.client import Manifest

_RESIZE_PENDING = "FileSystemResizePending"


@dataclass(frozen=True, slots=True)
class Growth:
    """A claim that asks for less than the spec, and what it is to ask for."""

    claim: str
    size: str


@dataclass(frozen=True, slots=True)
class Growths:
    """`refused` says of each claim that cannot grow why, `pending` of each that still does."""

    growths: tuple[Growth, ...] = ()
    refused: tuple[str, ...] = ()
    pending: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Owned:
    """A claim whose owners are to be these from now on."""

    claim: str
    version: str
    owners: tuple[Manifest, ...]


def template_sizes(stateful_set: Mapping[str, Any]) -> dict[str, str]:
    """Claim template → size that it asks for."""
    return {
        claim["metadata"]["name"]: str(claim["spec"]["resources"]["requests"]["storage"])
        for claim in (stateful_set.get("spec") or {}).get("volumeClaimTemplates") or ()
    }


def instance_of(claim: Mapping[str, Any], cluster: str) -> int | None:
    """Ordinal of the instance whose volume a claim is for; None for any other claim."""
    name = re.escape(names.statefulset(cluster))
    found = re.fullmatch(rf"(?:data|wal)-{name}-([0-9]+)", claim["metadata"]["name"], re.ASCII)
    return int(found[1]) if found else None


# --- growth -----------------------------------------------------------------------------------
def to_grow(
    wanted: Mapping[str, Any],
    claims: Iterable[Mapping[str, Any]],
    classes: Mapping[str, Mapping[str, Any]],
    *,
    cluster: str,
    instances: int,
) -> Growths:
    """What the claims of the cluster's instances lack of the spec.

    `classes` are the StorageClasses by name, as far as they can be read; a claim of another one is
    left to the API server's judgement. A kept claim of an instance that is no more is left alone.
    """
    sizes = template_sizes(wanted)
    growths, refused, pending = [], [], []
    for claim in claims:
        ordinal, name = instance_of(claim, cluster), claim["metadata"]["name"]
        if ordinal is None or ordinal >= instances or "deletionTimestamp" in claim["metadata"]:
            continue
        template = name.partition("-")[0]
        if template not in sizes:
            continue
        size, class_ = sizes[template], claim["spec"].get("storageClassName") or ""
        if parse_bytes(str(claim["spec"]["resources"]["requests"]["storage"])) < parse_bytes(size):
            if class_ in classes and not classes[class_].get("allowVolumeExpansion"):
                refused.append(f"{name}: StorageClass {class_} does not allow expansion")
            else:
                growths.append(Growth(name, size))
        elif message := _unfinished(claim, size, names.pod(cluster, ordinal)):
            pending.append(message)
    return Growths(tuple(growths), tuple(refused), tuple(pending))


def _unfinished(claim: Mapping[str, Any], size: str, pod: str) -> str | None:
    status = claim.get("status") or {}
    kinds = {c["type"] for c in status.get("conditions") or () if c.get("status") == "True"}
    if _RESIZE_PENDING in kinds:
        return (
            f"{claim['metadata']['name']} has grown and its file system has not yet: the kubelet"
            f" does that while the volume is mounted, or where it cannot when pod {pod} starts anew"
        )
    has = (status.get("capacity") or {}).get("storage")
    if has is not None and parse_bytes(str(has)) < parse_bytes(size):
        return f"{claim['metadata']['name']} is to grow to {size}, and still has {has}"
    return None


def advice(refused: Iterable[str]) -> str:
    """Why volumes do not grow and what to do, for the condition."""
    told = list(refused)
    fields = sorted(
        {"spec.storage.walSize" if one.startswith("wal-") else "spec.storage.size" for one in told}
    )
    return (
        f"{' and '.join(fields)}: {'; '.join(told)}. What can be done: set allowVolumeExpansion on"
        " the StorageClass where its driver can do it; or move to larger volumes one instance at a"
        " time, the primary last: for each, delete its claim and its pod, so that it is cloned onto"
        " a new claim, and wait until it streams (docs: Storage)"
    )


def outgrown(wanted: Mapping[str, Any], live: Mapping[str, Any] | None) -> bool:
    """Whether the StatefulSet makes smaller volumes than the spec asks for."""
    now = template_sizes(live or {})
    return any(
        name in now and parse_bytes(size) > parse_bytes(now[name])
        for name, size in template_sizes(wanted).items()
    )


# --- deletion ---------------------------------------------------------------------------------
def to_delete(
    observed: Observed,
    cluster: PgCluster,
    claims: Iterable[Mapping[str, Any]],
    stateful_set: Mapping[str, Any] | None,
    *,
    instances: int,
) -> tuple[Mapping[str, Any], ...]:
    """Claims of instances that were removed, where the spec has them deleted.

    Only once the StatefulSet's controller is done with removing the pod: there is no pod of that
    name, and none is about to be made. A cluster that sleeps, or has never had as many as now, has
    removed nobody; and the claim of who was the last to write stays whatever is asked.
    """
    spec = cluster.spec
    if stateful_set is None or spec.storage.when_scaled != "Delete" or spec.hibernated:
        return ()
    status = stateful_set.get("status") or {}
    runs = replicas(observed, stateful_set)
    done = status.get("observedGeneration") == stateful_set["metadata"].get("generation")
    if not done or runs == 0 or int(status.get("replicas") or 0) > runs:
        return ()
    least = max(spec.instances, instances, runs)
    pods = {names.ordinal(pod.name) for pod in observed.pods}
    annotations = ((observed.lease or {}).get("metadata") or {}).get("annotations") or {}
    writers = {observed.holder, annotations.get(names.ANNOTATION_WRITER)}
    if observed.primary is None:
        return ()
    return tuple(
        claim
        for claim in claims
        if (ordinal := instance_of(claim, cluster.name)) is not None
        and ordinal >= least
        and ordinal not in pods
        and names.pod(cluster.name, ordinal) not in writers
        and "deletionTimestamp" not in claim["metadata"]
    )


def to_own(
    observed: Observed, cluster: PgCluster, claims: Iterable[Mapping[str, Any]]
) -> tuple[Owned, ...]:
    """Claims that are to be deleted with the PgCluster and would not be, or the reverse.

    An owner reference, so that it happens though no operator is there, and takes nothing while the
    PgCluster exists.
    """
    owner = {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "name": cluster.name,
        "uid": observed.uid,
    }
    changes = []
    for claim in claims:
        metadata = claim["metadata"]
        if instance_of(claim, cluster.name) is None or "deletionTimestamp" in metadata:
            continue
        known = tuple(metadata.get("ownerReferences") or ())
        others = tuple(each for each in known if each.get("uid") != observed.uid)
        wanted = (*others, owner) if cluster.spec.storage.when_deleted == "Delete" else others
        if len(wanted) != len(known):
            changes.append(Owned(metadata["name"], str(metadata.get("resourceVersion")), wanted))
    return tuple(changes)
