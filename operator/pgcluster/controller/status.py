"""What a PgCluster's status says: is it fine, who is primary, what is it doing. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pydantic

from pgcluster.api import conditions as c
from pgcluster.api import names
from pgcluster.api.models import Member, PgCluster, PgClusterStatus, Pooler, settings_of
from pgcluster.api.reports import PoolerReport
from pgcluster.controller import (
    failovers,
    forced,
    pools,
    problems,
    rollout,
    rows,
    switchover,
    warnings,
)
from pgcluster.controller.observe import InstancePod, Observed

Wanted = tuple[str, bool, str, str]
Told = tuple[str, str]  # reason and message


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the reconciliation itself has to tell, beside what was observed."""

    image: str | None = None
    pgbouncer_image: str | None = None
    # Whether objects were changed just now for a spec that the stored status is not about: what
    # follows from that (a rolling change, poolers that reload) shows at the next look only.
    applied: bool = False
    # Why the spec cannot be acted on: reason and message.
    blocked: tuple[str, str] | None = None
    # Things that wait for somebody, such as pods of an earlier template: reason and message.
    pending: tuple[str, str] | None = None
    # Where a rolling change is; None while nobody has looked.
    rolling: rollout.Plan | None = None
    # The switchover that is under way, or was the last; None while nobody has looked.
    switchover: switchover.Decision | None = None
    # An image of the instances that the operator offers.
    newer_image: str | None = None
    # The pods were stopped, or are being so, as spec.hibernated asks.
    asleep: Told | None = None
    sleeping: Told | None = None
    # Instances whose postgres is kept down for somebody, and why not all that were asked for.
    held: tuple[str, ...] = ()
    not_held: Told | None = None
    # Why the pools do not show the certificate that the spec asks for.
    certificate: Told | None = None


def known_status(observed: Observed) -> PgClusterStatus:
    """The status that is stored; empty where it makes no sense to this version."""
    try:
        return PgClusterStatus.model_validate(observed.cluster.get("status") or {})
    except pydantic.ValidationError:
        return PgClusterStatus()


def compute(
    observed: Observed, cluster: PgCluster | None, outcome: Outcome, *, now: str
) -> PgClusterStatus:
    """The status to store. `cluster` is None where its spec cannot be understood."""
    known = known_status(observed)
    generation = int(observed.cluster["metadata"].get("generation") or 0)
    # An image that the spec names is not pinned: a wrong one would outlive its correction.
    spec = cluster.spec if cluster else None
    outdated = outcome.rolling.outdated if outcome.rolling else None
    members = tuple(rows.member(pod, observed.holder, outdated) for pod in observed.pods)
    poolers = tuple(
        rows.pooler(pod, observed)
        for pod in observed.pooler_pods
        if "deletionTimestamp" not in pod["metadata"]
    )
    primary = observed.primary if observed.primary and observed.primary.ready else None
    report = primary.report if primary else None
    records = failovers.history(
        known.failovers,
        (p.report.promotion for p in observed.pods if p.report and p.report.promotion),
        _reports_by_age(observed),
        now=now,
    )
    changing = outcome.switchover
    situation = _Situation(observed, cluster, outcome, known, members, poolers, primary)
    return PgClusterStatus(
        observed_generation=generation,
        conditions=c.merge(
            known.conditions, situation.conditions(), generation=generation, now=now
        ),
        summary=situation.summary(),
        primary=primary.name if primary else None,
        timeline=report.timeline if report else known.timeline,
        synchronous=report.synchronous if report else known.synchronous,
        system_identifier=observed.system_identifier,
        epoch=observed.epoch if observed.lease else known.epoch or 0,
        instances=len(members),
        ready_instances=sum(member.ready for member in members),
        selector=f"{names.LABEL_CLUSTER}={observed.key.name},"
        f"{names.LABEL_COMPONENT}={names.COMPONENT_POSTGRES}",
        image=known.image if spec and spec.image else outcome.image or known.image,
        pgbouncer_image=known.pgbouncer_image
        if spec and spec.pgbouncer.image
        else outcome.pgbouncer_image or known.pgbouncer_image,
        restart=cluster.restart if cluster and outcome.image else known.restart,
        members=members,
        poolers=poolers,
        last_failover=records[0] if records else None,
        last_switchover=known.last_switchover if changing is None else changing.record,
        switchover_request=known.switchover_request if changing is None else changing.handled,
        failovers=records,
        forced_promotion=forced.follow(observed, cluster, known.forced_promotion, records, now=now),
        imported_at=_imported_at(observed) or known.imported_at,
    )


def _imported_at(observed: Observed) -> str | None:
    report = observed.primary.report if observed.primary else None
    return report.importing.at if report is not None and report.importing is not None else None


