"""Most or all of the cluster goes down, and comes back in some order (A04 to A07)."""

from __future__ import annotations

import re

import pytest

from pgcluster.api import names
from tests.e2e import nodes
from tests.e2e.cluster import Cluster, describe
from tests.e2e.kubectl import Kubectl
from tests.e2e.ordeal import Ordeals
from tests.e2e.report import Report
from tests.e2e.waiting import eventually, stays

DISTURBS_ALL = pytest.mark.disturbs("all")
SYSTEM_ID = "SELECT system_identifier FROM pg_control_system()"


@pytest.mark.disturbs
def test_after_the_loss_of_all_pods_the_most_advanced_is_primary(ordeals: Ordeals) -> None:
    shop = ordeals.cluster
    ordeal = ordeals.begin("failover before the loss of all pods")
    shop.delete_pod(ordeal.primary)
    ordeal.handed_over()
    ordeal.ended()
    ordeal = ordeals.begin("all pods killed at once after a failover")
    timeline = shop.status()["timeline"]
    killed = _uids(shop)
    shop.kubectl.run(
        *("delete", "pod", *shop.instances(), "--grace-period=0", "--force", "--wait=false")
    )
    eventually(
        lambda: len(_uids(shop)) == len(killed) and not _uids(shop) & killed,
        within=60,
        what="all pods are new",
    )
    ordeal.writes_again(within=90)
    outcome = ordeal.ended()
    assert shop.status()["timeline"] >= timeline
    assert outcome.gap_s < 60, outcome.counted


def _uids(shop: Cluster) -> set[str]:
    return {pod["metadata"]["uid"] for pod in shop.pods()}


@pytest.mark.disturbs
def test_a_primary_without_pod_and_volume_is_cloned_anew(ordeals: Ordeals) -> None:
    shop = ordeals.cluster
    ordeal = ordeals.begin("pod and volume of the primary deleted")
    system_id = shop.value(ordeal.primary, SYSTEM_ID)
    claim = f"data-{ordeal.primary}"
    volume = shop.kubectl.json("get", "pvc", claim)["metadata"]["uid"]
    shop.kubectl.run("delete", "pvc", claim, "--wait=false")
    shop.delete_pod(ordeal.primary)
    ordeal.handed_over()
    outcome = ordeal.ended()
    assert outcome.after != outcome.before
    assert outcome.gap_s < 15, outcome.counted
    assert shop.kubectl.json("get", "pvc", claim)["metadata"]["uid"] != volume
    assert {shop.value(pod, SYSTEM_ID) for pod in shop.instances()} == {system_id}


@pytest.mark.disturbs
def test_foreign_data_is_refused_and_not_touched(ordeals: Ordeals) -> None:
    shop = ordeals.cluster
    ordeal = ordeals.begin("volume of a standby with foreign data")
    standby = next(pod for pod in shop.instances() if pod != ordeal.primary)
    bindir = shop.exec(standby, "pg_config", "--bindir", check=False).stdout.strip()
    bindir = bindir or "/usr/lib/postgresql/17/bin"
    _shell(shop, standby, f"{bindir}/initdb -D foreign -U postgres -N >&2; mv pgdata own")
    _shell(shop, standby, "mv foreign pgdata")
    foreign = _control(shop, standby, bindir)
    shop.kill_container(standby)
    shop.condition_says(f"(?i)foreign.*{standby}|{standby}.*foreign", within=60)
    _shell(shop, standby, "test -d own")
    assert _control(shop, standby, bindir) == foreign
    assert shop.serves_as_primary(ordeal.primary)
    _shell(shop, standby, "mv pgdata foreign; mv own pgdata; rm -r foreign")
    outcome = ordeal.ended()
    assert outcome.after == outcome.before
    assert outcome.counted["errors"] == 0, outcome.counted


def _shell(shop: Cluster, pod: str, script: str) -> str:
    """A script on the volume of an instance, once its container runs."""

    def done() -> list[str]:
        return [str(shop.exec(pod, "sh", "-ec", f"cd {names.VOLUME}; {script}").stdout)]

    return eventually(done, within=30, what=f"in {pod}: {script}")[0]


def _control(shop: Cluster, pod: str, bindir: str) -> str:
    text = _shell(shop, pod, f"{bindir}/pg_controldata pgdata")
    found = re.search(r"^Database system identifier: *(\d+)$", text, re.MULTILINE)
    assert found, text
    return found[1]


