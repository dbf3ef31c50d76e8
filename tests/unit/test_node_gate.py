"""The promotion gate."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pgcluster.api.wal import Lsn, WalPoint
from pgcluster.node.gate import Deny, GateFacts, Hold, Pass, Take, decide_gate
from pgcluster.topology.lease import LeaseRecord, LeaseView, Mark

ME, OTHER = "shop-1", "shop-0"
NOW = 500.0
AT = WalPoint(2, Lsn.parse("0/5000000"))


def view(holder: str, *, seen_s: float = NOW, mark: Mark | None = None) -> LeaseView:
    return LeaseView(LeaseRecord(holder, 1, 6.0, "t", mark or Mark("7001", AT)), seen_s)


FACTS = GateFacts(
    me=ME,
    now_s=NOW,
    lease=view(""),
    holding=False,
    point=AT,
    system_identifier="7001",
    maximum_lag_bytes=1024,
    holder_serves=None,
)


def test_the_holder_passes() -> None:
    assert isinstance(decide_gate(replace(FACTS, holding=True, lease=view(ME))), Pass)


def test_a_released_lease_is_taken() -> None:
    assert isinstance(decide_gate(FACTS), Take)


def test_a_lease_is_taken_only_when_it_was_watched_for_its_whole_duration() -> None:
    for age_s, expected in ((0.0, Hold), (5.9, Hold), (6.1, Take)):
        facts = replace(FACTS, lease=view(OTHER, seen_s=NOW - age_s))
        assert isinstance(decide_gate(facts), expected)


def test_a_false_alarm_is_denied_at_once() -> None:
    decision = decide_gate(replace(FACTS, lease=view(OTHER), holder_serves=True))
    assert isinstance(decision, Deny)
    assert OTHER in decision.reason


def test_an_instance_that_lacks_too_much_is_denied_with_the_numbers() -> None:
    behind = WalPoint(2, Lsn(AT.lsn.value - 1025))
    decision = decide_gate(replace(FACTS, point=behind))
    assert isinstance(decision, Deny)
    assert "1025 bytes" in decision.reason
    assert isinstance(
        decide_gate(replace(FACTS, point=WalPoint(2, Lsn(AT.lsn.value - 1024)))), Take
    )


def test_an_older_timeline_is_denied_however_far_it_got() -> None:
    assert isinstance(decide_gate(replace(FACTS, point=WalPoint(1, Lsn(1 << 60)))), Deny)


def test_a_foreign_system_is_denied() -> None:
    assert isinstance(decide_gate(replace(FACTS, system_identifier="666")), Deny)


def test_an_instance_that_is_leaving_is_denied_even_as_holder() -> None:
    assert isinstance(decide_gate(replace(FACTS, holding=True, leaving=True)), Deny)


def test_without_a_look_at_the_lease_it_holds() -> None:
    assert isinstance(decide_gate(replace(FACTS, lease=None)), Hold)


def test_without_postgres_it_denies() -> None:
    assert isinstance(decide_gate(replace(FACTS, point=None)), Deny)


@given(
    holder=st.sampled_from(["", ME, OTHER]),
    age_s=st.floats(0, 20),
    timeline=st.integers(1, 3),
    lsn=st.integers(0, 1 << 28),
    serves=st.sampled_from([None, True, False]),
    leaving=st.booleans(),
)
def test_a_held_lease_is_never_taken(
    holder: str, age_s: float, timeline: int, lsn: int, serves: bool | None, leaving: bool
) -> None:
    facts = replace(
        FACTS,
        lease=view(holder, seen_s=NOW - age_s),
        point=WalPoint(timeline, Lsn(lsn)),
        holder_serves=serves,
        leaving=leaving,
    )
    decision = decide_gate(facts)
    assert not isinstance(decision, Pass)
    if isinstance(decision, Take):
        assert holder in ("", ME) or age_s > 6.0
        assert timeline >= AT.timeline
        assert not leaving
