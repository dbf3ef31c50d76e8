"""The cluster's DNS is gone (A15). Names that run into each other (A18): test_neighbours.py."""

from __future__ import annotations

import pytest

from tests.e2e import nodes
from tests.e2e.cluster import Cluster, manifest
from tests.e2e.extent import lasting
from tests.e2e.kubectl import Kubectl
from tests.e2e.ordeal import Ordeals
from tests.e2e.report import Report
from tests.e2e.waiting import pause

pytestmark = pytest.mark.disturbs("all")


def test_without_dns_a_cluster_starts_and_another_fails_over(
    ordeals: Ordeals, own_namespace: Kubectl, report: Report
) -> None:
    cold = Cluster(own_namespace, "cold")
    ordeal = ordeals.begin("pod of the primary deleted without DNS")
    with nodes.without_dns():
        took_s = cold.apply(manifest("cold", instances=2, pgbouncer={"instances": 1}))
        report.measured("apply to Ready without DNS, 2 instances", took_s, "s")
        ordeals.cluster.delete_pod(ordeal.primary)
        ordeal.handed_over()
        outcome = ordeal.ended()
        pause(lasting(60, short_s=0) - took_s)
    assert outcome.after != outcome.before
    assert outcome.gap_s < 30, outcome.counted
    cold.settled()
    cold.delete()
