"""Metadata of every object of a cluster: labels, what it inherits, and who owns it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgcluster.api import names
from pgcluster.api.models import PgCluster

Manifest = dict[str, Any]

_RESERVED = f"{names.GROUP}/"


def selector(cluster: str, component: str) -> dict[str, str]:
    """Labels by which the pods of one component are found; a workload's selector never changes."""
    return {names.LABEL_CLUSTER: cluster, names.LABEL_COMPONENT: component}


def labels(cluster: PgCluster, component: str) -> dict[str, str]:
    """Inherited labels and ours.

    `app.kubernetes.io/instance` is not among them: Argo CD tracks what it manages by that label,
    and would prune what carries it and is not in its repository.
    """
    return {
        **_inherited(cluster.spec.inherited_metadata.labels),
        "app.kubernetes.io/name": "pgcluster",
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/managed-by": names.MANAGED_BY,
        "app.kubernetes.io/part-of": cluster.name,
        **selector(cluster.name, component),
    }


def annotations(cluster: PgCluster) -> dict[str, str]:
    """Inherited annotations."""
    return _inherited(cluster.spec.inherited_metadata.annotations)


def manifest(
    cluster: PgCluster, *, api_version: str, kind: str, name: str, component: str, **rest: Any
) -> Manifest:
    """An object of the cluster, to be removed with it."""
    metadata: Manifest = {
        "name": name,
        "namespace": cluster.namespace,
        "labels": labels(cluster, component),
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
    if inherited := annotations(cluster):
        metadata["annotations"] = inherited
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **rest}


def pod_metadata(cluster: PgCluster, component: str, **own_annotations: str) -> Manifest:
    """Metadata of a pod template.

    Nothing derived from the configuration is in it: a change of settings is taken over by a running
    pod and must not replace it. Nor is the role: the agents tell that.
    """
    metadata: Manifest = {"labels": labels(cluster, component)}
    if found := {**annotations(cluster), **own_annotations}:
        metadata["annotations"] = found
    return metadata


def _inherited(pairs: Mapping[str, str]) -> dict[str, str]:
    """Without those of our own domain: an inherited role label would route writes to a standby."""
    return {key: value for key, value in pairs.items() if not key.startswith(_RESERVED)}
