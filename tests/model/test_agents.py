"""Whole agents in virtual time: no script of faults yields two writers, and each ends with one.

A script (cluster.py) begins with empty volumes, lets faults come over each other, and ends in
peace. Whatever comes, at every moment at most one instance accepts writes and tells its clients so;
epochs go up; nobody becomes primary below the mark; a cluster keeps its system identifier; each
promotion begins a timeline of its own; and with a quorum whoever becomes primary has every commit
that any client was told of. In the end one writes and all others stream from it.

What is claimed of an instance that wakes from a freeze: none of its backends tells a client of a
commit once its right to write is over, also when it runs before the guard does. That this is owed
to the library in postgres and not to the guard is what one of the tests shows.

Not covered: what happens inside of a step that is taken as whole here (a rewind, a base backup, a
file's write), disks, repmgr's own tables, pools, a change of the number of instances, a Lease that
is deleted, a person's `pg_promote()`, and the microseconds between a backend's last look at the
deadline and its answer.

MODEL_EXAMPLES=20000 plays so many random scripts; without it they are few and always the same.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pgcluster.api.config import LeaseConfig
from pgcluster.clock import monotonic_s
from pgcluster.node import instance as instance_module
from pgcluster.node import lease as lease_module
from pgcluster.node import members as members_module
from pgcluster.topology import election as election_module
from pgcluster.topology import quorum as quorum_module
from tests.model import node as node_module
from tests.model.cluster import KINDS, Cluster, Fault, Kind, Script, Violation, run, whole_life
from tests.model.node import Guard, Node

EXAMPLES = os.environ.get("MODEL_EXAMPLES")
pytestmark = pytest.mark.timeout(0 if EXAMPLES else 300)

searching = settings(
    max_examples=int(EXAMPLES or 40),
    derandomize=EXAMPLES is None,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink),
)

lengths = st.integers(1, 200).map(lambda tenths: tenths / 10)
moments = lengths.map(lambda s: round(s / 10, 2))
faults = st.builds(
    Fault,
    after_s=st.one_of(st.just(0.1), moments, lengths),
    kind=st.sampled_from(KINDS),
    node=st.one_of(st.just("primary"), st.integers(0, 4)),
    lasts_s=st.one_of(moments, lengths),
)
scripts = st.builds(
    Script,
    seed=st.integers(0, 1 << 20),
    instances=st.sampled_from([3, 2, 5]),
    standbys=st.sampled_from([0, 1]),
    on_crash=st.sampled_from(["restart", "failover"]),
    faults=st.lists(faults, min_size=4, max_size=20).map(tuple),
)


@searching
@given(scripts)
def test_no_script_of_faults_yields_two_writers_and_each_ends_with_one(script: Script) -> None:
    run(script)


def some_faults(chance: Random, kinds: Iterable[Kind], number: int) -> tuple[Fault, ...]:
    """Faults of these kinds, most at the primary, many over each other."""
    choice = list(kinds)
    return tuple(
        Fault(
            round(chance.choice([0.1, chance.uniform(0, 8)]), 1),
            chance.choice(choice),
            chance.choice(["primary", "primary", chance.randrange(5)]),
            round(chance.uniform(0.5, 20), 1),
        )
        for _ in range(number)
    )


def seeded(seed: int) -> Random:
    return Random(seed)  # noqa: S311 # to be repeated


def one_after_the_other(seed: int, kind: Kind, *, lasts_s: float) -> Script:
    """Four faults at the primary, each long after the one before is over."""
    chance = seeded(seed)
    faults = [Fault(chance.uniform(40, 60), kind, "primary", lasts_s) for _ in range(4)]
    return Script(seed, faults=tuple(faults))


def primaries(cluster: Cluster) -> list[str]:
    return [line for line in cluster.history if "is a primary at" in line]


async def lossless_life(cluster: Cluster) -> None:
    """Without a quorum, too, each commit that a client was told of is there in the end."""
    await whole_life(cluster)
    cluster.expect_nothing_lost(next(each for each in cluster.nodes.values() if each.writes()))


@pytest.mark.parametrize("seed", range(3))
def test_a_pod_that_leaves_in_order_takes_no_acknowledged_commit_with_it(seed: int) -> None:
    cluster = run(one_after_the_other(seed, "leave", lasts_s=2.0), lossless_life)
    assert len(primaries(cluster)) == 5, "the first, and four that took over"


@pytest.mark.parametrize("kind", ["crash", "kill"])
@pytest.mark.parametrize("seed", range(3))
def test_a_crash_in_place_loses_nothing(seed: int, kind: Kind) -> None:
    cluster = run(one_after_the_other(seed, kind, lasts_s=0.3), lossless_life)
    assert len(primaries(cluster)) == 5
    assert all("shop-0" in line for line in primaries(cluster)), "in place"


def test_an_api_server_that_is_away_stops_nobody() -> None:
    cluster = run(Script(1, faults=(Fault(10.0, "api away", 0, 300.0),)))
    assert sum("clients are heard by" in line for line in cluster.history) == 1, cluster.history


def test_a_script_gives_the_same_history_each_time() -> None:
    script = Script(3, faults=some_faults(seeded(3), KINDS, 8))
    assert run(script).history == run(script).history


# --- the model can fail: each of these takes one rule away --------------------------------------


def found(*faults: Fault, seeds: int = 20, **options: Any) -> str:
    """The first violation to which these faults lead, each a bit earlier or later."""
    for seed in range(seeds):
        chance = seeded(seed)
        moved = [replace(each, after_s=each.after_s * chance.uniform(0.8, 1.2)) for each in faults]
        try:
            run(Script(seed, faults=tuple(moved), **options))
        except Violation as violation:
            return next(line for line in str(violation).splitlines() if "VIOLATION" in line)
    return "nothing was found"


def test_a_deadline_behind_the_leases_end_is_found() -> None:
    late = LeaseConfig(duration_s=6.0, renew_interval_s=1.0, renew_deadline_s=8.0)
    assert "two write" in found(Fault(5.0, "cut", "primary", 20.0), timing=late)


def test_a_deadline_counted_from_the_answer_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    hold: Callable[..., Any] = lease_module.LeaseKeeper._hold

    def from_the_answer(self: Any, written: Any, _: float) -> Any:
        return hold(self, written, monotonic_s())

    monkeypatch.setattr(lease_module.LeaseKeeper, "_hold", from_the_answer)
    tight = LeaseConfig(duration_s=6.0, renew_interval_s=1.0, renew_deadline_s=5.5)
    slow = (Fault(5.0, "slow api", "primary", 20.0), Fault(0.1, "mute", "primary", 20.0))
    assert "two write" in found(*slow, Fault(5.0, "cut api", "primary", 15.0), timing=tight)


def test_a_gate_that_does_not_know_the_mark_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(election_module, "below_mark", lambda *_: None)
    lag = (Fault(0.1, "lag", 1, 60.0), Fault(0.1, "lag", 2, 60.0))
    assert "became primary although" in found(*lag, Fault(15.0, "off", 0, 20.0))


def test_postgres_that_does_not_look_at_the_deadline_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The guard alone comes too late for what wakes up with it."""
    monkeypatch.setattr(Node, "lawful", lambda _: True)
    assert "two write" in found(Fault(5.0, "freeze", "primary", 15.0))


