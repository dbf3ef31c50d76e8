"""Nodes are lost, or the paths between them (A21, A22, A23, A32, A36, S10)."""

from __future__ import annotations

import pytest

from tests.e2e import nodes
from tests.e2e.cut_off import cut_the_primary_off
from tests.e2e.extent import lasting
from tests.e2e.observing import Reader
from tests.e2e.ordeal import Ordeals
from tests.e2e.report import Report
from tests.e2e.waiting import eventually, stays

pytestmark = pytest.mark.disturbs("all")


def test_an_old_primary_whose_node_comes_back_never_writes_and_rejoins(
    ordeals: Ordeals, reader: Reader, report: Report
) -> None:
    shop = ordeals.cluster
    ordeal = ordeals.begin("primary's node switched off")
    old, address = ordeal.primary, shop.address_of(ordeal.primary)
    pod = shop.pod(old)["metadata"]["uid"]
    reads = reader.mark()
    with nodes.switched_off(shop.node_of(old)):
        ordeal.writes_again()
        told_s = shop.condition_says(f"InstancesNotReady.*{old}", within=60)
        report.measured("primary's node switched off: status, after the writes", told_s, "s")
        new = shop.status()["primary"]
        assert new != old
    outcome = ordeal.ended(may_lose=True)
    assert outcome.after == new, "the old primary took it back"
    assert outcome.gap_s < 25, outcome.counted
    assert shop.pod(old)["metadata"]["uid"] == pod, "it is the same pod that rejoins"
    seen = reader.stats(reads)
    report.measured("primary's node switched off: longest gap of reads", seen["longest_gap_s"], "s")
    assert f"{address} primary" not in seen["servers"], seen
    assert seen["oldest_s"] < 30, seen
    _only_standbys_are_read(ordeals, reader, outcome.after)


def _only_standbys_are_read(ordeals: Ordeals, reader: Reader, primary: str) -> None:
    shop = ordeals.cluster
    standbys = {f"{shop.address_of(pod)} standby" for pod in shop.instances() if pod != primary}

    def right() -> bool:
        since = reader.mark()
        eventually(lambda: reader.stats(since)["reads"] >= 40, within=20)
        seen = reader.stats(since)
        assert seen["errors"] == 0, seen
        assert set(seen["servers"]) <= standbys, f"{seen['servers']}, standbys are {standbys}"
        return True

    eventually(right, within=60, what="all reads come from standbys")


def test_a_primary_that_is_cut_off_with_its_clients_stops_in_time(
    ordeals: Ordeals, reader: Reader, operator_image: str, report: Report
) -> None:
    lasts_s = lasting(90, short_s=25)
    cut_the_primary_off(ordeals, reader, operator_image, report, lasts_s=lasts_s, may_lose=True)


def test_the_read_only_pool_does_without_the_deleted_primary(
    ordeals: Ordeals, reader: Reader, report: Report
) -> None:
    shop = ordeals.cluster
    ordeal = ordeals.begin("pod of the primary deleted, under readers")
    address = shop.address_of(ordeal.primary)
    reads = reader.mark()
    shop.delete_pod(ordeal.primary)
    ordeal.handed_over()
    outcome = ordeal.ended()
    seen = reader.stats(reads)
    name = "pod of the primary deleted"
    report.measured(f"{name}: reads answered by a primary", seen["from_a_primary"])
    report.measured(f"{name}: errors of the readers", seen["errors"])
    report.measured(f"{name}: longest gap of reads", seen["longest_gap_s"], "s")
    assert f"{address} primary" not in seen["servers"], seen
    assert seen["longest_gap_s"] < 15, seen
    _only_standbys_are_read(ordeals, reader, outcome.after)


def test_a_standby_that_alone_does_not_reach_the_primary_is_not_promoted(
    ordeals: Ordeals, report: Report
) -> None:
    shop = ordeals.cluster
    ordeal = ordeals.begin("path between primary and one standby cut")
    standby = next(pod for pod in shop.instances() if pod != ordeal.primary)
    epoch = shop.status()["epoch"]
    with nodes.path_cut(shop.node_of(ordeal.primary), shop.address_of(standby)):
        told_s = shop.condition_says(f"InstancesNotReady.*{standby}", within=60)
        report.measured("path between primary and one standby cut: until told", told_s, "s")
        stays(lambda: shop.holder() == ordeal.primary, for_s=lasting(60, short_s=10), every=2)
    outcome = ordeal.ended()
    assert outcome.after == outcome.before
    assert shop.status()["epoch"] == epoch
    assert outcome.counted["errors"] == 0, outcome.counted


def test_all_of_it_goes_the_same_way_without_an_operator(ordeals: Ordeals) -> None:
    """A36: A01, A03 and A21."""
    shop = ordeals.cluster
    shop.settled()
    with nodes.without_operator():
        ordeal = ordeals.begin("without operator: pod of the primary deleted", operator=False)
        shop.delete_pod(ordeal.primary)
        ordeal.handed_over()
        outcome = ordeal.ended()
        assert outcome.after != outcome.before
        assert outcome.gap_s < 15, outcome.counted
        ordeal = ordeals.begin("without operator: postmaster of the primary killed", operator=False)
        shop.kill_postmaster(ordeal.primary)
        ordeal.writes_again()
        outcome = ordeal.ended()
        assert outcome.after == outcome.before
        assert outcome.gap_s < 15, outcome.counted
        ordeal = ordeals.begin("without operator: primary's node switched off", operator=False)
        with nodes.switched_off(shop.node_of(ordeal.primary)):
            ordeal.writes_again()
        outcome = ordeal.ended(may_lose=True)
        assert outcome.after != outcome.before
        assert outcome.gap_s < 25, outcome.counted
    shop.settled()
