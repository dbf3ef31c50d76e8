"""A cluster as the plugin finds it, from outside."""

from __future__ import annotations

import argparse
import shutil

import pydantic

from pgcluster.api import names
from pgcluster.api.models import PgCluster, PgClusterStatus
from pgcluster.cli.terms import Refused
from pgcluster.controller.observe import InstancePod, Key, Observed
from pgcluster.kube.client import KubeClient, Manifest
from pgcluster.kube.resources import LEASES, PGCLUSTERS, PODS
from pgcluster.topology.pods import report_of

MANAGER = "kubectl-pgcluster"


async def body_of(client: KubeClient, key: Key) -> Manifest:
    """The PgCluster as it is stored; Refused where there is none."""
    body = await client.get(PGCLUSTERS, key.name, key.namespace)
    if body is None:
        raise Refused(f"there is no PgCluster {key.name} in namespace {key.namespace}")
    return body


async def status_of(client: KubeClient, key: Key) -> PgClusterStatus:
    """Its status; Refused where it is gone."""
    return status_in(await body_of(client, key))


def status_in(body: Manifest) -> PgClusterStatus:
    """The status of a PgCluster; Refused where this plugin does not understand it."""
    try:
        return PgClusterStatus.model_validate(body.get("status") or {})
    except pydantic.ValidationError as error:
        name = body["metadata"]["name"]
        raise Refused(f"the status of {name} is of another version: {error}") from error


def parsed(body: Manifest) -> PgCluster:
    """A PgCluster; Refused where this plugin does not understand it."""
    try:
        return PgCluster.parse(body)
    except pydantic.ValidationError as error:
        name = body["metadata"]["name"]
        raise Refused(f"the spec of {name} makes no sense: {error}") from error


async def observed(client: KubeClient, key: Key) -> Observed:
    """The PgCluster, its Lease and its instances, as far as the operator's decisions need them."""
    body = await body_of(client, key)
    lease = await client.get(LEASES, names.primary_lease(key.name), key.namespace)
    children: dict[tuple[str, str], Manifest] = {}
    if lease is not None:
        children[LEASES.kind, names.primary_lease(key.name)] = lease
    return Observed(cluster=body, children=children, pods=await instances(client, key))


async def instances(client: KubeClient, key: Key) -> tuple[InstancePod, ...]:
    """The pods of the instances."""
    selector = (
        f"{names.LABEL_CLUSTER}={key.name},{names.LABEL_COMPONENT}={names.COMPONENT_POSTGRES}"
    )
    pods, _ = await client.list(PODS, key.namespace, labels=selector)
    return tuple(InstancePod(pod["metadata"]["name"], pod, report_of(pod)) for pod in pods)


async def ask(
    client: KubeClient, key: Key, patch: Manifest, *, read: Manifest | None = None
) -> Manifest:
    """Change the PgCluster as its user; `read`: only if it still is what was looked at.

    Returns it as it is then.
    """
    if read is not None:
        version = read["metadata"]["resourceVersion"]
        metadata = {**patch.get("metadata", {}), "resourceVersion": version}
        patch = {**patch, "metadata": metadata}
    return await client.merge_patch(PGCLUSTERS, key.name, key.namespace, patch, manager=MANAGER)


def kubectl(key: Key, options: argparse.Namespace) -> tuple[str, ...]:
    """kubectl with the same kubeconfig, context and namespace; Refused where there is none."""
    program = shutil.which("kubectl")
    if program is None:
        raise Refused("there is no kubectl on the PATH, which this needs to reach a pod")
    flags = [
        f"--{flag}={value}"
        for flag in ("kubeconfig", "context")
        if (value := getattr(options, flag, None))
    ]
    if user := getattr(options, "as_", None):
        flags.append(f"--as={user}")
    flags += [f"--as-group={group}" for group in getattr(options, "as_group", None) or ()]
    return (program, *flags, f"--namespace={key.namespace}")
