"""Rolling changes: whose turn it is, what holds it up, and that any order of events ends well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgcluster.api import names
from pgcluster.api.models import PgCluster, settings_of
from pgcluster.api.reports import InstanceReport
from pgcluster.controller import rollout
from pgcluster.controller.observe import InstancePod, Observed

NOW = datetime(2026, 5, 1, 10, tzinfo=UTC)
PULL = "ImagePullBackOff"


def spec(**more: Any) -> dict[str, Any]:
    return {"instances": 3, "storage": {"size": "1Gi"}, **more}


def cluster(status: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "shop", "namespace": "test", "uid": "u", "generation": 1},
        "spec": spec(**more),
        "status": dict(status or {}),
    }


def stateful_set(*, revision: str = "new", inputs: str = "new", seen: int = 1) -> dict[str, Any]:
    annotations = {names.ANNOTATION_INPUTS: inputs}
    return {
        "metadata": {"generation": 1},
        "spec": {"template": {"metadata": {"annotations": annotations}, "spec": {}}},
        "status": {"updateRevision": revision, "observedGeneration": seen},
    }


def instance(
    ordinal: int,
    *,
    primary: int = 0,
    revision: str = "new",
    inputs: str | None = "new",
    ready: bool = True,
    running: bool = True,
    waiting: str | None = None,
    leaving: bool = False,
    **report: Any,
) -> InstancePod:
    """An instance that is well and streams, unless said otherwise."""
    name = f"shop-{ordinal}"
    is_primary = ordinal == primary
    said = {
        "pod": name,
        "state": "running",
        "role": "primary" if is_primary else "standby",
        "ready": True,
        "upstream": None if is_primary else f"shop-{primary}",
        "streaming": [f"shop-{other}" for other in range(9)] if is_primary else None,
        **report,
    }
    state: dict[str, Any] = {"running": {}} if running else {"waiting": {"reason": waiting}}
    manifest = {
        "metadata": {
            "name": name,
            "uid": f"uid-{ordinal}",
            "labels": {"controller-revision-hash": revision},
            "annotations": {} if inputs is None else {names.ANNOTATION_INPUTS: inputs},
            **({"deletionTimestamp": "2026-05-01T10:00:00Z"} if leaving else {}),
        },
        "spec": {"containers": [{"name": "postgres", "image": "pg"}]},
        "status": {
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [{"name": "postgres", "image": "pg", "state": state}],
        },
    }
    return InstancePod(name, manifest, InstanceReport.model_validate(said) if running else None)


def observed(
    *pods: InstancePod, holder: str = "shop-0", lease: Mapping[str, str] | None = None, **more: Any
) -> Observed:
    return Observed(
        cluster=cluster(**more),
        children={
            ("Lease", "shop-primary"): {
                "metadata": {"annotations": dict(lease or {})},
                "spec": {"holderIdentity": holder, "leaseTransitions": 1},
            }
        },
        pods=pods,
    )


def plan(
    seen: Observed,
    live: Mapping[str, Any] | None = None,
    *,
    handing_over: str | None = None,
    now: datetime = NOW,
) -> rollout.Plan:
    parsed = PgCluster.parse(seen.cluster)
    return rollout.plan(
        seen, parsed, stateful_set() if live is None else live, handing_over=handing_over, now=now
    )


def step(seen: Observed, live: Mapping[str, Any] | None = None, **more: Any) -> rollout.Step:
    return plan(seen, live, **more).step


def old(ordinal: int, **more: Any) -> InstancePod:
    """An instance of an earlier template, by the user's doing."""
    return instance(ordinal, **{"revision": "old", "inputs": "old", **more})


# --- whose turn it is -------------------------------------------------------------------------
def test_nothing_is_done_where_all_are_as_the_spec_says() -> None:
    found = plan(observed(*map(instance, range(3))))
    assert isinstance(found.step, rollout.Nothing)
    assert found.outdated == frozenset()


def test_the_highest_standby_goes_first_by_its_uid() -> None:
    found = plan(observed(*map(old, range(3))))
    assert isinstance(found.step, rollout.Delete)
    assert (found.step.pod, found.step.uid) == ("shop-2", "uid-2")
    assert found.outdated == {"shop-0", "shop-1", "shop-2"}


