"""Scaling, sleep and maintenance, which no client notices more than it must (A16)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.cluster import Cluster, describe, manifest
from tests.e2e.kubectl import Kubectl
from tests.e2e.observing import Client, Watcher
from tests.e2e.ordeal import Ordeals, Outcome
from tests.e2e.report import Report
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.disturbs("all")

# What a change of size may cost a writer, and what a hand-over may.
NO_GAP_S = 2.0
HANDOVER_S = 3.0


@pytest.fixture(scope="module")
def fleet(own_namespace: Kubectl) -> Iterator[Cluster]:
    """A cluster of three that commits to a quorum, so that a change of its members shows."""
    cluster = Cluster(own_namespace, "fleet")
    replication = {"synchronous": {"mode": "quorum", "standbys": 1}, "cloneMaxRate": "200Mi"}
    cluster.apply(manifest("fleet", replication=replication, pgbouncer={"instances": 2}))
    yield cluster
    cluster.delete()


@pytest.fixture(scope="module")
def ordeals(fleet: Cluster, operator_image: str, report: Report) -> Iterator[Ordeals]:
    client, watcher = Client(fleet, operator_image), Watcher(fleet, operator_image)
    yield Ordeals(fleet, client, watcher, report)
    client.stop()
    watcher.stop()


def scale(cluster: Cluster, instances: int) -> None:
    """As people do, by the subresource; ends when the pods and repmgr's rows are as many."""
    cluster.kubectl.run("scale", "pgc", cluster.name, f"--replicas={instances}")

    def as_many() -> bool:
        assert len(cluster.instances()) == instances, describe(cluster.status())
        rows = {row.node_id for row in cluster.cluster_show(f"{cluster.name}-0")}
        assert rows == set(range(1, instances + 1)), rows
        return True

    eventually(as_many, within=180, what=f"{instances} instances and as many rows of repmgr")


def unnoticed(outcome: Outcome, gap_s: float) -> None:
    assert outcome.counted["errors"] == 0, outcome.counted["errors_by_text"]
    assert outcome.gap_s < gap_s


def test_a_cluster_sleeps_and_wakes_with_the_same_primary(fleet: Cluster) -> None:
    """Before the observers come, whose connections the poolers would wait for."""
    primary = fleet.settled()
    epoch = fleet.status()["epoch"]
    fleet.psql(primary, "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS id")
    fleet.kubectl.patch("pgcluster", fleet.name, {"spec": {"hibernated": True}})
    fleet.condition_says(f"Hibernated .*{primary} was the primary, and it stopped in order")
    assert fleet.instances() == []
    assert fleet.poolers() == []
    assert fleet.status()["summary"] == "Hibernated"
    fleet.change({"hibernated": False})
    assert fleet.settled() == primary
    assert fleet.value(primary, "SELECT count(*) FROM kept") == "1000"
    taken = fleet.status()["epoch"] - epoch
    assert taken == 1, f"the Lease was taken {taken} times"


def test_three_become_five_and_three_again_without_their_primary_being_removed(
    ordeals: Ordeals, fleet: Cluster
) -> None:
    ordeal = ordeals.begin("scaled from 3 to 5")
    scale(fleet, 5)
    outcome = ordeal.ended()
    unnoticed(outcome, NO_GAP_S)
    assert outcome.after == outcome.before
    switched = fleet.repmgr(f"{fleet.name}-4", "standby", "switchover", "--siblings-follow")
    assert switched.returncode == 0, switched.stderr
    ordeal = ordeals.begin("scaled from 5 to 3, the primary among those that go")
    assert ordeal.primary == f"{fleet.name}-4"
    scale(fleet, 3)
    outcome = ordeal.ended(within=60)
    unnoticed(outcome, HANDOVER_S)
    assert outcome.after in fleet.instances()
    claims = {claim["metadata"]["name"] for claim in fleet.owned("pvc")}
    assert f"data-{fleet.name}-4" in claims, "volumes are kept unless the spec says otherwise"


def test_an_instance_in_maintenance_is_left_alone_and_rejoins(
    ordeals: Ordeals, fleet: Cluster
) -> None:
    ordeal = ordeals.begin("a standby in maintenance")
    standby = next(pod for pod in fleet.instances() if pod != ordeal.primary)
    entry = {"instance": standby, "reason": "a look at its disk"}
    fleet.kubectl.patch("pgcluster", fleet.name, {"spec": {"maintenance": [entry]}})

    def held() -> bool:
        status = fleet.status()
        (row,) = [row for row in status["members"] if row["pod"] == standby]
        assert row["state"] == "maintenance", describe(status)
        assert fleet.condition("Ready", status)["status"] == "True", describe(status)
        assert "a look at its disk" in fleet.condition("Maintenance", status)["message"]
        return True

    eventually(held, within=60, what=f"{standby} is in maintenance")
    running = fleet.exec(standby, "pgrep", "-x", "postgres", check=False)
    assert running.returncode != 0, "postgres still runs"
    refused = fleet.repmgr(standby, "node", "service", "--action=start")
    assert refused.returncode != 0, "repmgr has started it"
    fleet.kubectl.patch("pgcluster", fleet.name, {"spec": {"maintenance": []}})
    outcome = ordeal.ended()
    unnoticed(outcome, NO_GAP_S)
    assert outcome.after == outcome.before


def test_a_volume_that_cannot_grow_is_told(fleet: Cluster) -> None:
    """The local cluster's class cannot expand; tests/api has what the API server lets grow."""
    (path,) = {claim["spec"]["storageClassName"] for claim in fleet.owned("pvc")}
    fleet.kubectl.patch("pgcluster", fleet.name, {"spec": {"storage": {"size": "2Gi"}}})
    took_s = fleet.condition_says(f"VolumeGrowthRefused .*{path}.*allowVolumeExpansion", within=30)
    assert took_s < 30
    template = fleet.kubectl.json("get", "sts", fleet.name)["spec"]["volumeClaimTemplates"][0]
    assert template["spec"]["resources"]["requests"]["storage"] == "2Gi"
    fleet.settled()
