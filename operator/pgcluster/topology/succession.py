"""Which standby may take over from a primary that stops in order, and which is best. Pure.

Not an election: the primary is there, and nothing is lost whomever it chooses. What is asked here
is that the choice costs clients little, and that the successor can do what is asked of it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pgcluster.api import names
from pgcluster.topology.election import Candidate

# What the successor has to replay while clients wait.
MAXIMUM_LAG_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Heir:
    """An instance that may take over.

    `lag_bytes` is what it has not replayed of this primary's WAL; None where it does not stream
    from here. `candidate` is its agent's word, None where it has none. `follows_plans`: its agent
    knows of hand-overs.
    """

    pod: str
    lag_bytes: int | None
    candidate: Candidate | None
    follows_plans: bool = True
    disk_full: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """The successor, or None; `reason` is a sentence either way."""

    pod: str | None
    reason: str


def unsuitable(heir: Heir, *, system_identifier: str | None, timeline: int) -> str | None:
    """Why an instance cannot take over now; None where it can."""
    candidate = heir.candidate
    if candidate is None:
        return f"the agent of {heir.pod} does not answer"
    if candidate.barred:
        return f"{heir.pod} is not fit at the moment"
    if not heir.follows_plans:
        return f"the agent of {heir.pod} is of a version that knows no hand-over"
    if candidate.system_identifier != system_identifier:
        return f"{heir.pod} has the data of another system"
    if heir.lag_bytes is None:
        return f"{heir.pod} does not stream from this primary"
    if candidate.point is None or candidate.point.timeline != timeline:
        return f"{heir.pod} is on another timeline than {timeline}"
    if heir.lag_bytes > MAXIMUM_LAG_BYTES:
        return f"{heir.pod} has yet to replay {heir.lag_bytes} bytes of WAL"
    if heir.disk_full:
        return f"the volume of {heir.pod} is full"
    return None


def choose(
    heirs: Iterable[Heir],
    *,
    target: str | None,
    system_identifier: str | None,
    timeline: int,
) -> Choice:
    """`target` where it can take over; without one the most advanced, then the lowest ordinal."""
    known = {heir.pod: heir for heir in heirs}
    if target is not None:
        heir = known.get(target)
        if heir is None:
            return Choice(None, f"{target} is no other instance of this cluster")
        known = {target: heir}
    reasons = {
        pod: unsuitable(heir, system_identifier=system_identifier, timeline=timeline)
        for pod, heir in known.items()
    }
    fit = [
        (heir.lag_bytes or 0, names.ordinal(pod), pod)
        for pod, heir in known.items()
        if reasons[pod] is None
    ]
    if not fit:
        told = "; ".join(reason for _, reason in sorted(reasons.items()) if reason)
        return Choice(None, told or "there is no other instance")
    pod = min(fit)[2]
    return Choice(pod, f"{pod} is to take over")
