"""The next step of a rolling change, from what is. Pure.

Nothing is remembered: which instances lag behind the spec shows in their pods and their reports, so
an operator that starts anew goes on where its predecessor was, and a spec that changes in the
middle is simply what the next look compares with. The standbys go first, the highest ordinal before
the others (whoever is replaced anyway goes before who works), one at a time; then the primary
hands over; then the old primary, which is a standby by then.

Two kinds of lag:
- The pod was made from an earlier template. It is deleted; the StatefulSet is `OnDelete`. Only a
  difference that comes from the user counts, which the annotation `pgcluster.dev/inputs` tells: an
  operator that is newer and renders another template offers that and restarts nobody.
- A parameter waits for a restart. postgres is restarted in place, and the pod stays.

Never is more than one instance away because of this, never while another is ill, clones or
rewinds (its source might be the next), and never while there is no primary or it is changing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pgcluster.api import names
from pgcluster.api.config import RestartConfig
from pgcluster.api.models import PgCluster, settings_of
from pgcluster.controller import attempts, problems
from pgcluster.controller.observe import InstancePod, Observed
from pgcluster.controller.wishes import Wish
from pgcluster.render.postgres import demanding

_REVISION = "controller-revision-hash"
_MAKING = ("bootstrapping", "cloning", "rewinding")
_PREFIX = "rollout-"  # of the requests for a hand-over


@dataclass(frozen=True, slots=True)
class Step:
    """Base of all steps: `reason` is a sentence for people."""

    reason: str


@dataclass(frozen=True, slots=True)
class Nothing(Step):
    """Every instance is as the spec asks for."""


@dataclass(frozen=True, slots=True)
class Wait(Step):
    """Something has to come to its end first."""


@dataclass(frozen=True, slots=True)
class Delete(Step):
    """Delete one pod, so that it is made anew from the present template."""

    pod: str
    uid: str


@dataclass(frozen=True, slots=True)
class Restart(Step):
    """Let one instance restart postgres in place."""

    config: RestartConfig


@dataclass(frozen=True, slots=True)
class HandOver(Step):
    """Only the primary is left: another one is to become it."""

    wish: Wish


@dataclass(frozen=True, slots=True)
class Stopped(Step):
    """It does not go on by itself before something is corrected."""

    pod: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, which instances lag behind the spec, and which only behind the operator."""

    step: Step
    outdated: frozenset[str] = frozenset()
    offered: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Instance:
    """One instance, as far as this matters."""

    pod: InstancePod
    # Its pod was made from an earlier template; by the user's doing, or the operator's alone.
    outdated: bool
    offered: bool
    pending: tuple[str, ...]
    # Parameters that it must hold higher than the spec says, as long as its primary's WAL demands.
    lowering: tuple[str, ...]
    # Why it is not in its role, if so; and what somebody has to correct for that to change.
    ill: str | None
    broken: str | None

    @property
    def name(self) -> str:
        return self.pod.name

    @property
    def due(self) -> bool:
        return self.outdated or bool(self.pending) or bool(self.lowering)


def plan(
    observed: Observed,
    cluster: PgCluster,
    stateful_set: Mapping[str, Any] | None,
    *,
    handing_over: str | None,
    now: datetime,
) -> Plan:
    """The next step. `handing_over` says why the primary is about to change for another reason."""
    if stateful_set is None:
        return Plan(Nothing("the instances do not exist yet"))
    instances = [_instance(pod, observed, stateful_set) for pod in observed.pods]
    outdated = frozenset(one.name for one in instances if one.due)
    offered = tuple(one.name for one in instances if one.offered and not one.due)
    step = _Decision(observed, cluster, instances, handing_over, now).step(_behind(stateful_set))
    return Plan(step, outdated, offered)


