"""Who takes over when the Lease is free and nobody does. Pure.

repmgrd's election is one-shot: cancelled or failed, it is never held again. This one is run by
every agent, as often as it takes, over what the agents tell each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pgcluster.api import names
from pgcluster.api.wal import WalPoint
from pgcluster.topology.lease import Mark


@dataclass(frozen=True, slots=True)
class Candidate:
    """What an instance has: its cluster's identity and the newest WAL it holds.

    Both are None for an instance that answers but has no data.
    """

    system_identifier: str | None
    point: WalPoint | None
    # It answers, but is not to be chosen: being deleted, cloning, refused.
    barred: bool = False


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


def elect(
    candidates: Mapping[str, Candidate], *, members: int, mark: Mark, maximum_lag_bytes: int
) -> Elected | NoElection:
    """Choose among the instances that answered (pod name → candidate), the caller included.

    Invariants: never without a majority of `members`, never an instance of a foreign system,
    never one below the mark; among the rest the most advanced (timeline, then position), then the
    lowest ordinal. Every agent that sees the same candidates chooses the same.
    """
    if len(candidates) * 2 <= members:
        return NoElection(
            f"only {len(candidates)} of {members} instances answer, a majority is needed"
        )
    refused: list[str] = []
    fit: list[tuple[WalPoint, int, str]] = []
    for pod, candidate in sorted(candidates.items()):
        if candidate.barred or candidate.point is None:
            continue
        if mark.system_identifier not in (None, candidate.system_identifier):
            refused.append(f"{pod}: system identifier {candidate.system_identifier} is foreign")
        elif reason := below_mark(candidate.point, mark, maximum_lag_bytes):
            refused.append(f"{pod}: {reason}")
        else:
            fit.append((candidate.point, -names.ordinal(pod), pod))
    if not fit:
        return NoElection("no instance is fit to be primary: " + ("; ".join(refused) or "no data"))
    point, _, pod = max(fit)
    return Elected(pod, f"{pod} is the most advanced of {len(candidates)} ({point})")