def test_a_primary_without_any_fence_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Node, "lawful", lambda _: True)
    monkeypatch.setattr(Guard, "strike", lambda _: None)
    assert "two write" in found(Fault(5.0, "freeze agent", "primary", 15.0))


def test_a_promotion_without_the_quorums_proof_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One standby of four has the last commits, and is away when the primary is lost."""
    monkeypatch.setattr(quorum_module, "promises", lambda _: False)
    lag = [Fault(0.1, "lag", standby, 60.0) for standby in (1, 2, 3)]
    away = (Fault(3.0, "off", 4, 30.0), Fault(0.1, "off", 0, 30.0))
    assert "lacks" in found(*lag, *away, standbys=1, instances=5)


def test_an_election_by_what_was_seen_before_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last commits before a crash are known to the one standby that keeps up."""

    async def seen_before(self: Any) -> Any:
        return self.candidate()

    faults = (
        Fault(9.5, "lag", 1, 20.0),
        Fault(0.3, "crash", "primary", 5.0),
        Fault(0.1, "promote", 1, 1.0),
    )
    monkeypatch.setattr(instance_module.Instance, "candidate_now", seen_before)
    assert "lacks" in found(*faults, standbys=1, on_crash="failover", seeds=40)


def test_a_standby_known_by_its_control_file_alone_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It has the commits of a new primary, and its control file names the timeline before."""
    monkeypatch.setattr(node_module.DataDirectories, "newest_timeline", lambda _: 0)
    lost = (Fault(0.1, "kill", "primary", 10.1), Fault(10.8, "kill", "primary", 6.7))
    assert "lacks" in found(*lost, Fault(0.1, "kill", 2, 0.01), standbys=1, seeds=60)


def test_promotions_that_take_the_next_timeline_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A primary is lost right after its promotion, before any other has heard of its timeline."""

    async def next_one(self: Any, timeline: int) -> int:
        return timeline + 1

    monkeypatch.setattr(lease_module.LeaseKeeper, "reserve", next_one)
    lag = [Fault(0.1, "lag", standby, 60.0) for standby in (1, 2, 3, 4)]
    lost = (Fault(3.0, "doom", 0, 60.0), Fault(0.1, "off", 0, 60.0))
    assert "another's" in found(*lag, *lost, instances=5)


