"""Two clusters in one namespace whose names run into each other (A18), and `onCrash: failover`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pgcluster.api import names
from tests.e2e.cluster import Cluster, manifest
from tests.e2e.kubectl import Kubectl
from tests.e2e.observing import Client, Watcher
from tests.e2e.report import Report

pytestmark = pytest.mark.disturbs

KINDS = "statefulsets,deployments,services,configmaps,secrets,serviceaccounts,roles,pods"


@pytest.fixture(scope="module")
def neighbours(own_namespace: Kubectl) -> Iterator[tuple[Cluster, Cluster]]:
    """`a-1`, with pods a-1-0 to a-1-2, and beside it the cluster `a-1-1`."""
    left, right = Cluster(own_namespace, "a-1"), Cluster(own_namespace, "a-1-1")
    own_namespace.apply(
        manifest("a-1", failover={"onCrash": "failover"}, pgbouncer={"instances": 1}),
        manifest("a-1-1", instances=1, pgbouncer={"instances": 1}),
    )
    left.wait_ready()
    right.wait_ready()
    yield left, right
    for cluster in (left, right):
        cluster.delete()


def objects(cluster: Cluster) -> dict[str, str]:
    return {
        f"{item['kind']}/{item['metadata']['name']}": item["metadata"]["resourceVersion"]
        for item in cluster.owned(KINDS)
    }


def test_neighbours_of_like_names_share_nothing(neighbours: tuple[Cluster, Cluster]) -> None:
    left, right = neighbours
    assert left.instances() == ["a-1-0", "a-1-1", "a-1-2"]
    assert right.instances() == ["a-1-1-0"]
    assert not objects(left).keys() & objects(right).keys()
    system_ids = {
        cluster.value(cluster.primary(), "SELECT system_identifier FROM pg_control_system()")
        for cluster in neighbours
    }
    assert len(system_ids) == 2
    for cluster in neighbours:
        rows = cluster.psql(
            cluster.primary(), "SELECT node_name FROM repmgr.nodes ORDER BY 1", names.DB_REPMGR
        )
        assert [row[0] for row in rows] == cluster.instances()
    passwords = {
        cluster.secret(names.secret_app(cluster.name))["password"] for cluster in neighbours
    }
    assert len(passwords) == 2


def test_a_killed_postmaster_fails_over_and_the_neighbour_is_not_touched(
    neighbours: tuple[Cluster, Cluster], operator_image: str, report: Report
) -> None:
    left, right = neighbours
    right.settled()
    untouched = objects(right)
    client, watcher = Client(left, operator_image), Watcher(left, operator_image)
    before = left.settled()
    mark = client.mark()
    left.kill_postmaster(before)
    client.writes_again(mark, within=45)
    after = left.settled()
    counted = client.stats(mark)
    name = "postmaster killed, onCrash failover"
    report.measured(f"{name}: longest gap", counted["longest_gap_s"], "s")
    report.measured(f"{name}: errors of 8 writers", counted["errors"])
    found = client.verified()
    report.measured(f"{name}: acknowledged rows lost", found["lost"])
    assert after != before
    assert counted["longest_gap_s"] < 30, counted
    assert found["doubled"] == 0, found
    watcher.assert_one_primary()
    assert objects(right) == untouched
    client.stop()
    watcher.stop()
