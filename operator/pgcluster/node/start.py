"""What an instance does before postgres runs: the start table. Pure.

Taken anew on every container start, and again each time postgres has ended, from what is on the
volume, who holds the Lease, and what the peers say. Whoever is in doubt waits, and says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pgcluster.api import names
from pgcluster.api.wal import WalPoint
from pgcluster.topology.election import Candidate, Elected, Rules, below_mark, elect
from pgcluster.topology.lease import LeaseView, Mark

# Who gave the Lease up lets another instance take it for so long before it takes it back.
_TAKE_BACK_AFTER_S = 15.0
# Instances other than the first let it go ahead with a new cluster for this long each.
_BOOTSTRAP_STAGGER_S = 3.0


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """What pg_controldata says of a data directory.

    `was_primary` is whether it last ran as a primary, `clean` whether it was shut down in order.
    """

    system_identifier: str
    point: WalPoint
    was_primary: bool
    clean: bool


@dataclass(frozen=True, slots=True)
class StartFacts:
    """Everything that the start table looks at. Times are seconds of one monotonic clock."""

    me: str
    members: int
    now_s: float
    agent_started_s: float
    data: DataDirectory | None
    # None: the API does not answer, or the Lease does not exist (only the operator makes it).
    lease: LeaseView | None
    # The identity of the cluster where it is known from elsewhere than the Lease.
    recorded_system_identifier: str | None = None
    # Whether this agent has renewed the Lease and is within its deadline.
    holding: bool = False
    # Whether the Lease's holder answers as a primary; None: not asked, or no holder.
    holder_serves: bool | None = None
    peers: Mapping[str, Candidate] = field(default_factory=dict)
    maximum_lag_bytes: int = 0
    # An instance that a person wants promoted whatever is missing, and the epoch of that wish.
    forced: tuple[str, int] | None = None
    # A rewind was tried since this data directory was last in service, or following has failed.
    rewind_failed: bool = False
    must_rejoin: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """Base of all outcomes: `reason` is a sentence for people."""

    reason: str


@dataclass(frozen=True, slots=True)
class Wait(Decision):
    """Do nothing yet."""

    condition: str | None = None  # a stable identifier where a person should know of it


@dataclass(frozen=True, slots=True)
class Refuse(Decision):
    """Touch nothing on this volume; a person has to look."""


@dataclass(frozen=True, slots=True)
class TakeLease(Decision):
    """Take the Lease, then look at the table again; `forced`: whatever is missing here."""

    forced: bool = False


@dataclass(frozen=True, slots=True)
class Bootstrap(Decision):
    """The Lease is ours and there is no cluster yet: initdb."""


@dataclass(frozen=True, slots=True)
class StartPrimary(Decision):
    """Start postgres as the primary."""


@dataclass(frozen=True, slots=True)
class StartStandby(Decision):
    """Start postgres as a standby of `upstream`, or of nobody yet."""

    upstream: str | None = None


@dataclass(frozen=True, slots=True)
class Rejoin(Decision):
    """`repmgr node rejoin`, which rewinds where histories have parted."""

    upstream: str


@dataclass(frozen=True, slots=True)
class Clone(Decision):
    """Clone aside from `upstream` and swap when it is complete."""

    upstream: str


def decide_start(facts: StartFacts) -> Decision:
    """Look up the start table (architecture, "Start of an instance").

    A caller that holds the Lease and is told to wait or refuses must release it.
    """
    lease = facts.lease
    if lease is None:
        return Wait("the Lease cannot be read: the API server does not answer, or it is missing")
    known = lease.record.mark.system_identifier or facts.recorded_system_identifier
    if facts.data is None:
        return _start_empty(facts, lease, known)
    if known is not None and facts.data.system_identifier != known:
        return Refuse(
            f"the volume holds system {facts.data.system_identifier}, the cluster is {known}: "
            "move the foreign data away, nothing was changed"
        )
    if facts.holding:
        return _start_holder(facts, facts.data, lease)
    if lease.record.holder == facts.me and facts.data.was_primary and not facts.must_rejoin:
        # The last that was allowed to write has every acknowledged write, however long ago.
        if reason := below_mark(facts.data.point, _own_mark(facts.data, lease.record.mark), 0):
            return Wait(f"this instance was the last holder, but {reason}", condition="NoPrimary")
        return TakeLease("this instance was the Lease's last holder")
    if not lease.free(facts.now_s):
        return _start_beside_holder(facts, facts.data, lease.record.holder)
    return _start_orphan(facts, facts.data, lease)


def _start_empty(facts: StartFacts, lease: LeaseView, known: str | None) -> Decision:
    holder = lease.record.holder
    if known is not None:
        if facts.holding or holder in ("", facts.me):
            return Wait(
                f"the volume is empty and the cluster {known} exists: waiting for a primary to "
                "clone from",
                condition="NoPrimary",
            )
        return _clone_from(facts, holder, "the volume is empty and the cluster exists")
    if owners := sorted(pod for pod, peer in facts.peers.items() if peer.system_identifier):
        return Wait(f"{owners[0]} has data although no cluster is recorded: not making a new one")
    if facts.holding:
        return Bootstrap("there is no cluster yet and this instance holds the Lease")
    if holder == facts.me or lease.free(facts.now_s):
        waited_s = facts.now_s - facts.agent_started_s
        if waited_s < names.ordinal(facts.me) * _BOOTSTRAP_STAGGER_S:
            return Wait("there is no cluster yet: an instance of lower ordinal goes first")
        return TakeLease("there is no cluster yet")
    return _clone_from(facts, holder, "a new cluster is being made")


def _clone_from(facts: StartFacts, holder: str, why: str) -> Decision:
    if facts.holder_serves:
        return Clone(f"{why}: cloning from {holder}", upstream=holder)
    return Wait(f"{why}: waiting for {holder} to serve")


def _start_holder(facts: StartFacts, data: DataDirectory, lease: LeaseView) -> Decision:
    if reason := below_mark(data.point, _own_mark(data, lease.record.mark), 0):
        return Wait(f"this instance holds the Lease, but {reason}", condition="NoPrimary")
    if facts.must_rejoin:
        return Wait("this instance holds the Lease, but its history has parted from the cluster's")
    if data.was_primary and lease.record.reserved > data.point.timeline:
        # Whoever comes back with that timeline would be taken for the more advanced one.
        return StartStandby(
            f"this instance holds the Lease, and another has begun timeline {lease.record.reserved}"
            " meanwhile: to be promoted to the next"
        )
    if data.was_primary:
        return StartPrimary("this instance holds the Lease and was the primary")
    return StartStandby("this instance holds the Lease and is to be promoted")


def _own_mark(data: DataDirectory, mark: Mark) -> Mark:
    """The mark's timeline only.

    The control file of a crashed instance names its last checkpoint, which is older than the mark
    that it wrote itself; recovery brings back the rest.
    """
    if mark.point is None:
        return mark
    return replace(mark, point=WalPoint(mark.point.timeline, min(mark.point.lsn, data.point.lsn)))


def _start_beside_holder(facts: StartFacts, data: DataDirectory, holder: str) -> Decision:
    if not holder:
        return Wait("the Lease was deleted and made again: its former holder may still be writing")
    if not data.was_primary and not facts.must_rejoin:
        return StartStandby(f"{holder} holds the Lease: following it", upstream=holder)
    if not facts.holder_serves:
        # postgres stays down: it must not serve old data as if it were the cluster's.
        return Wait(f"this instance was a primary: waiting for {holder} to serve before rejoining")
    if facts.rewind_failed:
        return Clone(f"rejoining {holder} by rewind failed: cloning aside", upstream=holder)
    return Rejoin(f"{holder} is the primary now: rejoining it", upstream=holder)


def _start_orphan(facts: StartFacts, data: DataDirectory, lease: LeaseView) -> Decision:
    """Data, and nobody holds the Lease: the whole cluster was down.

    What a standby has is known only when it has read its WAL: the control file names the least.
    So it starts, and the election is held among the running. A former primary must not: it may have
    what nobody else has, and would have to give up again.
    """
    if not data.was_primary and not facts.must_rejoin:
        return StartStandby("nobody holds the Lease: starting as a standby to see who has most")
    if lease.kept_for_other(facts.me, facts.now_s) and facts.forced is None:
        return Wait(f"this instance hands over to {lease.record.successor}")
    candidates = {
        **facts.peers,
        facts.me: Candidate(
            data.system_identifier, data.point, barred=facts.must_rejoin, exact=data.clean
        ),
    }
    rules = Rules.of(
        lease.record,
        members=facts.members,
        maximum_lag_bytes=facts.maximum_lag_bytes,
        forced=facts.forced,
    )
    outcome = elect(candidates, rules)
    if isinstance(outcome, Elected) and outcome.pod == facts.me:
        return TakeLease(outcome.reason, forced=rules.forced == facts.me)
    if lease.record.writer == facts.me and data.was_primary and not facts.must_rejoin:
        # Nobody has written since: this instance has every acknowledged commit.
        given_up_s = facts.now_s - lease.changed_at_s
        below = below_mark(data.point, _own_mark(data, lease.record.mark), 0)
        if below is None and (facts.members == 1 or given_up_s > _TAKE_BACK_AFTER_S):
            return TakeLease("this instance gave the Lease up, and no other has taken it")
    if isinstance(outcome, Elected):
        return Wait(f"{outcome.reason}: waiting for it to take the Lease")
    return Wait(outcome.reason, condition="NoPrimary")
