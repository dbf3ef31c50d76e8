"""A synchronous quorum: no acknowledged write is lost, whatever happens (A25, A23)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.cluster import Cluster, manifest
from tests.e2e.cut_off import cut_the_primary_off
from tests.e2e.kubectl import Kubectl
from tests.e2e.observing import Client, Reader, Watcher
from tests.e2e.ordeal import Ordeals
from tests.e2e.report import Report
from tests.e2e.waiting import eventually, pause

pytestmark = pytest.mark.disturbs("all")


@pytest.fixture(scope="module")
def bank(own_namespace: Kubectl, report: Report) -> Iterator[Cluster]:
    """A cluster that was made with the quorum on."""
    cluster = Cluster(own_namespace, "bank")
    took_s = cluster.apply(manifest("bank", replication=_quorum("block")))
    report.measured("apply to Ready, synchronous quorum", took_s, "s")
    yield cluster
    cluster.delete()


def _quorum(when_unavailable: str) -> dict[str, Any]:
    return {
        "synchronous": {"mode": "quorum", "standbys": 1, "whenUnavailable": when_unavailable},
    }


@pytest.fixture(scope="module")
def ordeals(bank: Cluster, operator_image: str, report: Report) -> Iterator[Ordeals]:
    client, watcher = Client(bank, operator_image), Watcher(bank, operator_image)
    yield Ordeals(bank, client, watcher, report)
    client.stop()
    watcher.stop()


@pytest.fixture(scope="module")
def reader(bank: Cluster, operator_image: str) -> Iterator[Reader]:
    observer = Reader(bank, operator_image)
    yield observer
    observer.stop()


def _quorum_of(bank: Cluster, primary: str) -> list[str]:
    query = "SELECT application_name FROM pg_stat_replication WHERE sync_state = 'quorum'"
    return sorted(row[0] for row in bank.psql(primary, query))


def test_after_a_failover_commits_wait_for_the_new_standbys(
    ordeals: Ordeals, bank: Cluster, report: Report
) -> None:
    ordeal = ordeals.begin("quorum: pod of the primary deleted by force")
    assert _quorum_of(bank, ordeal.primary) == _others(bank, ordeal.primary)
    bank.delete_pod(ordeal.primary, force=True)
    ordeal.writes_again()
    outcome = ordeal.ended()
    eventually(
        lambda: _quorum_of(bank, outcome.after) == _others(bank, outcome.after),
        within=10,
        what="both standbys are in the quorum",
    )


def _others(bank: Cluster, primary: str) -> list[str]:
    return [pod for pod in bank.instances() if pod != primary]


def test_without_standbys_commits_wait_or_go_on_as_the_spec_says(
    ordeals: Ordeals, bank: Cluster
) -> None:
    ordeal = ordeals.begin("quorum: no standbys")
    standbys = _others(bank, ordeal.primary)
    for standby in standbys:
        stopped = bank.repmgr(standby, "node", "service", "--action=stop")
        assert stopped.returncode == 0, stopped.stderr
    blocked = ordeals.client.mark()
    pause(5)
    assert ordeals.client.stats(blocked)["acknowledged"] == 0
    bank.condition_says("(?i)synchronous", within=30)
    bank.kubectl.patch("pgcluster", bank.name, {"spec": {"replication": _quorum("degrade")}})
    ordeal.writes_again(within=30)
    for standby in standbys:
        bank.repmgr(standby, "node", "service", "--action=start")
    bank.change({"replication": _quorum("block")})
    outcome = ordeal.ended()
    assert outcome.after == outcome.before
    assert _quorum_of(bank, outcome.after) == standbys


def test_a_primary_that_is_cut_off_loses_nothing(
    ordeals: Ordeals, reader: Reader, operator_image: str, report: Report
) -> None:
    cut_the_primary_off(ordeals, reader, operator_image, report, lasts_s=12, may_lose=False)
