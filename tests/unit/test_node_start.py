"""The start table: every row, and what must never happen whatever the row."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgcluster.api.wal import Lsn, WalPoint
from pgcluster.node.start import (
    Bootstrap,
    Clone,
    DataDirectory,
    Refuse,
    Rejoin,
    StartFacts,
    StartPrimary,
    StartStandby,
    TakeLease,
    Wait,
    decide_start,
)
from pgcluster.topology.election import Candidate
from pgcluster.topology.lease import LeaseRecord, LeaseView, Mark

ME, OTHER, THIRD = "shop-0", "shop-1", "shop-2"
SYSTEM, FOREIGN = "7001", "666"
NOW = 1000.0
EMPTY_MARK = Mark(None, None)


def point(timeline: int, lsn: str) -> WalPoint:
    return WalPoint(timeline, Lsn.parse(lsn))


def lease(holder: str = "", *, mark: Mark = EMPTY_MARK, seen_s: float = NOW) -> LeaseView:
    return LeaseView(LeaseRecord(holder, 3, 6.0, "t", mark), seen_s)


def mark(timeline: int = 2, lsn: str = "0/5000000") -> Mark:
    return Mark(SYSTEM, point(timeline, lsn))


def data(
    *,
    system: str = SYSTEM,
    at: WalPoint | None = None,
    was_primary: bool = False,
    clean: bool = True,
) -> DataDirectory:
    return DataDirectory(system, at or point(2, "0/5000000"), was_primary, clean)


FACTS = StartFacts(
    me=ME,
    members=3,
    now_s=NOW,
    agent_started_s=NOW - 60,
    data=None,
    lease=lease(),
    maximum_lag_bytes=16 << 20,
)


def test_nothing_is_done_while_the_lease_cannot_be_read() -> None:
    for directory in (None, data(), data(was_primary=True)):
        assert isinstance(decide_start(replace(FACTS, lease=None, data=directory)), Wait)


def test_a_new_cluster_is_made_by_whoever_takes_the_lease_first() -> None:
    assert isinstance(decide_start(FACTS), TakeLease)
    assert isinstance(decide_start(replace(FACTS, holding=True, lease=lease(ME))), Bootstrap)


def test_instances_of_higher_ordinal_let_the_first_go_ahead() -> None:
    early = replace(FACTS, me=THIRD, agent_started_s=NOW - 1)
    assert isinstance(decide_start(early), Wait)
    assert isinstance(decide_start(replace(early, agent_started_s=NOW - 10)), TakeLease)


def test_an_empty_volume_never_gets_a_second_initdb() -> None:
    for view in (lease(mark=mark()), lease(ME, mark=mark()), lease(OTHER, mark=mark())):
        for holding in (True, False):
            for serves in (True, False, None):
                decision = decide_start(
                    replace(FACTS, lease=view, holding=holding, holder_serves=serves)
                )
                assert not isinstance(decision, Bootstrap | TakeLease)


def test_a_deleted_lease_does_not_lead_to_a_second_initdb() -> None:
    facts = replace(FACTS, recorded_system_identifier=SYSTEM)
    assert isinstance(decide_start(facts), Wait)
    with_peer = replace(FACTS, peers={OTHER: Candidate(SYSTEM, point(1, "0/1"))})
    assert isinstance(decide_start(with_peer), Wait)


def test_an_empty_volume_is_cloned_from_the_holder_once_it_serves() -> None:
    facts = replace(FACTS, lease=lease(OTHER, mark=mark()))
    assert isinstance(decide_start(replace(facts, holder_serves=False)), Wait)
    decision = decide_start(replace(facts, holder_serves=True))
    assert isinstance(decision, Clone)
    assert decision.upstream == OTHER


def test_foreign_data_is_refused_and_nothing_is_touched() -> None:
    for view in (lease(mark=mark()), lease(ME, mark=mark()), lease(OTHER, mark=mark())):
        facts = replace(FACTS, lease=view, data=data(system=FOREIGN), holder_serves=True)
        decision = decide_start(facts)
        assert isinstance(decision, Refuse)
        assert FOREIGN in decision.reason
        assert SYSTEM in decision.reason


def test_the_holder_starts_as_primary_also_when_it_crashed() -> None:
    for clean in (True, False):
        facts = replace(
            FACTS,
            holding=True,
            lease=lease(ME, mark=mark()),
            # a crashed primary's control file names its last checkpoint, which is behind the mark
            data=data(was_primary=True, clean=clean, at=point(2, "0/4000000")),
        )
        assert isinstance(decide_start(facts), StartPrimary)


def test_a_primary_that_goes_on_beside_a_lost_promotion_begins_a_timeline_of_its_own() -> None:
    """Else the shorter history, of a higher number, would be taken for the more advanced one."""
    known = lease(ME, mark=mark())
    for reserved, kind in ((2, StartPrimary), (3, StartStandby)):
        view = replace(known, record=replace(known.record, reserved=reserved))
        facts = replace(FACTS, holding=True, lease=view, data=data(was_primary=True))
        assert isinstance(decide_start(facts), kind)


def test_the_last_holder_takes_its_lease_again_after_a_restart() -> None:
    for seen_s in (NOW, NOW - 3600):
        facts = replace(
            FACTS, lease=lease(ME, mark=mark(), seen_s=seen_s), data=data(was_primary=True)
        )
        assert isinstance(decide_start(facts), TakeLease)


def test_a_holder_below_the_mark_does_not_serve() -> None:
    facts = replace(FACTS, holding=True, lease=lease(ME, mark=mark(timeline=5)), data=data())
    decision = decide_start(facts)
    assert isinstance(decision, Wait)
    assert decision.condition == "NoPrimary"


def test_a_standby_that_took_the_lease_starts_as_a_standby_and_is_promoted_by_repmgr() -> None:
    facts = replace(FACTS, holding=True, lease=lease(ME, mark=mark()), data=data())
    decision = decide_start(facts)
    assert isinstance(decision, StartStandby)
    assert decision.upstream is None


def test_a_standby_follows_the_holder() -> None:
    decision = decide_start(replace(FACTS, lease=lease(OTHER, mark=mark()), data=data()))
    assert isinstance(decision, StartStandby)
    assert decision.upstream == OTHER


def test_an_old_primary_that_returns_rejoins_and_never_starts_as_one() -> None:
    facts = replace(FACTS, lease=lease(OTHER, mark=mark(3)), data=data(was_primary=True))
    assert isinstance(decide_start(replace(facts, holder_serves=False)), Wait)
    assert isinstance(decide_start(replace(facts, holder_serves=True)), Rejoin)
    failed = replace(facts, holder_serves=True, rewind_failed=True)
    assert isinstance(decide_start(failed), Clone)


def test_after_a_whole_restart_standbys_start_to_see_what_they_have() -> None:
    for peers in ({}, {OTHER: Candidate(SYSTEM, point(2, "0/6000000"))}):
        facts = replace(FACTS, lease=lease(mark=mark()), data=data(), peers=peers)
        decision = decide_start(facts)
        assert isinstance(decision, StartStandby)
        assert decision.upstream is None


def test_after_a_whole_restart_a_former_primary_does_not_outrun_who_has_more() -> None:
    ahead = Candidate(SYSTEM, point(2, "0/6000000"))
    behind = Candidate(SYSTEM, point(2, "0/4800000"))
    facts = replace(FACTS, lease=lease(mark=mark()), data=data(was_primary=True))
    assert isinstance(decide_start(replace(facts, peers={OTHER: behind})), TakeLease)
    assert isinstance(decide_start(replace(facts, peers={OTHER: ahead})), Wait)


def test_a_former_primary_alone_needs_a_majority_or_proof_that_it_has_everything() -> None:
    facts = replace(FACTS, lease=lease(mark=mark()), data=data(was_primary=True))
    decision = decide_start(facts)
    assert isinstance(decision, Wait)
    assert decision.condition == "NoPrimary"
    assert isinstance(decide_start(replace(facts, members=1)), TakeLease)
    final = lease(mark=Mark(SYSTEM, point(2, "0/5000000"), final=True))
    assert isinstance(decide_start(replace(facts, lease=final)), TakeLease)


def test_who_gave_the_lease_up_takes_it_back_when_nobody_else_has() -> None:
    given_up = replace(lease(mark=mark()).record, writer=ME)
    crashed = data(was_primary=True, clean=False, at=point(2, "0/4000000"))
    facts = replace(FACTS, data=crashed, maximum_lag_bytes=0)
    early = replace(facts, lease=LeaseView(given_up, NOW - 5))
    assert isinstance(decide_start(early), Wait)
    assert isinstance(decide_start(replace(early, members=1)), TakeLease)
    assert isinstance(decide_start(replace(facts, lease=LeaseView(given_up, NOW - 16))), TakeLease)
    other = replace(given_up, writer=OTHER)
    assert isinstance(decide_start(replace(facts, lease=LeaseView(other, NOW - 60))), Wait)


def test_a_person_can_force_an_instance_that_is_below_the_mark() -> None:
    facts = replace(
        FACTS,
        lease=lease(mark=mark(timeline=9)),
        data=data(was_primary=True),
        forced=(ME, 3),
    )
    assert isinstance(decide_start(facts), TakeLease)
    assert isinstance(decide_start(replace(facts, forced=(ME, 2))), Wait)


def test_an_old_primary_that_is_the_first_back_stays_below_the_mark() -> None:
    facts = replace(
        FACTS,
        lease=lease(mark=mark(timeline=3)),
        data=data(was_primary=True, at=point(2, "0/9000000")),
        peers={OTHER: Candidate(None, None)},
    )
    decision = decide_start(facts)
    assert isinstance(decision, Wait)
    assert "below the cluster's 3" in decision.reason


points = st.builds(WalPoint, st.integers(1, 3), st.builds(Lsn, st.integers(0, 1 << 27)))
systems = st.sampled_from([SYSTEM, FOREIGN])
marks = st.one_of(st.just(EMPTY_MARK), st.builds(Mark, st.just(SYSTEM), st.none() | points))
facts_of_any_kind = st.builds(
    StartFacts,
    me=st.just(ME),
    members=st.sampled_from([1, 2, 3, 5]),
    now_s=st.just(NOW),
    agent_started_s=st.sampled_from([NOW, NOW - 60]),
    data=st.none() | st.builds(DataDirectory, systems, points, st.booleans(), st.booleans()),
    lease=st.none()
    | st.builds(
        LeaseView,
        st.builds(
            LeaseRecord,
            st.sampled_from(["", ME, OTHER]),
            st.just(3),
            st.just(6.0),
            st.just("t"),
            marks,
        ),
        st.sampled_from([NOW, NOW - 60]),
    ),
    recorded_system_identifier=st.sampled_from([None, SYSTEM]),
    holding=st.booleans(),
    holder_serves=st.sampled_from([None, True, False]),
    peers=st.dictionaries(
        st.sampled_from([OTHER, THIRD]),
        st.builds(Candidate, st.none() | systems, st.none() | points, st.booleans()),
    ),
    maximum_lag_bytes=st.just(16 << 20),
    rewind_failed=st.booleans(),
    must_rejoin=st.booleans(),
)


@given(facts_of_any_kind)
def test_whatever_is_seen_nobody_writes_in_doubt(facts: StartFacts) -> None:
    decision = decide_start(facts)
    assert decision.reason
    if isinstance(decision, StartPrimary | Bootstrap):
        assert facts.holding, "only the Lease's holder becomes a primary"
    if isinstance(decision, StartPrimary):
        assert facts.data is not None
        assert facts.lease is not None
        at = facts.lease.record.mark.point
        assert at is None or facts.data.point.timeline >= at.timeline
    if isinstance(decision, Bootstrap):
        assert facts.data is None
        assert facts.recorded_system_identifier is None
    if isinstance(decision, TakeLease) and facts.lease is not None:
        assert facts.lease.record.holder == ME or facts.lease.free(facts.now_s)


@pytest.mark.parametrize("holder", [OTHER, THIRD])
def test_decisions_name_their_upstream(holder: str) -> None:
    decision = decide_start(replace(FACTS, lease=lease(holder, mark=mark()), holder_serves=True))
    assert holder in decision.reason


def test_who_has_handed_over_waits_for_the_successor_and_not_for_ever() -> None:
    record = LeaseRecord(
        "", 3, 6.0, "t", replace(mark(), final=True), last_holder=ME, handover=True, successor=OTHER
    )
    facts = replace(FACTS, data=data(was_primary=True), lease=LeaseView(record, NOW), peers={})
    decision = decide_start(facts)
    assert isinstance(decision, Wait)
    assert OTHER in decision.reason
    assert decision.condition is None
    assert isinstance(decide_start(replace(facts, now_s=NOW + 11)), TakeLease)
