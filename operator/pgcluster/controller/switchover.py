"""Which switchover is under way, and what became of it: wishes in, one order out. Pure.

The order that the agents are given carries the epoch of the Lease, so that it means nothing once
the Lease has changed hands. What is under way stands in `status.lastSwitchover`; an order is given
only for a record that is stored there already, so that an operator that ends at any line goes on
with the same request, and never does one twice: without the record, a request for "any" instance
would look new after it had been done.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from pgcluster.api import names
from pgcluster.api.config import SwitchoverConfig
from pgcluster.api.models import PgCluster, PgClusterStatus, SwitchoverRecord
from pgcluster.api.reports import HandoverReport
from pgcluster.api.times import time_of
from pgcluster.controller import orders
from pgcluster.controller.asking import manager_of
from pgcluster.controller.observe import InstancePod, Observed
from pgcluster.controller.wishes import Wish

_CAUSES = ("request", "scale", "node", "maintenance", "rollout")
# Within this an order is seen, or never. One that the primary says it carries out has bounds of its
# own: a rehearsal, checkpoints of minutes, the pause.
_GIVE_UP_S = 120.0
_BEGIN_S = 0.05
_LOOK_S = 2.0
# Valid values are shorter; of others the beginning is enough to know them by.
_LONGEST_VALUE = 280
_VALUE = re.compile(r"(?P<target>[a-z0-9]([-a-z0-9]*[a-z0-9])?)(:(?P<id>.{1,200}))?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Decision:
    """What the agents are told, and what the status is to say.

    `handled` is the value of the annotation that has been dealt with; `waiting` says what a request
    waits for that is not begun yet. `unmet` says why a wish of the operator's own is not met, which
    is tried again after `later_s`.
    """

    order: SwitchoverConfig | None = None
    record: SwitchoverRecord | None = None
    handled: str | None = None
    waiting: str | None = None
    unmet: str | None = None
    later_s: float | None = None

    @property
    def again_s(self) -> float | None:
        """When to look again without an event; None where nothing is under way."""
        if self.record is not None and self.record.state == "Running":
            # One that is not stored yet is ordered as soon as it is.
            return _LOOK_S if self.order is not None else _BEGIN_S
        return _LOOK_S if self.waiting else self.later_s


def decide(
    observed: Observed,
    cluster: PgCluster,
    known: PgClusterStatus,
    wishes: Iterable[Wish],
    *,
    now: datetime,
    going: Collection[str] = (),
) -> Decision:
    """The next step. `known` is the status as it is stored; `wishes` are those of other parts.

    `going` are instances that will have to leave soon: primaries only where nobody else can be.
    """
    handled = known.switchover_request
    record = known.last_switchover
    if record is not None and record.state == "Running":
        record = _outcome(observed, record, now, paused=cluster.spec.paused)
        if record.state == "Running":
            order = SwitchoverConfig(
                request=record.request, target=record.to or "", epoch=record.epoch or 0
            )
            return Decision(order, record, handled)
    asked = requested(cluster)
    if asked is not None and known.system_identifier is None:
        # It came with the manifest of a cluster that did not exist: nobody meant this primary.
        return Decision(None, record, asked)
    if asked is not None and asked != handled:
        if reason := _busy(observed):
            return Decision(None, record, handled, waiting=reason)
        begun = _begin_request(observed, cluster, asked, now, going)
        return Decision(None, _counted(begun, record), asked)
    if cluster.spec.paused:
        return Decision(None, record, handled)
    ordered = _ordered(wishes, record)
    due = [one for one in ordered if one.not_before is None or one.not_before <= now]
    wish = next((one for one in due if record is None or one.request != record.request), None)
    if wish is None:
        return _postponed(record, handled, ordered, now)
    if observed.primary is None or _busy(observed):
        return Decision(None, record, handled)
    return Decision(
        None, _counted(_begin(observed, wish, now, by=None, going=going), record), handled
    )


def _postponed(
    record: SwitchoverRecord | None, handled: str | None, wishes: Sequence[Wish], now: datetime
) -> Decision:
    early = [(one.not_before, one.reason) for one in wishes if one.not_before is not None]
    if record is None or not early:
        return Decision(None, record, handled)
    at, reason = min(early)
    return Decision(
        None,
        record,
        handled,
        unmet=f"{reason}, but {record.reason}; it is tried again",
        later_s=max(_BEGIN_S, (at - now).total_seconds()),
    )


def in_the_way(cluster: PgCluster, known: PgClusterStatus) -> str | None:
    """Why no rolling change goes on: a switchover that is not its own is under way or asked for."""
    record = known.last_switchover
    if record is not None and record.state == "Running":
        if record.cause == "rollout":
            return None
        return f"{record.to} is to become the primary: {record.reason}"
    asked = requested(cluster)
    if asked is not None and asked != known.switchover_request and known.system_identifier:
        return f"a switchover is asked for: {asked}"
    return None


def requested(cluster: PgCluster) -> str | None:
    """Value of annotation pgcluster.dev/switchover, if there is one."""
    value = (cluster.metadata.get("annotations") or {}).get(names.ANNOTATION_SWITCHOVER)
    if not value:
        return None
    text = str(value)
    if len(text) <= _LONGEST_VALUE:
        return text
    # An annotation may have 256 KiB, and what it asks for goes into the status and an Event.
    return f"{text[:_LONGEST_VALUE]}…{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def asked_by(cluster: PgCluster) -> str | None:
    """Field manager that wrote the annotation: the one trace that the API keeps of who asked."""
    path = ("metadata", "annotations", names.ANNOTATION_SWITCHOVER)
    return manager_of(cluster.metadata, *path)


# --- what became of it ------------------------------------------------------------------------
def _outcome(
    observed: Observed, record: SwitchoverRecord, now: datetime, *, paused: bool
) -> SwitchoverRecord:
    primary = observed.primary
    if observed.lease is not None and observed.epoch != record.epoch and primary is not None:
        if primary.name == record.to:
            return _ended(record, "Succeeded", f"{record.to} is the primary", now)
        again = primary.name == record.from_
        became = "is the primary again" if again else "became the primary instead"
        return _ended(record, "Failed", f"{primary.name} {became}", now)
    told = _told_of(observed, record)
    if told is not None and told.state == "refused":
        return _ended(record, "Refused", told.reason, now)
    if told is not None and told.state == "failed":
        return _ended(record, "Failed", told.reason, now)
    if told is not None and told.under_way and primary is not None:
        # Its agent puts an end to it, or loses the Lease: both are seen.
        return record
    if paused:
        return _outcome_paused(observed, record, now)
    started = time_of(record.started_at)
    if started is None or (now - started).total_seconds() > _GIVE_UP_S:
        left = "nothing has changed" if primary is not None else "no instance is the primary"
        reason = f"nothing came of it within {_GIVE_UP_S:g} s; {left}"
        return _ended(record, "Failed", reason, now)
    return record


def _outcome_paused(
    observed: Observed, record: SwitchoverRecord, now: datetime
) -> SwitchoverRecord:
    """While paused nothing is written: no order is given, and none that was given withdrawn.

    What may still be carried out has therefore not failed.
    """
    given = orders.switchover(observed)
    if given is not None and (given.request, given.epoch) == (record.request, record.epoch):
        return record
    return _ended(record, "Refused", "spec.paused is true: set it to false first", now)


def _told_of(observed: Observed, record: SwitchoverRecord) -> HandoverReport | None:
    """What an agent says of this very request."""
    for pod in observed.pods:
        told = pod.report.handover if pod.report else None
        if told is not None and (told.request, told.epoch) == (record.request, record.epoch):
            return told
    return None


def _ended(record: SwitchoverRecord, state: str, reason: str, now: datetime) -> SwitchoverRecord:
    change: dict[str, object] = {"state": state, "reason": reason, "ended_at": _stamp(now)}
    if state == "Succeeded":
        change["failures"] = 0
    elif record.cause != "request":
        change["failures"] = record.failures + 1
    return record.model_copy(update=change)


def _counted(begun: SwitchoverRecord, before: SwitchoverRecord | None) -> SwitchoverRecord:
    """With the failures of those before it: what begins has changed no primary yet."""
    if before is None:
        return begun
    return begun.model_copy(update={"failures": begun.failures + before.failures})


# --- what is begun ----------------------------------------------------------------------------
def _begin_request(
    observed: Observed, cluster: PgCluster, asked: str, now: datetime, going: Collection[str]
) -> SwitchoverRecord:
    by = asked_by(cluster)
    wish = Wish("request", asked, f"annotation {names.ANNOTATION_SWITCHOVER} asks for it")
    matched = _VALUE.fullmatch(asked)
    if matched is None:
        return _refused(
            observed,
            wish,
            f"the value of annotation {names.ANNOTATION_SWITCHOVER} must be the name of an"
            f" instance or `{names.ANY}`, then perhaps a colon and a text that makes it new, such"
            f" as {names.pod(cluster.name, 1)}:monday",
            now,
            by,
        )
    if cluster.spec.paused:
        return _refused(observed, wish, "spec.paused is true: set it to false first", now, by)
    if cluster.spec.hibernated:
        return _refused(observed, wish, "spec.hibernated is true: set it to false first", now, by)
    if observed.primary is None:
        return _refused(observed, wish, "no instance is the primary: see condition Ready", now, by)
    target = matched["target"]
    wish = Wish(
        "request",
        asked,
        wish.reason,
        target=None if target == names.ANY else target,
        avoid=_parting(observed, cluster),
    )
    return _begin(observed, wish, now, by=by, going=going)


def _parting(observed: Observed, cluster: PgCluster) -> frozenset[str]:
    """Instances that the spec removes or puts down: each would have to hand over once more."""
    held = {entry.instance for entry in cluster.spec.maintenance}
    return frozenset(
        pod.name
        for pod in observed.pods
        if pod.name in held or names.ordinal(pod.name) >= cluster.spec.instances
    )


def _begin(
    observed: Observed, wish: Wish, now: datetime, *, by: str | None, going: Collection[str]
) -> SwitchoverRecord:
    primary = observed.primary
    if primary is not None and wish.target == primary.name:
        reason = f"{primary.name} is the primary already"
        return _ended(
            _record(observed, wish, "Succeeded", reason, now, by), "Succeeded", reason, now
        )
    target, reason = _target(observed, wish, going)
    if target is None:
        return _refused(observed, wish, reason, now, by)
    record = _record(observed, wish, "Running", wish.reason, now, by)
    return record.model_copy(update={"to": target})


def _target(observed: Observed, wish: Wish, going: Collection[str]) -> tuple[str | None, str]:
    """Who is to become the primary; else why nobody."""
    others = [pod for pod in observed.pods if pod is not observed.primary]
    if wish.target is not None:
        chosen = next((pod for pod in others if pod.name == wish.target), None)
        if chosen is None:
            known = ", ".join(pod.name for pod in others) or "none"
            return None, f"there is no standby {wish.target}; the standbys are: {known}"
        reason = _unfit(observed, chosen, avoid=wish.avoid)
        return (None, f"{chosen.name} {reason}") if reason else (chosen.name, "")
    if not others:
        return None, "there is no other instance that could take over"
    found = {pod.name: _unfit(observed, pod, avoid=wish.avoid) for pod in others}
    fit = [pod for pod in others if found[pod.name] is None]
    if not fit:
        told = "; ".join(f"{name} {reason}" for name, reason in found.items())
        return None, f"no instance can take over: {told}"
    return min(fit, key=lambda pod: (pod.name in going, _lag(pod))).name, ""


def _lag(pod: InstancePod) -> int:
    return (pod.report.lag_bytes or 0) if pod.report is not None else 0


def _unfit(
    observed: Observed, pod: InstancePod, *, avoid: frozenset[str] = frozenset()
) -> str | None:
    """Why this instance cannot take over, as the rest of a sentence."""
    primary, report = observed.primary, pod.report
    if pod.name in avoid:
        return "is to be restarted, left or removed itself"
    if "deletionTimestamp" in pod.manifest["metadata"]:
        return "is being deleted"
    if report is None or not pod.running:
        return "does not run"
    if report.state != "running" or report.role != names.ROLE_STANDBY:
        return f"is no running standby: {report.state} ({report.reason})"
    if not pod.ready or not report.ready:
        return f"is not ready: {report.reason}"
    streaming = primary.report.streaming if primary is not None and primary.report else None
    if streaming is not None and pod.name not in streaming:
        return "does not stream from the primary"
    if report.disk_full:
        return "has a full volume"
    return None


def _busy(observed: Observed) -> str | None:
    """Why none can be begun at this moment."""
    primary = observed.primary
    told = primary.report.handover if primary is not None and primary.report else None
    if primary is not None and told is not None and told.under_way:
        return f"{primary.name} is handing over already"
    if any(pod.report is not None and pod.report.state == "promoting" for pod in observed.pods):
        return "an instance is being promoted"
    return None


def _ordered(wishes: Iterable[Wish], record: SwitchoverRecord | None) -> Sequence[Wish]:
    """By weight; but after one that came to nothing the others have their turn first."""
    failed = record.cause if record is not None and record.state in ("Refused", "Failed") else ""
    return sorted(wishes, key=lambda wish: (wish.cause == failed, _CAUSES.index(wish.cause)))


def _record(
    observed: Observed, wish: Wish, state: str, reason: str, now: datetime, by: str | None
) -> SwitchoverRecord:
    primary = observed.primary
    fields: Mapping[str, object] = {
        "request": wish.request,
        "cause": wish.cause,
        "asked_by": by,
        "from_": primary.name if primary is not None else None,
        "to": wish.target,
        "state": state,
        "reason": reason,
        "epoch": observed.epoch,
        "started_at": _stamp(now),
    }
    return SwitchoverRecord.model_validate(fields)


def _refused(
    observed: Observed, wish: Wish, reason: str, now: datetime, by: str | None
) -> SwitchoverRecord:
    return _ended(_record(observed, wish, "Refused", reason, now, by), "Refused", reason, now)


def _stamp(now: datetime) -> str:
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
