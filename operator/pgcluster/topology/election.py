"""Who may become primary, and who should when nobody does. Pure.

repmgrd's election is one-shot: cancelled or failed, it is never held again, and it counts active
siblings only. This one is run by every agent, as often as it takes, over what the agents tell each
other. The promotion gate asks the same rules of the one instance that stands before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pgcluster.api import names
from pgcluster.api.wal import WalPoint
from pgcluster.topology import quorum
from pgcluster.topology.lease import LeaseRecord, Mark
from pgcluster.topology.quorum import Quorum


@dataclass(frozen=True, slots=True)
class Candidate:
    """What an instance has: its cluster's identity and the newest WAL it holds.

    Both are None for an instance that answers but has no data.
    """

    system_identifier: str | None
    point: WalPoint | None
    # It answers, but is not to be chosen: being deleted, cloning, refused.
    barred: bool = False
    # It has read all its WAL, so that `point` is what it has, and not the least that it has.
    exact: bool = True


@dataclass(frozen=True, slots=True)
class Rules:
    """What the cluster demands of its next primary.

    `members` is how many instances it has; `forced` the one that a person has named to be promoted
    whatever is missing; `holder` who has the Lease by name, though it has run out.
    """

    members: int
    mark: Mark
    maximum_lag_bytes: int
    quorums: tuple[Quorum, ...] | None = ()
    forced: str | None = None
    holder: str = ""

    @classmethod
    def of(
        cls,
        record: LeaseRecord,
        *,
        members: int,
        maximum_lag_bytes: int,
        forced: tuple[str, int] | None = None,
    ) -> Rules:
        """Those of a Lease. `forced`: an instance and the epoch that it was named in, since one
        that was named in an earlier epoch is not meant any more."""
        return cls(
            members=members,
            mark=record.mark,
            maximum_lag_bytes=maximum_lag_bytes,
            quorums=record.quorums,
            forced=forced[0] if forced and forced[1] == record.epoch else None,
            holder=record.holder,
        )


@dataclass(frozen=True, slots=True)
class Elected:
    """This instance should take the Lease."""

    pod: str
    reason: str


@dataclass(frozen=True, slots=True)
class NoElection:
    """Nobody may take it yet."""

    reason: str


def below_mark(point: WalPoint | None, mark: Mark, maximum_lag_bytes: int) -> str | None:
    """Why an instance that holds `point` may not become primary; None where it may.

    Its timeline must not be below the mark's, since a lower one misses whole histories, and what
    it lacks of the mark's WAL must be within `maximum_lag_bytes`.
    """
    if mark.point is None:
        return None
    if point is None:
        return "it has no data"
    if point.timeline < mark.point.timeline:
        return f"its timeline {point.timeline} is below the cluster's {mark.point.timeline}"
    lag = mark.point.lsn - point.lsn
    if point.timeline == mark.point.timeline and lag > maximum_lag_bytes:
        return (
            f"it lacks {lag} bytes of WAL up to {mark.point.lsn}, "
            f"more than spec.failover.maximumLag ({maximum_lag_bytes})"
        )
    return None


def complete(point: WalPoint | None, mark: Mark) -> bool:
    """Whether an instance that holds `point` has all that a primary which stopped in order left:
    then no answer of the others could say more."""
    return mark.final and mark.point is not None and point is not None and point >= mark.point


def unfit(pod: str, candidates: Mapping[str, Candidate], rules: Rules) -> str | None:
    """Why an instance may not become primary, given all that answered; None where it may.

    Never one of a foreign system. Beyond that, unless a person has named it: never one below the
    mark; never without a majority of those that have data, unless it provably has everything, or
    there are only two; and with synchronous replication only the most advanced of as many as prove
    that no acknowledged commit is missing.
    """
    candidate = candidates[pod]
    if candidate.barred:
        return "it is not fit at the moment"
    if candidate.point is None:
        return "it has no data"
    mark = rules.mark
    if mark.system_identifier not in (None, candidate.system_identifier):
        return f"its system identifier {candidate.system_identifier} is foreign"
    if rules.forced == pod:
        return None
    if reason := below_mark(candidate.point, mark, rules.maximum_lag_bytes):
        return reason
    if complete(candidate.point, mark):
        return None
    # One that has no data yet, such as one that has just been added, is no voice for those who may
    # have more: it neither makes up a majority, nor is one needed of it.
    voices = sum(each.point is not None for each in candidates.values())
    voters = rules.members - (len(candidates) - voices)
    if voices * 2 <= voters and voters > 2:
        return f"only {voices} of {voters} instances answer, a majority is needed"
    if not quorum.promises(rules.quorums):
        return None
    known = {
        other: each.point
        for other, each in candidates.items()
        if each.point is not None
        and each.exact
        and mark.system_identifier in (None, each.system_identifier)
    }
    if reason := quorum.unproven(rules.quorums, known.keys()):
        return reason
    asked = {pod for each in rules.quorums or () for pod in (each.primary, *each.members)}
    ahead = [other for other in sorted(asked & known.keys()) if known[other] > candidate.point]
    return f"{ahead[0]} has more" if ahead else None


def elect(
    candidates: Mapping[str, Candidate], rules: Rules, *, patient: bool = False
) -> Elected | NoElection:
    """Choose among the instances that answered (pod name → candidate), the caller included.

    Invariant: nobody who is unfit. Among the rest the most advanced (timeline, then position), then
    the lowest ordinal, so that every agent that sees the same candidates chooses the same. Before
    that comes who has the Lease by name, such as one that has never heard the answer to its
    request: the others do not ask it, and may not be able to go on without it.
    `patient`: an instance that is still reading its WAL, and may have more, is waited for.
    """
    late = [pod for pod, each in sorted(candidates.items()) if not (each.exact or each.barred)]
    if patient and late and rules.forced is None:
        return NoElection(f"{late[0]} is still reading its WAL")
    reasons = {pod: unfit(pod, candidates, rules) for pod in sorted(candidates)}
    fit = [
        (each.point, pod == rules.holder, -names.ordinal(pod), pod)
        for pod, each in candidates.items()
        if reasons[pod] is None and each.point is not None
    ]
    if rules.forced is not None:
        fit = [each for each in fit if each[-1] == rules.forced]
    if not fit:
        told = "; ".join(f"{pod}: {reason}" for pod, reason in reasons.items() if reason)
        return NoElection(f"no instance may become primary ({told or 'none answers'})")
    point, _, _, pod = max(fit)
    return Elected(pod, f"{pod} is the most advanced of {len(candidates)} ({point})")