def test_a_primary_of_the_highest_ordinal_still_goes_last() -> None:
    found = step(observed(*(old(n, primary=2) for n in range(3)), holder="shop-2"))
    assert isinstance(found, rollout.Delete)
    assert found.pod == "shop-1"


def test_the_last_hands_over_to_one_that_is_up_to_date() -> None:
    found = step(observed(old(0), instance(1), instance(2)))
    assert isinstance(found, rollout.HandOver)
    assert found.wish.cause == "rollout"
    assert found.wish.target is None
    assert found.wish.avoid == {"shop-0"}


def test_the_former_primary_is_replaced_after_the_hand_over() -> None:
    pods = (old(0, primary=1), instance(1, primary=1), instance(2, primary=1))
    found = step(observed(*pods, holder="shop-1"))
    assert isinstance(found, rollout.Delete)
    assert found.pod == "shop-0"


def test_the_only_instance_is_deleted() -> None:
    found = step(observed(old(0), instances=1))
    assert isinstance(found, rollout.Delete)
    assert found.pod == "shop-0"


def test_a_parameter_that_waits_restarts_a_standby_in_place() -> None:
    pods = [instance(n, pending_restart=["shared_buffers"]) for n in range(3)]
    found = step(observed(*pods))
    assert isinstance(found, rollout.Restart)
    assert found.config.instance == "shop-2"
    assert step(observed(*pods)) == found


def test_a_pod_that_is_replaced_anyway_is_not_restarted_before() -> None:
    pods = (instance(0), instance(1), old(2, pending_restart=["shared_buffers"]))
    assert isinstance(step(observed(*pods)), rollout.Delete)


def test_the_primary_hands_over_for_a_parameter_too() -> None:
    pods = (instance(0, pending_restart=["shared_buffers"]), instance(1), instance(2))
    assert isinstance(step(observed(*pods)), rollout.HandOver)


def test_the_only_instance_restarts_in_place() -> None:
    found = step(observed(instance(0, pending_restart=["shared_buffers"]), instances=1))
    assert isinstance(found, rollout.Restart)
    assert found.config.instance == "shop-0"


def test_a_restart_that_changed_nothing_is_not_ordered_again() -> None:
    pods = [instance(0), instance(1), instance(2, pending_restart=["shared_buffers"])]
    first = step(observed(*pods))
    assert isinstance(first, rollout.Restart)
    done = instance(2, pending_restart=["shared_buffers"], restarted=first.config.request)
    found = step(observed(*pods[:2], done))
    assert isinstance(found, rollout.Stopped)
    assert "shared_buffers" in found.reason


# --- what standbys must hold as high ----------------------------------------------------------
LOWER = {"pending_restart": ["max_connections"], "lowering": ["max_connections"]}


def test_what_is_raised_is_raised_on_the_standbys_first() -> None:
    pods = [instance(n, pending_restart=["max_connections"]) for n in range(3)]
    found = step(observed(*pods))
    assert isinstance(found, rollout.Restart)
    assert found.config.instance == "shop-2"


def test_what_is_lowered_is_lowered_on_the_primary_first_and_in_place() -> None:
    pods = (instance(0, **LOWER), *(instance(n, lowering=["max_connections"]) for n in (1, 2)))
    found = step(observed(*pods))
    assert isinstance(found, rollout.Restart)
    assert found.config.instance == "shop-0"


def test_standbys_that_wait_for_their_primary_to_be_lower_are_not_done_yet() -> None:
    pods = (instance(0), instance(1), instance(2, lowering=["max_connections"]))
    found = plan(observed(*pods))
    assert isinstance(found.step, rollout.Wait)
    assert found.outdated == {"shop-2"}


def test_raised_and_lowered_at_once_raises_the_standbys_then_lowers_the_primary() -> None:
    primary = instance(
        0, pending_restart=["max_connections", "max_worker_processes"], lowering=["max_connections"]
    )
    raising = [instance(n, pending_restart=["max_worker_processes"]) for n in (1, 2)]
    found = step(observed(primary, *raising))
    assert isinstance(found, rollout.Restart)
    assert found.config.instance == "shop-2"
    found = step(observed(primary, instance(1), instance(2)))
    assert isinstance(found, rollout.Restart)
    assert found.config.instance == "shop-0"


