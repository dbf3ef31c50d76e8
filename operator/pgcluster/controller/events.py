"""Kubernetes Events about a cluster: each change of its status that a person would want to hear of.

They are derived from the stored status and the next one, so that a restart repeats nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from pgcluster.api import conditions, names
from pgcluster.api.errors import PgClusterError
from pgcluster.api.models import (
    FailoverRecord,
    ForcedPromotionRecord,
    PgClusterStatus,
    SwitchoverRecord,
)
from pgcluster.controller.observe import Observed
from pgcluster.kube import events as rates
from pgcluster.kube.client import KubeClient, Manifest
from pgcluster.kube.errors import AlreadyExists
from pgcluster.kube.events import EventRate
from pgcluster.kube.resources import EVENTS

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened; equal ones of one `occasion` are posted once."""

    reason: str
    note: str
    occasion: str
    warning: bool = False


def between(before: PgClusterStatus, after: PgClusterStatus) -> tuple[Event, ...]:
    """What has happened between two statuses. Pure."""
    found: list[Event] = []
    if before.system_identifier is None and after.system_identifier is not None:
        found.append(
            Event(
                "Bootstrapped",
                f"the database cluster {after.system_identifier} was made",
                after.system_identifier,
            )
        )
    if before.primary is not None and after.primary is None:
        found.append(
            Event(
                "PrimaryLost",
                f"{before.primary} does not serve as the primary any more; clients of the pools"
                " wait",
                f"{before.primary}/{before.epoch}/{_since(after, conditions.READY)}",
                warning=True,
            )
        )
    for record in new_failovers(before, after):
        found.append(Event("Failover", _failover_note(record), str(record.epoch)))
    found += _switched(before.last_switchover, after.last_switchover)
    found += _forced(before.forced_promotion, after.forced_promotion)
    found += _rolled(before, after)
    for kind in (conditions.STALLED, conditions.DEGRADED):
        found += _alarms(kind, before, after)
    if _is_true(after, conditions.READY) and not _is_true(before, conditions.READY):
        condition = _find(after, conditions.READY)
        note = condition.message if condition else ""
        found.append(Event("Ready", note, _since(after, conditions.READY)))
    return tuple(found)


def _switched(before: SwitchoverRecord | None, after: SwitchoverRecord | None) -> Iterable[Event]:
    """Who asked for a switchover, and what came of it: the audit trail."""
    if after is None:
        return
    known = before is not None and before.request == after.request
    if known and before is not None and before.state == after.state:
        return
    asked = f" (asked for by {after.asked_by})" if after.asked_by else ""
    about = f"{after.cause} {after.request}{asked}"
    # By what is stored, not by the moment: the next look has another one, and posts it again where
    # the status could not be written.
    occasion = f"{after.request}/{before.started_at if before is not None else ''}"
    if not known:
        way = f"from {after.from_} to {after.to or 'another instance'}"
        yield Event("SwitchoverRequested", f"{way}: {about}", occasion)
    if after.state != "Running":
        yield Event(
            f"Switchover{after.state}",
            f"{about}: {after.reason}",
            occasion,
            warning=after.state != "Succeeded",
        )


def _forced(
    before: ForcedPromotionRecord | None, after: ForcedPromotionRecord | None
) -> Iterable[Event]:
    """Who asked for a promotion whatever is missing, and what came of it."""
    if after is None or after == before:
        return
    wish = (after.instance, after.epoch, after.seen_at)
    known = before is not None and (before.instance, before.epoch, before.seen_at) == wish
    if known and before is not None and before.state == after.state:
        return
    asked = f", asked for by {after.asked_by}" if after.asked_by else ""
    about = f"{after.instance} in epoch {after.epoch}{asked}"
    # By what is stored, as for a switchover.
    former = before.seen_at if before is not None and not known else ""
    occasion = f"{after.instance}/{after.epoch}/{former}"
    if not known:
        note = f"spec.failover.forcePromotion: {about}; commits that it lacks will be lost"
        yield Event("ForcedPromotionRequested", note, occasion, warning=True)
    if after.state != "Waiting":
        yield Event(
            f"ForcedPromotion{after.state}",
            f"{about}: {after.reason}",
            occasion,
            warning=after.state != "Ignored",
        )


def ended_switchover(before: PgClusterStatus, after: PgClusterStatus) -> SwitchoverRecord | None:
    """The switchover that the earlier status does not know to have ended."""
    was, now = before.last_switchover, after.last_switchover
    if now is None or now.state == "Running":
        return None
    known = was is not None and (was.request, was.state) == (now.request, now.state)
    return None if known else now


