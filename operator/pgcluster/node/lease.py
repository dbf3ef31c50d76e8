"""Keeping the Lease: watch it, take it, renew it, give it up.

The decisions are elsewhere (topology/lease.py, node/gate.py); this shell talks to the API server
and keeps two facts honest: what the Lease was last seen to be, and until when this instance may
write. The latter counts from before the request that renewed it was sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from pgcluster.api import names
from pgcluster.api.config import LeaseConfig
from pgcluster.api.errors import PgClusterError
from pgcluster.api.wal import WalPoint
from pgcluster.clock import monotonic_s, utc_now
from pgcluster.kube.client import KubeClient
from pgcluster.kube.errors import Conflict
from pgcluster.kube.resources import LEASES
from pgcluster.topology.lease import LeaseRecord, LeaseView

log = logging.getLogger(__name__)

# Kubernetes has whole seconds only in leaseDurationSeconds; the exact value is in the config.
_MIN_REQUEST_S = 0.5


class LeaseKeeper:
    """The Lease of one cluster as this instance sees it and holds it.

    `changed` is set whenever its holder changed. `mark` supplies what the holder writes
    into the annotations: (system identifier, WAL point), either may be None.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        cluster: str,
        namespace: str,
        me: str,
        timing: Callable[[], LeaseConfig],
        mark: Callable[[], tuple[str | None, WalPoint | None]],
        renewed: Callable[[float], None],
        changed: asyncio.Event,
    ) -> None:
        self._client = client
        self._name = names.primary_lease(cluster)
        self._namespace = namespace
        self._me = me
        self._timing = timing
        self._mark = mark
        self._renewed = renewed
        self._manifest: dict[str, Any] | None = None
        self._view: LeaseView | None = None
        self._valid_until_s: float | None = None
        # One writer at a time: a renewal and a release must not overtake each other.
        self._writing = asyncio.Lock()
        self._changed = changed

    @property
    def view(self) -> LeaseView | None:
        """The Lease as last seen; None before it was seen or when it does not exist."""
        return self._view

    @property
    def epoch(self) -> int:
        """How often the holder has changed, as last seen."""
        return self._view.record.epoch if self._view else 0

    def holding(self) -> bool:
        """Whether this instance may write now."""
        return self._valid_until_s is not None and monotonic_s() < self._valid_until_s

    @property
    def valid_until_s(self) -> float | None:
        """Until when this instance may write (`monotonic_s`), None when it does not hold it."""
        return self._valid_until_s

    async def watch(self) -> None:
        """Follow the Lease for ever."""
        async for event in self._client.watch(LEASES, self._namespace, name=self._name):
            if event.type == "SYNC":
                self._see(event.items[0] if event.items else None)
            elif event.type in ("ADDED", "MODIFIED"):
                self._see(event.object)
            elif event.type == "DELETED":
                self._see(None)

    async def keep(self) -> None:
        """Renew for ever while this instance holds the Lease."""
        while True:
            timing = self._timing()
            if self._valid_until_s is not None:
                await self._renew(timing)
            await asyncio.sleep(timing.renew_interval_s)

    async def take(self) -> bool:
        """Take the Lease, or renew it where it is ours already; False where that did not work.

        The caller has decided that it may. A stale view does no harm: the write carries the
        version that was looked at.
        """
        async with self._writing:
            manifest = await self._read()
            if manifest is None:
                return False
            view = self._view
            record = self._parse(manifest)
            if view is None or (record.holder != self._me and not view.free(monotonic_s())):
                return False
            sent_s = monotonic_s()
            try:
                written = await self._write(manifest, holder=self._me)
            except PgClusterError as error:
                log.info("the Lease was not taken: %s", error)
                return False
            self._hold(written, sent_s)
            log.info("took the Lease", extra={"epoch": self.epoch})
            return True

    async def release(self) -> bool:
        """Give the Lease up, with the final mark; False where the API did not hear of it.

        To be called only when postgres no longer writes.
        """
        async with self._writing:
            if self._valid_until_s is None:
                return True
            self._valid_until_s = None
            for _ in range(3):
                try:
                    manifest = await self._read()
                    if manifest is None or self._parse(manifest).holder != self._me:
                        return True
                    self._see(await self._write(manifest, holder=""))
                except PgClusterError as error:
                    log.warning("the Lease was not released: %s", error)
                    await asyncio.sleep(0.2)
                else:
                    log.info("released the Lease")
                    return True
            return False

    def drop(self) -> None:
        """Forget that it is ours, without telling the API: it has been lost."""
        self._valid_until_s = None
        self._changed.set()

    async def _renew(self, timing: LeaseConfig) -> None:
        async with self._writing:
            if self._valid_until_s is None:
                return
            sent_s = monotonic_s()
            try:
                async with asyncio.timeout(max(_MIN_REQUEST_S, timing.renew_deadline_s / 2)):
                    if self._manifest is None:
                        await self._read()
                    if self._manifest is not None:
                        written = await self._write(self._manifest, holder=self._me)
                        self._hold(written, sent_s)
            except Conflict:
                # Somebody wrote in between: look who, and go on only if it is still ours.
                await self._look_again()
            except (PgClusterError, TimeoutError) as error:
                log.warning("the Lease was not renewed: %s", error or "no answer in time")
                self._manifest = None

    async def _look_again(self) -> None:
        try:
            manifest = await self._read()
        except PgClusterError as error:
            log.warning("the Lease was not read: %s", error)
            return
        if manifest is not None and self._parse(manifest).holder != self._me:
            log.warning("the Lease was lost to %s", self._parse(manifest).holder or "nobody")
            self.drop()

    async def _read(self) -> dict[str, Any] | None:
        manifest = await self._client.get(LEASES, self._name, self._namespace)
        self._see(manifest)
        return manifest

    async def _write(self, manifest: dict[str, Any], *, holder: str) -> dict[str, Any]:
        timing = self._timing()
        spec = dict(manifest.get("spec") or {})
        metadata = dict(manifest["metadata"])
        system_identifier, point = self._mark()
        annotations = dict(metadata.get("annotations") or {})
        if system_identifier is not None:
            annotations[names.ANNOTATION_SYSTEM_ID] = system_identifier
        if point is not None:
            annotations[names.ANNOTATION_TIMELINE] = str(point.timeline)
            annotations[names.ANNOTATION_WAL_POSITION] = str(point.lsn)
        if holder and holder != (spec.get("holderIdentity") or ""):
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
            spec["acquireTime"] = utc_now()
        # The API refuses an empty holderIdentity together with no other field only in old
        # versions; client-go releases in the same way.
        spec["holderIdentity"] = holder
        spec["leaseDurationSeconds"] = max(1, round(timing.duration_s))
        spec["renewTime"] = utc_now()
        metadata["annotations"] = annotations
        return await self._client.replace(LEASES, {**manifest, "metadata": metadata, "spec": spec})

    def _hold(self, written: dict[str, Any], sent_s: float) -> None:
        self._valid_until_s = sent_s + self._timing().renew_deadline_s
        self._see(written)
        self._renewed(self._valid_until_s)

    def _see(self, manifest: dict[str, Any] | None) -> None:
        if manifest is None:
            self._manifest, self._view = None, None
            self._changed.set()
            return
        if self._manifest is not None and _older(manifest, self._manifest):
            return
        before = self._view
        self._manifest = manifest
        record = self._parse(manifest)
        now_s = monotonic_s()
        self._view = LeaseView(record, now_s) if before is None else before.next(record, now_s)
        if self._valid_until_s is not None and record.holder != self._me:
            log.warning("the Lease was lost to %s", record.holder or "nobody")
            self._valid_until_s = None
        if before is None or before.record.holder != record.holder:
            self._changed.set()

    def _parse(self, manifest: dict[str, Any]) -> LeaseRecord:
        return LeaseRecord.parse(manifest, default_duration_s=self._timing().duration_s)


def _older(candidate: dict[str, Any], current: dict[str, Any]) -> bool:
    """Whether a watch event is behind what a write of ours has returned.

    Kubernetes 1.35 guarantees that resource versions of one resource compare as integers.
    """
    try:
        return int(candidate["metadata"]["resourceVersion"]) < int(
            current["metadata"]["resourceVersion"]
        )
    except (KeyError, ValueError):
        return False
