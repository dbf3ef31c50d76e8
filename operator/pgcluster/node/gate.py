"""The promotion gate: may this instance take the Lease and become primary? Pure.

`failover_validation_command` and `service_promote_command` both stand behind it, so that neither
repmgrd nor a person at a shell makes a second primary.
"""

from __future__ import annotations

from dataclasses import dataclass

from pgcluster.api.wal import WalPoint
from pgcluster.topology.election import below_mark
from pgcluster.topology.lease import LeaseView


@dataclass(frozen=True, slots=True)
class GateFacts:
    """What the gate looks at. Times are seconds of one monotonic clock."""

    me: str
    now_s: float
    lease: LeaseView | None
    holding: bool
    # What this instance has received and flushed; None where postgres does not answer.
    point: WalPoint | None
    system_identifier: str | None
    maximum_lag_bytes: int
    # Whether the Lease's holder answers as a primary right now; None: not known.
    holder_serves: bool | None
    # Being deleted or shut down.
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Pass:
    """The Lease is ours: promote."""

    reason: str


@dataclass(frozen=True, slots=True)
class Take:
    """Try to take the Lease, then ask again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Not yet: ask again shortly."""

    reason: str


@dataclass(frozen=True, slots=True)
class Deny:
    """No: repmgr is to give up this attempt."""

    reason: str


def decide_gate(facts: GateFacts) -> Pass | Take | Hold | Deny:
    """One look at the gate; the caller repeats it until Pass, Deny, or its own deadline."""
    if facts.leaving:
        return Deny("this instance is shutting down")
    if facts.holding:
        return Pass(f"{facts.me} holds the Lease")
    lease = facts.lease
    if lease is None:
        return Hold("the Lease cannot be read")
    mark = lease.record.mark
    if facts.point is None:
        return Deny("postgres does not answer here, so its WAL position is not known")
    if mark.system_identifier not in (None, facts.system_identifier):
        return Deny(
            f"this instance belongs to system {facts.system_identifier}, "
            f"the cluster is {mark.system_identifier}"
        )
    if reason := below_mark(facts.point, mark, facts.maximum_lag_bytes):
        return Deny(f"{facts.me} may not become primary: {reason}")
    if lease.held_by_other(facts.me, facts.now_s):
        holder = lease.record.holder
        if facts.holder_serves:
            return Deny(f"{holder} holds the Lease and serves: a false alarm")
        return Hold(f"{holder} holds the Lease")
    return Take("the Lease was released" if lease.released() else "the Lease has expired")