def _rolled(before: PgClusterStatus, after: PgClusterStatus) -> Iterable[Event]:
    """A rolling change: its beginning, each instance that has come through it, its end."""
    occasion = str(after.observed_generation)
    was, now = (_find(status, conditions.PROGRESSING) for status in (before, after))
    rolled = was is not None and was.reason in (conditions.ROLLING_OUT, conditions.ROLLOUT_STOPPED)
    rolls = now is not None and now.reason in (conditions.ROLLING_OUT, conditions.ROLLOUT_STOPPED)
    if rolls and not rolled and now is not None:
        note, since = now.message, now.last_transition_time
        yield Event("RolloutStarted", note, f"{occasion}/{since}")
    known = {row.pod: row.up_to_date for row in before.members}
    for row in after.members:
        if rolled and was is not None and row.ready and row.up_to_date and not known.get(row.pod):
            note = f"{row.pod} is up to date"
            yield Event("InstanceRestarted", note, f"{occasion}/{was.last_transition_time}")
    if rolled and not rolls and _is_true(after, conditions.READY):
        since = was.last_transition_time if was else ""
        note = f"all {len(after.members)} instances are up to date"
        yield Event("RolloutDone", note, f"{occasion}/{since}")


def new_failovers(before: PgClusterStatus, after: PgClusterStatus) -> tuple[FailoverRecord, ...]:
    """Changes of primary that the earlier status does not know yet."""
    known = {record.epoch for record in before.failovers}
    return tuple(record for record in after.failovers if record.epoch not in known)


def _failover_note(record: FailoverRecord) -> str:
    took = "" if record.promoted_ms is None else f", promoted in {record.promoted_ms} ms"
    return (
        f"{record.cause}: the primary was {record.from_} and is {record.to}"
        f" (timeline {record.timeline}{took})"
    )


def _alarms(kind: str, before: PgClusterStatus, after: PgClusterStatus) -> Iterable[Event]:
    now, was = _find(after, kind), _find(before, kind)
    if now is None or now.status != "True":
        return
    # A message changes with every step of a recovery; the reason tells of a new trouble.
    if was is not None and was.status == "True" and was.reason == now.reason:
        return
    yield Event(now.reason, now.message, f"{kind}/{now.last_transition_time}", warning=True)


def _find(status: PgClusterStatus, kind: str) -> conditions.Condition | None:
    return next((found for found in status.conditions if found.type == kind), None)


def _is_true(status: PgClusterStatus, kind: str) -> bool:
    found = _find(status, kind)
    return found is not None and found.status == "True"


def _since(status: PgClusterStatus, kind: str) -> str:
    found = _find(status, kind)
    return found.last_transition_time if found else ""


async def post(
    client: KubeClient,
    observed: Observed,
    events: Iterable[Event],
    *,
    rate: EventRate,
    now_s: float,
    reporter: str,
    now: str,
) -> None:
    """Post Events, no more than `rate` lets pass; one that cannot be posted is lost, as Events are.

    `now_s` is that of a monotonic clock, `now` as the API wants it.
    """
    for event in events:
        admitted = rate.admit(event.reason, now_s)
        told: Event | None = None
        if admitted.post:
            note = rates.counted(event.note, admitted.dropped)
            told = dataclasses.replace(event, note=note)
        elif admitted.announce:
            note = rates.announcement(event.reason, "the operator")
            told = Event(rates.TOO_MANY, note, now, warning=True)
        try:
            if told is not None:
                await client.create(EVENTS, _manifest(observed, told, reporter=reporter, now=now))
        except AlreadyExists:
            continue
        except PgClusterError as error:
            log.info("the Event %s was not posted: %s", event.reason, error)
        # Kubernetes drops Events after an hour; the log is what is kept, of each of them.
        level = logging.WARNING if event.warning else logging.INFO
        log.log(level, "event %s: %s", event.reason, event.note)


def _manifest(observed: Observed, event: Event, *, reporter: str, now: str) -> Manifest:
    key = observed.key
    identity = "\0".join((observed.uid, event.reason, event.note, event.occasion))
    return {
        "metadata": {
            # The name is made from the content: posting it again after a crash changes nothing.
            "name": f"{key.name}.{hashlib.sha256(identity.encode()).hexdigest()[:16]}",
            "namespace": key.namespace,
        },
        "eventTime": now,
        "type": "Warning" if event.warning else "Normal",
        "reason": event.reason[:128],
        "note": rates.shortened(event.note),
        "action": "Reconcile",
        "reportingController": f"{names.GROUP}/operator",
        "reportingInstance": reporter[:128],
        "regarding": {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": key.name,
            "namespace": key.namespace,
            "uid": observed.uid,
        },
    }