# --- what holds it up -------------------------------------------------------------------------
WAITS = {
    "it is being deleted": old(2, leaving=True),
    "its container does not run": old(2, running=False, waiting="ContainerCreating"),
    "the kubelet does not find it ready": instance(2, ready=False),
    "it does not find itself ready": instance(2, ready=False, **{"lag_bytes": 1 << 40}),
    "it follows another": instance(2, upstream="shop-1"),
    "it clones": instance(2, state="cloning", role=None),
    "it rewinds": instance(2, state="rewinding", role=None),
    "it is promoted": instance(2, state="promoting", role=None),
    "it starts": old(2, state="starting", role=None),
}


@pytest.mark.parametrize("pod", WAITS.values(), ids=WAITS)
def test_nobody_goes_while_another_is_not_well(pod: InstancePod) -> None:
    assert isinstance(step(observed(instance(0), old(1), pod)), rollout.Wait)


def test_nobody_goes_while_the_primary_does_not_stream_to_another() -> None:
    pods = (instance(0, streaming=["shop-1"]), old(1), instance(2))
    assert isinstance(step(observed(*pods)), rollout.Wait)
    pods = (instance(0, streaming=None), old(1), instance(2))
    assert isinstance(step(observed(*pods)), rollout.Wait)


def test_nobody_goes_without_a_primary_or_while_it_changes() -> None:
    pods = [instance(0), old(1), instance(2)]
    assert isinstance(step(observed(*pods, holder="")), rollout.Wait)
    assert isinstance(step(observed(*pods), handing_over="somebody asked"), rollout.Wait)
    pausing = {names.ANNOTATION_PAUSING: "true"}
    assert isinstance(step(observed(*pods, lease=pausing)), rollout.Wait)
    pods[0] = instance(0, handover={"state": "checking"})
    assert isinstance(step(observed(*pods)), rollout.Wait)


def test_nobody_goes_while_an_instance_is_missing() -> None:
    assert isinstance(step(observed(instance(0), old(1))), rollout.Wait)


def test_nobody_goes_before_the_new_template_is_taken_over() -> None:
    assert isinstance(step(observed(*map(old, range(3))), stateful_set(seen=0)), rollout.Wait)


def test_nobody_goes_before_all_have_loaded_the_parameters() -> None:
    now = settings_of(PgCluster.parse(cluster()))
    late = [instance(0, settings=now, pending_restart=["x"]), instance(1, settings="before")]
    assert isinstance(step(observed(*late, instance(2, settings=now))), rollout.Wait)
    done = [late[0], instance(1, settings=now), instance(2, settings=now)]
    assert isinstance(step(observed(*done)), rollout.HandOver)


def test_nobody_goes_where_commits_would_wait_for_him() -> None:
    quorum = {"mode": "quorum", "standbys": 2}
    pods = tuple(map(old, range(3)))
    found = step(observed(*pods, replication={"synchronous": quorum}))
    assert isinstance(found, rollout.Stopped)
    assert "commits wait for 2" in found.reason
    degrade = {**quorum, "whenUnavailable": "degrade"}
    found = step(observed(*pods, replication={"synchronous": degrade}))
    assert isinstance(found, rollout.Delete)
    enough = {**quorum, "standbys": 1}
    found = step(observed(*pods, replication={"synchronous": enough}))
    assert isinstance(found, rollout.Delete)


# --- what stops it, and how it goes on --------------------------------------------------------
def test_an_updated_instance_that_is_ill_stops_it() -> None:
    stuck = instance(2, running=False, waiting=PULL, ready=False)
    found = step(observed(old(0), old(1), stuck))
    assert isinstance(found, rollout.Stopped)
    assert found.pod == "shop-2"
    no_start = instance(2, state="waiting", role=None, ready=False, start_failed="it ended")
    found = step(observed(old(0), old(1), no_start))
    assert isinstance(found, rollout.Stopped)
    assert "it ended" in found.reason


def test_once_corrected_the_broken_one_is_replaced_first_also_without_a_primary() -> None:
    for holder in ("shop-0", ""):
        stuck = old(1, running=False, waiting=PULL, ready=False)
        found = step(observed(old(0), stuck, old(2), holder=holder))
        assert isinstance(found, rollout.Delete)
        assert found.pod == "shop-1"


