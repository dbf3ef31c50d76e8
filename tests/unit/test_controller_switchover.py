"""Switchovers: each request once, whatever ends in the middle, and an end for each."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig, SwitchoverConfig
from pgcluster.api.models import PgCluster, PgClusterStatus
from pgcluster.controller import attempts, events, status, switchover
from pgcluster.controller.metrics import Metrics
from pgcluster.controller.observe import Observed
from pgcluster.controller.wishes import Wish
from tests.unit.test_controller_rollout import instance, observed

NOW = datetime(2026, 5, 1, 10, tzinfo=UTC)


class World:
    """The operator's looks at one cluster; what is stored is what the last look told."""

    def __init__(self, *, annotation: str | None = None, **spec: Any) -> None:
        self.pods = [instance(ordinal) for ordinal in range(3)]
        self.holder = "shop-0"
        self.epoch = 1
        self.stored = PgClusterStatus(system_identifier="7")
        self.annotation = annotation
        self.spec = spec
        self.now = NOW
        self.wishes: list[Wish] = []
        # What the agents were told.
        self.given: SwitchoverConfig | None = None
        # Instances on nodes that are about to go.
        self.going: tuple[str, ...] = ()

    def utter(self, *causes: str) -> None:
        """What the parts of the operator wish at this moment: each asks by its own attempts."""
        self.wishes = []
        for cause in causes:
            attempt = attempts.attempt(self.seen, f"{cause}-x")
            self.wishes.append(
                Wish(
                    cause,  # type: ignore[arg-type] # as it is given
                    attempt.request,
                    f"a {cause} wants it",
                    avoid=frozenset({"shop-1", "shop-2"}),
                    not_before=attempt.not_before,
                )
            )

    @property
    def seen(self) -> Observed:
        made = observed(*self.pods, holder=self.holder, **self.spec)
        lease = {
            "metadata": {"annotations": {}},
            "spec": {"holderIdentity": self.holder, "leaseTransitions": self.epoch},
        }
        annotations = (
            {} if self.annotation is None else {names.ANNOTATION_SWITCHOVER: self.annotation}
        )
        cluster = {**made.cluster, "metadata": {**made.cluster["metadata"]}}
        cluster["metadata"]["annotations"] = annotations
        cluster["status"] = self.stored.model_dump(mode="json", by_alias=True, exclude_none=True)
        config = ClusterConfig(
            name="shop", namespace="test", uid="u", instances=3, switchover=self.given
        )
        told = {"data": {names.CONFIG_KEY: config.model_dump_json()}}
        return replace(
            made,
            cluster=cluster,
            children={
                ("Lease", "shop-primary"): lease,
                ("ConfigMap", names.config_map("shop")): told,
            },
        )

    def look(self, *, stored: bool = True) -> switchover.Decision:
        """One reconciliation; `stored`: it got as far as writing the status."""
        seen = self.seen
        found = switchover.decide(
            seen,
            PgCluster.parse(seen.cluster),
            self.stored,
            self.wishes,
            now=self.now,
            going=self.going,
        )
        if stored:
            self.stored = self.stored.model_copy(
                update={"last_switchover": found.record, "switchover_request": found.handled}
            )
        return found

    def hand_over(self, to: int) -> None:
        self.holder, self.epoch = f"shop-{to}", self.epoch + 1
        self.pods = [instance(ordinal, primary=to) for ordinal in range(3)]

    def primary_says(self, **handover: Any) -> None:
        told = {"request": self.annotation, "target": "shop-1", "epoch": 1, **handover}
        self.pods[0] = instance(0, handover=told)

    @property
    def state(self) -> str | None:
        record = self.stored.last_switchover
        return record.state if record else None


def test_a_request_is_ordered_once_it_is_on_record_and_ends_when_the_target_is_the_primary() -> (
    None
):
    world = World(annotation="shop-1:monday")
    first = world.look()
    assert first.order is None
    assert world.state == "Running"
    assert world.look().order == SwitchoverConfig(request="shop-1:monday", target="shop-1", epoch=1)
    world.hand_over(1)
    assert world.look().order is None
    assert world.state == "Succeeded"
    record = world.stored.last_switchover
    assert record is not None
    assert (record.from_, record.to, record.cause) == ("shop-0", "shop-1", "request")


def test_the_same_value_does_nothing_a_second_time_and_a_new_one_does() -> None:
    world = World(annotation="any:1")
    world.look()
    world.hand_over(1)
    world.look()
    before = world.stored
    for _ in range(3):
        assert world.look().order is None
    assert world.stored == before
    world.annotation = "any:2"
    world.look()
    assert world.look().order == SwitchoverConfig(request="any:2", target="shop-0", epoch=2)


