"""What kopf is used for: watching. Every handler only puts the cluster's key into the queue.

Only low-level handlers: they write nothing to any object, no finalizer, no annotation. What they
see is a hint; the reconciliation reads everything anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import kopf

from pgcluster.api import names
from pgcluster.controller.observe import Key
from pgcluster.kube.client import KubeClient
from pgcluster.kube.resources import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    PDBS,
    PGCLUSTERS,
    PODS,
    SERVICES,
    STATEFUL_SETS,
)

_CHILDREN = (PODS, STATEFUL_SETS, DEPLOYMENTS, CONFIG_MAPS, SERVICES, PDBS)
_METADATA = ("uid", "generation", "deletionTimestamp", "labels", "annotations", "ownerReferences")

# Annotations of a PgCluster by which a person asks for something.
_ASKED = (names.ANNOTATION_RESTART, names.ANNOTATION_SWITCHOVER)


class Sieve:
    """Tells changes that matter from those that do not: heartbeats, counters, our own status."""

    def __init__(self) -> None:
        self._seen: dict[str, bytes] = {}

    def matters(self, type_: str | None, body: Mapping[str, Any]) -> bool:
        """Whether an event says anything new; `type_` is None for what the first list had."""
        uid = body["metadata"]["uid"]
        if type_ == "DELETED":
            self._seen.pop(uid, None)
            return True
        digest = hashlib.blake2b(
            json.dumps(essence(body), sort_keys=True, default=str).encode(), digest_size=16
        ).digest()
        if self._seen.get(uid) == digest:
            return False
        self._seen[uid] = digest
        return True

    def __len__(self) -> int:
        return len(self._seen)


def essence(body: Mapping[str, Any]) -> Any:
    """Of an object, what a reconciliation looks at."""
    metadata = body["metadata"]
    kept = {key: metadata.get(key) for key in _METADATA}
    kind = body.get("kind")
    if kind == names.KIND:
        annotations = kept["annotations"] or {}
        kept["annotations"] = [annotations.get(name) for name in _ASKED]
        return kept
    if kind == PODS.kind:
        return (
            kept,
            _pod_essence(body.get("status") or {}),
            (body.get("spec") or {}).get("nodeName"),
        )
    if kind in (STATEFUL_SETS.kind, DEPLOYMENTS.kind):
        kept["annotations"] = (kept["annotations"] or {}).get(names.ANNOTATION_HASH)
        status = body.get("status") or {}
        progress = [status.get(key) for key in ("updateRevision", "updatedReplicas", "replicas")]
        return kept, status.get("observedGeneration"), progress
    return kept, body.get("spec"), body.get("data")


def _pod_essence(status: Mapping[str, Any]) -> Any:
    containers = [
        (
            container["name"],
            container.get("ready"),
            container.get("restartCount"),
            [
                (state, detail.get("reason"))
                for state, detail in (container.get("state") or {}).items()
            ],
        )
        for field in ("initContainerStatuses", "containerStatuses")
        for container in status.get(field) or ()
    ]
    told = [
        (condition["type"], condition["status"], condition.get("reason"))
        for condition in status.get("conditions") or ()
    ]
    return status.get("phase"), status.get("podIP"), told, containers


def registry(add: Callable[[Key], None], client: KubeClient) -> kopf.OperatorRegistry:
    """kopf's handlers, on a registry of their own: importing this module registers nothing."""
    found = kopf.OperatorRegistry()
    sieve = Sieve()

    @kopf.on.login(registry=found)
    async def login(**_: Any) -> kopf.AiohttpSession:
        # kopf's own logins resolve the API server by DNS, and read a token that rotates only once.
        server, session = client.session()
        return kopf.AiohttpSession(server=server, aiohttp_session=session)

    async def on_event(
        event: kopf.RawEvent,
        namespace: str | None,
        name: str,
        labels: Mapping[str, str],
        resource: kopf.Resource,
        **_: Any,
    ) -> None:
        cluster = name if resource.plural == names.PLURAL else labels.get(names.LABEL_CLUSTER)
        if namespace and cluster and sieve.matters(event["type"], event["object"]):
            add(Key(namespace, cluster))

    for watched in (PGCLUSTERS, *_CHILDREN):
        kopf.on.event(watched.api_version, watched.plural, registry=found)(on_event)
    return found


def settings() -> kopf.OperatorSettings:
    """What kopf's defaults would break, and why is in each line's comment."""
    found = kopf.OperatorSettings()
    # An object named `default` of kopf's peering would pause this operator.
    found.peering.standalone = True
    # Namespaces and CRDs need not be watched: the namespaces are given, the CRD is ours.
    found.scanning.disabled = True
    # Events are posted by the reconciliation, with reasons that are documented.
    found.posting.enabled = False
    # Without these a dead connection would block for minutes.
    found.networking.request_timeout = 30
    found.networking.connect_timeout = 10
    found.watching.connect_timeout = 10
    # Pages, so that a thousand clusters are no spike of memory.
    found.watching.chunk_size = 500
    found.process.ultimate_exiting_timeout = 10
    # Never used here; unlike the default it does not collide with another operator's.
    found.persistence.finalizer = f"{names.GROUP}/kopf-unused"
    for child in _CHILDREN:
        # Filtered by the API server: what belongs to no PgCluster is never sent.
        found.watching.label_selectors[child.api_version, child.plural] = names.LABEL_CLUSTER
    return found