def test_a_pod_without_problem_that_does_not_run_yet_is_not_stuck() -> None:
    starting = old(1, running=False, waiting="ContainerCreating", ready=False)
    assert isinstance(step(observed(old(0), starting, old(2))), rollout.Wait)


def test_parameters_that_postgres_refuses_restart_nobody() -> None:
    refused = instance(2, refused_parameters={"work_mem": 'invalid value for "work_mem"'})
    found = step(observed(old(0), old(1), refused))
    assert isinstance(found, rollout.Stopped)
    assert "work_mem" in found.reason
    # What it says of an earlier spec is no matter any more.
    past = instance(2, refused_parameters={"work_mem": "no"}, settings="before")
    assert isinstance(step(observed(instance(0), instance(1), past)), rollout.Nothing)


def test_a_template_that_only_a_newer_operator_changes_is_offered_and_restarts_nobody() -> None:
    pods = [instance(n, revision="old") for n in range(3)]
    found = plan(observed(*pods))
    assert isinstance(found.step, rollout.Nothing)
    assert found.offered == ("shop-0", "shop-1", "shop-2")


def test_pods_of_an_operator_that_told_no_inputs_are_offered_too_but_for_another_image() -> None:
    pods = [instance(n, revision="old", inputs=None) for n in range(3)]
    live = stateful_set()
    live["spec"]["template"]["spec"] = {"containers": [{"name": "postgres", "image": "pg"}]}
    assert isinstance(step(observed(*pods), live), rollout.Nothing)
    live["spec"]["template"]["spec"] = {"containers": [{"name": "postgres", "image": "pg:2"}]}
    assert isinstance(step(observed(*pods), live), rollout.Delete)


# --- the wish for a hand-over -----------------------------------------------------------------
def wished(seen: Observed, now: datetime = NOW) -> rollout.Step:
    return step(seen, now=now)


def test_a_refused_hand_over_is_asked_for_again_after_a_while_and_under_another_name() -> None:
    pods = (old(0), instance(1), instance(2))
    first = wished(observed(*pods))
    assert isinstance(first, rollout.HandOver)
    assert first.wish.request.endswith("-1")
    last = {
        "request": first.wish.request,
        "state": "Refused",
        "reason": "shop-1 lags",
        "endedAt": "2026-05-01T10:00:00Z",
    }
    seen = observed(*pods, status={"lastSwitchover": last})
    found = wished(seen)
    assert isinstance(found, rollout.Stopped)
    assert "shop-1 lags" in found.reason
    again = wished(seen, NOW.replace(second=16))
    assert isinstance(again, rollout.HandOver)
    assert again.wish.request == first.wish.request[:-1] + "2"


def test_the_wish_lasts_as_long_as_its_hand_over_runs() -> None:
    pods = (old(0, handover={"state": "holding"}), instance(1), instance(2))
    first = wished(observed(old(0), instance(1), instance(2)))
    assert isinstance(first, rollout.HandOver)
    last = {"request": first.wish.request, "state": "Running"}
    pausing = {names.ANNOTATION_PAUSING: "true"}
    found = wished(observed(*pods, lease=pausing, status={"lastSwitchover": last}))
    assert found == first


# --- any order of events ----------------------------------------------------------------------
@dataclass
class Server:
    """One instance of the model. `busy` counts the looks until it is back."""

    template: int = 0
    running: int = 0  # the parameters that postgres runs with
    loaded: int = 0
    busy: int = 0
    rolled: list[tuple[str, int]] = field(default_factory=list)
    restarted: str | None = None


