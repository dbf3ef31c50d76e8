"""What a pod's manifest tells of the instance in it. Pure; operator and agents must agree on it."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from typing import Any

from pgcluster.api import names
from pgcluster.api.reports import InstanceReport


def report_of(pod: Mapping[str, Any]) -> InstanceReport | None:
    """What the instance's agent has last reported on its pod."""
    text = (pod["metadata"].get("annotations") or {}).get(names.ANNOTATION_INSTANCE)
    if text:
        with contextlib.suppress(ValueError):
            return InstanceReport.model_validate_json(text)
    return None


def reads(pod: Mapping[str, Any], streaming: Collection[str] | None = None) -> bool:
    """Whether the instance is a streaming standby that clients may read from.

    Its own word is not enough, nor is the kubelet's: a node that is lost leaves both behind, for
    50 s. The primary notices within `wal_sender_timeout`: `streaming` are the pods that it sends
    WAL to, None while it cannot tell.
    """
    report = report_of(pod)
    conditions = (pod.get("status") or {}).get("conditions") or []
    return (
        report is not None
        and report.role == names.ROLE_STANDBY
        and report.ready
        and (streaming is None or pod["metadata"]["name"] in streaming)
        and "deletionTimestamp" not in pod["metadata"]
        and any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    )


def ended(pod: Mapping[str, Any], container: str, *, for_good: bool) -> bool:
    """Whether the kubelet says that the very container that wrote `container` has ended.

    It repeats what a container left as its termination message, so this needs neither clocks nor
    counters. `for_good`: and that it is not being started again right now.
    """
    status = pod.get("status") or {}
    for each in status.get("containerStatuses") or ():
        states = [each.get("state") or {}, each.get("lastState") or {}]
        if any((s.get("terminated") or {}).get("message") == container for s in states):
            waiting = (states[0].get("waiting") or {}).get("reason")
            return not for_good or (
                status.get("phase") in ("Failed", "Succeeded")
                or waiting == "CrashLoopBackOff"
                or "deletionTimestamp" in pod["metadata"]
            )
    return False