@dataclass(frozen=True, slots=True)
class _Decision:
    observed: Observed
    cluster: PgCluster
    instances: list[_Instance]
    handing_over: str | None
    now: datetime

    def step(self, behind: bool) -> Step:
        """One step."""
        refused = self._refused()
        if refused is not None:
            return refused
        due = [one for one in self.instances if one.due]
        if not due:
            return Nothing("every instance is as the spec asks for")
        if behind:
            return Wait("the StatefulSet's controller has not taken the new template over yet")
        if stuck := [one for one in due if one.outdated and _replaceable(one)]:
            # Nothing of it works, so nobody misses it, and a corrected spec is what it waits for.
            return _delete(stuck[-1], f"it is replaced at once, for {stuck[-1].broken}")
        primary = self._primary()
        if primary is None:
            return Wait("no instance is the primary")
        held_up = self._unsettled(primary)
        if held_up is not None:
            return held_up
        if reason := self._unloaded():
            return Wait(reason)
        return self._next(primary, [one for one in due if one is not primary])

    def _primary(self) -> _Instance | None:
        primary = self.observed.primary
        return next((one for one in self.instances if one.pod is primary), None)

    # --- what holds it up ---------------------------------------------------------------------

    def _refused(self) -> Step | None:
        """Parameters that postgres does not take: nobody is restarted for them."""
        for one in self.instances:
            report = one.pod.report if one.pod.running else None
            if report is None or not report.refused_parameters or not self._current(one):
                continue
            told = "; ".join(f"{why}" for _, why in sorted(report.refused_parameters.items()))
            return Stopped(
                f"{one.name} does not take parameters of the spec and goes on with the former"
                f" ones: {told}; correct spec.postgres.parameters",
                one.name,
            )
        return None

    def _current(self, one: _Instance) -> bool:
        """Whether its report is about the spec's present parameters."""
        settings = one.pod.report.settings if one.pod.report else None
        return settings is None or settings == settings_of(self.cluster)

    def _unloaded(self) -> str | None:
        """Until each has loaded the parameters, nobody knows whose turn it is."""
        late = [one.name for one in self.instances if not self._current(one)]
        return f"{', '.join(late)} has not loaded the new parameters yet" if late else None

    def _unsettled(self, primary: _Instance) -> Step | None:
        """Why nobody may be taken away now."""
        if self.handing_over:
            return Wait(self.handing_over)
        annotations = (self.observed.lease or {})["metadata"].get("annotations") or {}
        report = primary.pod.report
        handover = report.handover if report else None
        pausing = annotations.get(names.ANNOTATION_PAUSING) == "true"
        if (pausing or (handover and handover.under_way)) and not self._ours_runs():
            return Wait(f"{primary.name} is handing over, or holds the pools for a restart")
        for one in self.instances:
            state = one.pod.report.state if one.pod.running and one.pod.report else None
            if state == "promoting":
                return Wait(f"{one.name} is being promoted")
            if state in _MAKING:
                return Wait(f"{one.name} is {state}")
        for one in self.instances:
            if one.broken and not one.outdated:
                return Stopped(
                    f"{one.name} is up to date and does not work: {one.broken}", one.name
                )
        for one in self.instances:
            if one.ill and not (one.outdated and one.broken):
                return Wait(f"{one.name}: {one.ill}")
        missing = self.cluster.spec.instances - len(self.instances)
        if missing > 0:
            return Wait(f"{missing} of {self.cluster.spec.instances} instances do not exist yet")
        return None

    def _ours_runs(self) -> bool:
        """Whether the hand-over that is under way is this rolling change's own wish.

        It must be uttered until it is fulfilled: nobody else remembers it.
        """
        last = attempts.last(self.observed)
        own = str(last.get("request") or "").startswith(_PREFIX)
        return own and last.get("state") in ("Pending", "Running")

    def _commits_would_wait(self, away: _Instance, primary: _Instance) -> str | None:
        synchronous = self.cluster.spec.replication.synchronous
        if synchronous.mode != "quorum" or synchronous.when_unavailable == "degrade":
            return None
        left = [one for one in self.instances if one not in (away, primary) and one.ill is None]
        if len(left) >= synchronous.standbys:
            return None
        return (
            f"without {away.name} only {len(left)} standbys would be left, and commits wait for"
            f" {synchronous.standbys}: add an instance, set replication.synchronous.whenUnavailable"
            f" to degrade, or delete pod {away.name} yourself when it suits"
        )

    # --- whose turn it is ---------------------------------------------------------------------

    def _next(self, primary: _Instance, standbys: list[_Instance]) -> Step:
        if broken := [one for one in standbys if one.broken and one.outdated]:
            return _delete(broken[-1], f"it is replaced first, for {broken[-1].broken}")
        if self._in_place(primary):
            raising = [one for one in standbys if set(one.pending) & set(demanding())]
            if not raising:
                return self._restart(primary)
            return self._take(raising[-1], primary)
        if ready := [one for one in standbys if one.outdated or one.pending]:
            return self._take(ready[-1], primary)
        if standbys:
            return Wait(
                f"{standbys[-1].name} keeps {', '.join(standbys[-1].lowering)} until it has seen"
                f" that {primary.name} runs with less"
            )
        if len(self.instances) > 1:
            return self._hand_over(primary)
        if primary.outdated:
            return _delete(primary, "it is the only instance: clients wait in the pools")
        return self._restart(primary)

    def _in_place(self, primary: _Instance) -> bool:
        """Whether the primary restarts as the primary.

        What is lowered is lowered there first, for its standbys must not hold less.
        """
        return bool(primary.pending and primary.lowering)

    def _take(self, one: _Instance, primary: _Instance) -> Step:
        if reason := self._commits_would_wait(one, primary):
            return Stopped(reason, one.name)
        return _delete(one, "its template has changed") if one.outdated else self._restart(one)

    def _restart(self, one: _Instance) -> Step:
        parameters = ", ".join(one.pending)
        request = attempts.digest(
            settings_of(self.cluster), one.pod.manifest["metadata"].get("uid"), *one.pending
        )
        if one.pod.report is not None and one.pod.report.restarted == request:
            return Stopped(
                f"{one.name} was restarted and {parameters} still wait for that: something else"
                " sets them, such as ALTER SYSTEM",
                one.name,
            )
        return Restart(
            f"restarting postgres on {one.name} in place, for {parameters}",
            RestartConfig(instance=one.name, request=request),
        )

    def _hand_over(self, primary: _Instance) -> Step:
        wanted = attempts.digest(
            settings_of(self.cluster),
            primary.pod.manifest["metadata"].get("uid"),
            primary.outdated,
            *primary.pending,
        )
        attempt = attempts.attempt(self.observed, f"{_PREFIX}{wanted}")
        if attempt.not_before is not None and self.now < attempt.not_before:
            return Stopped(
                f"{primary.name} could not hand over: {attempt.why}; it is tried again",
                primary.name,
            )
        return HandOver(
            f"{primary.name} hands over, for it is the last that is not up to date",
            Wish(
                cause="rollout",
                request=attempt.request,
                reason=f"a rolling change has come to {primary.name}, the primary",
                avoid=frozenset(one.name for one in self.instances if one.due or one.ill),
            ),
        )


