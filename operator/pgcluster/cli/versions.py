"""`kubectl pgcluster version`: of the plugin, and of the operators as far as one may see them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import pgcluster
from pgcluster.api.names import MANAGED_BY
from pgcluster.cli.terms import DONE, say

if TYPE_CHECKING:
    from pgcluster.controller.observe import Key
    from pgcluster.kube.client import KubeClient, Manifest


async def version(client: KubeClient | None, key: Key, options: argparse.Namespace) -> int:
    """Show them; without a client, which is not needed for it, that of the plugin alone."""
    say(f"kubectl-pgcluster {pgcluster.__version__}")
    if client is None:
        return DONE
    found = await _operators(client, key)
    if found is None:
        say("operator: you may not list Deployments")
        return DONE
    for deployment in found:
        metadata, containers = deployment["metadata"], _containers(deployment)
        ready = (deployment.get("status") or {}).get("readyReplicas") or 0
        for container in containers:
            say(
                f"operator {metadata['namespace']}/{metadata['name']}: {container['image']},"
                f" {ready} of {deployment['spec'].get('replicas', 1)} replicas ready"
            )
    if not found:
        say("operator: none found")
    return DONE


async def _operators(client: KubeClient, key: Key) -> list[Manifest] | None:
    """Their Deployments, everywhere or in this namespace; None where that is not allowed."""
    from pgcluster.kube.errors import Forbidden, NotFound
    from pgcluster.kube.resources import DEPLOYMENTS

    selector = f"app.kubernetes.io/name={MANAGED_BY}"
    for namespace in (None, key.namespace):
        try:
            found, _ = await client.list(DEPLOYMENTS, namespace, labels=selector)
        except Forbidden:
            continue
        except NotFound:
            return []
        return found
    return None


def _containers(deployment: Manifest) -> list[Manifest]:
    containers: list[Manifest] = deployment["spec"]["template"]["spec"]["containers"]
    return containers
