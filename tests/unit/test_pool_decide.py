"""What a pooler does with its pgbouncer: branch by branch, and in any order of events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgcluster.api.config import ClusterConfig, DatabaseConfig
from pgcluster.pgbouncer.rows import Database, Server, Waiting
from pgcluster.pooler.decide import (
    HOLD_S,
    LATE_S,
    LOGINS_WAIT_S,
    MUTE_S,
    RETRY_S,
    STUCK_S,
    Action,
    Apply,
    CutOff,
    Facts,
    Lease,
    Offer,
    Pause,
    Probe,
    Resume,
    acceptable,
    acknowledged,
    decide,
    held_epoch,
    readiness,
)
from pgcluster.pooler.files import offer
from pgcluster.render.pgbouncer import PoolTarget, databases_ini
from pgcluster.topology.lease import LeaseRecord, Mark

A, B = "10.0.0.1", "10.0.0.2"
NOW_S = 1000.0
CONFIG = ClusterConfig(
    name="shop",
    namespace="default",
    uid="u",
    instances=3,
    databases=(DatabaseConfig(name="app", owner="app"),),
)
READ_WRITE = ("app", "postgres")
READ_ONLY = ("app_ro", "postgres_ro")


def section(
    host: str | None = A, *, epoch: int = 3, primary: str = "shop-0", standbys: Sequence[str] = (B,)
) -> Offer:
    target = host and PoolTarget(primary, host, tuple(standbys), epoch, epoch)
    return offer(databases_ini(CONFIG, target or None))


def shown(of: Offer, *, paused: Sequence[str] = ()) -> tuple[Database, ...]:
    return tuple(
        Database(entry.name, entry.host, entry.port, entry.dbname, entry.name in paused)
        for entry in of.section.entries
        if entry.name != "*"
    )


def lease(holder: str = "shop-0", epoch: int = 3, **more: object) -> Lease:
    record = LeaseRecord(holder, epoch, 6.0, "", Mark(None, None))
    return replace(Lease(record, current=True), **more)  # type: ignore[arg-type]


def facts(*, paused: Sequence[str] = (), **changes: object) -> Facts:
    """A healthy pool at rest, but for `changes`."""
    applied = changes.get("applied", section())
    healthy = Facts(
        now_s=NOW_S,
        wanted=section(),
        applied=section(),
        databases=shown(applied, paused=paused) if isinstance(applied, Offer) else (),
        probe=Probe("primary", NOW_S - 100, NOW_S - 0.5),
        lease=lease(),
    )
    return replace(healthy, **changes)  # type: ignore[arg-type]


LOST = Probe("lost", NOW_S - 0.1, NOW_S - 1)


def test_a_healthy_pool_is_left_alone() -> None:
    assert decide(facts()) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"probe": LOST}, "the primary shop-0 does not answer"),
        (
            {"probe": Probe("standby", NOW_S, NOW_S - 1)},
            "shop-0 is in recovery: it is no primary",
        ),
        (
            {"lease": lease("", 3, free_since_s=NOW_S)},
            "the Lease of the primary shop-0 was given up or has run out",
        ),
        (
            {"lease": lease(free_since_s=NOW_S), "probe": Probe("unknown", NOW_S)},
            "the Lease of the primary shop-0 was given up or has run out",
        ),
        (
            {"lease": lease("shop-1", 4)},
            "the Lease is held by shop-1 in epoch 4,"
            " while the databases section is shop-0's of epoch 3",
        ),
        (
            {"lease": lease("shop-1", 4, current=False)},
            "the Lease is held by shop-1 in epoch 4,"
            " while the databases section is shop-0's of epoch 3",
        ),
    ],
)
def test_clients_wait_as_soon_as_the_primary_is_in_doubt(
    changes: dict[str, object], reason: str
) -> None:
    assert decide(facts(**changes)) == [Pause(READ_WRITE, reason)]
    # Once is enough.
    assert decide(facts(**changes, paused=READ_WRITE)) == []


def test_a_database_that_appears_during_the_doubt_is_paused_too() -> None:
    databases = (*shown(section(), paused=READ_WRITE), Database("late", A, 5432, "late", False))
    (pause,) = decide(facts(probe=LOST, databases=databases))
    assert isinstance(pause, Pause)
    assert pause.databases == ("late",)


def test_no_primary_known_means_waiting() -> None:
    none = section(None)
    actions = decide(facts(applied=none, wanted=none, lease=Lease(), probe=Probe()))
    assert actions == [
        Pause(READ_WRITE, "no primary is known"),
        Pause(READ_ONLY, "there is no standby to read", read_only=True),
    ]


@pytest.mark.parametrize(
    "known",
    [
        {"lease": Lease()},
        {"lease": lease(current=False)},
        {"lease": lease("", 3, free_since_s=NOW_S - 1)},  # asked again since, and it is primary
        {"lease": lease(free_since_s=NOW_S - 1)},
        {"lease": lease("shop-1", 2)},  # older than the section
        {"lease": lease("shop-0", 4)},  # the same instance took it anew
        {"wanted": None},
    ],
)
def test_a_primary_that_answers_keeps_its_clients_whatever_the_api_says(
    known: dict[str, object],
) -> None:
    assert decide(facts(**known)) == []
    assert decide(facts(**known, paused=READ_WRITE)) == [
        Resume(("app",), "shop-0 answers as the primary")
    ]


def test_logins_go_on_when_the_pools_that_they_lead_to_have_a_server() -> None:
    logins = [Resume(("postgres",), "shop-0 answers as the primary")]

    def then(*pools: Waiting, after_s: float = 0.1) -> list[Action]:
        return decide(facts(paused=("postgres",), resumed_at_s=NOW_S - after_s, pools=pools))

    assert then() == logins
    assert then(Waiting("app", 3, 0)) == []
    assert then(Waiting("app", 3, 1)) == logins
    assert then(Waiting("app", 0, 0)) == logins, "nobody makes pgbouncer connect"
    assert then(Waiting("app_ro", 3, 0), Waiting("postgres", 9, 0)) == logins
    assert then(Waiting("app", 3, 0), after_s=LOGINS_WAIT_S) == logins
    assert decide(facts(paused=("postgres",))) == logins, "an agent that was killed in between"


def test_a_probe_without_an_answer_yet_changes_nothing() -> None:
    unknown = Probe("unknown", NOW_S)
    assert decide(facts(probe=unknown)) == []
    assert decide(facts(probe=unknown, paused=READ_WRITE)) == []


def test_a_primary_that_takes_others_but_not_the_agent_is_believed_after_a_while() -> None:
    def mute(since_s: float) -> Probe:
        return Probe("mute", NOW_S - since_s)

    assert decide(facts(probe=mute(60))) == []
    assert decide(facts(probe=mute(MUTE_S / 2), paused=READ_WRITE)) == []
    (resume,) = decide(facts(probe=mute(MUTE_S), paused=READ_WRITE))
    assert isinstance(resume, Resume)
    # But not where the Lease has passed on.
    assert decide(facts(probe=mute(60), paused=READ_WRITE, lease=lease("shop-1", 4))) == []


def test_no_pause_ends_because_of_its_age() -> None:
    ages = Probe("lost", NOW_S - 3600)
    assert decide(facts(probe=ages, paused=READ_WRITE)) == []


def test_a_new_primary_is_waited_for_applied_and_then_resumed() -> None:
    new = section(B, epoch=4, primary="shop-1", standbys=())
    before = facts(wanted=new, lease=lease("shop-1", 4), probe=LOST, paused=READ_WRITE)
    pause, apply = decide(before)
    assert pause == Pause(READ_ONLY, "there is no standby to read", read_only=True)
    assert apply == Apply(new, "the databases section now names shop-1 of epoch 4")
    after = facts(
        wanted=new,
        applied=new,
        lease=lease("shop-1", 4),
        probe=Probe("unknown", NOW_S),
        paused=(*READ_WRITE, *READ_ONLY),
    )
    assert decide(after) == []
    answers = replace(after, probe=Probe("primary", NOW_S, NOW_S))
    assert decide(answers) == [Resume(("app",), "shop-1 answers as the primary")]


def test_a_new_primary_that_comes_without_a_doubt_is_paused_for_too() -> None:
    new = section(B, epoch=4, primary="shop-1", standbys=(A,))
    pause, apply = decide(facts(wanted=new))
    assert pause == Pause(READ_WRITE, "the pool is being pointed at shop-1 of epoch 4")
    assert isinstance(apply, Apply)


def test_a_change_of_standbys_alone_lets_nobody_wait() -> None:
    new = section(standbys=())
    # Before the RELOAD: readers would be sent to nowhere otherwise, and fail.
    assert decide(facts(wanted=new)) == [
        Pause(READ_ONLY, "there is no standby to read", read_only=True),
        Apply(new, "the databases or standbys behind shop-0 of epoch 3 have changed"),
    ]
    assert decide(facts(wanted=new, applied=new)) == [
        Pause(READ_ONLY, "there is no standby to read", read_only=True)
    ]
    assert decide(facts(wanted=new, applied=new, paused=READ_ONLY)) == []
    assert decide(facts(paused=READ_ONLY)) == [
        Resume(READ_ONLY, "there are standbys to read", read_only=True)
    ]


def test_readers_go_on_while_the_primary_is_lost() -> None:
    (pause,) = decide(facts(probe=LOST))
    assert isinstance(pause, Pause)
    assert not set(pause.databases) & set(READ_ONLY)


def test_a_lower_epoch_is_never_applied_unless_the_lease_itself_names_it() -> None:
    old = section(B, epoch=2, primary="shop-1")
    assert decide(facts(wanted=old)) == []
    assert acceptable(facts(wanted=old, lease=lease("shop-1", 2, current=False))) is None
    # Somebody deleted the Lease, and its epochs started over.
    anew = acceptable(facts(wanted=old, lease=lease("shop-1", 2)))
    assert anew is not None
    assert anew[0] == old


def test_a_section_without_a_primary_does_not_replace_one_with() -> None:
    assert decide(facts(wanted=section(None))) == []


def test_what_pgbouncer_does_not_show_is_loaded_again() -> None:
    moved = section(B, epoch=4, primary="shop-1", standbys=(A,))
    (apply,) = decide(
        facts(wanted=moved, applied=moved, databases=shown(section()), probe=Probe("unknown", 0))
    )
    assert isinstance(apply, Apply)
    assert apply.reason == (
        "pgbouncer differs from its file: database app is at 10.0.0.1:5432, not at 10.0.0.2:5432"
    )
    missing = decide(facts(databases=shown(section())[1:]))
    assert isinstance(missing[0], Apply)
    by_sql = (*shown(section()), Database("x", B, 5432, "x", False))
    assert isinstance(decide(facts(databases=by_sql))[0], Apply)


def test_what_was_not_accepted_is_tried_again_only_after_a_while() -> None:
    new = section(standbys=("10.0.0.3",))
    waiting = facts(wanted=new, failed=(new.content_hash, NOW_S - RETRY_S / 2))
    assert decide(waiting) == []
    (apply,) = decide(replace(waiting, failed=(new.content_hash, NOW_S - RETRY_S)))
    assert isinstance(apply, Apply)
    assert apply.reason.endswith("after it was not accepted before")
    (apply,) = decide(replace(waiting, failed=("another", NOW_S)))
    assert isinstance(apply, Apply)


def test_a_pgbouncer_that_is_down_gets_its_file_and_nothing_else() -> None:
    assert decide(facts(databases=None, probe=LOST)) == []
    (apply,) = decide(facts(databases=None, wanted=section(B, epoch=4), probe=LOST))
    assert isinstance(apply, Apply)
    (apply,) = decide(facts(databases=None, applied=None))
    assert isinstance(apply, Apply)
    assert apply.reason == "it is the first databases section"


def announced(since_s: float = NOW_S - 1, *, holder: str = "shop-0", epoch: int = 3) -> Lease:
    record = LeaseRecord(holder, epoch, 6.0, "", Mark(None, None), pausing=True, successor="shop-1")
    return Lease(record, current=True, pausing_since_s=since_s)


def test_an_announced_stop_holds_the_clients_of_the_primary_and_is_acknowledged() -> None:
    reason = "the primary shop-0 is about to stop for shop-1"
    before = facts(lease=announced())
    assert decide(before) == [Pause(READ_WRITE, reason)]
    assert acknowledged(before) is None, "not before it is in force"
    assert acknowledged(facts(lease=announced(), paused=("app",))) is None, "nor in part"
    held = facts(lease=announced(), paused=READ_WRITE)
    assert decide(held) == []
    assert acknowledged(held) == 3
    assert readiness(held, late_since_s=None) == (True, reason)
    # It is taken back, and the primary answers.
    back = facts(paused=READ_WRITE)
    assert acknowledged(back) is None
    assert decide(back) == [Resume(("app",), "shop-0 answers as the primary")]


def test_a_pool_that_is_paused_for_another_reason_acknowledges_too() -> None:
    lost = facts(lease=announced(), probe=LOST, paused=READ_WRITE)
    assert decide(lost) == []
    assert acknowledged(lost) == 3


@pytest.mark.parametrize(
    "left",
    [
        announced(NOW_S - HOLD_S),  # whoever announced it is no more
        announced(epoch=2),
        announced(epoch=4),  # the section of that epoch is still to come
        announced(holder="shop-1", epoch=3),
        announced(holder="", epoch=3),
    ],
)
def test_an_announcement_of_another_time_holds_nobody(left: Lease) -> None:
    assert held_epoch(facts(lease=left)) is None
    assert decide(facts(lease=left)) == []
    assert acknowledged(facts(lease=left, paused=READ_WRITE)) is None
    (resume,) = decide(facts(lease=left, paused=READ_WRITE))
    assert isinstance(resume, Resume)


def test_an_announcement_counts_though_the_api_is_lost_after_it_and_only_as_long() -> None:
    def lost(since_s: float) -> Facts:
        return facts(lease=replace(announced(since_s), current=False), paused=READ_WRITE)

    assert decide(lost(NOW_S - HOLD_S / 2)) == []
    (resume,) = decide(lost(NOW_S - HOLD_S))
    assert isinstance(resume, Resume)


def test_a_hold_that_is_over_sends_nobody_to_a_primary_that_is_gone() -> None:
    over = facts(lease=announced(NOW_S - HOLD_S), probe=LOST, paused=READ_WRITE)
    assert decide(over) == []


def test_a_pgbouncer_that_leaves_cannot_hold_and_does_not_say_so() -> None:
    leaving = facts(lease=announced(), leaving=True)
    assert decide(leaving) == []
    assert acknowledged(leaving) is None
    down = facts(lease=announced(), databases=None)
    assert acknowledged(down) is None


def test_a_pgbouncer_that_leaves_is_not_paused_for_it_could_not_be_resumed() -> None:
    assert decide(facts(probe=LOST, leaving=True)) == []
    assert decide(facts(leaving=True, paused=READ_WRITE)) == [
        Resume(("app",), "shop-0 answers as the primary")
    ]
    new = section(B, epoch=4, primary="shop-1")
    (apply,) = decide(facts(wanted=new, probe=LOST, leaving=True))
    assert isinstance(apply, Apply)


def test_transactions_on_a_former_primary_are_cut_off_after_a_while() -> None:
    moved = section(B, epoch=4, primary="shop-1", standbys=())
    stuck = Server("app", A, "active", "0x1")
    servers = (
        stuck,
        Server("app", B, "active", "0x2"),
        Server("app", A, "idle", ""),
        Server("app_ro", A, "active", "0x3"),
    )
    late = facts(
        wanted=moved,
        applied=moved,
        lease=lease("shop-1", 4),
        servers=servers,
        paused=READ_ONLY,
        repointed_at_s=NOW_S - STUCK_S,
    )
    (cut,) = decide(late)
    assert isinstance(cut, CutOff)
    assert cut.servers == (stuck,)
    assert decide(replace(late, repointed_at_s=NOW_S - STUCK_S / 2)) == []
    assert decide(replace(late, repointed_at_s=None)) == []


def test_a_paused_pool_stays_in_its_service() -> None:
    assert readiness(facts(), late_since_s=None) == (True, "")
    ready, reason = readiness(facts(probe=LOST), late_since_s=None)
    assert ready
    assert reason == "the primary shop-0 does not answer"
    assert not readiness(facts(databases=None), late_since_s=None)[0]
    assert not readiness(facts(applied=section(None)), late_since_s=None)[0]
    assert not readiness(facts(applied=None), late_since_s=None)[0]
    assert readiness(facts(), late_since_s=NOW_S - LATE_S / 2)[0]
    assert not readiness(facts(), late_since_s=NOW_S - LATE_S - 1)[0]


# --- in any order of events -------------------------------------------------------------------

HOSTS = {"shop-0": A, "shop-1": B}
probes = st.sampled_from(["unknown", "primary", "standby", "lost", "mute"])
events = st.lists(
    st.one_of(
        st.tuples(st.just("probe"), probes),
        st.tuples(st.just("lease"), st.sampled_from(["shop-0", "shop-1", "", "away", "gone"])),
        st.tuples(st.just("section"), st.integers(0, 2)),
        st.tuples(st.just("killed"), st.booleans()),
    ),
    max_size=30,
)


class World:
    """A pgbouncer that does what it is told, an API, and a primary."""

    def __init__(self) -> None:
        self.now_s = NOW_S
        self.wanted = section(epoch=1)
        self.applied = section(epoch=1)
        self.paused: set[str] = set()
        self.probe = Probe("primary", NOW_S, NOW_S)
        self.lease = lease("shop-0", 1)
        self.epoch = 1

    def facts(self) -> Facts:
        return Facts(
            now_s=self.now_s,
            wanted=self.wanted,
            applied=self.applied,
            databases=shown(self.applied, paused=tuple(self.paused)),
            probe=self.probe,
            lease=self.lease,
        )

    def happen(self, kind: str, value: object) -> None:
        self.now_s += 1.0
        if kind == "probe":
            confirmed = self.now_s if value == "primary" else self.probe.confirmed_at_s
            self.probe = Probe(value, self.now_s, confirmed)  # type: ignore[arg-type]
        elif kind == "lease" and value == "away":
            self.lease = replace(self.lease, current=False)
        elif kind == "lease" and value == "gone":
            self.lease = Lease(None, current=True)
        elif kind == "lease":
            holder = str(value)
            self.epoch += bool(holder)
            self.lease = lease(holder, self.epoch, free_since_s=None if holder else self.now_s)
        elif kind == "section":
            epoch = max(1, self.epoch - int(str(value)))
            primary = self.lease.record.holder if self.lease.record else ""
            self.wanted = section(HOSTS.get(primary or "shop-0"), epoch=epoch, primary=primary)
        elif kind == "killed" and value:
            # An agent dies having paused some, and its successor knows nothing of the primary.
            self.paused |= {"app"}
            self.probe = Probe("unknown", self.now_s)

    def settle(self) -> list[Action]:
        """Do what is decided until nothing is; more than a few rounds would be flapping."""
        done: list[Action] = []
        for _ in range(6):
            actions = decide(self.facts())
            if not actions:
                return done
            for action in actions:
                self.carry_out(action)
            done += actions
        raise AssertionError(f"it does not come to rest: {done}")

    def carry_out(self, action: Action) -> None:
        match action:
            case Pause(databases):
                self.paused |= set(databases)
            case Resume(databases):
                self.paused -= set(databases)
            case Apply(offered):
                if offered.section.primary_host != self.applied.section.primary_host:
                    self.probe = Probe("unknown", self.now_s)
                self.applied = offered


@given(events)
def test_it_comes_to_rest_and_never_breaks_its_rules(happenings: list[tuple[str, object]]) -> None:
    world = World()
    for kind, value in happenings:
        world.happen(kind, value)
        before = world.facts()
        for action in world.settle():
            assert action.reason
            assert before.applied
            if isinstance(action, Apply) and action.offer != before.applied:
                old, new = before.applied.section.header, action.offer.section.header
                assert new is not None
                assert old is None or new.epoch >= old.epoch or world.lease.current
            if isinstance(action, Resume) and "app" in action.databases:
                assert world.probe.state in ("primary", "mute")
        record, header = world.lease.record, world.applied.section.header
        successor = record and header and record.holder not in ("", header.primary)
        if successor and record.epoch > header.epoch:
            assert "app" in world.paused


@given(events)
def test_a_pool_is_never_left_paused(happenings: list[tuple[str, object]]) -> None:
    """Whatever happened: when the API and the primary agree again, clients go on."""
    world = World()
    for kind, value in happenings:
        world.happen(kind, value)
        world.settle()
    world.happen("lease", "shop-1")
    world.happen("section", 0)
    world.settle()
    world.happen("probe", "primary")
    world.settle()
    assert world.applied.section.primary_host == B
    assert not world.paused & set(READ_WRITE)
