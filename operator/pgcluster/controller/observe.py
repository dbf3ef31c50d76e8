"""Reading everything about one cluster, anew each time: what a watch told is only a hint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pgcluster.api import names
from pgcluster.api.reports import InstanceReport, PoolerReport
from pgcluster.kube.client import KubeClient, Manifest
from pgcluster.kube.errors import Forbidden
from pgcluster.kube.resources import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    LEASES,
    NETWORK_POLICIES,
    PDBS,
    PGCLUSTERS,
    PODS,
    ROLE_BINDINGS,
    ROLES,
    SECRETS,
    SERVICE_ACCOUNTS,
    SERVICES,
    STATEFUL_SETS,
    Resource,
)
from pgcluster.topology.pods import report_of

# Kinds that the operator makes for a cluster. ConfigMaps come first, because a repair of the pools'
# section must have read them before the Lease and the pods that it is rendered from.
CHILDREN = (
    CONFIG_MAPS,
    LEASES,
    STATEFUL_SETS,
    DEPLOYMENTS,
    SERVICES,
    PDBS,
    NETWORK_POLICIES,
    SERVICE_ACCOUNTS,
    ROLES,
    ROLE_BINDINGS,
    SECRETS,
)
# Without the right to these an operator does all but them: they came later than its Role may have.
_OPTIONAL = frozenset({NETWORK_POLICIES})
_BY_KIND = {resource.kind: resource for resource in CHILDREN}


class Key(NamedTuple):
    """Which cluster."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class InstancePod:
    """One pod of the StatefulSet; `report` is None where its agent has said nothing sensible."""

    name: str
    manifest: Manifest
    report: InstanceReport | None

    @property
    def address(self) -> str | None:
        """Its IP address."""
        address: str | None = (self.manifest.get("status") or {}).get("podIP")
        return address

    @property
    def running(self) -> bool:
        """Whether its container runs now, so that its report is of now."""
        return "deletionTimestamp" not in self.manifest["metadata"] and any(
            "running" in (status.get("state") or {})
            for status in (self.manifest.get("status") or {}).get("containerStatuses") or ()
        )

    @property
    def ready(self) -> bool:
        """Whether the kubelet found it ready just now; a report alone may be stale."""
        return pod_ready(self.manifest)


@dataclass(frozen=True, slots=True)
class Observed:
    """One cluster's objects at about one moment."""

    cluster: Manifest
    # By kind and name. Secrets are among them, so no representation shows them.
    children: Mapping[tuple[str, str], Manifest] = field(default_factory=dict, repr=False)
    pods: tuple[InstancePod, ...] = ()
    pooler_pods: tuple[Manifest, ...] = ()
    pooler_reports: Mapping[str, PoolerReport] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """Which cluster."""
        metadata = self.cluster["metadata"]
        return Key(metadata["namespace"], metadata["name"])

    @property
    def uid(self) -> str:
        """Identity of the PgCluster object."""
        return str(self.cluster["metadata"]["uid"])

    def child(self, resource: Resource, name: str) -> Manifest | None:
        """One object of the cluster that carries its label."""
        return self.children.get((resource.kind, name))

    @property
    def lease(self) -> Manifest | None:
        """The Lease whose holder may write."""
        return self.child(LEASES, names.primary_lease(self.key.name))

    @property
    def holder(self) -> str:
        """Pod that holds the Lease, "" for none."""
        return str(((self.lease or {}).get("spec") or {}).get("holderIdentity") or "")

    @property
    def epoch(self) -> int:
        """How often the Lease has changed hands."""
        return int(((self.lease or {}).get("spec") or {}).get("leaseTransitions") or 0)

    @property
    def primary(self) -> InstancePod | None:
        """The instance that holds the Lease and says, while it runs, that it is the primary."""
        for pod in self.pods:
            if pod.name == self.holder and pod.running and pod.report is not None:
                return pod if pod.report.role == names.ROLE_PRIMARY else None
        return None

    @property
    def system_identifier(self) -> str | None:
        """Identity of the data: from the Lease, else from what the status remembers."""
        metadata = (self.lease or {}).get("metadata") or {}
        recorded = (metadata.get("annotations") or {}).get(names.ANNOTATION_SYSTEM_ID)
        known: str | None = (self.cluster.get("status") or {}).get("systemIdentifier")
        return recorded or known


def resource_of(manifest: Mapping[str, Any]) -> Resource:
    """The kind of a rendered object; KeyError for one that no reconciliation would clean up."""
    return _BY_KIND[manifest["kind"]]


def pod_ready(manifest: Mapping[str, Any]) -> bool:
    """Whether a pod is Ready and not on its way out."""
    if "deletionTimestamp" in manifest["metadata"]:
        return False
    conditions = (manifest.get("status") or {}).get("conditions") or ()
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


async def observe(client: KubeClient, key: Key) -> Observed | None:
    """Everything about a cluster; None where the PgCluster does not exist."""
    cluster = await client.get(PGCLUSTERS, key.name, key.namespace)
    if cluster is None:
        return None
    selector = f"{names.LABEL_CLUSTER}={key.name}"
    children: dict[tuple[str, str], Manifest] = {}
    for resource in CHILDREN:
        if resource is SECRETS:
            # Only our own, by name: nobody else's Secret is ever read.
            for name in names.own_secrets(key.name):
                if (secret := await client.get(SECRETS, name, key.namespace)) is not None:
                    children[resource.kind, name] = secret
            continue
        try:
            items, _ = await client.list(resource, key.namespace, labels=selector)
        except Forbidden:
            if resource not in _OPTIONAL:
                raise
            continue
        for item in items:
            # The items of a list do not say what they are.
            children[resource.kind, item["metadata"]["name"]] = {
                "apiVersion": resource.api_version,
                "kind": resource.kind,
                **item,
            }
    pods, _ = await client.list(PODS, key.namespace, labels=selector)
    pods.sort(key=_pod_order)
    reports = children.get((CONFIG_MAPS.kind, names.config_map_poolers(key.name))) or {}
    return Observed(
        cluster=cluster,
        children=children,
        pods=tuple(
            InstancePod(pod["metadata"]["name"], pod, report_of(pod))
            for pod in pods
            if _component(pod) == names.COMPONENT_POSTGRES
        ),
        pooler_pods=tuple(pod for pod in pods if _component(pod) == names.COMPONENT_PGBOUNCER),
        pooler_reports=_pooler_reports(reports.get("data") or {}),
    )


def _component(pod: Mapping[str, Any]) -> str | None:
    component: str | None = (pod["metadata"].get("labels") or {}).get(names.LABEL_COMPONENT)
    return component


def _pod_order(pod: Mapping[str, Any]) -> tuple[int, str]:
    """Ten comes after nine."""
    name = pod["metadata"]["name"]
    return len(name), name


def _pooler_reports(data: Mapping[str, str]) -> dict[str, PoolerReport]:
    found = {}
    for pod, text in data.items():
        try:
            found[pod] = PoolerReport.model_validate(json.loads(text))
        except ValueError:
            continue
    return found
