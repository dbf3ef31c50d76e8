"""The primary is handed over in order: no client gets an error, whoever asks for it (S12, A11).

And what is killed at any step of that ends in one of the two good states: the old primary goes on,
or the new one does, and the pools run.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from pgcluster.api import names
from pgcluster.topology.lease import LeaseRecord
from tests.e2e import processes
from tests.e2e.cluster import POSTGRES, Cluster
from tests.e2e.extent import times
from tests.e2e.ordeal import Ordeals
from tests.e2e.report import Report
from tests.e2e.toolbox import Toolbox
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.disturbs

REQUEST = f"{names.GROUP}/switchover"


def standby_of(shop: Cluster, primary: str) -> str:
    return next(pod for pod in shop.instances() if pod != primary)


def ask(shop: Cluster, target: str) -> str:
    """Ask the operator for a switchover; the request's name."""
    request = f"t{time.time_ns()}"
    wish = f"{REQUEST}={target}:{request}"
    shop.kubectl.run("annotate", "pgcluster", shop.name, wish, "--overwrite")
    return request


def concluded(shop: Cluster, *, within: float = 90) -> dict[str, Any]:
    """The last switchover's record, once it has come to an end."""

    def ended() -> dict[str, Any]:
        record: dict[str, Any] = shop.status().get("lastSwitchover") or {}
        assert record.get("state") in ("Succeeded", "Refused", "Failed"), record
        return record

    return eventually(ended, within=within, what="the switchover ends")


def no_server_at(shop: Cluster, toolbox: Toolbox, address: str) -> None:
    """A13: no pooler has a connection left to where the former primary was."""
    password = shop.secret(names.secret_pooler(shop.name))["admin-password"]
    for pooler in shop.poolers():
        at = shop.address_of(pooler)
        uri = f"postgresql://{names.PGBOUNCER_ADMIN}:{password}@{at}/pgbouncer"
        servers = [
            line.split("|") for line in toolbox.psql(uri, "SHOW SERVERS").stdout.splitlines()
        ]
        of_app = [row for row in servers if row[2] == "app"]
        assert of_app, f"{pooler} has no servers: {servers}"
        assert not [row for row in of_app if address in row], servers


@pytest.mark.timeout(1800)
def test_a_deleted_primary_hands_over_without_an_error(ordeals: Ordeals, report: Report) -> None:
    for _ in range(times(20, short=3)):
        ordeal = ordeals.begin("pod of the primary deleted in order")
        ordeals.cluster.delete_pod(ordeal.primary)
        ordeal.handed_over()
        outcome = ordeal.ended()
        assert outcome.after != outcome.before
        assert outcome.counted["errors"] == 0, outcome.counted["errors_by_text"]
        last = ordeals.cluster.status()["lastFailover"]
        assert (last["cause"], last["from"], last["to"]) == (
            "switchover",
            outcome.before,
            outcome.after,
        )


def test_repmgrs_own_switchover_costs_no_client_an_error(
    ordeals: Ordeals, shop: Cluster, toolbox: Toolbox
) -> None:
    ordeal = ordeals.begin("repmgr standby switchover")
    target, former = standby_of(shop, ordeal.primary), shop.address_of(ordeal.primary)
    words = ("standby", "switchover", "--siblings-follow")
    typed = shop.exec(target, "repmgr", *words, check=False, timeout_s=180)
    assert typed.returncode == 0, f"{typed.stdout}{typed.stderr}"
    no_server_at(shop, toolbox, former)
    outcome = ordeal.ended()
    assert outcome.after == target
    assert outcome.counted["errors"] == 0, outcome.counted["errors_by_text"]


def test_an_order_of_the_operator_costs_no_client_an_error(ordeals: Ordeals, shop: Cluster) -> None:
    ordeal = ordeals.begin("switchover by annotation")
    target = standby_of(shop, ordeal.primary)
    ask(shop, target)
    ordeal.handed_over()
    record = concluded(shop)
    assert record["state"] == "Succeeded", record
    outcome = ordeal.ended()
    assert outcome.after == target
    assert outcome.counted["errors"] == 0, outcome.counted["errors_by_text"]


# --- kill points --------------------------------------------------------------------------------
Hurt = Callable[[Cluster, str, str], None]


def _agent_of_the_primary(shop: Cluster, primary: str, _: str) -> None:
    _container(shop, primary).signal("KILL", processes.NODE_AGENT)