def test_an_operator_that_ends_before_it_stores_the_record_has_ordered_nothing() -> None:
    world = World(annotation="any:1")
    assert world.look(stored=False).order is None
    assert world.look(stored=False).order is None
    world.look()
    order = world.look(stored=False).order
    assert order is not None
    assert world.look().order == order


def test_an_operator_that_ends_before_it_stores_the_end_tells_it_later() -> None:
    world = World(annotation="any:1")
    world.look()
    world.hand_over(1)
    assert world.look(stored=False).order is None
    assert world.look().order is None
    assert world.state == "Succeeded"


def test_a_rolling_changes_own_switchover_does_not_make_a_done_request_new() -> None:
    world = World(annotation="any:1")
    world.look()
    world.hand_over(1)
    world.look()
    world.wishes = [Wish("rollout", "rollout-a-1", "it is its turn")]
    world.look()
    assert world.state == "Running"
    world.wishes = []
    world.hand_over(0)
    world.look()
    assert world.state == "Succeeded"
    assert world.look().order is None, "and not the request of before"


def test_a_request_that_came_with_a_new_clusters_manifest_is_not_carried_out() -> None:
    world = World(annotation="shop-1:monday")
    world.stored = PgClusterStatus()
    assert world.look().record is None
    world.stored = world.stored.model_copy(update={"system_identifier": "7"})
    assert world.look().record is None


@pytest.mark.parametrize(
    ("annotation", "told"),
    [
        ("shop-7", "there is no standby shop-7; the standbys are: shop-1, shop-2"),
        ("Shop 1", "must be the name of an instance or `any`"),
        ("shop-1:", "must be the name of an instance or `any`"),
        ("shop-1; DROP", "must be the name of an instance or `any`"),
        ("shop-2", "shop-2 is not ready: lagging"),
    ],
)
def test_what_cannot_be_done_is_refused_with_the_reason(annotation: str, told: str) -> None:
    world = World(annotation=annotation)
    world.pods[2] = instance(2, ready=False, reason="lagging")
    world.look()
    assert world.state == "Refused"
    assert world.stored.last_switchover is not None
    assert told in world.stored.last_switchover.reason
    assert world.look().order is None


def test_who_is_the_primary_already_has_nothing_to_do() -> None:
    world = World(annotation="shop-0")
    world.look()
    assert world.state == "Succeeded"
    assert world.look().order is None


def test_without_a_primary_and_while_paused_it_is_refused() -> None:
    world = World(annotation="any")
    world.holder = ""
    world.look()
    assert world.state == "Refused"
    paused = World(annotation="any", paused=True)
    paused.look()
    assert paused.state == "Refused"
    assert paused.stored.last_switchover is not None
    assert "spec.paused" in paused.stored.last_switchover.reason


@pytest.mark.parametrize(("state", "ends"), [("refused", "Refused"), ("failed", "Failed")])
def test_the_primarys_word_ends_it(state: str, ends: str) -> None:
    world = World(annotation="shop-1:a")
    world.look()
    world.primary_says(state="checking")
    assert world.look().order is not None
    world.primary_says(state=state, reason="a slot is missing")
    assert world.look().order is None
    assert world.state == ends
    assert world.stored.last_switchover is not None
    assert world.stored.last_switchover.reason == "a slot is missing"


def test_the_word_about_another_request_or_epoch_is_not_taken_for_this_one() -> None:
    world = World(annotation="shop-1:a")
    world.look()
    world.primary_says(state="refused", request="shop-1:b")
    assert world.look().order is not None
    world.primary_says(state="refused", epoch=0)
    assert world.look().order is not None


def test_another_primary_than_asked_for_is_a_failure_that_names_it() -> None:
    world = World(annotation="shop-1:a")
    world.look()
    world.hand_over(2)
    world.look()
    assert world.state == "Failed"
    assert world.stored.last_switchover is not None
    assert "shop-2 became the primary instead" in world.stored.last_switchover.reason


def test_in_the_middle_of_the_change_nobody_is_the_primary_and_it_is_not_over() -> None:
    world = World(annotation="shop-1:a")
    world.look()
    world.holder, world.epoch = "shop-1", 2
    assert world.look().record is not None
    assert world.state == "Running"


def test_what_comes_to_nothing_is_withdrawn() -> None:
    world = World(annotation="shop-1:a")
    world.look()
    assert world.look().order is not None
    world.now += timedelta(hours=1)
    assert world.look().order is None
    assert world.state == "Failed"


def test_a_request_waits_for_a_hand_over_that_nobody_ordered() -> None:
    world = World(annotation="any:1")
    world.primary_says(state="holding", request=None)
    assert world.look().waiting == "shop-0 is handing over already"
    assert world.stored.switchover_request is None
    world.primary_says(state="refused", request=None)
    world.look()
    assert world.state == "Running"


