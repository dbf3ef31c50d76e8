"""Processes die on a healthy node: the container, the postmaster, the pod (A02, A03, A12)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.cluster import Cluster
from tests.e2e.extent import times
from tests.e2e.ordeal import Ordeals
from tests.e2e.report import Report
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.disturbs


def test_a_killed_container_of_the_primary_decides_its_role_anew(ordeals: Ordeals) -> None:
    for _ in range(times(10)):
        restarts = ordeals.cluster.restarts()
        ordeal = ordeals.begin("container of the primary killed")
        ordeals.cluster.kill_container(ordeal.primary)
        outcome = ordeal.ended(may_lose=True)
        assert outcome.gap_s < 15, outcome.counted
        key = f"{outcome.before}/postgres"
        expected = {**restarts, key: restarts[key] + 1}
        _eventually_restarted(ordeals.cluster, expected)


@pytest.fixture
def fails_over_on_a_crash(shop: Cluster) -> Iterator[None]:
    shop.change({"failover": {"onCrash": "failover"}})
    yield
    shop.change({"failover": {"onCrash": None}})


def test_a_killed_postmaster_loses_nothing_where_it_restarts_in_place(ordeals: Ordeals) -> None:
    for _ in range(times(10)):
        restarts = ordeals.cluster.restarts()
        ordeal = ordeals.begin("postmaster of the primary killed, restart")
        ordeals.cluster.kill_postmaster(ordeal.primary)
        outcome = ordeal.ended()
        assert outcome.after == outcome.before, "it should have been restarted in place"
        assert ordeals.cluster.restarts() == restarts, "no container had a reason to restart"
        assert outcome.gap_s < 15, outcome.counted


@pytest.mark.usefixtures("fails_over_on_a_crash")
def test_a_killed_postmaster_hands_over_where_that_is_asked_for(ordeals: Ordeals) -> None:
    for _ in range(times(10)):
        ordeal = ordeals.begin("postmaster of the primary killed, failover")
        ordeals.cluster.kill_postmaster(ordeal.primary)
        outcome = ordeal.ended(may_lose=True)
        assert outcome.after != outcome.before, "another instance should have taken over"
        assert outcome.gap_s < 15, outcome.counted


@pytest.mark.timeout(1800)
def test_deletions_under_load_are_each_as_quick_as_the_first(
    ordeals: Ordeals, report: Report
) -> None:
    gaps_s = []
    for _ in range(times(10, short=2)):
        ordeal = ordeals.begin("pod of the primary deleted, in turns")
        ordeals.cluster.delete_pod(ordeal.primary)
        ordeal.handed_over()
        outcome = ordeal.ended()
        assert outcome.after != outcome.before
        gaps_s.append(outcome.gap_s)
    report.measured("pod of the primary deleted, in turns: the slowest", max(gaps_s), "s")
    # On two cores a second more or less is the machine's.
    assert max(gaps_s) < 2 * gaps_s[0] + 2, gaps_s


def _eventually_restarted(cluster: Cluster, expected: dict[str, int]) -> None:
    eventually(lambda: cluster.restarts() == expected, within=30, what=f"restarts are {expected}")
