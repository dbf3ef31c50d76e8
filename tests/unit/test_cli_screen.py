"""What the plugin's screens say: everything that matters, nothing of another cluster, short."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from pgcluster.api.models import PgClusterStatus
from pgcluster.cli import screen

NOW = datetime(2026, 5, 1, 12, tzinfo=UTC)
BODY = {
    "metadata": {
        "name": "shop",
        "namespace": "test",
        "generation": 3,
        "creationTimestamp": "2026-04-01T12:00:00Z",
    },
    "spec": {"instances": 3},
}
FULL: dict[str, Any] = {
    "observedGeneration": 3,
    "summary": "Degraded",
    "primary": "shop-1",
    "timeline": 4,
    "epoch": 4,
    "readyInstances": 2,
    "conditions": [
        {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": "so it is",
            "lastTransitionTime": "2026-05-01T11:59:00Z",
        }
        for kind, status, reason in [
            ("Ready", "False", "InstancesNotReady"),
            ("Degraded", "True", "WalRetained"),
        ]
    ],
    "members": [
        {
            "pod": "shop-0",
            "role": "standby",
            "state": "running",
            "ready": True,
            "timeline": 4,
            "lagBytes": 256 * 1024**2,
            "upstream": "shop-1",
            "repmgrd": True,
            "diskUsedPercent": 95,
            "postgresVersion": "17.11",
            "pendingRestart": ["max_connections"],
        },
        {"pod": "shop-1", "role": "primary", "state": "running", "ready": True, "timeline": 4},
        {"pod": "shop-2", "state": "cloning", "progress": "clone: 412 of 2048 MiB"},
    ],
    "poolers": [{"pod": "pool-1", "ready": True, "primary": "shop-1", "paused": True}],
    "lastFailover": {
        "from": "shop-0",
        "to": "shop-1",
        "cause": "failover",
        "timeline": 4,
        "epoch": 4,
        "detectedAt": "2026-05-01T11:00:00.000000Z",
        "gateMs": 12,
        "promotedMs": 210,
    },
    "lastSwitchover": {
        "request": "shop-2:monday",
        "askedBy": "argocd",
        "from": "shop-1",
        "to": "shop-2",
        "state": "Refused",
        "reason": "shop-2 is cloning",
        "endedAt": "2026-05-01T11:58:00Z",
    },
}


def shown(status: dict[str, Any], *, colours: bool = False, **metadata: Any) -> str:
    body = {**BODY, "metadata": {**BODY["metadata"], **metadata}}
    known = PgClusterStatus.model_validate(status)
    return "\n".join(screen.status(body, known, now=NOW, colours=colours))


@pytest.mark.parametrize(
    "line",
    [
        r"test/shop  Degraded",
        r"2 of 3 instances ready, primary shop-1, PostgreSQL 17\.11, timeline 4, epoch 4,"
        r" made 30d ago",
        r"Ready +False +InstancesNotReady +60s +so it is",
        r"shop-0 +standby +running +yes +4 +≤ 256 MiB +shop-1 +95 % +- +"
        r"waits for a restart: max_connections",
        r"shop-1 +primary +running +yes +4 +- +- +- +- +repmgrd does not run",
        r"shop-2 +- +cloning +no .*clone: 412 of 2048 MiB",
        r"pool-1 +yes +wait +shop-1",
        r"Last change of primary: failover shop-0 → shop-1, 60m ago",
        r"  had the right to write 12 ms, promoted 210 ms",
        r"Last switchover: Refused shop-1 → shop-2, request shop-2:monday by argocd, 2m0s ago",
        r"  shop-2 is cloning",
    ],
)
def test_the_screen_has_what_a_person_on_call_looks_for(line: str) -> None:
    assert re.search(f"^{line}", shown(FULL), re.MULTILINE), shown(FULL)


def test_a_cluster_that_no_operator_has_seen_is_shown_too() -> None:
    told = shown({})
    assert "not seen by an operator yet" in told
    assert "0 of 3 instances ready, no primary" in told


def test_a_status_that_is_older_than_the_spec_says_so() -> None:
    assert "has not looked at the last change" in shown(FULL, generation=4)
    assert "has not looked at the last change" not in shown(FULL)


def test_colours_change_no_column() -> None:
    plain = re.sub(r"\x1b\[\d+m", "", shown(FULL, colours=True))
    assert plain == shown(FULL)
    assert shown(FULL, colours=True) != plain


def test_a_long_message_does_not_make_a_table_unreadable() -> None:
    member = {"pod": "shop-0", "reason": "why " * 500}
    told = shown({"members": [member]})
    assert max(len(line) for line in told.splitlines()) < 300


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0s"), (119, "119s"), (125, "2m5s"), (3600, "60m"), (7 * 3600, "7h"), (10**6, "11d")],
)
def test_spans_are_as_kubectl_writes_them(seconds: int, text: str) -> None:
    assert screen.short(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    ("kind", "name", "ours"),
    [
        ("PgCluster", "shop", True),
        ("Pod", "shop-0", True),
        ("Pod", "shop-pgbouncer-7d9f-x2x", True),
        ("PersistentVolumeClaim", "wal-shop-1", True),
        ("Pod", "shop-eu-0", False),
        ("Pod", "workshop-0", False),
        ("PersistentVolumeClaim", "data-shop-eu-1", False),
        ("Node", "worker-1", False),
    ],
)
def test_events_of_another_cluster_are_told_apart_by_name(kind: str, name: str, ours: bool) -> None:
    event = {"metadata": {}, "regarding": {"kind": kind, "name": name}}
    assert screen.concerns(event, "shop") is ours


def test_an_event_is_as_old_as_its_last_repetition() -> None:
    event = {
        "metadata": {"creationTimestamp": "2026-05-01T10:00:00Z"},
        "eventTime": None,
        "deprecatedLastTimestamp": "2026-05-01T11:00:00Z",
        "series": {"lastObservedTime": "2026-05-01T11:30:00.000000Z"},
    }
    assert screen.moment(event) == NOW - timedelta(minutes=30)
    del event["series"]
    assert screen.moment(event) == NOW - timedelta(hours=1)


def test_the_list_shows_also_what_has_no_status_yet() -> None:
    lines = screen.clusters([BODY], namespaces=True, now=NOW, colours=False)
    assert re.match(r"test +shop +- +0/3 +- +- +0/0 +- +30d", lines[1])