def test_of_several_wishes_the_weightiest_comes_first_and_none_twice() -> None:
    world = World()
    world.wishes = [
        Wish("rollout", "rollout-a-1", "its turn", avoid=frozenset({"shop-1"})),
        Wish("scale", "scale-a-1", "it is removed", avoid=frozenset({"shop-2"})),
    ]
    world.look()
    order = world.look().order
    assert order == SwitchoverConfig(request="scale-a-1", target="shop-1", epoch=1)
    world.hand_over(1)
    world.look()
    world.look()
    assert world.look().order == SwitchoverConfig(request="rollout-a-1", target="shop-0", epoch=2)


def test_a_wish_that_nobody_can_fulfil_is_refused_and_told() -> None:
    world = World()
    world.wishes = [
        Wish("rollout", "rollout-a-1", "its turn", avoid=frozenset({"shop-1", "shop-2"}))
    ]
    world.look()
    assert world.state == "Refused"
    assert world.look().order is None


def test_the_nearest_standby_is_chosen() -> None:
    world = World(annotation="any:1")
    world.pods[1] = instance(1, lag_bytes=1 << 24)
    world.pods[2] = instance(2, lag_bytes=0)
    world.look()
    order = world.look().order
    assert order is not None
    assert order.target == "shop-2"


def test_who_does_not_stream_is_not_chosen() -> None:
    world = World(annotation="any:1")
    world.pods[0] = instance(0, streaming=["shop-2"])
    world.look()
    order = world.look().order
    assert order is not None
    assert order.target == "shop-2"


def test_each_change_is_told_once() -> None:
    world = World(annotation="shop-1:a")
    told = []
    for step in range(4):
        before = world.stored
        if step == 2:
            world.hand_over(1)
        world.look()
        told += [event.reason for event in events.between(before, world.stored)]
    assert told == ["SwitchoverRequested", "SwitchoverSucceeded"]


def test_who_asked_is_who_wrote_the_annotation() -> None:
    field = {"f:metadata": {"f:annotations": {f"f:{names.ANNOTATION_SWITCHOVER}": {}}}}
    managed: list[Mapping[str, Any]] = [
        {"manager": "kubectl-create", "fieldsV1": {"f:spec": {}}},
        {"manager": "argocd", "fieldsV1": field},
    ]
    world = World(annotation="any")
    manifest = world.seen.cluster
    manifest["metadata"]["managedFields"] = managed
    assert switchover.asked_by(PgCluster.parse(manifest)) == "argocd"


def test_a_rolling_change_waits_for_a_switchover_that_is_not_its_own() -> None:
    world = World(annotation="shop-1:a")
    parsed = PgCluster.parse(world.seen.cluster)
    assert switchover.in_the_way(parsed, world.stored) is not None
    world.look()
    assert switchover.in_the_way(parsed, world.stored) is not None
    world.hand_over(1)
    world.look()
    assert switchover.in_the_way(parsed, world.stored) is None
    world.wishes = [Wish("rollout", "rollout-a-1", "its turn")]
    world.look()
    assert world.state == "Running"
    assert switchover.in_the_way(parsed, world.stored) is None


def test_one_that_the_primary_carries_out_is_waited_for_however_long_it_takes() -> None:
    world = World(annotation="shop-1:a")
    world.look()
    world.primary_says(state="checking")
    world.now += timedelta(minutes=10)
    assert world.look().order is not None
    assert world.state == "Running"
    world.holder = ""
    world.look()
    assert world.state == "Failed"
    assert world.stored.last_switchover is not None
    assert "no instance is the primary" in world.stored.last_switchover.reason


def test_an_old_primary_that_comes_back_instead_of_the_target_is_told() -> None:
    world = World(annotation="shop-1:a")
    world.look()
    world.epoch += 1
    world.look()
    assert world.state == "Failed"
    assert world.stored.last_switchover is not None
    assert world.stored.last_switchover.reason == "shop-0 is the primary again"


def test_pausing_takes_back_what_nobody_was_told_yet() -> None:
    world = World(annotation="shop-1:a")
    world.look()
    world.spec = {"paused": True}
    assert world.look().order is None
    assert world.state == "Refused"


def test_pausing_fails_nothing_that_the_agents_may_still_do() -> None:
    world = World(annotation="shop-1:a")
    world.look()
    world.given = world.look().order
    world.spec = {"paused": True}
    world.now += timedelta(hours=1)
    world.look()
    assert world.state == "Running", "the order stands there and nothing is written"
    world.spec = {}
    assert world.look().order is None
    assert world.state == "Failed"


def test_an_annotation_of_any_length_is_dealt_with_once() -> None:
    world = World(annotation="shop-1:" + "a" * 100_000)
    world.look()
    assert world.state == "Refused"
    before = world.stored
    world.look()
    assert world.stored == before
    world.annotation = "shop-1:" + "a" * 100_001
    world.look()
    assert world.stored != before


