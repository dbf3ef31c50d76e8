"""Nodes that are about to go: a primary hands over before its pod is evicted.

A drain cordons a node before it evicts anything, and autoscalers taint it. Watched once for all
clusters; without the right to watch nodes (an installation for single namespaces) an eviction is
what a primary hands over for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pgcluster.api import names
from pgcluster.controller import attempts
from pgcluster.controller.observe import Key, Observed
from pgcluster.controller.wishes import Wish
from pgcluster.kube.client import KubeClient
from pgcluster.kube.errors import ApiError, Forbidden
from pgcluster.kube.resources import NODES, PODS

log = logging.getLogger(__name__)

# Taints by which an autoscaler announces that it removes a node.
_REMOVAL_TAINTS = (
    "ToBeDeletedByClusterAutoscaler",
    "karpenter.sh/disrupted",
    "karpenter.sh/disruption",
    "node.cloudprovider.kubernetes.io/shutdown",
    "node.kubernetes.io/out-of-service",
)
_AGAIN_S = 5.0


def leaving(node: Mapping[str, Any]) -> str | None:
    """Why a node is about to go, as the rest of a sentence; None where it stays. Pure."""
    spec = node.get("spec") or {}
    if spec.get("unschedulable"):
        return "is cordoned"
    keys = {taint.get("key") for taint in spec.get("taints") or ()}
    found = next((key for key in _REMOVAL_TAINTS if key in keys), None)
    return f"has the taint {found}" if found else None


def wish(observed: Observed, going: Mapping[str, str]) -> Wish | None:
    """That the primary leave a node that goes, where another instance is on one that stays. Pure.

    `going` has, by name, the nodes that are about to go and why.
    """
    primary = observed.primary
    node = _node(primary.manifest) if primary is not None else None
    if primary is None or node is None or node not in going:
        return None
    avoid = on(observed, going)
    if all(pod.name in avoid or not pod.ready for pod in observed.pods):
        return None
    about = attempts.digest(node, primary.manifest["metadata"].get("uid"), observed.epoch)
    attempt = attempts.attempt(observed, f"node-{about}")
    return Wish(
        "node",
        attempt.request,
        f"its node {node} {going[node]}",
        avoid=avoid,
        not_before=attempt.not_before,
    )


def on(observed: Observed, going: Mapping[str, str]) -> frozenset[str]:
    """The instances on nodes that are about to go. Pure."""
    return frozenset(pod.name for pod in observed.pods if _node(pod.manifest) in going)


def _node(pod: Mapping[str, Any]) -> str | None:
    name: str | None = (pod.get("spec") or {}).get("nodeName")
    return name


class NodeWatch:
    """The nodes that are about to go; `wake` is called for each cluster with an instance there.

    `namespaces` are those that are looked after; none for all.
    """

    def __init__(
        self, client: KubeClient, wake: Callable[[Key], None], *, namespaces: Iterable[str] = ()
    ) -> None:
        self._client = client
        self._wake = wake
        self._namespaces = tuple(namespaces) or (None,)
        self.going: dict[str, str] = {}

    async def run(self) -> None:
        """For ever."""
        await self._allowed()
        async for event in self._client.watch(NODES):
            if event.type == "SYNC":
                found = {node["metadata"]["name"]: leaving(node) for node in event.items}
                for name in self.going.keys() - found.keys():
                    await self._see(name, None)
                for name, reason in found.items():
                    await self._see(name, reason)
            elif event.type in ("ADDED", "MODIFIED"):
                await self._see(event.object["metadata"]["name"], leaving(event.object))
            elif event.type == "DELETED":
                await self._see(event.object["metadata"]["name"], None)

    async def _allowed(self) -> None:
        while True:
            try:
                await self._client.list(NODES)
                return
            except Forbidden:
                log.info("nodes may not be watched: a primary hands over when its pod is evicted")
                await asyncio.Event().wait()
            except ApiError as error:
                log.info("nodes cannot be listed: %s", error)
                await asyncio.sleep(_AGAIN_S)

    async def _see(self, name: str, reason: str | None) -> None:
        if self.going.get(name) == reason:
            return
        if reason is None:
            self.going.pop(name, None)
            log.info("node %s stays", name)
            return
        self.going[name] = reason
        log.info("node %s %s", name, reason)
        selector = f"{names.LABEL_CLUSTER},{names.LABEL_COMPONENT}={names.COMPONENT_POSTGRES}"
        for namespace in self._namespaces:
            try:
                pods, _ = await self._client.list(
                    PODS, namespace, labels=selector, fields=f"spec.nodeName={name}"
                )
            except ApiError as error:
                # The next look at each cluster sees it, too.
                log.info("the instances on node %s cannot be listed: %s", name, error)
                continue
            for pod in pods:
                metadata = pod["metadata"]
                self._wake(Key(metadata["namespace"], metadata["labels"][names.LABEL_CLUSTER]))