def test_a_failsafe_by_some_alone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members_module, "all", any, raising=False)
    # The one that has promised nothing is the more advanced one.
    away = (Fault(5.0, "lag", 2, 20.0), Fault(1.0, "apart", 0, 20.0))
    assert "two write" in found(*away, Fault(0.1, "cut api", 0, 20.0))


def test_an_acknowledgement_without_a_promise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module.LeaseKeeper, "acknowledge", lambda *_: None)
    assert "two write" in found(Fault(5.0, "cut api", 0, 20.0))


def test_a_broken_rule_is_told_with_the_whole_history(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Node, "lawful", lambda _: True)
    with pytest.raises(Violation) as violation:
        run(Script(1, faults=(Fault(20.0, "freeze", "primary", 15.0),)))
    history = str(violation.value).splitlines()
    for expected in ("Script(seed=1", "FAULT: freeze", "took the Lease", "wakes up", "two write"):
        assert any(expected in line for line in history), expected


# --- a hand-over that is cut off ------------------------------------------------------------------
# What the history says when a step of it is over.
STEPS = {
    "checked": "hand-over: holding",
    "held": "the pools hold their clients",
    "stopped": "postgres has shut down",
    "released": "Lease: nobody",
    "taken": "took the Lease as its successor",
    "promoted": "postgres is a primary",
}


def handed_over(line: str, side: str, *, lasts_s: float) -> Callable[[Cluster], Awaitable[None]]:
    """The first of the two to hand over, or the one who is to succeed, dies when a line is seen."""

    async def dies(cluster: Cluster) -> None:
        async with asyncio.timeout(60):
            chosen = await cluster.told("hand-over: checking")
            last = next(each for each in cluster.nodes.values() if each.leaving)
            heir = cluster.nodes[chosen.split()[-1]]
            await cluster.told(line)
        victim = last if side == "primary" else heir
        cluster.say(f"{victim.name} is killed")
        victim.end()
        await asyncio.sleep(lasts_s)
        if not victim.running:
            victim.begin()

    return lambda cluster: whole_life(cluster, dies)


@pytest.mark.parametrize("standbys", [0, 1])
@pytest.mark.parametrize("side", ["primary", "successor"])
@pytest.mark.parametrize("step", STEPS)
def test_a_handover_that_is_cut_off_at_any_step_ends_with_one_primary(
    step: str, side: str, standbys: int
) -> None:
    for seed, lasts_s in ((1, 0.3), (4, 4.0), (3, 25.0)):
        leave = Fault(20.0, "leave", "primary", 2.0)
        script = Script(seed, standbys=standbys, faults=(leave,))
        run(script, handed_over(STEPS[step], side, lasts_s=lasts_s))
