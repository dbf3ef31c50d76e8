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
