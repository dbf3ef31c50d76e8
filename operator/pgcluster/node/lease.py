"""Keeping the Lease: watch it, take it, renew it, give it up.

The decisions are elsewhere (topology/lease.py, node/gate.py); this shell talks to the API server
and keeps two facts honest: what the Lease was last seen to be, and until when this instance may
write. The latter counts from before the request that renewed it was sent.

Failsafe: while the API cannot be had, a primary goes on as long as every other instance's agent
acknowledges it directly. Each acknowledgement is a promise: who gives it counts the Lease as just
changed, and so does not take it for its whole duration. One that cannot be reached might be taking
it this very moment, so all must answer. Source: Patroni, "DCS Failsafe Mode".
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from pgcluster.api import names
from pgcluster.api.config import LeaseConfig
from pgcluster.api.errors import PgClusterError
from pgcluster.api.wal import WalPoint
from pgcluster.clock import monotonic_s, utc_now
from pgcluster.kube.client import KubeClient
from pgcluster.kube.errors import Conflict
from pgcluster.kube.resources import LEASES
from pgcluster.topology import quorum
from pgcluster.topology.lease import LeaseRecord, LeaseView, Mark
from pgcluster.topology.quorum import Quorum

log = logging.getLogger(__name__)

_MIN_REQUEST_S = 0.5
# A renewal that has no answer by then may get none: the other instances are asked meanwhile.
_FAILSAFE_AFTER_S = 0.7
# Clients may be waiting for the answer.
_TELL_S = 1.0


@dataclass(frozen=True, slots=True)
class Announcement:
    """The holder is about to stop in order; `successor` is to take over then."""

    successor: str | None = None


class LeaseKeeper:
    """The Lease of one cluster as this instance sees it and holds it.

    `changed` is set whenever its holder changed. `mark` supplies what the holder writes into the
    annotations, `quorums` what its commits may rest on, `container` its container's word.
    `inherit` hears what the commits of the primary before rest on. `failsafe` asks every other
    instance to acknowledge the record of this holder.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        cluster: str,
        namespace: str,
        me: str,
        timing: Callable[[], LeaseConfig],
        mark: Callable[[], Mark],
        quorums: Callable[[], Iterable[Quorum]],
        inherit: Callable[[tuple[Quorum, ...]], None],
        container: str,
        failsafe: Callable[[LeaseRecord], Awaitable[bool]],
        renewed: Callable[[float], None],
        changed: asyncio.Event,
    ) -> None:
        self._client = client
        self._name = names.primary_lease(cluster)
        self._namespace = namespace
        self._me = me
        self._timing = timing
        self._mark = mark
        self._quorums = quorums
        self._inherit = inherit
        self._container = container
        self._failsafe = failsafe
        self._renewed = renewed
        self._manifest: dict[str, Any] | None = None
        self._view: LeaseView | None = None
        # What was known of a Lease that has been deleted.
        self._former: LeaseView | None = None
        self._valid_until_s: float | None = None
        # One writer at a time: a renewal and a release must not overtake each other.
        self._writing = asyncio.Lock()
        # While it is being taken nobody else's holding is acknowledged.
        self._taking = False
        # (holder, until when): as long as this lasts, nobody here takes the Lease from that holder.
        self._promise: tuple[str, float] | None = None
        self._soon = asyncio.Event()
        self._changed = changed
        # What every write of this holder tells the pools; a new process announces nothing.
        self._announced: Announcement | None = None
        # Set as soon as the Lease is seen to be given up for this instance.
        self.named = asyncio.Event()
        # Whether it was taken from a holder that had not given it up.
        self.taken_over = False
        # Since when every other instance's word stands in for the API server's.
        self.failsafe_since_s: float | None = None

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
            self._soon.clear()
            if self._valid_until_s is not None:
                await self._renew(timing)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timing.renew_interval_s):
                    await self._soon.wait()

    def renew_soon(self) -> None:
        """Write what has changed (mark, quorums) now, and not at the next renewal."""
        self._soon.set()

    async def take(
        self,
        decided_on: LeaseRecord | None,
        *,
        ended: str | None = None,
        accepted: WalPoint | None = None,
        writes: bool = False,
    ) -> bool:
        """Take the Lease, or renew it where it is ours already; False where that did not work.

        The caller has decided that it may: it is free, or its holder's container `ended`. A stale
        view does no harm: where it has changed hands since the record that this was `decided_on`,
        the caller has to decide anew, and the write carries the version that was looked at.
        `accepted` is the mark from now on, where a person has accepted that what is beyond it is
        lost. `writes`: postgres starts as the primary as soon as this is done; a standby says so
        later, by `reserve`.
        """
        async with self._writing:
            try:
                return await self._take(decided_on, ended, accepted, writes=writes)
            except PgClusterError as error:
                log.info("the Lease was not taken: %s", error)
                return False
            finally:
                self._taking = False

    async def succeed(self, timeline: int) -> int | None:
        """As the successor that a released Lease names, on `timeline`: take it and reserve the
        promotion's own, in one write (see `reserve`); None where that did not work.

        The caller has decided that it may, and promotes at once. What the watch has shown is
        believed: the write carries its version.
        """
        async with self._writing:
            try:
                for _ in range(2):
                    try:
                        return await self._succeed(timeline)
                    except Conflict:
                        await self._read()
            except PgClusterError as error:
                log.info("the Lease was not taken: %s", error)
            finally:
                self._taking = False
        return None

    async def _succeed(self, timeline: int) -> int | None:
        manifest = self._manifest
        if manifest is None:
            return None
        self._taking = True
        record = self._parse(manifest)
        if record.successor != self._me or record.holder or not self._may_take(record, None):
            return None
        self._announced = None
        self.taken_over = False
        number = _unused(record, timeline)
        more = {names.ANNOTATION_RESERVED: str(number), **self._begin_writing(record)}
        sent_s = monotonic_s()
        self._hold(await self._write(manifest, holder=self._me, more=more), sent_s)
        log.info("took the Lease as its successor", extra={"epoch": self.epoch})
        return number

    async def announce(self, successor: str | None = None) -> bool:
        """As the holder, have the pools hold their clients: a stop in order is near; whether the
        API has heard.

        Every renewal repeats it, until `withdraw` or the Lease is given up or taken anew.
        """
        async with self._writing:
            if not self.holding():
                return False
            self._announced = Announcement(successor)
            if await self._tell():
                return True
            self._announced = None
        # It may have been heard all the same.
        self.renew_soon()
        return False

    async def withdraw(self) -> bool:
        """Have the pools go on; where the API does not hear, the next renewal tells it."""
        self._announced = None
        async with self._writing:
            told = self._valid_until_s is None or await self._tell()
        if not told:
            self.renew_soon()
        return told

    async def _tell(self) -> bool:
        """Write what has changed as the holder, now."""
        try:
            async with asyncio.timeout(_TELL_S):
                for _ in range(2):
                    sent_s = monotonic_s()
                    try:
                        written = await self._request_renewal()
                    except Conflict:
                        await self._look_again()
                        continue
                    if written is None:
                        return False
                    self._hold(written, sent_s)
                    return self._valid_until_s is not None
        except (PgClusterError, TimeoutError) as error:
            log.warning("the Lease was not written: %s", error or "no answer in time")
            self._manifest = None
        return False

    async def _take(
        self,
        decided_on: LeaseRecord | None,
        ended: str | None,
        accepted: WalPoint | None,
        *,
        writes: bool,
    ) -> bool:
        manifest = await self._read()
        if manifest is None or decided_on is None:
            return False
        # From here to the answer, so that no promise is given in between.
        self._taking = True
        record = self._parse(manifest)
        if record.hands != decided_on.hands or not self._may_take(record, ended):
            return False
        self._announced = None
        self.taken_over = record.holder not in ("", self._me)
        lowered = _mark_annotations(accepted)
        if accepted is not None and record.mark.point is not None:
            # What is given up has used its timeline.
            used = max(record.reserved, record.mark.point.timeline)
            lowered[names.ANNOTATION_RESERVED] = str(used)
        if writes:
            lowered |= self._begin_writing(record)
        sent_s = monotonic_s()
        self._hold(await self._write(manifest, holder=self._me, more=lowered), sent_s)
        if self._valid_until_s is None:
            return False
        log.info("took the Lease", extra={"epoch": self.epoch})
        return True

    def _begin_writing(self, record: LeaseRecord) -> dict[str, str]:
        """This holder is about to be the primary: its quorum counts, beside that of the one before.

        The latter until enough standbys have what this one begins with.
        """
        self._inherit(record.quorums or ())
        return {
            names.ANNOTATION_WRITER: self._me,
            names.ANNOTATION_SYNCHRONOUS: quorum.dump(self._quorums()),
            names.ANNOTATION_FINAL: "false",
        }

    def _may_take(self, record: LeaseRecord, ended: str | None) -> bool:
        view, now_s = self._view, monotonic_s()
        if view is None:
            return False
        if ended is not None and record.container == ended:
            return True
        if self._promise is not None:
            holder, until_s = self._promise
            gave_up = not record.holder and record.last_holder == holder
            if now_s < until_s and not gave_up:
                return False
        return record.holder == self._me or view.free(now_s)

    async def reserve(self, timeline: int) -> int | None:
        """As the holder, put on record which timeline the promotion of this instance, which is on
        `timeline`, begins; None where that did not work.

        PostgreSQL takes the next number that it does not know to be in use. A primary that was lost
        right after its promotion has used that one too, and two histories of one number are told
        apart by nobody: not by pg_rewind, nor by a standby. So each promotion has its own.
        """
        async with self._writing:
            for _ in range(2):
                try:
                    manifest = await self._read()
                    if manifest is None or self._valid_until_s is None:
                        return None
                    record = self._parse(manifest)
                    number = _unused(record, timeline)
                    self._announced = None
                    sent_s = monotonic_s()
                    written = await self._write(
                        manifest,
                        holder=self._me,
                        more={
                            names.ANNOTATION_RESERVED: str(number),
                            **self._begin_writing(record),
                        },
                    )
                except Conflict:
                    continue
                except PgClusterError as error:
                    log.warning("the timeline of the promotion was not recorded: %s", error)
                    return None
                self._hold(written, sent_s)
                return None if self._valid_until_s is None else number
        return None

    def acknowledge(self, record: LeaseRecord) -> str | None:
        """Promise not to take the Lease from this holder for its duration; else why not.

        Called for a holder that the API server does not hear.
        """
        if self._valid_until_s is not None or self._taking:
            return f"{self._me} holds the Lease, or is taking it"
        view = self._view
        if view is not None:
            known = view.record
            if known.epoch > record.epoch or (
                known.epoch == record.epoch and known.holder != record.holder
            ):
                return f"{known.holder or 'nobody'} holds the Lease in epoch {known.epoch}"
        now_s = monotonic_s()
        self._promise = (record.holder, now_s + record.duration_s)
        if view is None or view.record.epoch < record.epoch:
            # This agent has missed the change, or has just started, and cannot ask the API.
            self._view = LeaseView(record, now_s)
            self._changed.set()
        else:
            self._view = view.acknowledged(now_s)
        return None

    async def release(self, *, handover: bool = False, successor: str | None = None) -> bool:
        """Give the Lease up, with the final mark; False where the API did not hear of it.

        To be called only when postgres no longer writes. `handover`: a successor was chosen,
        `successor` where it is known here: nobody else takes the Lease for HANDOVER_S.
        """
        async with self._writing:
            self._announced = None
            if self._valid_until_s is None:
                return True
            self._valid_until_s = None
            # The last write of ours is known, and clients wait: no need to read it first.
            manifest = self._manifest
            for _ in range(3):
                try:
                    if manifest is None:
                        manifest = await self._read()
                    if manifest is None or self._parse(manifest).holder != self._me:
                        return True
                    sent, manifest = manifest, None
                    self._see(
                        await self._write(sent, holder="", handover=handover, successor=successor)
                    )
                except Conflict:
                    continue
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
            # A conflict is somebody else's write, or one of ours whose answer was lost: the second
            # attempt knows which.
            for _ in range(2):
                sent_s = monotonic_s()
                request = asyncio.create_task(self._request_renewal(), name="renewal")
                try:
                    await self._answered(request, timing)
                    if (written := request.result()) is not None:
                        self._hold(written, sent_s)
                        self._end_failsafe()
                except Conflict:
                    await self._look_again()
                    if self._valid_until_s is not None:
                        continue
                except (PgClusterError, TimeoutError) as error:
                    log.warning("the Lease was not renewed: %s", error or "no answer in time")
                    self._manifest = None
                    await self._ask_failsafe()
                finally:
                    request.cancel()
                return

    async def _answered(
        self, request: asyncio.Task[dict[str, Any] | None], timing: LeaseConfig
    ) -> None:
        """Wait for a renewal, and see to the failsafe where its answer is late; TimeoutError."""
        deadline_s = max(_MIN_REQUEST_S, timing.renew_deadline_s / 2)
        patience_s = min(_FAILSAFE_AFTER_S, deadline_s)
        await asyncio.wait({request}, timeout=patience_s)
        if request.done():
            return
        await self._ask_failsafe()
        await asyncio.wait({request}, timeout=deadline_s - patience_s)
        if not request.done():
            raise TimeoutError

    async def _request_renewal(self) -> dict[str, Any] | None:
        if self._manifest is None:
            await self._read()
        if self._manifest is None or self._valid_until_s is None:
            return None
        return await self._write(self._manifest, holder=self._me)

    async def _ask_failsafe(self) -> None:
        view = self._view or self._former
        if view is None or self._valid_until_s is None:
            return
        sent_s = monotonic_s()
        mark = self._mark()
        record = replace(
            view.record,
            holder=self._me,
            mark=mark if mark.point is not None else view.record.mark,
            quorums=tuple(self._quorums()),
        )
        if not await self._failsafe(record) or self._valid_until_s is None:
            return
        if self.failsafe_since_s is None:
            self.failsafe_since_s = sent_s
            log.warning("the API server does not answer; every other instance acknowledges us")
        self._valid_until_s = sent_s + self._timing().renew_deadline_s
        self._renewed(self._valid_until_s)

    def _end_failsafe(self) -> None:
        if self.failsafe_since_s is not None:
            lasted_s = monotonic_s() - self.failsafe_since_s
            log.info("the API server answers again", extra={"after_s": round(lasted_s, 1)})
            self.failsafe_since_s = None

    async def _look_again(self) -> None:
        try:
            manifest = await self._read()
        except PgClusterError as error:
            log.warning("the Lease was not read: %s", error)
            return
        if manifest is not None and self._valid_until_s is None:
            self.drop()

    async def _read(self) -> dict[str, Any] | None:
        manifest = await self._client.get(LEASES, self._name, self._namespace)
        self._see(manifest)
        return manifest

    async def _write(
        self,
        manifest: dict[str, Any],
        *,
        holder: str,
        handover: bool = False,
        successor: str | None = None,
        more: Mapping[str, str] = MappingProxyType({}),
    ) -> dict[str, Any]:
        timing = self._timing()
        spec = dict(manifest.get("spec") or {})
        metadata = dict(manifest["metadata"])
        before = spec.get("holderIdentity") or ""
        spec["holderIdentity"] = holder
        if holder and holder != before:
            spec["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
            spec["acquireTime"] = utc_now()
        # Whole seconds are what Kubernetes has there; the exact value is in the configuration.
        spec["leaseDurationSeconds"] = max(1, round(timing.duration_s))
        spec["renewTime"] = utc_now()
        known = metadata.get("annotations") or {}
        metadata["annotations"] = {
            **known,
            **self._annotations(writes=known.get(names.ANNOTATION_WRITER) == self._me),
            names.ANNOTATION_HANDOVER: str(handover).lower(),
            **_plan_annotations(self._announced if holder else None, successor),
            **more,
        }
        if not holder:
            metadata["annotations"][names.ANNOTATION_LAST_HOLDER] = before
        return await self._client.replace(LEASES, {**manifest, "metadata": metadata, "spec": spec})

    def _annotations(self, *, writes: bool) -> dict[str, str]:
        mark = self._mark()
        made = {names.ANNOTATION_CONTAINER: self._container}
        if writes:
            made[names.ANNOTATION_SYNCHRONOUS] = quorum.dump(self._quorums())
            made[names.ANNOTATION_FINAL] = str(mark.final).lower()
        if mark.system_identifier is not None:
            made[names.ANNOTATION_SYSTEM_ID] = mark.system_identifier
        return made | _mark_annotations(mark.point)

    def _hold(self, written: dict[str, Any], sent_s: float) -> None:
        self._see(written)
        if self._view is not None and self._view.record.holder != self._me:
            # Frozen between the request and its answer: the watch has told of another meanwhile.
            self._valid_until_s = None
            return
        self._valid_until_s = sent_s + self._timing().renew_deadline_s
        self._promise = None
        self._renewed(self._valid_until_s)

    def _see(self, manifest: dict[str, Any] | None) -> None:
        if manifest is None:
            self._former = self._view or self._former
            self._manifest, self._view = None, None
            self._changed.set()
            return
        if self._manifest is not None and _older(manifest, self._manifest):
            return
        before = self._view or self._former
        self._manifest = manifest
        record = self._parse(manifest)
        now_s = monotonic_s()
        self._view = LeaseView(record, now_s) if before is None else before.next(record, now_s)
        # Deleted and made again while this instance holds it: the next renewal takes it back,
        # unless another instance has it by then.
        remade = before is not None and record.uid != before.record.uid and not record.holder
        if self._valid_until_s is not None and record.holder != self._me and not remade:
            log.warning("the Lease was lost to %s", record.holder or "nobody")
            self._valid_until_s = None
        if self._view.kept_for(now_s) == self._me:
            self.named.set()
        if before is None or _moved(before.record, record):
            self._changed.set()

    def _parse(self, manifest: dict[str, Any]) -> LeaseRecord:
        return LeaseRecord.parse(manifest, default_duration_s=self._timing().duration_s)


def _moved(before: LeaseRecord, after: LeaseRecord) -> bool:
    """Whether somebody has to act on the difference of two records, and not only know of it."""
    return (before.holder, before.pausing, before.successor) != (
        after.holder,
        after.pausing,
        after.successor,
    )


def _unused(record: LeaseRecord, timeline: int) -> int:
    """The timeline that a promotion from `timeline` begins."""
    known = record.mark.point.timeline if record.mark.point else 0
    return max(record.reserved, known, timeline) + 1


def _plan_annotations(announced: Announcement | None, successor: str | None) -> dict[str, str]:
    """Of a planned hand-over: written by every write, so that nothing of an earlier one stays."""
    named = announced.successor if announced else successor
    return {
        names.ANNOTATION_PAUSING: str(announced is not None).lower(),
        names.ANNOTATION_SUCCESSOR: named or "",
    }


def _mark_annotations(point: WalPoint | None) -> dict[str, str]:
    if point is None:
        return {}
    return {
        names.ANNOTATION_TIMELINE: str(point.timeline),
        names.ANNOTATION_WAL_POSITION: str(point.lsn),
    }


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