@dataclass
class World:
    """Instances that take their time, and an operator that remembers nothing."""

    servers: list[Server]
    template: int = 0
    parameters: int = 0
    seen: int = 0  # the template that the StatefulSet's controller has taken over
    primary: int = 0
    switchovers: int = 0
    delays: list[int] = field(default_factory=list)

    def delay(self) -> int:
        return self.delays.pop() if self.delays else 1

    def observed(self) -> Observed:
        settings_ = settings_of(PgCluster.parse(self.body()))
        pods = []
        for ordinal, server in enumerate(self.servers):
            current = server.loaded == self.parameters
            pod = instance(
                ordinal,
                primary=self.primary,
                revision=str(server.template),
                inputs=str(server.template),
                ready=server.busy == 0,
                state="running" if server.busy == 0 else "starting",
                pending_restart=["shared_buffers"] if server.running != server.loaded else [],
                settings=settings_ if current else "before",
                restarted=server.restarted,
                streaming=[f"shop-{n}" for n, s in enumerate(self.servers) if s.busy == 0]
                if ordinal == self.primary
                else None,
            )
            pods.append(pod)
        return replace(observed(*pods, holder=f"shop-{self.primary}"), cluster=self.body())

    def body(self) -> dict[str, Any]:
        value = f"{128 + self.parameters}MB"
        return cluster(
            instances=len(self.servers), postgres={"parameters": {"shared_buffers": value}}
        )

    def live(self) -> dict[str, Any]:
        live = stateful_set(revision=str(self.seen), inputs=str(self.template))
        live["metadata"]["generation"] = self.template
        live["status"]["observedGeneration"] = self.seen
        return live

    def look(self) -> rollout.Step:
        """The operator looks, and does what it decides."""
        found = step(self.observed(), self.live())
        match found:
            case rollout.Delete(pod=pod):
                self.away(names.ordinal(pod), "deleted")
                server = self.servers[names.ordinal(pod)]
                server.template = self.template
                server.restarted = None
            case rollout.Restart(config=order):
                self.away(names.ordinal(order.instance), "restarted")
                self.servers[names.ordinal(order.instance)].restarted = order.request
            case rollout.HandOver(wish=wish):
                former = self.primary
                self.primary = next(
                    n for n in range(len(self.servers)) if f"shop-{n}" not in wish.avoid
                )
                self.switchovers += 1
                server = self.servers[former]
                server.running, server.busy = server.loaded, self.delay()
        return found

    def away(self, ordinal: int, how: str) -> None:
        assert all(server.busy == 0 for server in self.servers), "two are away at once"
        if len(self.servers) > 1:
            assert ordinal != self.primary, "the primary is taken away"
        server = self.servers[ordinal]
        server.loaded = server.running = self.parameters
        server.busy = self.delay()
        server.rolled.append((how, self.template))

    def tick(self) -> None:
        """Time passes: those that are away come back, files are loaded."""
        self.seen = self.template
        for server in self.servers:
            server.busy = max(0, server.busy - 1)
            server.loaded = self.parameters


def settle(world: World, *, within: int = 200) -> None:
    for _ in range(within):
        world.look()
        world.tick()
        if isinstance(world.look(), rollout.Nothing) and not any(s.busy for s in world.servers):
            return
    raise AssertionError(f"it does not come to its end: {world}")


CHANGES = st.lists(st.sampled_from(["template", "parameters", "look", "tick"]), max_size=30)
DELAYS = st.lists(st.integers(1, 5), max_size=20)


@settings(max_examples=100, deadline=None)
@given(instances=st.integers(1, 5), primary=st.integers(0, 4), events=CHANGES, delays=DELAYS)
def test_whatever_changes_in_the_middle_it_ends_at_the_newest_and_never_takes_two(
    instances: int, primary: int, events: list[str], delays: list[int]
) -> None:
    world = World([Server() for _ in range(instances)], primary=primary % instances)
    world.delays = delays
    for event in events:
        match event:
            case "template":
                world.template += 1
            case "parameters":
                world.parameters += 1
            case "look":
                world.look()
            case _:
                world.tick()
    settle(world)
    for server in world.servers:
        assert (server.template, server.running) == (world.template, world.parameters)


@settings(max_examples=60, deadline=None)
@given(
    instances=st.integers(2, 5),
    primary=st.integers(0, 4),
    changes=st.sets(st.sampled_from(["template", "parameters"]), min_size=1),
    delays=DELAYS,
)
def test_one_change_takes_each_instance_once_and_hands_over_once(
    instances: int, primary: int, changes: set[str], delays: list[int]
) -> None:
    world = World([Server() for _ in range(instances)], primary=primary % instances)
    world.delays = delays
    former = world.servers[world.primary]
    world.template += "template" in changes
    world.parameters += "parameters" in changes
    world.tick()
    settle(world)
    assert world.switchovers == 1
    for server in world.servers:
        # A hand-over restarts postgres anyway: no parameter is left for the former primary.
        once = 0 if server is former and changes == {"parameters"} else 1
        assert len(server.rolled) == once, world
