"""What the instances' reports say that people should know while the cluster serves. Pure.

Each warning names the instance, how bad it is, and what to do. The texts change in coarse steps
only: a status must rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pgcluster.api import conditions, names
from pgcluster.api.reports import InstanceReport
from pgcluster.controller.observe import InstancePod

_NEARLY_FULL_PERCENT = 85


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that somebody should look at."""

    reason: str
    message: str


def find(pods: Iterable[InstancePod]) -> tuple[Finding, ...]:
    """Every warning of the instances whose agents run, the gravest first."""
    reports = {pod.name: pod.report for pod in pods if pod.running and pod.report is not None}
    found: list[Finding] = []
    found += _full(reports)
    found += _lost(reports)
    found += _promises(reports)
    found += _parameters(reports)
    found += _nearly_full(reports)
    found += _retained(reports)
    found += _repmgrd(reports)
    return tuple(found)


def full_primary(pod: InstancePod | None) -> str | None:
    """Why the instance that has the right to write cannot: its volume is full; None where not."""
    if pod is None or not pod.running or pod.report is None or not pod.report.disk_full:
        return None
    return (
        f"the volume of {pod.name} is full{_percent(pod.report)}: applications can read only, so"
        " that PostgreSQL lives; grow spec.storage.size, or free space as a superuser. No other"
        " instance takes over that is as full"
    )


def summary(warnings: Iterable[Finding]) -> str:
    """Several warnings in one message."""
    return "; ".join(warning.message for warning in warnings)


def _full(reports: Mapping[str, InstanceReport]) -> Iterable[Finding]:
    for pod, report in reports.items():
        if report.disk_full:
            yield Finding(
                conditions.DISK_FULL,
                f"the volume of {pod} is full{_percent(report)}: grow spec.storage.size, or free"
                " space as a superuser",
            )


def _promises(reports: Mapping[str, InstanceReport]) -> Iterable[Finding]:
    """What the primary's commits, or its right to write, lean on less safely than they should."""
    for report in reports.values():
        if report.synchronous_missing:
            waits = report.synchronous or "no standby"
            yield Finding(
                conditions.SYNCHRONOUS_MISSING,
                f"{report.synchronous_missing} of the standbys that commits should wait for do not"
                f" stream; they wait for {waits}: bring the standbys back, or add instances",
            )
        if report.failsafe:
            yield Finding(
                conditions.FAILSAFE,
                f"{report.pod} cannot renew its Lease at the API server, and goes on by the word of"
                " all other instances; no failover is possible meanwhile: mend the way from its"
                " node to the API server",
            )


def _parameters(reports: Mapping[str, InstanceReport]) -> Iterable[Finding]:
    """Parameters of the spec that are not in force; a bad one is mostly bad everywhere."""
    for reason, attribute, what in (
        (conditions.PARAMETERS_REFUSED, "refused_parameters", "is not taken"),
        (conditions.PARAMETERS_OVERRIDDEN, "overridden_parameters", "has no effect"),
    ):
        pods: dict[str, list[str]] = {}
        for pod, report in reports.items():
            for name, why in sorted(getattr(report, attribute).items()):
                pods.setdefault(f"parameter {name} {what}: {why}", []).append(pod)
        for text, where in pods.items():
            yield Finding(reason, f"{text} ({', '.join(where)})")


def _nearly_full(reports: Mapping[str, InstanceReport]) -> Iterable[Finding]:
    for pod, report in reports.items():
        used = report.disk_used_percent
        if not report.disk_full and used is not None and used >= _NEARLY_FULL_PERCENT:
            yield Finding(
                conditions.DISK_NEARLY_FULL,
                f"the volume of {pod} is {used} % full: grow spec.storage.size before it is full",
            )


def _lost(reports: Mapping[str, InstanceReport]) -> Iterable[Finding]:
    lost = {pod for report in reports.values() for pod in report.lost_standbys}
    lost |= {pod for pod, report in reports.items() if report.lost_wal is not None}
    for pod in sorted(lost):
        yield Finding(
            conditions.STANDBY_LOST_WAL,
            f"{pod} was away for too long: the WAL that it needs is gone, and it is cloned anew by"
            " itself; spec.replication.maxSlotWalKeepSize says how much is kept",
        )


def _retained(reports: Mapping[str, InstanceReport]) -> Iterable[Finding]:
    for pod, report in reports.items():
        for slot, bytes_ in sorted(report.retained_wal_bytes.items()):
            owner = _owner(slot, pod)
            what = (
                f"its standby {owner} is away or slow, and is cloned anew past the limit"
                if owner
                else "it is not the operator's: drop it where nobody needs it"
            )
            yield Finding(
                conditions.WAL_RETAINED,
                f"slot {slot} holds back at least {_size(bytes_)} of WAL on {pod}: {what}",
            )


def _repmgrd(reports: Mapping[str, InstanceReport]) -> Iterable[Finding]:
    paused = sorted(pod for pod, report in reports.items() if report.repmgrd_paused)
    if paused:
        yield Finding(
            conditions.REPMGRD_PAUSED,
            f"repmgrd is paused on {', '.join(paused)}: a failover is left to the agents, which are"
            f" slower; to end it: kubectl exec {paused[0]} -- repmgr service unpause",
        )
    down = sorted(pod for pod, report in reports.items() if report.ready and not report.repmgrd)
    if down:
        yield Finding(
            conditions.REPMGRD_DOWN,
            f"repmgrd does not run on {', '.join(down)}: its agent starts it again; the log says"
            f" why it ends: kubectl logs {down[0]}",
        )


def _owner(slot: str, primary: str) -> str | None:
    cluster = primary.rpartition("-")[0]
    pods = (names.pod(cluster, ordinal) for ordinal in range(names.MAX_INSTANCES))
    return next((pod for pod in pods if names.slot(pod) == slot), None)


def _percent(report: InstanceReport) -> str:
    used = report.disk_used_percent
    return "" if used is None else f" ({used} %)"


def _size(bytes_: int) -> str:
    return f"{bytes_ >> 30} GiB" if bytes_ >= 1 << 30 else f"{bytes_ >> 20} MiB"
