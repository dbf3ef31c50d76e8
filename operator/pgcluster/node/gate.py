"""The promotion gate: may this instance take the Lease and become primary? Pure.

`failover_validation_command` and `service_promote_command` both stand behind it, so that neither
repmgrd nor a person at a shell makes a second primary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pgcluster.topology.election import Candidate, Rules, complete, unfit
from pgcluster.topology.lease import LeaseView


@dataclass(frozen=True, slots=True)
class GateFacts:
    """What the gate looks at. Times are seconds of one monotonic clock."""

    me: str
    now_s: float
    lease: LeaseView | None
    holding: bool
    # What this instance has; None where postgres does not answer.
    candidate: Candidate | None
    members: int
    maximum_lag_bytes: int
    # Whether the Lease's holder answers as a primary right now; None: not known.
    holder_serves: bool | None
    # What the other instances have, asked since the Lease became free; None: not asked yet.
    others: Mapping[str, Candidate] | None = None
    # An instance that a person wants promoted whatever is missing, and the epoch of that wish.
    forced: tuple[str, int] | None = None
    # The holder's container has ended for certain, and is not waited for.
    holder_ended: bool = False
    # Being deleted or shut down.
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Pass:
    """The Lease is ours: promote."""

    reason: str


@dataclass(frozen=True, slots=True)
class Take:
    """Try to take the Lease, then ask again; `forced`: a person accepts what is missing here."""

    reason: str
    forced: bool = False


@dataclass(frozen=True, slots=True)
class Ask:
    """Ask the other instances what they have, then look again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Hold:
    """Not yet: ask again shortly."""

    reason: str


@dataclass(frozen=True, slots=True)
class Deny:
    """No: repmgr is to give up this attempt."""

    reason: str


def decide_gate(facts: GateFacts) -> Pass | Take | Ask | Hold | Deny:
    """One look at the gate; the caller repeats it until Pass, Deny, or its own deadline."""
    if facts.leaving:
        return Deny("this instance is shutting down")
    if facts.holding:
        return Pass(f"{facts.me} holds the Lease")
    lease = facts.lease
    if lease is None:
        return Hold("the Lease cannot be read")
    if facts.candidate is None:
        return Deny("postgres does not answer here, so its WAL position is not known")
    rules = Rules.of(
        lease.record,
        members=facts.members,
        maximum_lag_bytes=facts.maximum_lag_bytes,
        forced=facts.forced,
    )
    held = lease.held_by_other(facts.me, facts.now_s) and not facts.holder_ended
    if held or facts.others is None:
        # What no answer of the others could change is told at once.
        alone = replace(rules, members=1, quorums=())
        if reason := unfit(facts.me, {facts.me: facts.candidate}, alone):
            return Deny(f"{facts.me} may not become primary: {reason}")
    if held:
        holder = lease.record.holder
        if facts.holder_serves:
            return Deny(f"{holder} holds the Lease and serves: a false alarm")
        return Hold(f"{holder or 'the holder of a Lease that was deleted'} holds the Lease")
    if lease.kept_for_other(facts.me, facts.now_s) and rules.forced != facts.me:
        return Hold(f"the Lease is being handed over to {lease.record.successor}")
    if facts.others is None and not complete(facts.candidate.point, rules.mark):
        return Ask("the Lease is free: asking the other instances what they have")
    candidates = {**(facts.others or {}), facts.me: facts.candidate}
    if reason := unfit(facts.me, candidates, rules):
        return Deny(f"{facts.me} may not become primary: {reason}")
    if rules.forced == facts.me:
        return Take("spec.failover.forcePromotion names this instance", forced=True)
    if facts.holder_ended:
        return Take(f"the container of {lease.record.holder} has ended")
    if lease.kept_for(facts.now_s) == facts.me:
        return Take(f"{lease.record.last_holder} hands over to {facts.me}")
    return Take("the Lease was released" if lease.released() else "the Lease has expired")