def _postmaster(shop: Cluster, primary: str, _: str) -> None:
    _container(shop, primary).signal("KILL", processes.POSTMASTER)


def _container_of_the_primary(shop: Cluster, primary: str, _: str) -> None:
    _container(shop, primary).signal("KILL")


def _agent_of_the_target(shop: Cluster, _: str, target: str) -> None:
    _container(shop, target).signal("KILL", processes.NODE_AGENT)


def _container_of_the_target(shop: Cluster, _: str, target: str) -> None:
    _container(shop, target).signal("KILL")


def _a_pooler(shop: Cluster, _: str, __: str) -> None:
    shop.delete_pod(shop.poolers()[0], force=True)


def _container(shop: Cluster, pod: str) -> processes.Container:
    return processes.containers(shop.pod(pod))[POSTGRES]


def _checking(_: LeaseRecord, state: str) -> bool:
    return state == "checking"


def _holding(record: LeaseRecord, _: str) -> bool:
    return record.pausing


def _taken(record: LeaseRecord, state: str) -> bool:
    return state == "done" and record.holder != ""


POINTS: dict[str, tuple[Callable[[LeaseRecord, str], bool], Hurt]] = {
    f"{step} {what}": (seen, hurt)
    for step, seen, hurts in (
        ("checking", _checking, (_agent_of_the_primary, _postmaster, _container_of_the_target)),
        (
            "holding",
            _holding,
            (
                _agent_of_the_primary,
                _postmaster,
                _container_of_the_primary,
                _agent_of_the_target,
                _container_of_the_target,
                _a_pooler,
            ),
        ),
        ("taken", _taken, (_container_of_the_primary, _postmaster, _agent_of_the_target)),
    )
    for hurt in hurts
    for what in (hurt.__name__.strip("_").replace("_", " "),)
}
# Some in a short run; all of them with E2E_FULL=1. What lasts for milliseconds only, between the
# release of the Lease and the promotion, is cut off in tests/model.
SHORT = ("holding agent of the primary", "holding container of the target", "holding a pooler")


class Stretched:
    """A pooler's agent stands still: the primary waits for its acknowledgement meanwhile.

    So the step of holding lasts for a second, in which something can be hurt.
    """

    def __init__(self, shop: Cluster) -> None:
        pod = shop.pod(shop.poolers()[-1])
        self._container = processes.containers(pod)["agent"]

    def __enter__(self) -> None:
        self._container.signal("STOP")

    def __exit__(self, *_: object) -> None:
        self._container.signal("CONT")


def wait_for(shop: Cluster, primary: str, seen: Callable[[LeaseRecord, str], bool]) -> None:
    """Follow the Lease and the primary's report as closely as the API server lets."""
    deadline_s = time.monotonic() + 60
    while time.monotonic() < deadline_s:
        manifest = shop.kubectl.json("get", "lease", names.primary_lease(shop.name))
        annotations = shop.pod(primary)["metadata"].get("annotations") or {}
        report = json.loads(annotations.get(names.ANNOTATION_INSTANCE) or "{}")
        state = (report.get("handover") or {}).get("state", "")
        if seen(LeaseRecord.parse(manifest, default_duration_s=6.0), state):
            return
    raise AssertionError("the step was not seen")


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("point", list(POINTS) if times(2) > 1 else SHORT)
def test_whatever_is_killed_at_whatever_step_one_primary_goes_on(
    ordeals: Ordeals, shop: Cluster, report: Report, point: str
) -> None:
    ordeal = ordeals.begin(f"switchover, {point}")
    target = standby_of(shop, ordeal.primary)
    seen, hurt = POINTS[point]
    missed: list[str] = []

    def strike() -> None:
        try:
            wait_for(shop, ordeal.primary, seen)
            hurt(shop, ordeal.primary, target)
        except Exception as error:  # to be told in the test's own thread
            missed.append(f"{type(error).__name__}: {error}")

    striking = threading.Thread(target=strike)
    striking.start()
    with Stretched(shop):
        ask(shop, target)
        striking.join(70)
    outcome = ordeal.ended(may_lose=True, within=240)
    assert not missed, missed
    report.measured(f"switchover, {point}: the primary is another one", outcome.after == target)
    assert outcome.after in shop.instances()
    for row in shop.status()["poolers"]:
        assert not row["paused"], row
    lease = shop.kubectl.json("get", "lease", names.primary_lease(shop.name))
    assert not LeaseRecord.parse(lease, default_duration_s=6.0).pausing
