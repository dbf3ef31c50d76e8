"""A synchronous quorum: no acknowledged write is lost, whatever happens (A25, A23)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e import nodes
from tests.e2e.cluster import Cluster, manifest
from tests.e2e.extent import lasting
from tests.e2e.kubectl import Kubectl
from tests.e2e.observing import Client, Reader, Watcher
from tests.e2e.ordeal import Ordeals
from tests.e2e.report import Report
from tests.e2e.waiting import eventually, pause

pytestmark = pytest.mark.disturbs("all")

LEASE_S = 6.0


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


def test_a_primary_that_is_cut_off_with_its_clients_stops_in_time(
    ordeals: Ordeals, bank: Cluster, reader: Reader, operator_image: str, report: Report
) -> None:
    """A23 and A32. The client on the lost node writes straight to its old primary."""
    ordeal = ordeals.begin("quorum: primary's node cut off")
    old = ordeal.primary
    node, address = bank.node_of(old), bank.address_of(old)
    inside = Client(bank, operator_image, host=address, node=node, writers=2)
    before, reads = inside.mark(), reader.mark()
    mark = ordeals.client.mark()
    with nodes.cut_off(node):
        ordeal.writes_again()
        bank.condition_says(f"InstancesNotReady.*{old}", within=60)
        pause(lasting(90, short_s=30) - ordeals.client.stats(mark)["seconds"])
        assert bank.holder() != old
    outcome = ordeal.ended()
    assert outcome.after != old
    assert outcome.gap_s < 25, outcome.counted
    last = str(inside.stats(before)["last_acknowledged"])
    # All nodes have the machine's clock, so their times can be compared.
    first = _first_write_of(ordeals.watcher, ordeal.seen, outcome.after)
    report.measured("primary's node cut off: its last write", last[11:])
    report.measured("primary's node cut off: first write elsewhere", first)
    assert last[11:23] < first[:12], f"{old} acknowledged at {last}, {outcome.after} at {first}"
    inside.stop()
    seen = reader.stats(reads)
    report.measured("primary's node cut off: longest gap of reads", seen["longest_gap_s"], "s")
    assert f"{address} primary" not in seen["servers"], seen
    assert seen["oldest_s"] < 30, seen


def _first_write_of(watcher: Watcher, since: str, pod: str) -> str:
    reigns = watcher.stats(since)["reigns"]
    return str(next(reign["from"] for reign in reigns if reign["instance"] == pod))
