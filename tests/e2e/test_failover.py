"""The primary is hurt under eight writers and the watcher: S19, S20, and this issue's faults."""

from __future__ import annotations

import re

import pytest

from pgcluster.api import names
from tests.e2e.cluster import Cluster
from tests.e2e.observing import Client
from tests.e2e.ordeal import Ordeals
from tests.e2e.report import Report
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.disturbs


def assert_pool_went_through_the_steps(shop: Cluster, pooler: str, since: str) -> None:
    """PAUSE, RELOAD and RESUME stand in the pooler's log in this order."""
    steps = re.findall(r"\b(PAUSE|RELOAD|RESUME)\b", shop.logs(pooler, since=since))
    order = "".join({"PAUSE": "P", "RELOAD": "L", "RESUME": "R"}[step] for step in steps)
    assert re.search("P.*L.*R", order), f"{pooler}: {steps}"


def test_the_deletion_of_the_primarys_pod_is_a_handover(
    shop: Cluster, client: Client, ordeals: Ordeals
) -> None:
    ordeal = ordeals.begin("pod of the primary deleted")
    since = str(client.ask("/mark?name=deletion")["at"])
    shop.delete_pod(ordeal.primary)
    ordeal.handed_over()
    outcome = ordeal.ended()
    assert outcome.after != outcome.before
    assert outcome.gap_s < 15, outcome.counted
    assert outcome.counted["errors"] == 0, outcome.counted["errors_by_text"]
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


def test_a_pod_deleted_by_force_rejoins_as_a_standby_or_stays_the_only_primary(
    shop: Cluster, ordeals: Ordeals
) -> None:
    ordeal = ordeals.begin("pod of the primary deleted by force")
    shop.delete_pod(ordeal.primary, force=True)
    # Asynchronous: what the old primary alone had may be gone; it is counted, not forbidden.
    outcome = ordeal.ended(may_lose=True)
    assert outcome.gap_s < 45, outcome.counted


def test_a_killed_postmaster_of_a_standby_is_not_noticed_by_the_application(
    shop: Cluster, ordeals: Ordeals
) -> None:
    ordeal = ordeals.begin("postmaster of a standby killed")
    standby = next(pod for pod in shop.instances() if pod != ordeal.primary)
    shop.kill_postmaster(standby)
    eventually(
        lambda: shop.exec(standby, "pg_isready", "-q", "-h", names.PG_SOCKET_DIR).returncode == 0,
        within=60,
    )
    outcome = ordeal.ended()
    assert outcome.after == outcome.before
    assert outcome.counted["errors"] == 0, outcome.counted["errors_by_text"]


def test_no_pool_is_left_paused(shop: Cluster) -> None:
    shop.settled()
    for row in shop.status()["poolers"]:
        assert row["ready"], row
        assert not row["paused"], row
        assert row["primary"] == shop.status()["primary"], row
