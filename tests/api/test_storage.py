"""Volumes against a real API server: what it lets grow, and what it refuses.

That a volume grows on disk is its driver's work and not seen here: the local cluster has none that
can. The claim's request is what the operator changes.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import pytest

from pgcluster.api import conditions, names
from pgcluster.api.models import PgCluster
from pgcluster.controller.observe import Observed
from pgcluster.controller.storage import Storage
from pgcluster.kube.client import KubeClient
from pgcluster.render.statefulset import statefulset
from tests.e2e.kubectl import Kubectl
from tests.e2e.waiting import eventually

PGCLUSTER: dict[str, Any] = {
    "apiVersion": names.API_VERSION,
    "kind": names.KIND,
    "metadata": {"name": "shop", "namespace": "", "uid": "0"},
    "spec": {"instances": 1, "storage": {"size": "2Gi"}},
}


@pytest.fixture(scope="module")
def kubectl() -> Iterator[Kubectl]:
    everywhere = Kubectl()
    namespace = Kubectl(f"api-{secrets.token_hex(2)}")
    everywhere.run("create", "namespace", namespace.namespace)
    yield namespace
    everywhere.run("delete", "namespace", namespace.namespace, "--wait=false")


@pytest.fixture
def volume(kubectl: Kubectl, request: pytest.FixtureRequest) -> Iterator[str]:
    """A bound claim of instance 0, of a class that can expand or not; the class's name."""
    expands: bool = request.param
    name = f"{kubectl.namespace}-{'grows' if expands else 'fixed'}"
    everywhere = Kubectl()
    everywhere.apply(
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {"name": name},
            "provisioner": "kubernetes.io/no-provisioner",
            "allowVolumeExpansion": expands,
        }
    )
    everywhere.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "capacity": {"storage": "1Gi"},
                "hostPath": {"path": f"/tmp/{name}"},  # never mounted
                "storageClassName": name,
                "claimRef": {"name": "data-shop-0", "namespace": kubectl.namespace},
            },
        }
    )
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "data-shop-0", "labels": {names.LABEL_CLUSTER: "shop"}},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}},
                "storageClassName": name,
                "volumeName": name,
            },
        }
    )
    eventually(
        lambda: claim(kubectl)["status"]["phase"] == "Bound", within=30, what="the claim is bound"
    )
    yield name
    kubectl.delete("pvc", "data-shop-0")
    everywhere.delete("pv", name)
    everywhere.delete("storageclass", name)


def claim(kubectl: Kubectl) -> dict[str, Any]:
    return kubectl.json("get", "pvc", "data-shop-0")


async def see_to(kubectl: Kubectl) -> Storage:
    metadata = {**PGCLUSTER["metadata"], "namespace": kubectl.namespace}
    body = {**PGCLUSTER, "metadata": metadata}
    cluster = PgCluster.parse(body)
    client = await KubeClient.connect()
    try:
        storage = Storage(client, Observed(cluster=body), cluster)
        await storage.see_to(statefulset(cluster, image="none"), None, instances=1)
        return storage
    finally:
        await client.close()


def asks(kubectl: Kubectl) -> str:
    return str(claim(kubectl)["spec"]["resources"]["requests"]["storage"])


@pytest.mark.parametrize("volume", [True], indirect=True)
async def test_a_claim_of_a_class_that_expands_asks_for_more(kubectl: Kubectl, volume: str) -> None:
    storage = await see_to(kubectl)
    assert storage.refused is None, volume
    assert asks(kubectl) == "2Gi"
    storage = await see_to(kubectl)
    assert storage.pending is not None
    assert storage.pending[0] == conditions.VOLUME_RESIZING
    assert "1Gi" in storage.pending[1], "nobody has grown it yet, which is told"


@pytest.mark.parametrize("volume", [False], indirect=True)
async def test_one_of_a_class_that_cannot_is_told(kubectl: Kubectl, volume: str) -> None:
    storage = await see_to(kubectl)
    assert storage.refused is not None
    assert storage.refused[0] == conditions.VOLUME_GROWTH_REFUSED
    assert volume in storage.refused[1]
    assert asks(kubectl) == "1Gi"
