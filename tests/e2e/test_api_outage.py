"""The API server does not answer, and the database does (A35)."""

from __future__ import annotations

import threading

import pytest

from tests.e2e import nodes
from tests.e2e.cluster import Cluster
from tests.e2e.extent import lasting
from tests.e2e.kubectl import KubectlError
from tests.e2e.ordeal import Ordeals
from tests.e2e.waiting import eventually, pause

pytestmark = pytest.mark.disturbs("all")


def test_a_frozen_api_server_is_not_noticed_by_the_application(ordeals: Ordeals) -> None:
    shop = ordeals.cluster
    restarts = shop.restarts()
    ordeal = ordeals.begin("API server frozen")
    epoch = shop.status()["epoch"]
    with nodes.api_server_frozen():
        pause(lasting(300, short_s=45))
    counted = ordeal.counted()
    assert counted["errors"] == 0, counted
    assert counted["longest_gap_s"] < 3, counted
    outcome = ordeal.ended()
    assert outcome.after == outcome.before, "a healthy primary was demoted"
    assert shop.status()["epoch"] == epoch
    assert shop.restarts() == restarts


def test_what_is_asked_for_meanwhile_happens_when_the_api_server_is_back(ordeals: Ordeals) -> None:
    shop = ordeals.cluster
    ordeal = ordeals.begin("API server stopped, then the primary's pod deleted")
    asked = threading.Thread(target=_delete_as_soon_as_possible, args=(shop, ordeal.primary))
    with nodes.api_server_stopped():
        asked.start()
        pause(lasting(300, short_s=15))
    asked.join(60)
    ordeal.handed_over()
    outcome = ordeal.ended()
    assert outcome.after != outcome.before


def _delete_as_soon_as_possible(shop: Cluster, pod: str) -> None:
    def deleted() -> bool:
        try:
            shop.delete_pod(pod)
        except KubectlError as error:
            raise AssertionError(str(error)) from error
        return True

    eventually(deleted, within=400, every=0.5, what=f"{pod} is deleted")
