"""The pools when instances, poolers or nodes are lost (A14, A21, A32, A37)."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from pgcluster.api import names
from pgcluster.controller.elector import NAME as OPERATORS_LEASE
from tests.e2e import nodes, processes
from tests.e2e.cluster import Cluster
from tests.e2e.diagnostics import SYSTEM_NAMESPACE
from tests.e2e.extent import FULL, times
from tests.e2e.kubectl import Kubectl
from tests.e2e.observing import Reader
from tests.e2e.ordeal import Ordeals
from tests.e2e.report import Report
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.disturbs

# Kubernetes by itself takes 50 s; what it took is reported.
LEAVES_WITHIN_S = 30.0
COMES_BACK_WITHIN_S = 90.0
LOSSES = ("switched off", "cut off", "frozen") if FULL else ("switched off",)


def endpoints(shop: Cluster, service: str) -> set[str]:
    """Pods that get a Service's new connections."""
    slices = shop.kubectl.objects("endpointslices", labels=f"kubernetes.io/service-name={service}")
    return {
        endpoint["targetRef"]["name"]
        for each in slices
        for endpoint in each.get("endpoints") or []
        if endpoint["conditions"].get("ready")
    }


def pools(shop: Cluster) -> tuple[str, str]:
    """The two Services of the poolers."""
    return names.service_pool(shop.name), names.service_read_only(shop.name)


def serve_all(shop: Cluster) -> None:
    """Wait until every pooler is ready and gets the new connections of both Services."""
    shop.settled()

    def all_in() -> bool:
        wanted = set(shop.poolers())
        for service in pools(shop):
            assert endpoints(shop, service) == wanted, service
        return True

    eventually(all_in, within=COMES_BACK_WITHIN_S, what="all poolers serve")


def told(shop: Cluster, pooler: str) -> dict[str, Any]:
    """A pooler's report."""
    data = shop.kubectl.json("get", "configmap", names.config_map_poolers(shop.name))["data"]
    report: dict[str, Any] = json.loads(data[pooler])
    return report


def restarts_of_poolers(shop: Cluster) -> dict[str, int]:
    return {
        key: count
        for key, count in shop.restarts().items()
        if key.partition("/")[0] in shop.poolers()
    }


def assert_no_pool_is_paused(shop: Cluster) -> None:
    """By what pgbouncer itself says, past the agents."""
    shop.settled()

    def running() -> bool:
        for pooler in shop.poolers():
            row = next(row for row in shop.status()["poolers"] if row["pod"] == pooler)
            assert row["ready"], row
            assert not row["paused"], row
        return True

    eventually(running, within=30, what="no pool is paused")


# --- instances ------------------------------------------------------------------------------------
@pytest.mark.parametrize("which", ["primary", "standby"])
@pytest.mark.parametrize("how", ["killed", "deleted"])
def test_the_end_of_an_instance_restarts_no_pooler(ordeals: Ordeals, which: str, how: str) -> None:
    """A14: clients wait and do not break."""
    shop = ordeals.cluster
    for _ in range(times(3)):
        serve_all(shop)
        before, poolers = restarts_of_poolers(shop), shop.poolers()
        ordeal = ordeals.begin(f"{which} {how}, under poolers")
        pod = (
            ordeal.primary
            if which == "primary"
            else next(pod for pod in shop.instances() if pod != ordeal.primary)
        )
        if how == "killed":
            shop.kill_container(pod)
        else:
            shop.delete_pod(pod)
        outcome = ordeal.ended(may_lose=how == "killed" and which == "primary")
        assert shop.poolers() == poolers
        assert restarts_of_poolers(shop) == before
        # What was in flight, one transaction a writer.
        assert outcome.counted["errors"] <= (8 if which == "primary" else 0), outcome.counted
        assert_no_pool_is_paused(shop)


# --- poolers --------------------------------------------------------------------------------------
@pytest.mark.parametrize("killed", [("pgbouncer",), ("agent",), ("agent", "pgbouncer")])
def test_a_killed_pooler_comes_back_and_the_other_goes_on(
    ordeals: Ordeals, report: Report, killed: tuple[str, ...]
) -> None:
    """A37, with a primary that is well."""
    shop = ordeals.cluster
    serve_all(shop)
    pooler = shop.poolers()[0]
    ordeal = ordeals.begin(f"pooler's {' and '.join(killed)} killed")
    found = processes.containers(shop.pod(pooler))
    for container in killed:
        found[container].signal("KILL")
    outcome = ordeal.ended()
    assert outcome.after == outcome.before
    # A client loses its connection with its pgbouncer, and with nothing else. Where it connects
    # again it may meet the dead one a few times before the other.
    errors = outcome.counted["errors_by_text"]
    if "pgbouncer" in killed:
        lost = sum(count for text, count in errors.items() if text.startswith("write "))
        assert lost <= len(outcome.counted["longest_gap_per_writer_s"]), errors
    else:
        assert not errors
    assert min(outcome.counted["longest_gap_per_writer_s"]) < 5, outcome.counted
    serve_all(shop)
    assert_no_pool_is_paused(shop)


