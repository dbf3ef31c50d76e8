"""The world of the end-to-end tests: a namespace, a shared PgCluster, two observers, a toolbox."""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from pgcluster import __version__
from tests.e2e import diagnostics, nodes
from tests.e2e.cluster import Cluster, manifest
from tests.e2e.kubectl import Kubectl, KubectlError
from tests.e2e.observing import Client, Reader, Watcher
from tests.e2e.ordeal import Ordeals
from tests.e2e.report import Report
from tests.e2e.toolbox import POSTGRES_MAJOR, Toolbox

# The namespaces of this run, by the node id of the fixture that made them.
_namespaces: list[Kubectl] = []
_report = Report()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(600))
    items.sort(key=_disturbance)


def _disturbance(item: pytest.Item) -> int:
    """Tests that only look come first, then those that hurt a cluster, then those that hurt all."""
    marker = item.get_closest_marker("disturbs")
    if marker is None:
        return 0
    return 2 if "all" in marker.args else 1


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep the state of the cluster where a test failed, before anything tidies up."""
    outcome = yield
    if outcome.failed:
        for kubectl in _namespaces:
            gist = diagnostics.collect(kubectl, f"{item.name}-{call.when}")
            outcome.sections.append((f"namespace {kubectl.namespace}", gist))
    return outcome


@pytest.fixture(autouse=True)
def _no_fault_is_left() -> Iterator[None]:
    """Whatever a test did to nodes, API server, DNS or operator ends with it."""
    yield
    nodes.restore()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if lines := _report.lines():
        terminalreporter.section("measured")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def report() -> Report:
    """Measurements of the run."""
    return _report


@pytest.fixture(scope="session")
def operator_image() -> str:
    """Image with the project's Python environment, which the observers use."""
    return f"pgcluster.dev/operator:{__version__}"


@pytest.fixture(scope="session")
def system() -> Kubectl:
    """The namespace of the operator; fails with what to do where it does not run."""
    kubectl = Kubectl(diagnostics.SYSTEM_NAMESPACE)
    try:
        kubectl.run(
            "rollout", "status", "deployment/pgcluster-operator", "--timeout=120s", timeout_s=130
        )
    except KubectlError as error:
        pytest.fail(f"no operator to test (`make cluster install` brings one up): {error}")
    return kubectl


def _namespace(name: str) -> Iterator[Kubectl]:
    kubectl = Kubectl(f"e2e-{name}-{secrets.token_hex(2)}")
    label = {"pod-security.kubernetes.io/enforce": "restricted"}
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": kubectl.namespace, "labels": label},
        }
    )
    _namespaces.append(kubectl)
    yield kubectl
    _namespaces.remove(kubectl)
    # Not waited for: nothing after this needs the room, and a namespace that hangs is a finding
    # of test_deletion, not of every run.
    kubectl.run("delete", "namespace", kubectl.namespace, "--wait=false", timeout_s=60)


@pytest.fixture(scope="session")
def namespace(system: Kubectl) -> Iterator[Kubectl]:
    """A namespace of the run that enforces the restricted pod security standard."""
    yield from _namespace("shop")


@pytest.fixture(scope="module")
def own_namespace(system: Kubectl, request: pytest.FixtureRequest) -> Iterator[Kubectl]:
    """A namespace for the tests of one module."""
    yield from _namespace(request.module.__name__.rpartition("test_")[2].replace("_", "-"))


@pytest.fixture(scope="session")
def toolbox(namespace: Kubectl) -> Toolbox:
    """A pod with psql and Python, as an application's pod would reach the database."""
    return Toolbox(namespace)


@pytest.fixture(scope="session")
def shop(namespace: Kubectl, report: Report) -> Cluster:
    """The shared cluster: three instances, two poolers, some of all that can be declared."""
    namespace.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "reporting-login"},
            "stringData": {"password": 'it\'s a \\ "hard" one: %'},
        }
    )
    cluster = Cluster(namespace, "shop")
    took_s = cluster.apply(
        manifest(
            "shop",
            postgres={
                "version": POSTGRES_MAJOR,
                "parameters": {"max_connections": "150", "work_mem": "8MB"},
                "hba": ["hostssl reports reporting 10.0.0.0/8 scram-sha-256"],
            },
            users=[{"name": "reporting", "passwordSecret": {"name": "reporting-login"}}],
            databases=[
                {"name": "app", "owner": "app"},
                {"name": "reports", "owner": "reporting", "extensions": ["pgcrypto"]},
            ],
            pgbouncer={"instances": 2, "parameters": {"default_pool_size": "25"}},
        )
    )
    report.measured("apply to Ready, 3 instances and 2 poolers", took_s, "s")
    return cluster


@pytest.fixture(scope="module")
def client(shop: Cluster, operator_image: str) -> Iterator[Client]:
    """Eight writers through the pool of `shop`; ends by looking for every acknowledged row."""
    observer = Client(shop, operator_image)
    yield observer
    observer.stop()


@pytest.fixture(scope="module")
def watcher(shop: Cluster, operator_image: str) -> Iterator[Watcher]:
    """Looks for two primaries in `shop`, until the end of the module."""
    observer = Watcher(shop, operator_image)
    yield observer
    try:
        observer.assert_one_primary()
    finally:
        observer.stop()


@pytest.fixture(scope="module")
def reader(shop: Cluster, operator_image: str) -> Iterator[Reader]:
    """Reads through the read-only pool of `shop`."""
    observer = Reader(shop, operator_image)
    yield observer
    observer.stop()


@pytest.fixture(scope="module")
def ordeals(shop: Cluster, client: Client, watcher: Watcher, report: Report) -> Ordeals:
    """Faults of `shop` under the observers."""
    return Ordeals(shop, client, watcher, report)