def _instance(pod: InstancePod, observed: Observed, stateful_set: Mapping[str, Any]) -> _Instance:
    report = pod.report if pod.running else None
    behind = _earlier(pod, stateful_set)
    ours = behind and not _by_the_user(pod, stateful_set)
    problem = problems.of_pod(pod.manifest)
    broken = problem.message if problem is not None else report.start_failed if report else None
    return _Instance(
        pod,
        outdated=behind and not ours,
        offered=ours,
        pending=report.pending_restart if report else (),
        lowering=report.lowering if report else (),
        ill=_ill(pod, observed),
        broken=broken,
    )


def _ill(pod: InstancePod, observed: Observed) -> str | None:
    """Why an instance is not in its role, by the kubelet's word, its own, and the primary's."""
    if "deletionTimestamp" in pod.manifest["metadata"]:
        return "its pod is being deleted"
    if not pod.running or pod.report is None:
        return "its container does not run yet"
    report = pod.report
    if not report.ready or report.state != "running":
        return report.reason or report.state
    if not pod.ready:
        return "the kubelet does not find it ready"
    primary = observed.primary
    if primary is None or pod is primary:
        return None
    if report.role != names.ROLE_STANDBY or report.upstream != primary.name:
        return f"it does not stream from {primary.name} yet"
    streaming = primary.report.streaming if primary.report else None
    if streaming is None:
        return f"{primary.name} cannot tell yet who streams from it"
    return None if pod.name in streaming else f"{primary.name} does not stream to it"


def _replaceable(one: _Instance) -> bool:
    """Whether nothing of an instance works, so that replacing it takes nothing from anybody."""
    if "deletionTimestamp" in one.pod.manifest["metadata"] or one.broken is None:
        return False
    report = one.pod.report
    return not one.pod.running or (report is not None and report.start_failed is not None)


def _delete(one: _Instance, why: str) -> Step:
    uid = one.pod.manifest["metadata"].get("uid") or ""
    return Delete(f"replacing pod {one.name}: {why}", one.name, uid)


def _behind(stateful_set: Mapping[str, Any]) -> bool:
    """Whether a pod that is deleted now could come back as it was."""
    status = stateful_set.get("status") or {}
    generation = stateful_set["metadata"].get("generation")
    return not status.get("updateRevision") or status.get("observedGeneration") != generation


def _earlier(pod: InstancePod, stateful_set: Mapping[str, Any]) -> bool:
    revision = (stateful_set.get("status") or {}).get("updateRevision")
    labels = pod.manifest["metadata"].get("labels") or {}
    return bool(revision) and labels.get(_REVISION, revision) != revision


def _by_the_user(pod: InstancePod, stateful_set: Mapping[str, Any]) -> bool:
    """Whether what the user says has changed since the pod was made.

    Where the pod does not tell, because its operator was of an earlier version, only the image and
    a restart that is asked for count.
    """
    template = stateful_set["spec"]["template"]
    ours = _annotations(template)
    its = _annotations(pod.manifest)
    if names.ANNOTATION_INPUTS in its:
        return its[names.ANNOTATION_INPUTS] != ours.get(names.ANNOTATION_INPUTS)
    return its.get(names.ANNOTATION_RESTART) != ours.get(names.ANNOTATION_RESTART) or _images(
        pod.manifest
    ) != _images(template)


def _annotations(manifest: Mapping[str, Any]) -> Mapping[str, str]:
    return (manifest.get("metadata") or {}).get("annotations") or {}


def _images(manifest: Mapping[str, Any]) -> list[str | None]:
    containers = (manifest.get("spec") or {}).get("containers") or ()
    return [container.get("image") for container in containers]


def progress(outdated: Iterable[str], total: int) -> str:
    """How far it is, for the condition."""
    left = len(set(outdated))
    return f"{total - left} of {total} instances are up to date"