@DISTURBS_ALL
def test_an_old_primary_that_is_back_first_does_not_serve_below_the_mark(
    ordeals: Ordeals,
) -> None:
    shop = ordeals.cluster
    ordeal = ordeals.begin("old primary back first")
    old = ordeal.primary
    with nodes.switched_off(shop.node_of(old)):
        ordeal.writes_again()
        new = shop.holder()
        (third,) = set(shop.instances()) - {old, new}
        shop.psql(new, "CREATE TABLE after_the_failover AS SELECT 1 AS one", "app")
        with nodes.cordoned(shop.node_of(new)):
            # The third is to have no data, so that it and the old one are a majority without any
            # of what was written since.
            shop.kubectl.run("delete", "pvc", f"data-{third}", "--wait=false")
            shop.kubectl.run(
                *("delete", "pod", new, third, "--grace-period=0", "--force", "--wait=false")
            )
            eventually(lambda: _pending(shop, new), within=60, what=f"{new} finds no node")
            nodes.power_on(shop.node_of(old))
            shop.condition_says(f"NoPrimary.*{old}: waiting.*timeline", within=120)
            stays(lambda: shop.holder() in ("", new), for_s=10)
            assert shop.condition("Ready")["status"] == "False"
    outcome = ordeal.ended(may_lose=True)
    assert outcome.after == new
    assert shop.value(old, "SELECT one FROM after_the_failover", "app") == "1"
    shop.psql(new, "DROP TABLE after_the_failover", "app")


def _pending(shop: Cluster, pod: str) -> bool:
    found = shop.pod(pod)
    assert found["status"]["phase"] == "Pending", found["status"]
    return True


@DISTURBS_ALL
def test_of_three_instances_the_last_one_reads_and_is_promoted_by_a_person(
    ordeals: Ordeals, system: Kubectl, report: Report
) -> None:
    shop = ordeals.cluster
    ordeal = ordeals.begin("two of three nodes gone, the third promoted by hand")
    survivor = _standby_beside_an_operator(shop, system, ordeal.primary)
    gone = [shop.node_of(pod) for pod in shop.instances() if pod != survivor]
    rows = int(shop.value(survivor, "SELECT count(*) FROM pgcluster_client", "app"))
    with nodes.switched_off(*gone):
        told_s = shop.condition_says("NoPrimary.*forcePromotion", within=90)
        report.measured("two of three nodes gone: until the status tells", told_s, "s")
        status = shop.status()
        assert status.get("primary") is None, describe(status)
        assert status["summary"] == "NoPrimary", describe(status)
        assert int(shop.value(survivor, "SELECT count(*) FROM pgcluster_client", "app")) >= rows
        stays(lambda: not shop.serves_as_primary(survivor), for_s=5)
        force = {"instance": survivor, "epoch": status["epoch"]}
        shop.kubectl.patch(
            "pgcluster", shop.name, {"spec": {"failover": {"forcePromotion": force}}}
        )
        eventually(
            lambda: shop.serves_as_primary(survivor), within=60, what=f"{survivor} is promoted"
        )
        shop.psql(survivor, "CREATE TABLE by_force AS SELECT 1 AS one", "app")
        eventually(
            lambda: shop.status().get("primary") == survivor,
            within=30,
            what="the status names the survivor",
        )
        record = shop.status()["forcedPromotion"]
        assert (record["instance"], record["state"]) == (survivor, "Succeeded"), record
        trail = {event["reason"]: event["message"] for event in shop.events()}
        for reason in ("ForcedPromotionRequested", "ForcedPromotionSucceeded"):
            assert "asked for by kubectl" in trail[reason], trail
    outcome = ordeal.ended(may_lose=True)
    assert outcome.after == survivor
    assert {shop.value(pod, "SELECT one FROM by_force", "app") for pod in shop.instances()} == {"1"}
    shop.psql(survivor, "DROP TABLE by_force", "app")
    shop.change({"failover": {"forcePromotion": None}})


def _standby_beside_an_operator(shop: Cluster, system: Kubectl, primary: str) -> str:
    """A standby whose loss of all neighbours leaves an operator to tell of it."""
    operators = {pod["spec"].get("nodeName") for pod in system.objects("pods")}
    standbys = [pod for pod in shop.instances() if pod != primary]
    found = [pod for pod in standbys if shop.node_of(pod) in operators]
    assert found, f"no operator beside {standbys}, only on {operators}"
    return found[0]
