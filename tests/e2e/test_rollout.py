"""Rolling changes under the application: no error, one hand-over, one instance at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from pgcluster.api import names
from tests.e2e.cluster import Cluster, describe
from tests.e2e.kubectl import Kubectl
from tests.e2e.ordeal import Ordeals, Outcome
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.disturbs
ROLLED_WITHIN_S = 240.0


def rolled(shop: Cluster, *, within: float = ROLLED_WITHIN_S) -> None:
    """Wait until the operator says that every instance is as the spec asks for."""

    def done() -> bool:
        body = shop.get()
        status = body["status"]
        assert status["observedGeneration"] == body["metadata"]["generation"]
        assert shop.condition("Progressing", status)["reason"] == "Settled", describe(status)
        assert all(row.get("upToDate") for row in status["members"]), describe(status)
        return True

    eventually(done, within=within, what="the rolling change is done")


def parameters(shop: Cluster, **changed: str) -> None:
    shop.kubectl.patch(
        "pgcluster", shop.name, {"spec": {"postgres": {"parameters": dict(changed)}}}
    )


def shows(shop: Cluster, parameter: str, value: str) -> None:
    """Wait until every instance runs with it."""

    def everywhere() -> bool:
        found = {pod: shop.value(pod, f"SHOW {parameter}") for pod in shop.instances()}
        assert set(found.values()) == {value}, found
        return True

    eventually(everywhere, within=ROLLED_WITHIN_S, what=f"{parameter} is {value}")


def uids(shop: Cluster) -> dict[str, str]:
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in shop.pods()}


def timeline(shop: Cluster) -> int:
    """Each change of primary begins one."""
    return int(shop.status()["timeline"])


def no_error(outcome: Outcome) -> Mapping[str, Any]:
    assert outcome.counted["errors"] == 0, outcome.counted
    return outcome.counted


def test_a_reloadable_parameter_is_reloaded_and_a_bad_one_is_told_and_changes_nothing(
    ordeals: Ordeals,
) -> None:
    shop = ordeals.cluster
    ordeal = ordeals.begin("parameter reloaded")
    pods, started = uids(shop), started_at(shop)
    parameters(shop, work_mem="9MB")
    shows(shop, "work_mem", "9MB")
    parameters(shop, work_mem="much")
    shop.condition_says("ParametersRefused|work_mem.*much", within=60)
    shows(shop, "work_mem", "9MB")
    parameters(shop, work_mem="8MB")
    shows(shop, "work_mem", "8MB")
    rolled(shop)
    assert (uids(shop), started_at(shop)) == (pods, started)
    no_error(ordeal.ended())


def started_at(shop: Cluster) -> dict[str, str]:
    return {pod: shop.value(pod, "SELECT pg_postmaster_start_time()") for pod in shop.instances()}


def test_parameters_that_need_a_restart_are_raised_by_one_hand_over_and_lowered_in_place(
    ordeals: Ordeals,
) -> None:
    shop = ordeals.cluster
    ordeal = ordeals.begin("parameters raised, restart in place")
    pods, before = uids(shop), timeline(shop)
    parameters(shop, max_connections="170", shared_buffers="48MB")
    shows(shop, "max_connections", "170")
    shows(shop, "shared_buffers", "48MB")
    rolled(shop)
    no_error(ordeal.ended())
    assert timeline(shop) == before + 1
    assert uids(shop) == pods
    ordeal = ordeals.begin("max_connections lowered, primary first and in place")
    parameters(shop, max_connections="150")
    shows(shop, "max_connections", "150")
    rolled(shop)
    outcome = ordeal.ended()
    no_error(outcome)
    assert outcome.after == outcome.before
    assert timeline(shop) == before + 1
    assert uids(shop) == pods


def test_a_restart_that_is_asked_for_replaces_each_pod_once_though_the_operator_restarts(
    ordeals: Ordeals, system: Kubectl
) -> None:
    shop = ordeals.cluster
    ordeal = ordeals.begin("rolling restart of the pods")
    before, changes = uids(shop), timeline(shop)
    seen: dict[str, set[str]] = {pod: {uid} for pod, uid in before.items()}
    shop.kubectl.run(
        *("annotate", "pgcluster", shop.name, f"{names.ANNOTATION_RESTART}=now", "--overwrite")
    )

    def first_is_new() -> bool:
        note(shop, seen)
        return uids(shop) != before

    eventually(first_is_new, within=60, what="the first pod is replaced")
    system.run("delete", "pod", "-l", "app.kubernetes.io/name=pgcluster-operator", "--wait=false")

    def all_are_new() -> bool:
        note(shop, seen)
        now = uids(shop)
        assert len(now) == len(before)
        return not set(now.values()) & set(before.values())

    eventually(all_are_new, within=ROLLED_WITHIN_S, every=0.2, what="each pod is replaced")
    rolled(shop)
    no_error(ordeal.ended())
    note(shop, seen)
    assert {pod: len(found) for pod, found in seen.items()} == dict.fromkeys(before, 2)
    assert timeline(shop) == changes + 1


def note(shop: Cluster, seen: dict[str, set[str]]) -> None:
    for pod, uid in uids(shop).items():
        seen[pod].add(uid)


def test_an_image_that_does_not_exist_stops_at_the_first_standby_and_a_correction_goes_on(
    ordeals: Ordeals,
) -> None:
    shop = ordeals.cluster
    ordeal = ordeals.begin("image that does not exist, then corrected")
    before = uids(shop)
    shop.kubectl.patch(
        "pgcluster", shop.name, {"spec": {"image": "pgcluster.dev/postgres:17-never-built"}}
    )
    shop.condition_says("RolloutStopped", within=120)
    left = [pod for pod, uid in uids(shop).items() if before[pod] == uid]
    assert len(left) == len(before) - 1
    assert ordeal.primary in left
    shop.kubectl.patch("pgcluster", shop.name, {"spec": {"image": None}})
    rolled(shop)
    outcome = ordeal.ended()
    no_error(outcome)
    assert outcome.after == outcome.before
