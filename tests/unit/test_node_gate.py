"""The promotion gate."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pgcluster.api.wal import Lsn, WalPoint
from pgcluster.node.gate import Ask, Deny, GateFacts, Hold, Pass, Take, decide_gate
from pgcluster.topology.election import Candidate
from pgcluster.topology.lease import LeaseRecord, LeaseView, Mark
from pgcluster.topology.quorum import Quorum

ME, OTHER = "shop-1", "shop-0"
NOW = 500.0
AT = WalPoint(2, Lsn.parse("0/5000000"))


def view(holder: str, *, seen_s: float = NOW, mark: Mark | None = None) -> LeaseView:
    return LeaseView(LeaseRecord(holder, 1, 6.0, "t", mark or Mark("7001", AT)), seen_s)


def has(point: WalPoint = AT, *, system: str = "7001") -> Candidate:
    return Candidate(system, point)


FACTS = GateFacts(
    me=ME,
    now_s=NOW,
    lease=view(""),
    holding=False,
    candidate=has(),
    members=3,
    maximum_lag_bytes=1024,
    holder_serves=None,
    others={"shop-2": has()},
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
    decision = decide_gate(replace(FACTS, candidate=has(behind)))
    assert isinstance(decision, Deny)
    assert "1025 bytes" in decision.reason
    assert isinstance(
        decide_gate(replace(FACTS, candidate=has(WalPoint(2, Lsn(AT.lsn.value - 1024))))), Take
    )


def test_an_older_timeline_is_denied_however_far_it_got() -> None:
    assert isinstance(decide_gate(replace(FACTS, candidate=has(WalPoint(1, Lsn(1 << 60))))), Deny)


def test_a_foreign_system_is_denied() -> None:
    assert isinstance(decide_gate(replace(FACTS, candidate=has(system="666"))), Deny)


def test_an_instance_that_is_leaving_is_denied_even_as_holder() -> None:
    assert isinstance(decide_gate(replace(FACTS, holding=True, leaving=True)), Deny)


def test_without_a_look_at_the_lease_it_holds() -> None:
    assert isinstance(decide_gate(replace(FACTS, lease=None)), Hold)


def test_without_postgres_it_denies() -> None:
    assert isinstance(decide_gate(replace(FACTS, candidate=None)), Deny)


def test_the_others_are_asked_only_when_the_lease_is_free() -> None:
    assert isinstance(decide_gate(replace(FACTS, others=None)), Ask)
    assert isinstance(decide_gate(replace(FACTS, others=None, lease=view(OTHER))), Hold)


def test_a_lone_survivor_of_three_is_denied_but_one_of_two_is_not() -> None:
    alone = replace(FACTS, others={})
    decision = decide_gate(alone)
    assert isinstance(decision, Deny)
    assert "only 1 of 3" in decision.reason
    assert isinstance(decide_gate(replace(alone, members=2)), Take)


def test_a_lone_survivor_that_has_everything_the_last_primary_left_may_take_over() -> None:
    final = view("", mark=Mark("7001", AT, final=True))
    assert isinstance(decide_gate(replace(FACTS, others={}, lease=final)), Take)
    behind = has(WalPoint(2, Lsn(AT.lsn.value - 1)))
    assert isinstance(decide_gate(replace(FACTS, others={}, lease=final, candidate=behind)), Deny)


def test_with_a_quorum_only_the_most_advanced_of_enough_instances_passes() -> None:
    lease = replace(view(""), record=replace(view("").record, quorums=(Quorum(1, (ME, "shop-2")),)))
    facts = replace(FACTS, lease=lease, members=3)
    assert isinstance(decide_gate(facts), Take)
    ahead = {"shop-2": has(WalPoint(2, Lsn(AT.lsn.value + 1)))}
    decision = decide_gate(replace(facts, others=ahead))
    assert isinstance(decision, Deny)
    assert "shop-2 has more" in decision.reason
    unread = {"shop-2": replace(has(), exact=False)}
    assert isinstance(decide_gate(replace(facts, others=unread)), Deny)
    unreadable = replace(lease, record=replace(lease.record, quorums=None))
    assert isinstance(decide_gate(replace(facts, lease=unreadable)), Deny)


def test_a_person_can_force_a_promotion_in_this_epoch_but_never_beside_a_holder() -> None:
    behind = has(WalPoint(1, Lsn(5)))
    facts = replace(FACTS, others={}, candidate=behind, forced=(ME, 1))
    assert isinstance(decide_gate(facts), Take)
    assert isinstance(decide_gate(replace(facts, forced=(ME, 0))), Deny)
    assert isinstance(decide_gate(replace(facts, forced=(OTHER, 1))), Deny)
    assert isinstance(decide_gate(replace(facts, lease=view(OTHER))), Hold)
    assert isinstance(decide_gate(replace(facts, candidate=has(system="666"))), Deny)


def test_the_proven_end_of_the_holders_container_replaces_waiting() -> None:
    held = replace(FACTS, lease=view(OTHER), holder_ended=True)
    assert isinstance(decide_gate(replace(held, others=None)), Ask)
    assert isinstance(decide_gate(held), Take)


def test_a_lease_that_was_deleted_and_made_again_is_not_free_at_once() -> None:
    before = replace(view(OTHER), record=replace(view(OTHER).record, uid="a"))
    again = before.next(replace(view("").record, uid="b"), NOW)
    assert isinstance(decide_gate(replace(FACTS, lease=again)), Hold)
    assert isinstance(decide_gate(replace(FACTS, lease=again, now_s=NOW + 6.1)), Take)


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
        candidate=has(WalPoint(timeline, Lsn(lsn))),
        holder_serves=serves,
        leaving=leaving,
    )
    decision = decide_gate(facts)
    assert not isinstance(decision, Pass)
    if isinstance(decision, Take):
        assert holder in ("", ME) or age_s > 6.0
        assert timeline >= AT.timeline
        assert not leaving


def handed_over(to: str | None, *, seen_s: float = NOW, final: bool = True) -> LeaseView:
    record = LeaseRecord(
        "", 1, 6.0, "t", Mark("7001", AT, final), last_holder=OTHER, handover=True, successor=to
    )
    return LeaseView(record, seen_s)


def test_the_successor_of_a_handover_takes_the_lease_and_asks_nobody() -> None:
    decision = decide_gate(replace(FACTS, lease=handed_over(ME), others=None))
    assert isinstance(decision, Take)
    assert f"{OTHER} hands over to {ME}" in decision.reason


def test_a_successor_that_lacks_something_asks_the_others_as_ever() -> None:
    behind = has(WalPoint(2, Lsn.parse("0/4FFFFFF")))
    facts = replace(FACTS, lease=handed_over(ME), candidate=behind, others=None)
    assert isinstance(decide_gate(facts), Ask)
    far_behind = has(WalPoint(2, Lsn.parse("0/4000000")))
    assert isinstance(decide_gate(replace(facts, candidate=far_behind)), Deny)


def test_a_lease_that_is_handed_over_is_left_to_its_successor_for_a_while() -> None:
    for age_s, expected in ((0.0, Hold), (9.9, Hold), (10.1, Take)):
        lease = handed_over("shop-2", seen_s=NOW - age_s)
        assert isinstance(decide_gate(replace(FACTS, lease=lease)), expected)
    forced = replace(FACTS, lease=handed_over("shop-2"), forced=(ME, 1))
    assert isinstance(decide_gate(forced), Take), "a person's word comes first"


def test_a_handover_without_a_name_is_anybodys() -> None:
    assert isinstance(decide_gate(replace(FACTS, lease=handed_over(None))), Take)
