"""What the status says in each situation."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pgcluster.api import names
from pgcluster.api.models import PgCluster, PgClusterStatus
from pgcluster.api.reports import InstanceReport, PoolerReport, PromotionPhases
from pgcluster.controller import events, rollout
from pgcluster.controller.observe import InstancePod, Observed
from pgcluster.controller.status import Outcome, compute
from pgcluster.render.pgbouncer import content_hash

NOW = "2026-05-01T10:00:00Z"
LATER = "2026-05-01T10:00:30Z"
NOTHING = Outcome()


def cluster(status: PgClusterStatus | None = None, **spec: Any) -> dict[str, Any]:
    stored = status.model_dump(mode="json", by_alias=True, exclude_none=True) if status else {}
    return {
        "metadata": {"name": "shop", "namespace": "test", "uid": "u", "generation": 4},
        "spec": {"instances": 2, "storage": {"size": "1Gi"}, "pgbouncer": {"instances": 1}, **spec},
        "status": stored,
    }


def pod(name: str, *, ready: bool, component: str, **status: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "creationTimestamp": "2026-05-01T09:00:00Z",
            "labels": {names.LABEL_COMPONENT: component, names.LABEL_SERVING: names.SERVING},
        },
        "spec": {"nodeName": "worker"},
        "status": {
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [{"name": "postgres", "state": {"running": {}}}],
            **status,
        },
    }


def instance(
    ordinal: int, role: str | None = "standby", *, ready: bool = True, **report: Any
) -> InstancePod:
    name = f"shop-{ordinal}"
    fields = {"state": "running", "ready": ready, "role": role, "timeline": 1, "repmgrd": True}
    return InstancePod(
        name,
        pod(name, ready=ready, component=names.COMPONENT_POSTGRES, podIP=f"10.0.0.{ordinal}"),
        InstanceReport.model_validate({"pod": name, **fields, **report}),
    )


def lease(holder: str, epoch: int = 1) -> dict[str, Any]:
    return {
        "metadata": {"annotations": {names.ANNOTATION_SYSTEM_ID: "77"}},
        "spec": {"holderIdentity": holder, "leaseTransitions": epoch},
    }


def pooler(epoch: int = 1, **report: Any) -> PoolerReport:
    return PoolerReport(pod="pool", ready=True, primary="shop-0", epoch=epoch, **report)


def observed(
    *pods: InstancePod,
    holder: str = "shop-0",
    epoch: int = 1,
    status: PgClusterStatus | None = None,
    pools: PoolerReport | None = None,
    **spec: Any,
) -> Observed:
    """A cluster of these instances and one pooler that is well unless `pools` says otherwise."""
    return Observed(
        cluster=cluster(status, **spec),
        children={("Lease", "shop-primary"): lease(holder, epoch)},
        pods=pods,
        pooler_pods=(pod("pool", ready=True, component=names.COMPONENT_PGBOUNCER),),
        pooler_reports={"pool": pools or pooler(epoch)},
    )


def told(
    seen: Observed,
    outcome: Outcome = NOTHING,
    *,
    now: str = NOW,
) -> PgClusterStatus:
    return compute(seen, PgCluster.parse(seen.cluster), outcome, now=now)


def condition(status: PgClusterStatus, kind: str) -> tuple[str, str]:
    found = next(x for x in status.conditions if x.type == kind)
    return found.status, found.reason


WELL = (instance(0, "primary"), instance(1))
READY = told(observed(*WELL))


def test_all_there_is_ready() -> None:
    assert condition(READY, "Ready") == ("True", "AllReady")
    assert condition(READY, "Progressing") == ("False", "Settled")
    assert condition(READY, "Degraded") == ("False", "Settled")
    assert condition(READY, "Stalled") == ("False", "Settled")
    assert (READY.summary, READY.primary, READY.timeline, READY.epoch) == ("Ready", "shop-0", 1, 1)
    assert (READY.instances, READY.ready_instances, READY.system_identifier) == (2, 2, "77")
    assert READY.observed_generation == 4


def test_the_same_world_gives_the_same_status_later() -> None:
    """Else each reconciliation would write."""
    assert told(observed(*WELL, status=READY), now=LATER) == READY


@pytest.mark.parametrize(
    ("pods", "holder", "ready", "degraded", "summary"),
    [
        ((WELL[0], instance(1, ready=False)), "shop-0", "InstancesNotReady", True, "Degraded"),
        ((WELL[0],), "shop-0", "InstancesNotReady", True, "Degraded"),
        ((instance(1),), "", "NoPrimary", False, "NoPrimary"),
        ((instance(1),), "shop-0", "NoPrimary", False, "NoPrimary"),
        (
            (WELL[1], instance(0, None, ready=False, state="starting")),
            "shop-0",
            "FailingOver",
            False,
            "FailingOver",
        ),
        (
            (instance(1, state="promoting", ready=False),),
            "",
            "FailingOver",
            False,
            "FailingOver",
        ),
        (
            (instance(0, "primary", ready=False), WELL[1]),
            "shop-0",
            "NoPrimary",
            False,
            "NoPrimary",
        ),
    ],
)
def test_what_is_missing_in_a_cluster_that_was_complete(
    pods: tuple[InstancePod, ...], holder: str, ready: str, degraded: bool, summary: str
) -> None:
    status = told(observed(*pods, holder=holder, status=READY), now=LATER)
    assert condition(status, "Ready") == ("False", ready)
    assert condition(status, "Degraded")[0] == str(degraded)
    assert condition(status, "Progressing")[0] == "True"
    assert status.summary == summary
    moved = next(x for x in status.conditions if x.type == "Ready")
    assert moved.last_transition_time == LATER


def test_a_new_cluster_is_created_not_degraded() -> None:
    bootstrapping = told(observed(instance(0, None, ready=False, state="bootstrapping")))
    assert condition(bootstrapping, "Ready") == ("False", "Bootstrapping")
    creating = told(observed(WELL[0], instance(1, ready=False), status=bootstrapping))
    assert condition(creating, "Ready") == ("False", "Creating")
    assert condition(creating, "Degraded") == ("False", "Settled")


def test_a_pod_that_is_not_ready_makes_its_report_worthless() -> None:
    stale = dataclasses.replace(
        WELL[1], manifest=pod("shop-1", ready=False, component=names.COMPONENT_POSTGRES)
    )
    status = told(observed(WELL[0], stale, status=READY))
    assert [member.ready for member in status.members] == [True, False]
    gone = pod("shop-1", ready=False, component=names.COMPONENT_POSTGRES, containerStatuses=[])
    member = told(observed(WELL[0], dataclasses.replace(WELL[1], manifest=gone))).members[1]
    assert (member.ready, member.role, member.state) == (False, None, "unknown")


def test_who_says_it_is_primary_without_the_lease_is_not() -> None:
    status = told(observed(instance(0, "primary"), instance(1, "primary"), holder="shop-1"))
    assert status.primary == "shop-1"
    assert told(observed(instance(0, "primary"), instance(1), holder="")).primary is None


@pytest.mark.parametrize(
    "report",
    [pooler(epoch=6), PoolerReport(pod="pool", ready=False, reason="no login", epoch=7)],
)
def test_a_pool_behind_the_primary_is_not_ready(report: PoolerReport) -> None:
    status = told(observed(*WELL, epoch=7, pools=report, status=READY))
    assert condition(status, "Ready") == ("False", "PoolersNotReady")
    assert condition(status, "Degraded")[0] == "True"
    assert not status.poolers[0].ready


def test_what_was_not_made_in_postgresql_is_told_by_name() -> None:
    primary = instance(0, "primary", failed_objects={"nobody": "Secret forgotten is missing"})
    status = told(observed(primary, WELL[1], status=READY))
    assert condition(status, "Degraded") == ("True", "ObjectsFailed")
    assert "Secret forgotten" in next(x.message for x in status.conditions if x.type == "Degraded")


def test_a_refused_spec_is_stalled_while_the_cluster_goes_on() -> None:
    status = told(observed(*WELL, status=READY), Outcome(blocked=("InvalidSpec", "spec.x: no")))
    assert condition(status, "Stalled") == ("True", "InvalidSpec")
    assert condition(status, "Ready") == ("True", "AllReady")
    assert status.summary == "InvalidSpec"


def test_a_refused_new_cluster_says_why_it_is_not_ready() -> None:
    seen = dataclasses.replace(observed(), children={}, pooler_pods=())
    status = told(seen, Outcome(blocked=("NameConflict", "Service shop-ro is taken")))
    assert condition(status, "Ready") == ("False", "NameConflict")
    assert condition(status, "Progressing")[0] == "False"


def test_the_identity_once_known_stays() -> None:
    seen = dataclasses.replace(observed(*WELL, status=READY), children={})
    assert told(seen).system_identifier == "77"


def imports(state: str, **more: str) -> InstancePod:
    """The primary of a new cluster while it takes data over: not ready."""
    report = {"state": state, **more}
    return instance(0, "primary", ready=False, importing=report, progress="import: 1 of 2 MiB")


def test_a_cluster_that_takes_data_over_is_not_ready_and_says_so() -> None:
    status = told(observed(imports("running"), instance(1)))
    assert condition(status, "Ready") == ("False", "Importing")
    assert condition(status, "Progressing") == ("True", "Importing")
    assert condition(status, "Degraded") == ("False", "NoPrimary")
    assert condition(status, "Stalled") == ("False", "Settled")
    assert (status.summary, status.primary, status.imported_at) == ("Importing", None, None)
    assert status.members[0].progress == "import: 1 of 2 MiB"


def test_a_failed_import_says_what_hindered_it_and_another_attempt_ends_that() -> None:
    why = 'password authentication failed for user "importer"'
    failed = told(observed(imports("failed", reason=why)))
    assert condition(failed, "Ready") == ("False", "ImportFailed")
    assert condition(failed, "Stalled") == ("True", "ImportFailed")
    assert condition(failed, "Progressing")[0] == "False"
    assert failed.summary == "ImportFailed"
    assert why in next(x.message for x in failed.conditions if x.type == "Ready")
    again = told(observed(imports("running"), status=failed))
    assert condition(again, "Stalled") == ("False", "Settled")
    creating = told(observed(WELL[0], instance(1, ready=False), status=again))
    assert condition(creating, "Ready") == ("False", "Creating"), "it has never been complete"


def test_when_an_import_was_complete_is_kept_also_without_a_primary() -> None:
    done = {"state": "done", "at": "2026-05-01T09:59:00Z"}
    status = told(observed(instance(0, "primary", importing=done), instance(1)))
    assert condition(status, "Ready") == ("True", "AllReady")
    assert told(observed(instance(1), holder="", status=status)).imported_at == done["at"]


def test_paused_is_told() -> None:
    status = told(observed(*WELL, status=READY, paused=True))
    assert condition(status, "Progressing") == ("False", "Paused")
    assert status.summary == "Paused"


PROMOTION = PromotionPhases(
    primary="shop-1",
    previous="shop-0",
    timeline=2,
    epoch=2,
    detected="2026-05-01T09:59:50.000000Z",
    gate="2026-05-01T09:59:51.500000Z",
    promoted="2026-05-01T09:59:52.000000Z",
    config="2026-05-01T09:59:52.250000Z",
)


def failed_over(status: PgClusterStatus, **report: str) -> Observed:
    pods = (instance(0), instance(1, "primary", timeline=2, promotion=PROMOTION))
    return observed(*pods, holder="shop-1", epoch=2, status=status, pools=pooler(2, **report))


def test_a_failover_is_told_with_its_phases_as_they_become_known() -> None:
    first = told(failed_over(READY))
    assert first.last_failover is not None
    assert (first.last_failover.from_, first.last_failover.to) == ("shop-0", "shop-1")
    assert (first.last_failover.gate_ms, first.last_failover.promoted_ms) == (1500, 2000)
    assert first.last_failover.config_ms == 2250
    assert first.last_failover.reloaded_ms is None
    seen = failed_over(
        first,
        reloaded_at="2026-05-01T09:59:52.300000Z",
        resumed_at="2026-05-01T09:59:52.310000Z",
        first_transaction_at="2026-05-01T09:59:52.400000Z",
    )
    second = told(seen)
    assert second.last_failover is not None
    assert second.last_failover.reloaded_ms == 2300
    assert second.last_failover.resumed_ms == 2310
    assert second.last_failover.first_transaction_ms == 2400
    assert len(second.failovers) == 1


def test_a_pool_that_restarts_later_does_not_rewrite_the_history() -> None:
    first = told(failed_over(READY, reloaded_at="2026-05-01T09:59:52.300000Z"))
    much_later = failed_over(first, reloaded_at="2026-05-01T11:00:00.000000Z")
    assert told(much_later, now="2026-05-01T11:00:01Z").failovers == first.failovers
    young = failed_over(READY, reloaded_at="2026-05-01T09:59:59.000000Z")
    young.pooler_pods[0]["metadata"]["creationTimestamp"] = "2026-05-01T09:59:55Z"
    record = told(young).last_failover
    assert record is not None
    assert record.reloaded_ms is None


def test_what_a_pooler_told_of_a_failover_outlives_it() -> None:
    first = told(failed_over(READY, reloaded_at="2026-05-01T09:59:52.300000Z"))
    gone = dataclasses.replace(failed_over(first), pooler_pods=(), pooler_reports={})
    assert told(gone).failovers == first.failovers


def test_the_last_report_of_a_lost_node_makes_no_second_primary() -> None:
    # the Lease has moved on to shop-0; Kubernetes has not noticed yet that shop-1's node is gone
    rows = told(observed(WELL[0], instance(1, "primary"))).members
    assert [(row.role, row.ready) for row in rows] == [("primary", True), (None, False)]
    assert rows[1].reason == "it does not hold the Lease any more"


def test_a_first_start_is_no_failover() -> None:
    promotion = PROMOTION.model_copy(update={"cause": "start", "previous": None})
    assert told(observed(instance(0, "primary", promotion=promotion), WELL[1])).failovers == ()


def test_the_history_keeps_ten() -> None:
    status = READY
    for epoch in range(2, 16):
        promotion = PROMOTION.model_copy(update={"epoch": epoch})
        pods = (instance(0), instance(1, "primary", promotion=promotion))
        status = told(observed(*pods, holder="shop-1", epoch=epoch, status=status))
    assert [record.epoch for record in status.failovers] == list(range(15, 5, -1))


def test_events_tell_what_changed_and_nothing_at_rest() -> None:
    assert [e.reason for e in events.between(PgClusterStatus(), READY)] == ["Bootstrapped", "Ready"]
    assert events.between(READY, READY) == ()
    lost = told(observed(instance(1), holder="", status=READY))
    assert [e.reason for e in events.between(READY, lost)] == ["PrimaryLost"]
    after = told(failed_over(lost))
    assert [e.reason for e in events.between(lost, after)] == ["Failover", "Ready"]
    refused = told(observed(*WELL, status=READY), Outcome(blocked=("InvalidSpec", "spec.x: no")))
    assert [e.reason for e in events.between(READY, refused)] == ["InvalidSpec"]


# --- rolling changes --------------------------------------------------------------------------
def rolling(step: rollout.Step, *outdated: str, offered: tuple[str, ...] = ()) -> Outcome:
    return Outcome(image="pg", rolling=rollout.Plan(step, frozenset(outdated), offered))


def test_a_rolling_change_tells_how_far_it_is_and_by_events() -> None:
    pods = (instance(0, "primary"), instance(1))
    before = told(observed(*pods), rolling(rollout.Nothing("done")))
    assert condition(before, "Progressing") == ("False", "Settled")
    started = rolling(rollout.Wait("shop-1 is replaced"), "shop-0", "shop-1")
    first = told(observed(*pods, status=before), started)
    assert condition(first, "Progressing") == ("True", "RollingOut")
    message = next(x.message for x in first.conditions if x.type == "Progressing")
    assert message == "0 of 2 instances are up to date; shop-1 is replaced"
    assert [row.up_to_date for row in first.members] == [False, False]
    assert [x.reason for x in events.between(before, first)] == ["RolloutStarted"]
    # The last one is away: that is no end yet.
    away = told(
        observed(pods[0], instance(1, ready=False), status=first), rolling(rollout.Nothing("done"))
    )
    assert condition(away, "Progressing") == ("True", "RollingOut")
    done = told(observed(*pods, status=away), rolling(rollout.Nothing("done")))
    assert condition(done, "Progressing") == ("False", "Settled")
    reasons = {x.reason for x in events.between(first, done)}
    assert reasons == {"InstanceRestarted", "RolloutDone"}
    assert [x.reason for x in events.between(away, done)] == ["RolloutDone", "Ready"]


def test_a_rolling_change_that_stopped_waits_for_a_person() -> None:
    pods = (instance(0, "primary"), instance(1))
    stopped = rolling(rollout.Stopped("shop-1 does not work: no image", "shop-1"), "shop-0")
    found = told(observed(*pods), stopped)
    assert condition(found, "Progressing") == ("False", "RolloutStopped")
    assert condition(found, "Stalled") == ("True", "RolloutStopped")
    assert condition(found, "Ready") == ("True", "AllReady")


def test_what_the_operator_offers_is_told_and_is_no_progress() -> None:
    pods = (instance(0, "primary"), instance(1))
    found = told(observed(*pods), rolling(rollout.Nothing("done"), offered=("shop-1",)))
    assert condition(found, "Progressing") == ("False", "RolloutPending")
    message = next(x.message for x in found.conditions if x.type == "Progressing")
    assert "pgcluster.dev/restart" in message


def test_a_parameter_that_is_not_taken_is_named_once_with_where() -> None:
    refused = {"work_mem": "invalid value"}
    pods = (
        instance(0, "primary", refused_parameters=refused),
        instance(1, refused_parameters=refused),
    )
    found = told(observed(*pods))
    assert condition(found, "Degraded") == ("True", "ParametersRefused")
    message = next(x.message for x in found.conditions if x.type == "Degraded")
    assert message == "parameter work_mem is not taken: invalid value (shop-0, shop-1)"


# --- changes of the pools -------------------------------------------------------------------------
INI = "[pgbouncer]\n"


def with_pools(
    pools: PoolerReport, *, rollout: dict[str, int] | None = None, status: Any = READY
) -> Observed:
    """The present settings are INI, and the poolers' Deployment is as `rollout` says."""
    seen = observed(*WELL, pools=pools, status=status)
    children = {
        **seen.children,
        ("ConfigMap", "shop-pgbouncer"): {"data": {names.PGBOUNCER_INI_KEY: INI}},
        ("Deployment", "shop-pgbouncer"): {
            "metadata": {"name": "shop-pgbouncer"},
            "spec": {"replicas": 1},
            "status": rollout or {"updatedReplicas": 1, "replicas": 1},
        },
    }
    return dataclasses.replace(seen, children=children)


