"""Metadata of every object of a cluster: labels, what it inherits, and who owns it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgcluster.api import names
from pgcluster.api.models import PgCluster

Manifest = dict[str, Any]

_RESERVED = f"{names.GROUP}/"


def selector(cluster: PgCluster, component: str) -> dict[str, str]:
    """Labels by which the pods of one component are found; a workload's selector never changes."""
    return {names.LABEL_CLUSTER: cluster.name, names.LABEL_COMPONENT: component}


def metadata(
    cluster: PgCluster, name: str, component: str = names.COMPONENT_POSTGRES
) -> dict[str, Any]:
    """Metadata of an object that is removed with its cluster."""
    return {
        "name": name,
        "namespace": cluster.namespace,
        **template_metadata(cluster, component),
        "ownerReferences": [
            {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "name": cluster.name,
                "uid": cluster.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }


def template_metadata(
    cluster: PgCluster, component: str, own: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Metadata of a pod template; `own` are annotations of ours.

    Nothing derived from the configuration is in it: a change of settings is taken over by a running
    pod and must not replace it. Nor is the role: the agents tell that.
    """
    made: dict[str, Any] = {"labels": _labels(cluster, component)}
    annotations = {**_inherited(cluster.spec.inherited_metadata.annotations), **(own or {})}
    if annotations:
        made["annotations"] = annotations
    return made


def _labels(cluster: PgCluster, component: str) -> dict[str, str]:
    """Inherited labels and ours.

    `app.kubernetes.io/instance` is not ours: Argo CD tracks by it what it manages, and would prune
    what carries it and is not in its repository.
    """
    return {
        **_inherited(cluster.spec.inherited_metadata.labels),
        "app.kubernetes.io/name": "pgcluster",
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/managed-by": names.MANAGED_BY,
        "app.kubernetes.io/part-of": cluster.name,
        **selector(cluster, component),
    }


def _inherited(pairs: Mapping[str, str]) -> dict[str, str]:
    """Without those of our own domain: an inherited role label would send writes to a standby."""
    kept = {key: value for key, value in pairs.items() if not key.startswith(_RESERVED)}
    return dict(sorted(kept.items()))
