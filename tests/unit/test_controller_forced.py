"""A forced promotion leaves a trail: who asked, and what came of it."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from pgcluster.api.models import PgCluster, PgClusterStatus
from pgcluster.api.reports import PromotionPhases
from pgcluster.controller import events
from pgcluster.controller.asking import manager_of
from pgcluster.controller.observe import InstancePod, Observed
from pgcluster.controller.status import Outcome, compute
from pgcluster.kube.errors import AlreadyExists
from pgcluster.kube.events import EventRate
from tests.unit.test_controller_status import LATER, NOW, instance, observed

PROMOTION = PromotionPhases(
    primary="shop-1",
    previous="shop-0",
    epoch=5,
    timeline=2,
    cause="failover",
    detected="2026-05-01T09:59:59.000000Z",
)
LOST = (instance(1),)
PROMOTED = (instance(1, "primary", timeline=2, promotion=PROMOTION),)
OTHER = (instance(1), instance(2, "primary", timeline=2))


class Trail:
    """Looks one after the other at what changes, and the Events that they gave."""

    def __init__(self) -> None:
        self.stored = PgClusterStatus()
        self.told: list[str] = []
        self.notes: list[str] = []

    def look(
        self,
        *pods: InstancePod,
        holder: str = "",
        epoch: int = 4,
        wish: dict[str, Any] | None,
        now: str = NOW,
    ) -> str | None:
        """Another look; the state of the wish then."""
        spec = {"failover": {"forcePromotion": wish}} if wish else {}
        seen: Observed = observed(*pods, holder=holder, epoch=epoch, status=self.stored, **spec)
        owned = {"f:spec": {"f:failover": {"f:forcePromotion": {"f:instance": {}}}}}
        seen.cluster["metadata"]["managedFields"] = [
            {"manager": "argocd", "time": NOW, "fieldsV1": {"f:spec": {}}},
            {"manager": "kubectl-edit", "time": NOW, "fieldsV1": owned},
        ]
        after = compute(seen, PgCluster.parse(seen.cluster), Outcome(), now=now)
        found = [e for e in events.between(self.stored, after) if "Forced" in e.reason]
        self.told += [event.reason for event in found]
        self.notes += [event.note for event in found]
        self.stored = after
        return after.forced_promotion.state if after.forced_promotion else None


WISH = {"instance": "shop-1", "epoch": 4}


def test_a_wish_that_is_met_tells_who_asked_and_that_it_was() -> None:
    trail = Trail()
    assert trail.look(*LOST, wish=None) is None
    assert trail.look(*LOST, wish=WISH) == "Waiting"
    assert trail.look(*LOST, wish=WISH, now=LATER) == "Waiting"
    assert trail.look(*LOST, holder="shop-1", epoch=5, wish=WISH) == "Waiting"
    assert trail.look(*PROMOTED, holder="shop-1", epoch=5, wish=WISH) == "Succeeded"
    # It stays in the manifest, and is of an epoch that has passed.
    assert trail.look(*PROMOTED, holder="shop-1", epoch=7, wish=WISH, now=LATER) == "Succeeded"
    assert trail.told == ["ForcedPromotionRequested", "ForcedPromotionSucceeded"]
    assert all("asked for by kubectl-edit" in note for note in trail.notes)
    record = trail.stored.forced_promotion
    assert record is not None
    assert (record.asked_by, record.seen_at, record.ended_at) == ("kubectl-edit", NOW, NOW)


def test_one_that_was_met_while_the_operator_was_away_is_known_by_the_failover() -> None:
    trail = Trail()
    assert trail.look(*PROMOTED, holder="shop-1", epoch=5, wish=WISH) == "Succeeded"
    assert trail.told == ["ForcedPromotionRequested", "ForcedPromotionSucceeded"]


def test_where_another_instance_is_faster_that_is_told() -> None:
    trail = Trail()
    trail.look(*LOST, wish=WISH)
    assert trail.look(*OTHER, holder="shop-2", epoch=5, wish=WISH) == "Superseded"
    assert trail.told[-1] == "ForcedPromotionSuperseded"


def test_one_of_another_epoch_is_told_to_mean_nothing() -> None:
    trail = Trail()
    stale = {"instance": "shop-1", "epoch": 2}
    assert trail.look(*OTHER, holder="shop-2", wish=stale) == "Ignored"
    assert trail.look(*OTHER, holder="shop-2", wish=stale, now=LATER) == "Ignored"
    assert trail.told == ["ForcedPromotionRequested", "ForcedPromotionIgnored"]


def test_one_of_an_epoch_to_come_still_waits() -> None:
    trail = Trail()
    assert trail.look(*LOST, epoch=3, wish=WISH) == "Waiting"
    assert trail.look(*PROMOTED, holder="shop-1", epoch=5, wish=WISH) == "Succeeded"


def test_a_primary_that_serves_is_not_deposed_and_that_is_told() -> None:
    trail = Trail()
    assert trail.look(*OTHER, holder="shop-2", wish=WISH) == "Waiting"
    record = trail.stored.forced_promotion
    assert record is not None
    assert record.reason == "shop-2 is the primary, and is not deposed by a wish"


def test_a_name_that_is_no_instance_is_told() -> None:
    trail = Trail()
    trail.look(*LOST, wish={"instance": "shop-9", "epoch": 4})
    record = trail.stored.forced_promotion
    assert record is not None
    assert record.reason == "there is no instance shop-9"


def test_one_that_is_taken_back_and_made_again_is_two() -> None:
    trail = Trail()
    trail.look(*LOST, wish=WISH)
    assert trail.look(*LOST, wish=None) == "Withdrawn"
    assert trail.look(*LOST, wish=WISH, now=LATER) == "Waiting"
    assert trail.told == [
        "ForcedPromotionRequested",
        "ForcedPromotionWithdrawn",
        "ForcedPromotionRequested",
    ]


def test_one_that_is_taken_back_after_it_was_met_was_met() -> None:
    trail = Trail()
    trail.look(*LOST, wish=WISH)
    assert trail.look(*PROMOTED, holder="shop-1", epoch=5, wish=None) == "Succeeded"


def test_of_several_who_own_a_field_the_last_one_asked() -> None:
    field = {"f:metadata": {"f:annotations": {"f:a/b": {}}}}
    metadata = {
        "managedFields": [
            {"manager": "first", "time": "2026-05-01T10:00:00Z", "fieldsV1": field},
            {"manager": "last", "time": "2026-05-01T11:00:00Z", "fieldsV1": field},
            {"manager": "status", "time": "2026-05-01T12:00:00Z", "fieldsV1": {"f:status": {}}},
        ]
    }
    assert manager_of(metadata, "metadata", "annotations", "a/b") == "last"
    assert manager_of(metadata, "metadata", "annotations", "a/c") is None
    assert manager_of({}, "metadata") is None


async def test_each_event_is_in_the_log_once(caplog: pytest.LogCaptureFixture) -> None:
    """Kubernetes drops Events after an hour."""

    class Api:
        posted = 0

        async def create(self, *_: Any) -> None:
            self.posted += 1
            if self.posted > 1:
                raise AlreadyExists(409, "AlreadyExists", "posted before a crash")

    api: Any = Api()
    happened = [events.Event("SwitchoverRequested", "request any (asked for by argocd)", "a")]
    caplog.set_level(logging.INFO)
    for _ in range(2):
        rate = EventRate()
        await events.post(
            api, observed(*LOST), happened, rate=rate, now_s=0.0, reporter="test", now=NOW
        )
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ["event SwitchoverRequested: request any (asked for by argocd)"]
