"""What waits by kstatus (Helm 4, Flux, kpt) makes of a PgCluster in each situation."""

from __future__ import annotations

from typing import Any

import pytest

from pgcluster.api.crd import schema
from pgcluster.api.models import PgClusterStatus
from pgcluster.controller import rollout
from pgcluster.controller.observe import Observed
from pgcluster.controller.status import Outcome
from tests.unit import test_controller_status as world
from tests.unit.test_controller_status import READY, WELL, condition, instance, observed, told


def kstatus(body: dict[str, Any]) -> str:
    """Source: cli-utils, pkg/kstatus/status: Compute, checkGenericProperties, checkReadyCondition.

    tests/api asks a real API server and kubectl the same.
    """
    metadata, status = body["metadata"], body.get("status") or {}
    if metadata.get("deletionTimestamp"):
        return "Terminating"
    seen = status.get("observedGeneration")
    if seen is not None and seen != metadata["generation"]:
        return "InProgress"
    conditions = status.get("conditions") or []
    for found in conditions:
        if found["status"] == "True" and found["type"] == "Reconciling":
            return "InProgress"
        if found["status"] == "True" and found["type"] == "Stalled":
            return "Failed"
    ready = next((found for found in conditions if found["type"] == "Ready"), None)
    return "Current" if ready is None or ready["status"] == "True" else "InProgress"


def found(seen: Observed, outcome: Outcome = Outcome()) -> str:  # noqa: B008 # frozen
    status = told(seen, outcome)
    stored = status.model_dump(mode="json", by_alias=True, exclude_none=True)
    return kstatus({"metadata": seen.cluster["metadata"], "status": stored})


def rolling(step: rollout.Step) -> Outcome:
    return Outcome(rolling=rollout.Plan(step, frozenset({"shop-1"})))


def test_a_new_object_that_nobody_has_looked_at_is_in_progress() -> None:
    """Without a status at all it would be Current, and a wait would end before it began."""
    body = {**world.cluster(), "status": schema()["properties"]["status"]["default"]}
    assert kstatus(body) == "InProgress"
    assert PgClusterStatus.model_validate(body["status"]).conditions == ()


@pytest.mark.parametrize(
    ("outcome", "finds"),
    [
        (Outcome(), "Current"),
        (Outcome(applied=True), "InProgress"),
        (Outcome(pending=("Scaling", "shop-1 goes")), "InProgress"),
        (Outcome(asleep=("Hibernated", "it sleeps")), "Current"),
        (Outcome(sleeping=("Hibernating", "it goes")), "InProgress"),
        (Outcome(blocked=("InvalidSpec", "spec.x: no")), "Failed"),
        (rolling(rollout.Wait("not yet")), "InProgress"),
        (rolling(rollout.Stopped("shop-1 is ill", "shop-1")), "Failed"),
        (rolling(rollout.Nothing("all is done")), "Current"),
    ],
    ids=str,
)
def test_a_cluster_that_serves_is_current_only_once_the_spec_is_fulfilled(
    outcome: Outcome, finds: str
) -> None:
    assert found(observed(*WELL, status=READY), outcome) == finds


def test_a_cluster_that_lacks_something_is_in_progress() -> None:
    for pods in ((WELL[0],), (WELL[0], instance(1, ready=False)), ()):
        assert found(observed(*pods, status=READY)) == "InProgress"


def test_parameters_that_are_not_loaded_yet_are_waited_for() -> None:
    late = observed(WELL[0], instance(1, settings="of before"), status=READY)
    assert found(late) == "InProgress"
    assert condition(told(late), "Progressing") == ("True", "Applying")
    older = observed(WELL[0], instance(1, settings=None), status=READY)
    assert found(older) == "Current", "an agent of an earlier version does not tell"


def test_a_deleted_one_is_terminating() -> None:
    assert kstatus({"metadata": {"deletionTimestamp": "now", "generation": 1}}) == "Terminating"


def test_reconciling_and_stalled_are_never_both_there() -> None:
    """kstatus takes the first that it meets."""
    both = Outcome(blocked=("InvalidSpec", "no"), pending=("Scaling", "shop-1 goes"))
    status = told(observed(*WELL, status=READY), both)
    assert condition(status, "Stalled")[0] == "True"
    assert "Reconciling" not in [x.type for x in status.conditions]


def test_every_condition_is_about_the_generation_that_was_read() -> None:
    status = told(observed(*WELL, status=READY), Outcome(applied=True))
    assert {x.observed_generation for x in status.conditions} == {4}
    assert condition(status, "Reconciling") == condition(status, "Progressing")
