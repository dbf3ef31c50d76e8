"""How many Events are posted, whatever flaps."""

from __future__ import annotations

from typing import Any, cast

from prometheus_client import CollectorRegistry

from pgcluster.api.config import ClusterConfig
from pgcluster.controller import events as operator_events
from pgcluster.controller.observe import Observed
from pgcluster.kube import events as rates
from pgcluster.kube.client import KubeClient
from pgcluster.kube.events import EventRate
from pgcluster.kube.resources import EVENTS
from pgcluster.node import events as node_events
from tests.unit.fakekube import FakeKube

CLUSTER = {"metadata": {"name": "shop", "namespace": "test", "uid": "u"}}


def posted(kube: FakeKube) -> list[dict[str, Any]]:
    return [item for (plural, _, _), item in kube.objects.items() if plural == EVENTS.plural]


def test_of_a_reason_and_of_all_only_so_many_pass_within_the_window() -> None:
    rate = EventRate()
    same = [rate.admit("Flaps", float(n)) for n in range(100)]
    assert [one.post for one in same] == [True] * 10 + [False] * 90
    assert [one.announce for one in same].count(True) == 1
    others = [rate.admit(f"Other{n}", 100.0 + n) for n in range(100)]
    assert sum(one.post for one in others) == 40, "fifty in all"
    assert not any(one.announce for one in others), "it is said once a window"


def test_room_comes_back_and_the_next_tells_how_many_are_missing() -> None:
    rate = EventRate()
    for n in range(13):
        rate.admit("Flaps", float(n))
    later = rate.admit("Flaps", 601.0)
    assert later.post
    assert later.dropped == 3
    assert rate.admit("Flaps", 602.0).dropped == 0
    assert rates.counted("it flaps", 3).startswith("it flaps (3 more of this reason")


def test_a_note_is_as_long_as_the_api_takes_it() -> None:
    for note in ("x" * 5000, "…" * 5000):
        for dropped in (0, 12345):
            assert len(rates.counted(note, dropped).encode()) <= 1024
    assert rates.counted("short", 0) == "short"


async def test_an_operator_whose_cluster_flaps_for_a_day_posts_a_few() -> None:
    kube, rate = FakeKube(), EventRate()
    for minute in range(24 * 60):
        event = operator_events.Event("Ready", f"flap {minute}", str(minute))
        await operator_events.post(
            cast(KubeClient, kube),
            Observed(cluster=CLUSTER),
            [event] * 5 + [operator_events.Event("PrimaryLost", "lost", str(minute), warning=True)],
            rate=rate,
            now_s=60.0 * minute,
            reporter="operator",
            now=f"minute {minute}",
        )
    found = posted(kube)
    reasons = [event["reason"] for event in found]
    # Equal ones have one name; each of the two reasons may have ten in each of 144 windows.
    assert reasons.count("Ready") <= 144 * 10
    assert reasons.count("PrimaryLost") <= 144 * 10
    assert 0 < reasons.count(rates.TOO_MANY) <= 145
    assert any("were not posted" in event["note"] for event in found)


async def test_an_agent_whose_repmgr_repeats_itself_posts_a_few() -> None:
    events = node_events.Events(cast(KubeClient, FakeKube()), "shop-1", CollectorRegistry())
    config = ClusterConfig.model_construct(name="shop", namespace="test", uid="u")
    for n in range(500):
        events.post(config, "RejoinFailed", f"attempt {n}")
        events.repmgr(config, event="standby_recovery", success=True)
    queued = [events._queue.get_nowait() for _ in range(events._queue.qsize())]
    told = [reason for _, reason, _, _ in queued]
    assert told.count("RejoinFailed") == 10
    assert told.count("StandbyRecovery") == 1, "equal ones once a minute"
    assert told.count(rates.TOO_MANY) == 1