def _reports_by_age(observed: Observed) -> Iterable[tuple[str, PoolerReport]]:
    for pod in observed.pooler_pods:
        report = observed.pooler_reports.get(pod["metadata"]["name"])
        if report is not None:
            yield pod["metadata"]["creationTimestamp"], report


@dataclass(frozen=True, slots=True)
class _Situation:
    """Everything that the conditions depend on."""

    observed: Observed
    cluster: PgCluster | None
    outcome: Outcome
    known: PgClusterStatus
    members: tuple[Member, ...]
    poolers: tuple[Pooler, ...]
    primary: InstancePod | None

    # --- facts --------------------------------------------------------------------------------
    @property
    def _problems(self) -> tuple[problems.Problem, ...]:
        return problems.find([pod.manifest for pod in self.observed.pods]) + problems.find(
            self.observed.pooler_pods
        )

    @property
    def _new(self) -> bool:
        """Whether it has never been complete, so that what is missing was never there."""
        ready = next((x for x in self.known.conditions if x.type == c.READY), None)
        return ready is None or (
            ready.status != "True"
            and ready.reason
            in (c.BOOTSTRAPPING, c.CREATING, c.IMPORTING, c.IMPORT_FAILED, *_BLOCKED)
        )

    def _full_primary(self) -> str | None:
        """Why whoever holds the Lease cannot write, where that is a full volume."""
        holder = (pod for pod in self.observed.pods if pod.name == self.observed.holder)
        return warnings.full_primary(next(holder, None))

    def _missing(self) -> tuple[str, str] | None:
        """What is missing while the primary serves: reason and message."""
        spec = self.cluster.spec if self.cluster else None
        away = [x for x in self.members if not x.ready and x.pod not in self.outcome.held]
        instances = spec.instances if spec else len(self.members)
        if away or len(self.members) < instances:
            ready = sum(member.ready for member in self.members)
            texts = [f"{ready} of {instances} instances are ready"]
            texts += [f"{member.pod}: {_doing(member)}" for member in away]
            return c.INSTANCES_NOT_READY, "; ".join(texts)
        wanted = spec.pgbouncer.instances if spec else len(self.poolers)
        well = sum(pooler.ready for pooler in self.poolers)
        if well < wanted:
            texts = [f"{well} of {wanted} poolers are ready"]
            texts += [f"{p.pod}: {p.reason or 'not ready'}" for p in self.poolers if not p.ready]
            return c.POOLERS_NOT_READY, "; ".join(texts)
        return None

    def _readiness(self) -> tuple[bool, str, str]:
        """Condition Ready: status, reason, message."""
        if self.outcome.asleep is not None:
            return True, *self.outcome.asleep
        if self.outcome.sleeping is not None:
            return False, *self.outcome.sleeping
        if full := self._full_primary():
            return False, c.DISK_FULL, full
        if importing := self._importing():
            return False, *importing
        if self.primary is None:
            if self.outcome.blocked and not self.observed.system_identifier:
                return False, *self.outcome.blocked
            blocking = [problem for problem in self._problems if problem.blocks]
            if blocking and not self.observed.system_identifier:
                return False, blocking[0].reason, problems.summary(blocking)
            return False, *self._without_primary()
        missing = self._missing()
        if missing is None:
            return True, c.ALL_READY, f"{self.primary.name} is the primary and all is there"
        if self._new:
            return False, c.CREATING, missing[1]
        return False, *missing

    def _importing(self) -> tuple[str, str] | None:
        """What the primary takes over before it serves: reason and message; None where nothing."""
        holder = self.observed.primary
        report = holder.report.importing if holder and holder.report else None
        if holder is None or report is None or report.state == "done":
            return None
        if report.state == "failed":
            return (
                c.IMPORT_FAILED,
                f"the import has failed: {report.reason}. {holder.name} tries it again from the"
                " beginning; clients of the pools wait",
            )
        return (
            c.IMPORTING,
            f"{holder.name} takes the data over that spec.bootstrap.import names; clients of the"
            " pools wait",
        )

    def _without_primary(self) -> tuple[str, str]:
        doing = "; ".join(f"{m.pod}: {_doing(m)}" for m in self.members)
        if self._new or not self.observed.system_identifier:
            return c.BOOTSTRAPPING, doing or "the pods are being created"
        for pod in self.observed.pods:
            report = pod.report if pod.running else None
            promoting = report is not None and report.state == "promoting"
            # The holder that is not primary yet; one that is primary but not ready is ill.
            next_ = (
                report is not None
                and pod.name == self.observed.holder
                and report.role != names.ROLE_PRIMARY
            )
            if promoting or next_:
                return (
                    c.FAILING_OVER,
                    f"{pod.name} is becoming the primary; clients of the pools wait",
                )
        return (
            c.NO_PRIMARY,
            "no instance is the primary; clients of the pools wait"
            + (f" ({doing})" * bool(doing))
            + ". Bring the missing instances back; or, where losing the last commits is better than"
            " waiting, name the instance to promote:"
            f" spec.failover.forcePromotion: {{instance: …, epoch: {self.observed.epoch}}}",
        )

    # --- conditions ---------------------------------------------------------------------------
    def conditions(self) -> tuple[Wanted, ...]:
        """All of them, in the order in which a person reads them."""
        ready, reason, message = self._readiness()
        progressing, stalled = self._progressing(ready, reason, message), self._stalled()
        return (
            (c.READY, ready, reason, message),
            progressing,
            self._degraded(),
            stalled,
            *self._reconciling(progressing, stalled),
            *self._maintenance(),
        )

    def _reconciling(self, progressing: Wanted, stalled: Wanted) -> tuple[Wanted, ...]:
        """Progressing under the name that kstatus looks for."""
        _, under_way, reason, message = progressing
        return ((c.RECONCILING, True, reason, message),) if under_way and not stalled[1] else ()

    def _maintenance(self) -> tuple[Wanted, ...]:
        entries = self.cluster.spec.maintenance if self.cluster else ()
        if not entries:
            return ()
        why = {entry.instance: f" ({entry.reason})" if entry.reason else "" for entry in entries}
        told = [
            f"{pod}{why.get(pod, '')}: postgres is kept down, and the others do without it"
            for pod in self.outcome.held
        ]
        if self.outcome.not_held is None:
            return ((c.MAINTENANCE, True, c.IN_MAINTENANCE, "; ".join(told)),)
        reason, message = self.outcome.not_held
        return ((c.MAINTENANCE, bool(told), reason, "; ".join([*told, message])),)

    def _progressing(self, ready: bool, reason: str, message: str) -> Wanted:
        if self.cluster is not None and self.cluster.spec.paused:
            return (
                c.PROGRESSING,
                False,
                c.PAUSED,
                "spec.paused is true: the operator changes nothing; failover goes on by itself"
                + "".join(f"; {told}" for _, told in filter(None, (self._refused_switchover(),))),
            )
        if self.outcome.pending is not None:
            return c.PROGRESSING, True, *self.outcome.pending
        if (changing := self._switching_over()) is not None:
            return c.PROGRESSING, *changing
        if (rolling := self._rolling(ready, message)) is not None:
            return c.PROGRESSING, *rolling
        if ready and (pooling := pools.under_way(self.observed)):
            return c.PROGRESSING, True, *pooling
        if ready and (applying := self._applying()):
            return c.PROGRESSING, True, *applying
        if self._stalled()[1]:
            return c.PROGRESSING, False, c.SETTLED, "nothing is under way"
        if not ready:
            return c.PROGRESSING, True, reason, message
        if (refused := self._refused_switchover()) is not None:
            return c.PROGRESSING, False, *refused
        return c.PROGRESSING, False, c.SETTLED, "nothing is under way"

    def _applying(self) -> Told | None:
        """What of the spec has been written and has not had its effect yet; None where all has."""
        if self.cluster is None or self.outcome.asleep is not None:
            return None
        wanted = settings_of(self.cluster)
        late = [
            pod.name
            for pod in self.observed.pods
            if pod.ready and pod.report is not None and pod.report.settings not in (None, wanted)
        ]
        if late:
            return c.APPLYING, f"{', '.join(late)} has not loaded spec.postgres.parameters yet"
        if self.outcome.applied:
            return c.APPLYING, "the change of the spec is written; what follows from it begins"
        return None

    def _switching_over(self) -> tuple[bool, str, str] | None:
        """What a switchover does or waits for; None where there is none."""
        decision = self.outcome.switchover
        if decision is None:
            return None
        if decision.waiting is not None:
            return (
                True,
                c.SWITCHING_OVER,
                f"a switchover is asked for, and waits: {decision.waiting}",
            )
        record = decision.record
        if record is not None and record.state == "Running" and record.cause != "rollout":
            return (
                True,
                c.SWITCHING_OVER,
                f"{record.from_} hands over to {record.to}: {record.reason}",
            )
        return None

    def _refused_switchover(self) -> tuple[str, str] | None:
        """What came to nothing, as long as nothing else has been asked for: reason and message."""
        decision = self.outcome.switchover
        record = decision.record if decision is not None else None
        if decision is None or record is None or record.state not in ("Refused", "Failed"):
            return None
        reason = c.SWITCHOVER_REFUSED if record.state == "Refused" else c.SWITCHOVER_FAILED
        if decision.unmet is not None:
            return reason, decision.unmet
        if record.cause != "request":
            return None
        return reason, f"switchover {record.request}: {record.reason}"

    def _rolling(self, ready: bool, message: str) -> tuple[bool, str, str] | None:
        """What a rolling change does, or waits for; None where there is none."""
        plan = self.outcome.rolling
        if plan is None or self.cluster is None or not self.observed.system_identifier:
            return None
        far = rollout.progress(plan.outdated, max(len(self.members), self.cluster.spec.instances))
        if isinstance(plan.step, rollout.Stopped):
            return False, c.ROLLOUT_STOPPED, f"{far}; it goes no further: {plan.step.reason}"
        if not isinstance(plan.step, rollout.Nothing):
            return True, c.ROLLING_OUT, f"{far}; {plan.step.reason}"
        before = next((x for x in self.known.conditions if x.type == c.PROGRESSING), None)
        if not ready and before is not None and before.reason == c.ROLLING_OUT:
            # The last one is on its way back.
            return True, c.ROLLING_OUT, f"{far}; {message}"
        offers = [f"image {self.outcome.newer_image}"] * bool(self.outcome.newer_image)
        offers += [f"another template for {', '.join(plan.offered)}"] * bool(plan.offered)
        if not offers:
            return None
        return (
            False,
            c.ROLLOUT_PENDING,
            f"the operator offers {' and '.join(offers)} and restarts nobody by itself: give"
            f" annotation {names.ANNOTATION_RESTART} a new value to take it",
        )

    def _degraded(self) -> Wanted:
        fine = (c.DEGRADED, False, c.SETTLED, "nothing is missing")
        if self.outcome.asleep is not None:
            return fine
        if self.primary is None:
            return c.DEGRADED, False, c.NO_PRIMARY, "it does not serve: see condition Ready"
        missing = self._missing()
        warned = warnings.find(self.observed.pods) + pools.settings_refused(self.observed)
        if self.outcome.certificate is not None:
            warned += (warnings.Finding(*self.outcome.certificate),)
        if missing is not None:
            if self._new:
                return fine
            # A warning of weight is mostly why something is missing.
            reason = next((w.reason for w in warned if w.reason in _GRAVE), missing[0])
            told = "; ".join(filter(None, (missing[1], warnings.summary(warned))))
            return c.DEGRADED, True, reason, told
        if any(warning.reason in _GRAVE for warning in warned):
            return c.DEGRADED, True, warned[0].reason, warnings.summary(warned)
        failed = self.primary.report.failed_objects if self.primary.report else {}
        if failed:
            told = "; ".join(f"{name}: {why}" for name, why in sorted(failed.items()))
            return c.DEGRADED, True, c.OBJECTS_FAILED, f"not made in PostgreSQL: {told}"
        found = self._problems
        if found:
            return c.DEGRADED, True, found[0].reason, problems.summary(found)
        if warned:
            return c.DEGRADED, True, warned[0].reason, warnings.summary(warned)
        return fine

    def _stalled(self) -> Wanted:
        if self.outcome.blocked is not None:
            return c.STALLED, True, *self.outcome.blocked
        blocking = [problem for problem in self._problems if problem.blocks]
        if blocking:
            return c.STALLED, True, blocking[0].reason, problems.summary(blocking)
        rolling = self.outcome.rolling
        if rolling is not None and isinstance(rolling.step, rollout.Stopped):
            return c.STALLED, True, c.ROLLOUT_STOPPED, rolling.step.reason
        importing = self._importing()
        if importing is not None and importing[0] == c.IMPORT_FAILED:
            return c.STALLED, True, *importing
        refused = [member for member in self.members if member.state == "refused"]
        if full := self._full_primary():
            return c.STALLED, True, c.DISK_FULL, full
        if refused:
            told = "; ".join(f"{member.pod}: {member.reason}" for member in refused)
            return c.STALLED, True, c.FOREIGN_DATA, told
        return c.STALLED, False, c.SETTLED, "nothing hinders the operator"

    def summary(self) -> str:
        """One word for the column of kubectl get."""
        ready, reason, _ = self._readiness()
        if self.outcome.blocked is not None:
            return self.outcome.blocked[0]
        if self.outcome.asleep is not None or self.outcome.sleeping is not None:
            return reason
        if ready:
            paused = self.cluster is not None and self.cluster.spec.paused
            return "Paused" if paused else "Degraded" if self._degraded()[1] else "Ready"
        if self.primary is not None and reason not in (c.CREATING, c.DISK_FULL):
            return "Degraded"
        return reason


_GRAVE = (c.DISK_FULL, c.STANDBY_LOST_WAL, c.SYNCHRONOUS_MISSING, c.FAILSAFE)
_BLOCKED = (
    c.INVALID_SPEC,
    c.NAME_CONFLICT,
    c.STORAGE_CLASS_MISSING,
    c.IMAGE_PULL,
    c.UNSCHEDULABLE,
    c.CRASH_LOOP,
    c.API_REFUSED,
)


def _doing(member: Member) -> str:
    why = f"({member.reason})" if member.reason else None
    return " ".join(word for word in (member.state, member.progress, why) if word)