def test_wishes_that_nobody_can_fulfil_take_turns_ever_more_slowly() -> None:
    world = World()
    tried: list[tuple[str, datetime]] = []
    for _ in range(720):
        before = world.stored.last_switchover
        world.utter("scale", "node")
        world.look()
        record = world.stored.last_switchover
        if record is not None and record != before:
            tried.append((record.request, world.now))
        world.now += timedelta(seconds=5)
    requests = [request for request, _ in tried]
    assert len(set(requests)) == len(requests), "an agent does not try the same one again"
    assert {request.split("-")[0] for request in requests} == {"scale", "node"}
    assert len(tried) < 3600 / 60 + 5
    pauses = [(b - a).total_seconds() for (_, a), (_, b) in itertools.pairwise(tried)]
    assert pauses[0] >= 7
    assert pauses[-1] >= 60


def test_a_request_of_a_person_does_not_make_an_old_attempt_new() -> None:
    world = World()
    world.utter("node")
    world.look()
    assert world.state == "Refused"
    world.annotation = "shop-9"
    world.look()
    world.now += timedelta(minutes=10)
    world.utter("node")
    world.look()
    assert world.stored.last_switchover is not None
    assert world.stored.last_switchover.request == "node-x-2"


def test_a_success_starts_the_count_anew() -> None:
    world = World()
    world.utter("node")
    world.look()
    world.annotation, world.wishes = "any:1", []
    world.look()
    world.hand_over(1)
    world.look()
    assert world.state == "Succeeded"
    world.utter("scale")
    assert world.wishes[0].request == "scale-x-1"
    assert world.wishes[0].not_before is None


def test_a_wish_that_waits_for_its_next_attempt_is_told_and_looked_at_again() -> None:
    world = World(pgbouncer={"instances": 0})
    world.utter("node")
    world.look()
    world.utter("node")
    found = world.look()
    assert found.unmet is not None
    assert found.unmet.startswith("a node wants it, but no instance can take over")
    assert found.again_s == 15.0
    parsed = PgCluster.parse(world.seen.cluster)
    told = status.compute(
        world.seen, parsed, status.Outcome(switchover=found), now="2026-05-01T10:00:00Z"
    )
    progressing = next(c for c in told.conditions if c.type == "Progressing")
    assert (progressing.status, progressing.reason) == ("False", "SwitchoverRefused")
    world.wishes = []
    assert world.look().unmet is None


def test_the_best_is_not_on_a_node_that_is_about_to_go_where_another_is_fit() -> None:
    world = World(annotation="any:1")
    world.pods[2] = instance(2, lag_bytes=1 << 24)
    world.going = ("shop-1",)
    world.look()
    order = world.look().order
    assert order is not None
    assert order.target == "shop-2"
    lonely = World(annotation="any:1")
    lonely.going = ("shop-1", "shop-2")
    lonely.look()
    assert lonely.state == "Running"


@pytest.mark.parametrize("annotation", ["shop-1:a", "shop-9"])
def test_a_status_that_could_not_be_written_posts_no_event_twice(annotation: str) -> None:
    world = World(annotation=annotation)
    posted = set()
    for _ in range(3):
        before = world.stored
        found = world.look(stored=False)
        after = before.model_copy(update={"last_switchover": found.record})
        told = events.between(before, after)
        assert told
        posted |= {(event.reason, event.note, event.occasion) for event in told}
        world.now += timedelta(seconds=7)
    assert len(posted) == len(told)


def test_each_end_is_counted_once_by_cause_and_outcome() -> None:
    world = World(annotation="shop-9")
    metrics = Metrics()
    for _ in range(3):
        before = world.stored
        world.look()
        ended = events.ended_switchover(before, world.stored)
        if ended is not None:
            metrics.switchover("test", "shop", ended.cause, ended.state)
    labels = {"namespace": "test", "name": "shop", "cause": "request", "outcome": "refused"}
    value = metrics.registry.get_sample_value
    assert value("pgcluster_switchovers_total", labels) == 1
    metrics.failover("test", "shop", "switchover")
    metrics.forget("test", "shop")
    assert value("pgcluster_switchovers_total", labels) is None


def test_who_is_about_to_go_is_not_made_the_primary_first() -> None:
    removed = World(annotation="shop-2", instances=2)
    removed.look()
    assert removed.state == "Refused"
    assert removed.stored.last_switchover is not None
    assert "is to be restarted, left or removed" in removed.stored.last_switchover.reason
    held = World(annotation="any", maintenance=[{"instance": "shop-1"}])
    held.look()
    order = held.look().order
    assert order is not None
    assert order.target == "shop-2"
    asleep = World(annotation="any", hibernated=True)
    asleep.look()
    assert asleep.state == "Refused"
