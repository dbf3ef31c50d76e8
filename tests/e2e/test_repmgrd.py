"""repmgrd and repmgr's metadata mend themselves: A26, S15 and the metadata of A16."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import partial

import pytest

from pgcluster.api import names
from tests.e2e import processes
from tests.e2e.cluster import POSTGRES, Cluster, describe, manifest
from tests.e2e.kubectl import Kubectl
from tests.e2e.report import Report
from tests.e2e.waiting import eventually, stays

pytestmark = pytest.mark.disturbs


def repmgrd(cluster: Cluster, pod: str) -> int:
    """Its process as postgres knows it; fails where it does not count as running."""
    pid, running = cluster.psql(
        pod, "SELECT repmgr.get_repmgrd_pid(), repmgr.repmgrd_is_running()", names.DB_REPMGR
    )[0]
    assert running == "t", f"repmgrd {pid} of {pod} does not run"
    return int(pid)


def started_at(cluster: Cluster, pod: str) -> str:
    return cluster.value(pod, "SELECT pg_postmaster_start_time()")


def hurt(cluster: Cluster, pod: str, signal: str) -> None:
    manifests = {found["metadata"]["name"]: found for found in cluster.pods()}
    container = processes.containers(manifests[pod])[POSTGRES]
    container.signal(signal, processes.REPMGRD)


def table(cluster: Cluster, primary: str) -> list[list[str]]:
    return cluster.psql(
        primary,
        "SELECT node_id, node_name, type, active, upstream_node_id FROM repmgr.nodes ORDER BY 1",
        names.DB_REPMGR,
    )


def assert_metadata_is_right(cluster: Cluster, primary: str) -> bool:
    """Rows are the pods, slots are the standbys."""
    pods = cluster.instances()
    standby = str(names.node_id(primary))
    assert table(cluster, primary) == [
        [
            str(names.node_id(pod)),
            pod,
            *(("primary", "t", "") if pod == primary else ("standby", "t", standby)),
        ]
        for pod in pods
    ]
    slots = cluster.psql(primary, "SELECT slot_name, active FROM pg_replication_slots ORDER BY 1")
    assert slots == [[names.slot(pod), "t"] for pod in pods if pod != primary]
    return True


@pytest.mark.parametrize("role", ["primary", "standby"])
def test_a_killed_repmgrd_is_back_and_postgres_is_not_touched(
    shop: Cluster, report: Report, role: str
) -> None:
    primary = shop.settled()
    pod = next(pod for pod in shop.instances() if (pod == primary) == (role == "primary"))
    before, since = repmgrd(shop, pod), started_at(shop, pod)
    # What a container that was killed leaves behind, and what repmgrd would look for by default.
    shop.exec(pod, "sh", "-c", "echo 1 > /tmp/repmgrd.pid")
    began_s = time.monotonic()
    hurt(shop, pod, "KILL")
    eventually(
        lambda: repmgrd(shop, pod) != before, within=15, every=0.2, what="another repmgrd runs"
    )
    report.measured(f"repmgrd of the {role} killed: back after", time.monotonic() - began_s, "s")
    assert started_at(shop, pod) == since
    assert shop.settled() == primary


def test_a_frozen_repmgrd_is_found_and_replaced(shop: Cluster, report: Report) -> None:
    primary = shop.settled()
    pod = next(pod for pod in shop.instances() if pod != primary)
    before, since = repmgrd(shop, pod), started_at(shop, pod)
    began_s = time.monotonic()
    hurt(shop, pod, "STOP")
    eventually(lambda: repmgrd(shop, pod) != before, within=30, what="another repmgrd runs")
    report.measured("repmgrd frozen: replaced after", time.monotonic() - began_s, "s")
    assert started_at(shop, pod) == since
    eventually(
        lambda: any(event["reason"] == "RepmgrdHung" for event in shop.events()),
        within=20,
        what="an Event tells of it",
    )


def test_a_repmgrd_that_postgres_forgot_is_made_known_again(shop: Cluster) -> None:
    primary = shop.settled()
    before = repmgrd(shop, primary)
    shop.psql(primary, "SELECT repmgr.set_repmgrd_pid(NULL, NULL)", names.DB_REPMGR)
    eventually(lambda: repmgrd(shop, primary) == before, within=30, what="repmgrd is known")


def test_a_paused_repmgrd_is_told_and_left_to_the_person_who_paused_it(shop: Cluster) -> None:
    primary = shop.settled()
    paused = shop.repmgr(primary, "service", "pause")
    assert paused.returncode == 0, paused.stderr
    try:
        pods = ", ".join(shop.instances())
        shop.condition_says(f"RepmgrdPaused .*{pods}.*repmgr service unpause", within=30)
        assert all(row["repmgrdPaused"] for row in shop.status()["members"])
        stays(
            lambda: (
                shop.value(primary, "SELECT repmgr.repmgrd_is_paused()", names.DB_REPMGR) == "t"
            ),
            for_s=20,
            every=5,
        )
        assert shop.status()["summary"] == "Degraded"
    finally:
        shop.repmgr(primary, "service", "unpause")

    def well() -> bool:
        condition = shop.condition("Degraded")
        assert condition["status"] == "False", condition
        return True

    eventually(well, within=30, what="the condition is gone")


def test_wrong_rows_and_slots_of_nobody_are_put_right(shop: Cluster, report: Report) -> None:
    primary = shop.settled()
    standby = next(pod for pod in shop.instances() if pod != primary)
    node = names.node_id(standby)
    began_s = time.monotonic()
    for statement in (
        "INSERT INTO repmgr.nodes (node_id, node_name, type, active, upstream_node_id, conninfo,"
        " repluser, config_file) VALUES (9, 'ghost', 'standby', true, NULL, 'host=nowhere.invalid"
        " connect_timeout=1', 'repmgr', '/nowhere')",
        f"UPDATE repmgr.nodes SET upstream_node_id = 9, active = false WHERE node_id = {node}",
        "SELECT pg_create_physical_replication_slot('repmgr_slot_9', true)",
    ):
        shop.psql(primary, statement, names.DB_REPMGR)
    eventually(lambda: assert_metadata_is_right(shop, primary), within=60, what="repmgr is right")
    report.measured("wrong rows and a stale slot: right after", time.monotonic() - began_s, "s")
    shop.psql(
        primary,
        f"UPDATE repmgr.nodes SET conninfo = 'host=nowhere.invalid', location = 'elsewhere'"
        f" WHERE node_id = {node}",
        names.DB_REPMGR,
    )

    def mended() -> bool:
        row = shop.psql(
            primary,
            f"SELECT conninfo, location FROM repmgr.nodes WHERE node_id = {node}",
            names.DB_REPMGR,
        )[0]
        assert standby in row[0], row
        return row[1] == "default"

    eventually(mended, within=30, what="conninfo and location are right")
    assert shop.settled() == primary


@pytest.fixture(scope="module")
def pack(own_namespace: Kubectl) -> Iterator[Cluster]:
    """A cluster to be scaled."""
    cluster = Cluster(own_namespace, "pack")
    cluster.apply(manifest("pack", instances=3, pgbouncer={"instances": 1}))
    yield cluster
    with contextlib.suppress(AssertionError):
        cluster.delete()


def has_instances(pack: Cluster, number: int) -> bool:
    return len(pack.instances()) == number


def test_rows_and_slots_follow_the_number_of_instances(pack: Cluster, report: Report) -> None:
    primary = pack.settled()
    assert names.ordinal(primary) < 2, "the first of a new cluster"
    for instances in (2, 3):
        began_s = time.monotonic()
        pack.kubectl.patch("pgcluster", pack.name, {"spec": {"instances": instances}})
        eventually(partial(has_instances, pack, instances), within=150, what=f"{instances} pods")
        changed_s = time.monotonic()
        eventually(
            lambda: assert_metadata_is_right(pack, primary),
            within=120,
            what=f"rows and slots of {instances} instances",
        )
        told = f"scaled to {instances} instances: repmgr right"
        report.measured(f"{told} after the change", time.monotonic() - began_s, "s")
        report.measured(f"{told} after the pods", time.monotonic() - changed_s, "s")
        pack.wait_ready()
    before = pack.settled()
    pack.delete_pod(before, force=True)

    def another() -> str:
        status = pack.status()
        now = status.get("primary")
        assert now, describe(status)
        return str(now)

    eventually(another, within=60, what="a primary after the scaling")
    pack.settled()
