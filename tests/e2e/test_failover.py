"""The primary is hurt under eight writers and the watcher: S19, S20, and this issue's faults."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from pgcluster.api import names
from tests.e2e.cluster import Cluster
from tests.e2e.observing import Client, Watcher
from tests.e2e.report import Report
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.disturbs

WRITES_WITHIN_S = 45.0


def survive(
    name: str,
    fault: Callable[[str], None],
    shop: Cluster,
    client: Client,
    watcher: Watcher,
    report: Report,
) -> tuple[str, str, dict[str, Any]]:
    """Hurt the primary by `fault`; the old and the new primary, and what the client counted.

    Asserts what is true after any fault; the caller adds what is true after its own.
    """
    before = shop.settled()
    mark, seen = client.mark(), watcher.mark()
    fault(before)
    counted = client.writes_again(mark, within=WRITES_WITHIN_S)
    after = shop.settled()
    counted = client.stats(mark)
    report.measured(f"{name}: longest gap", counted["longest_gap_s"], "s")
    report.measured(
        f"{name}: longest gap of one writer", max(counted["longest_gap_per_writer_s"]), "s"
    )
    report.measured(f"{name}: errors of 8 writers", counted["errors"])
    for text, count in counted["errors_by_text"].items():
        report.measured(f"{name}: errors, {text[:90]}", count)
    report.measured(f"{name}: gap of the watcher", watcher.stats(seen)["longest_gap_s"], "s")
    watcher.assert_one_primary()
    slots = shop.psql(after, "SELECT slot_name, active FROM pg_replication_slots ORDER BY 1")
    assert slots == [[names.slot(pod), "t"] for pod in shop.instances() if pod != after]
    return before, after, counted


def assert_pool_went_through_the_steps(shop: Cluster, pooler: str, since: str) -> None:
    """PAUSE, RELOAD and RESUME stand in the pooler's log in this order."""
    steps = re.findall(r"\b(PAUSE|RELOAD|RESUME)\b", shop.logs(pooler, since=since))
    order = "".join({"PAUSE": "P", "RELOAD": "L", "RESUME": "R"}[step] for step in steps)
    assert re.search("P.*L.*R", order), f"{pooler}: {steps}"


def test_the_deletion_of_the_primarys_pod_is_a_handover(
    shop: Cluster, client: Client, watcher: Watcher, report: Report
) -> None:
    since = str(client.ask("/mark?name=deletion")["at"])
    before, after, counted = survive(
        "pod of the primary deleted", shop.delete_pod, shop, client, watcher, report
    )
    assert after != before
    assert counted["longest_gap_s"] < 15, counted
    client.assert_nothing_lost()
    for pooler in shop.poolers():
        assert_pool_went_through_the_steps(shop, pooler, since)


def test_status_tells_the_phases_of_the_last_failover(shop: Cluster, report: Report) -> None:
    primary = shop.settled()
    told = shop.status().get("lastFailover")
    assert told, "no failover in the status"
    assert told["to"] == primary
    assert told["from"] != primary
    assert told["timeline"] == shop.status()["timeline"]
    for phase in ("promotedMs", "configMs", "reloadedMs", "resumedMs"):
        assert 0 <= told[phase] < 60_000, told
        report.measured(f"status.lastFailover.{phase}", told[phase], "ms")
    assert told["promotedMs"] <= told["configMs"] <= told["reloadedMs"] <= told["resumedMs"]


def test_a_promotion_becomes_an_event_of_kubernetes(shop: Cluster) -> None:
    primary = shop.settled()
    rows = shop.psql(
        primary,
        "SELECT event FROM repmgr.events WHERE event = 'standby_promote' AND successful",
        names.DB_REPMGR,
    )
    assert rows, "repmgr has no event of the promotion"

    def told() -> bool:
        texts = [f"{event['reason']} {event['message']}" for event in shop.events()]
        return any("standby_promote" in text for text in texts)

    eventually(told, within=20, what="an Event that tells of the promotion")


def test_a_killed_postmaster_of_the_primary_restarts_in_place(
    shop: Cluster, client: Client, watcher: Watcher, report: Report
) -> None:
    restarts = shop.restarts()
    before, after, counted = survive(
        "postmaster killed, onCrash restart", shop.kill_postmaster, shop, client, watcher, report
    )
    assert after == before, "it should have been restarted in place"
    assert counted["longest_gap_s"] < 20, counted
    client.assert_nothing_lost()
    assert shop.restarts() == restarts, "no container had a reason to restart"


def test_a_pod_deleted_by_force_rejoins_as_a_standby_or_stays_the_only_primary(
    shop: Cluster, client: Client, watcher: Watcher, report: Report
) -> None:
    def delete_by_force(pod: str) -> None:
        shop.delete_pod(pod, force=True)

    _, _, counted = survive(
        "pod of the primary deleted by force", delete_by_force, shop, client, watcher, report
    )
    assert counted["longest_gap_s"] < 45, counted
    # Asynchronous: what the old primary alone had may be gone; it is counted, not forbidden.
    found = client.ask("/verify")
    report.measured("pod of the primary deleted by force: acknowledged rows lost", found["lost"])
    assert found["doubled"] == 0, found


def test_a_killed_postmaster_of_a_standby_is_not_noticed_by_the_application(
    shop: Cluster, client: Client, watcher: Watcher, report: Report
) -> None:
    primary = shop.settled()
    standby = next(pod for pod in shop.instances() if pod != primary)
    mark = client.mark()
    shop.kill_postmaster(standby)
    eventually(
        lambda: shop.exec(standby, "pg_isready", "-q", "-h", names.PG_SOCKET_DIR).returncode == 0,
        within=60,
    )
    assert shop.settled() == primary
    counted = client.stats(mark)
    report.measured("postmaster of a standby killed: longest gap", counted["longest_gap_s"], "s")
    assert counted["errors"] == 0, counted["errors_by_text"]
    watcher.assert_one_primary()


def test_no_pool_is_left_paused(shop: Cluster) -> None:
    shop.settled()
    for row in shop.status()["poolers"]:
        assert row["ready"], row
        assert not row["paused"], row
        assert row["primary"] == shop.status()["primary"], row