def test_poolers_with_and_without_tls_both_have_the_present_settings() -> None:
    encrypted = f"{INI}client_tls_sslmode = require\n"
    files = {names.PGBOUNCER_INI_KEY: INI, names.PGBOUNCER_TLS_INI_KEY: encrypted}
    for text, is_late in ((INI, False), (encrypted, False), ("former", True)):
        seen = with_pools(pooler(settings_hash=content_hash(text)))
        children = {**seen.children, ("ConfigMap", "shop-pgbouncer"): {"data": files}}
        found = told(dataclasses.replace(seen, children=children))
        assert (condition(found, "Progressing")[1] == "PoolSettings") is is_late


def test_settings_on_their_way_to_the_poolers_are_told() -> None:
    late = told(with_pools(pooler(settings_hash="another")))
    assert condition(late, "Ready") == ("True", "AllReady")
    assert condition(late, "Progressing") == ("True", "PoolSettings")
    (message,) = [x.message for x in late.conditions if x.type == "Progressing"]
    assert message.endswith("to come: pool")
    there = told(with_pools(pooler(settings_hash=content_hash(INI))))
    assert condition(there, "Progressing") == ("False", "Settled")
    assert there.poolers[0].settings_hash == content_hash(INI)


def test_settings_that_a_pooler_did_not_take_are_told_with_its_name_and_the_reason() -> None:
    refused = pooler(
        settings_hash="another", settings_refused=content_hash(INI), settings_reason="it is 'lots'"
    )
    status = told(with_pools(refused))
    assert condition(status, "Ready") == ("True", "AllReady")
    assert condition(status, "Degraded") == ("True", "PoolSettingsRefused")
    (message,) = [x.message for x in status.conditions if x.type == "Degraded"]
    assert "pooler pool" in message
    assert "it is 'lots'" in message
    # Corrected meanwhile: what it refused are not the present settings.
    before = pooler(settings_hash="another", settings_refused="an earlier one")
    assert condition(told(with_pools(before)), "Degraded") == ("False", "Settled")


@pytest.mark.parametrize(
    "rollout", [{"updatedReplicas": 0, "replicas": 1}, {"updatedReplicas": 1, "replicas": 2}]
)
def test_poolers_that_are_replaced_are_told(rollout: dict[str, int]) -> None:
    status = told(with_pools(pooler(settings_hash=content_hash(INI)), rollout=rollout))
    assert condition(status, "Ready") == ("True", "AllReady")
    assert condition(status, "Progressing") == ("True", "PoolersRolling")