@pytest.mark.parametrize("killed", [("pgbouncer",), ("agent",), ("agent", "pgbouncer")])
def test_a_pooler_killed_in_the_middle_of_a_pause_is_not_left_paused(
    ordeals: Ordeals, killed: tuple[str, ...]
) -> None:
    """A37. The primary's agent stands still, so that nobody restarts the postmaster at once."""
    shop = ordeals.cluster
    serve_all(shop)
    pooler = shop.poolers()[0]
    ordeal = ordeals.begin(f"pooler's {' and '.join(killed)} killed in a pause")
    found = processes.containers(shop.pod(pooler))
    instance = processes.containers(shop.pod(ordeal.primary))["postgres"]
    try:
        instance.signal("STOP", processes.NODE_AGENT)
        instance.signal("KILL", processes.POSTMASTER)
        eventually(lambda: told(shop, pooler)["paused"], within=10, every=0.1, what="it is paused")
        for container in killed:
            found[container].signal("KILL")
        ordeal.writes_again()
    finally:
        with contextlib.suppress(processes.NoSuchProcess):
            instance.signal("KILL")
    ordeal.ended(may_lose=True)
    assert_no_pool_is_paused(shop)
    serve_all(shop)


# --- nodes ----------------------------------------------------------------------------------------
LOST: dict[str, Callable[[str], AbstractContextManager[None]]] = {
    "switched off": nodes.switched_off,
    "cut off": nodes.cut_off,
    "frozen": nodes.frozen,
}


def poolers_beside_primary(shop: Cluster, beside: bool) -> list[str]:
    """Poolers that run on the primary's node, or those that do not."""
    node = shop.node_of(shop.primary())
    return [pooler for pooler in shop.poolers() if (shop.node_of(pooler) == node) == beside]


def without_operator_leader(node: str) -> None:
    """Have another node's operator lead: how soon one takes over is not what is tested here."""
    system = Kubectl(SYSTEM_NAMESPACE)

    def elsewhere() -> bool:
        holder = system.json("get", "lease", OPERATORS_LEASE)["spec"].get("holderIdentity") or ""
        pods = {pod["metadata"]["name"]: pod for pod in system.objects("pods")}
        leader = next((pod for name, pod in pods.items() if holder.startswith(name)), None)
        assert leader is not None, f"leader {holder!r} of {sorted(pods)}"
        if leader["spec"]["nodeName"] == node:
            if "deletionTimestamp" not in leader["metadata"]:
                name = leader["metadata"]["name"]
                system.run("delete", "pod", name, "--wait=false")
            raise AssertionError(f"the operator leads from {node}")
        return True

    eventually(
        elsewhere, within=120, every=2, what=f"the operator leads from elsewhere than {node}"
    )


def leaves(shop: Cluster, pooler: str, name: str, report: Report) -> None:
    """Wait until a pooler gets no new connections, and assert that it was soon."""
    began_s = time.monotonic()
    for service in pools(shop):
        eventually(
            lambda service=service: pooler not in endpoints(shop, service),  # type: ignore[misc]
            within=40,
            every=0.2,
            what=f"{pooler} leaves Service {service}",
        )
    took_s = time.monotonic() - began_s
    report.measured(f"{name}: pooler leaves its Services", took_s, "s")
    assert took_s <= LEAVES_WITHIN_S, took_s
    for service in pools(shop):
        assert endpoints(shop, service), "never without an endpoint"


@pytest.mark.disturbs("all")
@pytest.mark.parametrize("how", LOSSES)
@pytest.mark.parametrize("beside", ["a standby", "the primary"])
def test_a_pooler_on_a_lost_node_gets_no_new_clients_and_comes_back(
    ordeals: Ordeals, report: Report, how: str, beside: str
) -> None:
    """Issue 4, item 5; A21 where the primary is lost with it."""
    shop = ordeals.cluster
    serve_all(shop)
    name = f"node of a pooler and {beside} {how}"
    with_primary = beside == "the primary"
    if not (found := poolers_beside_primary(shop, with_primary)):
        # Two poolers on three nodes: there is one beside the next primary, or beside this one.
        shop.delete_pod(shop.primary())
        shop.settled()
        found = poolers_beside_primary(shop, with_primary)
    node = shop.node_of(found[0])
    without_operator_leader(node)
    ordeal = ordeals.begin(name)
    with LOST[how](node):
        leaves(shop, found[0], name, report)
        row = next(row for row in shop.status()["poolers"] if row["pod"] == found[0])
        assert not row["ready"], row
        ordeal.writes_again()
    ordeal.ended(may_lose=with_primary)
    began_s = time.monotonic()
    serve_all(shop)
    report.measured(f"{name}: all poolers serve again", time.monotonic() - began_s, "s")
    assert_no_pool_is_paused(shop)


@pytest.mark.disturbs("all")
def test_a_standby_on_a_lost_node_leaves_the_read_only_pool(
    ordeals: Ordeals, reader: Reader, report: Report
) -> None:
    """A32, for a standby: the primary does not stream to it any more."""
    shop = ordeals.cluster
    serve_all(shop)
    ordeal = ordeals.begin("standby's node switched off, under readers")
    standby = next(pod for pod in shop.instances() if pod != ordeal.primary)
    address = shop.address_of(standby)
    section = names.config_map_pgbouncer(shop.name)
    assert address in shop.kubectl.json("get", "configmap", section)["data"][names.DATABASES_KEY]
    reads = reader.mark()
    with nodes.switched_off(shop.node_of(standby)):
        began_s = time.monotonic()
        eventually(
            lambda: (
                address
                not in shop.kubectl.json("get", "configmap", section)["data"][names.DATABASES_KEY]
            ),
            within=40,
            every=0.2,
            what=f"{standby} leaves the read-only pool",
        )
        took_s = time.monotonic() - began_s
        report.measured("standby's node switched off: it leaves the read-only pool", took_s, "s")
        assert took_s <= LEAVES_WITHIN_S, took_s
        ordeal.writes_again()
    outcome = ordeal.ended()
    assert outcome.after == outcome.before
    seen = reader.stats(reads)
    report.measured("standby's node switched off: longest gap of reads", seen["longest_gap_s"], "s")
    assert seen["from_a_primary"] == 0, seen
