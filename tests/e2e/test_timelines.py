"""A promotion that was lost half-way has used a timeline's number: the next one begins another."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from pgcluster.api import names
from tests.e2e.ordeal import Ordeals

pytestmark = pytest.mark.disturbs


def test_numbers_of_lost_promotions_are_skipped_and_repmgr_follows(ordeals: Ordeals) -> None:
    shop = ordeals.cluster
    ordeal = ordeals.begin("a failover after two lost promotions")
    began = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    lost = int(shop.status()["timeline"]) + 2
    # What a primary leaves behind that is lost right after it has begun its promotion.
    shop.kubectl.run(
        *("annotate", "lease", names.primary_lease(shop.name), "--overwrite"),
        f"{names.ANNOTATION_RESERVED}={lost}",
    )
    shop.delete_pod(ordeal.primary)
    ordeal.handed_over()
    outcome = ordeal.ended()
    assert shop.status()["timeline"] == lost + 1
    for standby in (pod for pod in shop.instances() if pod != outcome.after):
        log = shop.logs(standby, since=began)
        assert "not found in timeline history" not in log, "repmgr did not find its way"
