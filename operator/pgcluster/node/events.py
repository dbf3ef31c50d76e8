"""repmgr's events, each turned into a Kubernetes Event on the PgCluster and a metric.

They are hints: nothing is decided from one. Some repeat every second for ever (a standby whose
replay is stuck emits standby_recovery), so equal ones within a while are counted, not posted; and
of those that differ only so many (kube/events.py).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from typing import Any

from prometheus_client import CollectorRegistry, Counter

from pgcluster.api import names, reasons
from pgcluster.api.config import ClusterConfig
from pgcluster.api.errors import PgClusterError
from pgcluster.clock import monotonic_s, utc_now
from pgcluster.kube import events as rates
from pgcluster.kube.client import KubeClient
from pgcluster.kube.events import EventRate
from pgcluster.kube.resources import EVENTS

log = logging.getLogger(__name__)

_SAME_WITHIN_S = 60.0
_QUEUE = 100


class Events:
    """Posts events one after the other; a slow or absent API loses them, never delays anybody."""

    def __init__(self, client: KubeClient, me: str, registry: CollectorRegistry) -> None:
        self._client = client
        self._me = me
        self._queue: asyncio.Queue[tuple[ClusterConfig, str, str, bool]] = asyncio.Queue(_QUEUE)
        self._posted: dict[tuple[str, str], float] = {}
        self._rate = EventRate()
        self._counter = Counter(
            "pgcluster_repmgr_events",
            "Events that repmgr or repmgrd of this instance has emitted",
            ["event", "success"],
            registry=registry,
        )

    def repmgr(self, config: ClusterConfig, *, event: str, success: bool) -> None:
        """Take note of one event of repmgr."""
        self._counter.labels(event=event, success=str(success).lower()).inc()
        reason = reasons.of_repmgr(event)
        outcome = "" if success else " (failed)"
        self.post(config, reason, f"repmgr on {self._me}: {event}{outcome}", normal=success)

    def post(self, config: ClusterConfig, reason: str, note: str, *, normal: bool = True) -> None:
        """Post an Event on the PgCluster unless the same one was posted a moment ago."""
        now_s = monotonic_s()
        if now_s - self._posted.get((reason, note), -_SAME_WITHIN_S) < _SAME_WITHIN_S:
            return
        self._posted = {key: at for key, at in self._posted.items() if now_s - at < _SAME_WITHIN_S}
        self._posted[(reason, note)] = now_s
        admitted = self._rate.admit(reason, now_s)
        if admitted.post:
            self._put(config, reason, rates.counted(note, admitted.dropped), normal)
            return
        log.info("an Event was not posted: %s", note)
        if admitted.announce:
            self._put(config, rates.TOO_MANY, rates.announcement(reason, self._me), False)

    def _put(self, config: ClusterConfig, reason: str, note: str, normal: bool) -> None:
        try:
            self._queue.put_nowait((config, reason, note, normal))
        except asyncio.QueueFull:
            log.warning("an Event was dropped: %s", note)

    async def run(self) -> None:
        """Post what is queued, for ever."""
        while True:
            config, reason, note, normal = await self._queue.get()
            try:
                await self._client.create(EVENTS, self._manifest(config, reason, note, normal))
            except PgClusterError as error:
                log.warning("an Event was not posted: %s", error)

    def _manifest(
        self, config: ClusterConfig, reason: str, note: str, normal: bool
    ) -> dict[str, Any]:
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {
                "name": f"{config.name}.{secrets.token_hex(8)}",
                "namespace": config.namespace,
            },
            "eventTime": utc_now(),
            "type": "Normal" if normal else "Warning",
            "reason": reason[:128],
            "note": rates.shortened(note),
            "action": "Repmgr",
            "reportingController": f"{names.GROUP}/node-agent",
            "reportingInstance": self._me,
            "regarding": {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "name": config.name,
                "namespace": config.namespace,
                "uid": config.uid,
            },
        }
