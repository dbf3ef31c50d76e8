"""The rows of a status: one an instance, one a pooler. Pure."""

from __future__ import annotations

from collections.abc import Collection

from pgcluster.api import names
from pgcluster.api.models import Member, Pooler
from pgcluster.controller import problems, serving
from pgcluster.controller.observe import InstancePod, Observed, pod_ready
from pgcluster.kube.client import Manifest


def member(pod: InstancePod, holder: str, outdated: Collection[str] | None = None) -> Member:
    """One instance; what its agent last said counts only while its container runs.

    `outdated` are those that a rolling change has yet to come to; None: nobody has looked.

    A node that is lost leaves its pod's last report behind for as long as Kubernetes takes to
    notice: whoever does not hold the Lease is no primary, whatever it said.
    """
    spec = pod.manifest.get("spec") or {}
    problem = problems.of_pod(pod.manifest)
    report = pod.report if pod.running else None
    up_to_date = None if outdated is None else pod.name not in outdated
    if report is None:
        leaving = "deletionTimestamp" in pod.manifest["metadata"]
        reason = "the pod is being deleted" if leaving else "its container does not run yet"
        return Member(
            pod=pod.name,
            node=spec.get("nodeName"),
            state="stopping" if leaving else "unknown",
            reason=problem.message if problem else reason,
            up_to_date=up_to_date,
        )
    former = report.role == names.ROLE_PRIMARY and pod.name != holder
    ready = pod.ready and report.ready and not former
    reason = report.reason
    if former:
        reason = "it does not hold the Lease any more"
    elif report.ready and not pod.ready:
        reason = "the kubelet does not find it ready"
    return Member(
        pod=pod.name,
        node=spec.get("nodeName"),
        role=None if former else report.role,
        state=report.state,
        reason=problem.message if problem else reason or None,
        ready=ready,
        timeline=report.timeline,
        lag_bytes=report.lag_bytes,
        upstream=report.upstream,
        repmgrd=report.repmgrd,
        repmgrd_paused=report.repmgrd_paused,
        disk_used_percent=report.disk_used_percent,
        postgres_version=report.postgres_version,
        pending_restart=report.pending_restart,
        up_to_date=up_to_date,
        progress=report.progress,
    )


def pooler(manifest: Manifest, observed: Observed) -> Pooler:
    """One pooler; ready only with the section of the present primary, and heard by it."""
    pod = manifest["metadata"]["name"]
    is_ready = pod_ready(manifest)
    report = observed.pooler_reports.get(pod)
    if report is None:
        return Pooler(pod=pod, reason="its agent has not reported yet")
    current = observed.primary is not None and report.epoch == observed.epoch
    unheard = pod in (serving.silent(observed) or ())
    reason = report.reason
    if is_ready and unheard:
        reason = f"{observed.holder} does not hear it: it " + (
            "gets no new clients"
            if serving.others(observed)
            else "stays in the Service, for no other pooler is ready"
        )
    elif is_ready and report.ready and not current:
        reason = f"it has applied epoch {report.epoch}, the Lease is at {observed.epoch}"
    elif report.ready and not is_ready:
        reason = "the kubelet does not find it ready"
    return Pooler(
        pod=pod,
        ready=is_ready and report.ready and current and not unheard,
        paused=report.paused,
        reason=reason or None,
        primary=report.primary,
        epoch=report.epoch,
        applied_hash=report.applied_hash,
        settings_hash=report.settings_hash,
    )
