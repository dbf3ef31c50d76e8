"""The Lease `<cluster>-primary` as one observer sees it. Pure: no client, no clock of its own.

Clocks of different machines are never compared. An observer notes, by its own monotonic clock,
when it last saw the Lease change; only a Lease that it has watched unchanged for the whole
duration counts as expired.
Source: k8s.io/client-go/tools/leaderelection, which uses the same rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pgcluster.api import names
from pgcluster.api.wal import Lsn, WalPoint
from pgcluster.topology import quorum
from pgcluster.topology.quorum import Quorum

# How long a Lease that was given up for a chosen successor is left to it alone.
HANDOVER_S = 10.0


@dataclass(frozen=True, slots=True)
class Mark:
    """The cluster's high-water mark: what its last primary had reached.

    `final` is whether that is the exact end of its WAL, as a stop in order leaves it: an instance
    that has come as far has everything.
    """

    system_identifier: str | None
    point: WalPoint | None
    final: bool = False


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """The parsed content of the Lease object.

    `holder` is the pod that may write, or "" when the Lease was released. `epoch` counts the
    changes of holder. `duration_s` is how long an unchanged Lease stays its holder's. `quorums` are
    those that the holder's commits may rest on (None: not readable), `container` names the very
    container that holds it, `uid` the very object. `last_holder` is the holder, or who released it;
    `handover`: for a successor that somebody, such as `repmgr standby switchover`, has chosen.
    `reserved` is the highest timeline that any promotion has begun: it may exist although no mark
    names it. `writer` is the last holder that was, or was about to be, the primary: `quorums` are
    its own, and nobody has written after it. `pausing`: the holder is about to stop in order, and
    the pools are to hold their clients; `successor` is the instance that is to take over then, in
    which case no other takes the Lease as long as `handover` is waited for.
    """

    holder: str
    epoch: int
    duration_s: float
    renew_time: str
    mark: Mark
    quorums: tuple[Quorum, ...] | None = ()
    container: str | None = None
    uid: str | None = None
    last_holder: str | None = None
    handover: bool = False
    reserved: int = 0
    writer: str | None = None
    pausing: bool = False
    successor: str | None = None

    @property
    def hands(self) -> tuple[str, int]:
        """Who has it, and in which epoch: what was decided on others is decided on nothing."""
        return self.holder, self.epoch

    @classmethod
    def parse(cls, manifest: Mapping[str, Any], *, default_duration_s: float) -> LeaseRecord:
        """Read a Lease manifest; what is absent or malformed counts as not recorded."""
        spec = manifest.get("spec") or {}
        metadata = manifest.get("metadata") or {}
        annotations = metadata.get("annotations") or {}
        return cls(
            holder=spec.get("holderIdentity") or "",
            epoch=int(spec.get("leaseTransitions") or 0),
            duration_s=float(spec.get("leaseDurationSeconds") or default_duration_s),
            renew_time=spec.get("renewTime") or "",
            mark=Mark(
                system_identifier=annotations.get(names.ANNOTATION_SYSTEM_ID) or None,
                point=_point(annotations),
                final=annotations.get(names.ANNOTATION_FINAL) == "true",
            ),
            quorums=quorum.parse(annotations.get(names.ANNOTATION_SYNCHRONOUS)),
            container=annotations.get(names.ANNOTATION_CONTAINER) or None,
            uid=metadata.get("uid"),
            reserved=_number(annotations.get(names.ANNOTATION_RESERVED)),
            handover=annotations.get(names.ANNOTATION_HANDOVER) == "true",
            last_holder=spec.get("holderIdentity") or annotations.get(names.ANNOTATION_LAST_HOLDER),
            writer=annotations.get(names.ANNOTATION_WRITER),
            pausing=annotations.get(names.ANNOTATION_PAUSING) == "true",
            successor=annotations.get(names.ANNOTATION_SUCCESSOR) or None,
        )


def _number(text: str | None) -> int:
    try:
        return int(text or 0)
    except ValueError:
        return 0


def _point(annotations: Mapping[str, str]) -> WalPoint | None:
    try:
        return WalPoint(
            timeline=int(annotations[names.ANNOTATION_TIMELINE]),
            lsn=Lsn.parse(annotations[names.ANNOTATION_WAL_POSITION]),
        )
    except (KeyError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class LeaseView:
    """A record and when, by the observer's monotonic clock, it was last seen to change.

    `barred_until_s`: a Lease that was deleted and made again says nothing of who held the former
    one, who may go on writing for as long as that one lasted.
    """

    record: LeaseRecord
    changed_at_s: float
    barred_until_s: float = 0.0

    def next(self, record: LeaseRecord, now_s: float) -> LeaseView:
        """The view after seeing `record`: only a change moves the clock."""
        if record == self.record:
            return self
        barred_until_s = self.barred_until_s
        if None not in (record.uid, self.record.uid) and record.uid != self.record.uid:
            barred_until_s = now_s + self.record.duration_s
        return LeaseView(record, now_s, barred_until_s)

    def acknowledged(self, now_s: float) -> LeaseView:
        """The view after the holder itself was heard: it counts as just changed."""
        return replace(self, changed_at_s=max(now_s, self.changed_at_s))

    def released(self) -> bool:
        """Whether the last holder gave it up."""
        return self.record.holder == ""

    def expires_at_s(self) -> float:
        """When it will have been watched unchanged for its whole duration."""
        return self.changed_at_s + self.record.duration_s

    def expired(self, now_s: float) -> bool:
        """Whether it was watched unchanged for its whole duration."""
        return now_s > self.expires_at_s()

    def free(self, now_s: float) -> bool:
        """Whether somebody else than its holder may take it now."""
        return (self.released() or self.expired(now_s)) and now_s >= self.barred_until_s

    def kept_for(self, now_s: float) -> str | None:
        """The successor that a released Lease waits for; None where anyone fit may take it."""
        record = self.record
        waits = self.released() and record.handover and now_s - self.changed_at_s < HANDOVER_S
        return record.successor if waits else None

    def kept_for_other(self, me: str, now_s: float) -> bool:
        """Whether a released Lease waits for another instance than `me`."""
        return self.kept_for(now_s) not in (None, me)

    def held_by_other(self, me: str, now_s: float) -> bool:
        """Whether another instance may be writing."""
        return not self.free(now_s) and self.record.holder != me
