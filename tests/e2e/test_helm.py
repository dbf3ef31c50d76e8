"""The charts by a real Helm: installed, upgraded, rolled back and uninstalled around a cluster."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.charts.helm import CLUSTER, CRDS, OPERATOR, helm
from tests.e2e import nodes
from tests.e2e.cluster import Cluster
from tests.e2e.kubectl import Kubectl, find_kubeconfig
from tests.e2e.report import Report
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.disturbs
DEPLOYMENT = "ours-pgcluster-operator"


class Release:
    """Helm in one namespace, while the operator of all namespaces is away."""

    def __init__(self, kubectl: Kubectl) -> None:
        self.kubectl = kubectl
        self.namespace = kubectl.namespace

    def helm(self, command: str, name: str, *words: str | Path) -> float:
        """Run a command on a release to its end; how long it took, in seconds."""
        began_s = time.monotonic()
        within = ("--namespace", self.namespace, "--wait", "--timeout", "120s")
        helm(command, name, *words, *within, timeout_s=150)
        return time.monotonic() - began_s


@pytest.fixture(scope="module")
def release(own_namespace: Kubectl) -> Iterator[Release]:
    os.environ.setdefault("KUBECONFIG", find_kubeconfig())
    with nodes.without_operator():
        yield Release(own_namespace)


@pytest.fixture(scope="module")
def operator(release: Release, report: Report) -> str:
    """CRDs and an operator of this namespace alone."""
    # The CRD is that of deploy/operator, and so is not this release's yet.
    release.helm("install", "crds", CRDS, "--take-ownership")
    only = f"--set-json=watchNamespaces=[{release.namespace!r}]".replace("'", '"')
    took_s = release.helm("install", "ours", OPERATOR, only)
    report.measured("helm install of the operator, to Ready", took_s, "s")
    assert took_s < 60
    return DEPLOYMENT


@pytest.fixture(scope="module")
def helmed(release: Release, operator: str) -> Cluster:
    """A cluster as a release."""
    words = ("--set", "spec.instances=2", "--set", "spec.pgbouncer.instances=1")
    release.helm("install", "helmed", CLUSTER, *words)
    cluster = Cluster(release.kubectl, "helmed")
    cluster.wait_ready()
    return cluster


def uids(cluster: Cluster) -> dict[str, str]:
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in cluster.pods()}


def shows(cluster: Cluster, value: str) -> None:
    def everywhere() -> bool:
        found = {pod: cluster.value(pod, "SHOW work_mem") for pod in cluster.instances()}
        assert set(found.values()) == {value}, found
        return True

    eventually(everywhere, within=60, what=f"work_mem is {value}")


def test_a_cluster_is_upgraded_and_rolled_back(release: Release, helmed: Cluster) -> None:
    primary, pods = helmed.settled(), uids(helmed)
    before = helmed.value(primary, "SHOW work_mem")
    change = "--set-string=spec.postgres.parameters.work_mem=9MB"
    release.helm("upgrade", "helmed", CLUSTER, "--reuse-values", change)
    shows(helmed, "9MB")
    release.helm("rollback", "helmed", "1")
    shows(helmed, before)
    assert helmed.settled() == primary
    assert uids(helmed) == pods


def test_an_upgrade_of_the_operator_touches_no_cluster(release: Release, helmed: Cluster) -> None:
    helmed.settled()
    pods, generation = uids(helmed), helmed.get()["metadata"]["generation"]
    release.helm("upgrade", "ours", OPERATOR, "--reuse-values", "--set-string=podLabels.new=yes")
    release.helm("rollback", "ours", "1")
    helmed.settled()
    assert uids(helmed) == pods
    assert helmed.get()["metadata"]["generation"] == generation


def test_what_is_uninstalled_takes_no_data_with_it(release: Release, helmed: Cluster) -> None:
    """The operator and the CRDs go; the cluster stays, serves, and goes only with its own."""
    primary, pods = helmed.settled(), uids(helmed)
    helmed.psql(primary, "CREATE TABLE kept AS SELECT 1 AS id")
    release.helm("uninstall", "ours")
    release.helm("uninstall", "crds")
    assert release.kubectl.get("deployment", DEPLOYMENT) is None
    assert helmed.get()["metadata"].get("deletionTimestamp") is None
    assert helmed.value(primary, "SELECT count(*) FROM kept") == "1"
    assert uids(helmed) == pods
    release.helm("uninstall", "helmed")

    def gone() -> bool:
        assert not helmed.pods()
        return True

    eventually(gone, within=120, what="its pods are gone with it")
