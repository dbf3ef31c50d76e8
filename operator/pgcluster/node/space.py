"""Room on the volumes: kept for recovery, watched, and told.

A primary that cannot write WAL panics, and so does the recovery after it: a full volume is a crash
loop from which only a person finds out. Therefore, before the last bytes are gone, the roles of the
applications become read-only, so that postgres lives and says why; and a file that holds nothing,
the ballast, is given back where that came too late, so that recovery and its checkpoint have room.
Both end by themselves once the volume has grown or was freed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from prometheus_client import CollectorRegistry, Gauge

from pgcluster.api import names
from pgcluster.api.reports import InstanceReport
from pgcluster.node.files import write_atomically

log = logging.getLogger(__name__)

_MIB = 1 << 20
_SEGMENT_BYTES = 16 * _MIB
_BALLAST = ".ballast"
# What a recovery and its checkpoint write, whatever the size of the volume: a few segments.
BALLAST_BYTES = 4 * _SEGMENT_BYTES
_EVERY_S = 1.0
_STEP_PERCENT = 5
# A standby with this much in use would be full itself in no time.
_ROOMY_PERCENT = 85
_READ_ONLY = "default_transaction_read_only = 'on'\n"


@dataclass(frozen=True, slots=True)
class Volume:
    """One volume as statvfs has it; `free_bytes` is what postgres may still use."""

    name: str
    total_bytes: int
    free_bytes: int
    ballast_bytes: int = 0

    @property
    def used_percent(self) -> int:
        """How full it is, the ballast not counted."""
        if self.total_bytes <= 0:
            return 0
        free = self.free_bytes + self.ballast_bytes
        return min(100, max(0, 100 - free * 100 // self.total_bytes))

    @property
    def floor_bytes(self) -> int:
        """With less than this, nothing may be written but what ends the shortage: three WAL
        segments, or half a percent of a larger volume."""
        return min(512 * _MIB, max(3 * _SEGMENT_BYTES, self.total_bytes // 200))


@dataclass(frozen=True, slots=True)
class Course:
    """What to do about one volume: whether it is full, and whether it is to carry the ballast."""

    full: bool
    ballast: bool


def decide(volume: Volume, *, full: bool, running: bool) -> Course:
    """What to do about a volume that was `full` or not a moment ago. Pure.

    The way back asks for more room than the way there, so that nothing flaps.
    """
    has = volume.ballast_bytes > 0
    missing = 0 if has else BALLAST_BYTES
    roomy = volume.free_bytes >= 2 * volume.floor_bytes + missing
    if volume.free_bytes < volume.floor_bytes:
        # Only once postgres has failed: whoever may still write would use it up before.
        return Course(full=True, ballast=has and running)
    if full and not roomy:
        return Course(full=True, ballast=has)
    return Course(full=False, ballast=has or roomy)


def worth_handing_over(volumes: Iterable[Volume], peers: Mapping[str, InstanceReport]) -> bool:
    """Whether another instance could do what this primary, which crashes, cannot. Pure.

    The volumes are of one size and hold the same data, so a full one here mostly means a full one
    there: then the Lease would wander from one crash to the next. What only a primary keeps, such
    as WAL for a standby that is away, may leave a standby roomy though. One that does not say how
    full it is counts as full.
    """
    # What the ballast has given back is no room: it counts as full until it would be made again.
    if not any(decide(volume, full=True, running=False).full for volume in volumes):
        return True
    return any(
        peer.role == names.ROLE_STANDBY
        and peer.ready
        and not peer.disk_full
        and peer.disk_used_percent is not None
        and peer.disk_used_percent < _ROOMY_PERCENT
        for peer in peers.values()
    )


def place_for_clone(
    needed_bytes: int, free_bytes: int, old_bytes: int
) -> Literal["aside", "instead", "nowhere"]:
    """Where a clone of this size goes, beside or in place of what is on the volume. Pure.

    Aside is better, because it leaves the old data until the new are whole. But on a volume that is
    more than half in use it would fail again and again, and load the primary each time. What it
    then replaces cannot be followed from any more, and the primary that is cloned serves.
    """
    if free_bytes >= needed_bytes:
        return "aside"
    return "instead" if free_bytes + old_bytes >= needed_bytes else "nowhere"


def coarse_percent(volumes: Iterable[Volume]) -> int | None:
    """How full the fullest volume is, rounded down to a step so that a report rests."""
    found = [volume.used_percent for volume in volumes]
    return max(found) // _STEP_PERCENT * _STEP_PERCENT if found else None


class Space:
    """The agent's look at its volumes, and the two means against a full one."""

    def __init__(
        self,
        volumes: Callable[[], Mapping[str, Path]],
        *,
        running: Callable[[], bool],
        reload: Callable[[], None],
        registry: CollectorRegistry | None = None,
        read_only_conf: Path = Path(names.SPACE_CONF),
    ) -> None:
        self._volumes = volumes
        self._running = running
        self._reload = reload
        self._read_only_conf = read_only_conf
        self._full: dict[str, bool] = {}
        self.seen: tuple[Volume, ...] = ()
        self._gauges = {
            field: Gauge(f"pgcluster_instance_volume_{field}", text, ["volume"], registry=registry)
            for field, text in (
                ("total_bytes", "Size of the volume"),
                ("free_bytes", "Room on the volume that PostgreSQL may use"),
                ("ballast_bytes", "Room on the volume that is kept for recovery"),
            )
        }

    @property
    def full(self) -> str | None:
        """The volume that is full, so that the applications may not write; None where none is."""
        return next((name for name, full in self._full.items() if full), None)

    async def keep(self) -> None:
        """Look and act, for ever."""
        while True:
            try:
                await self.look()
            except OSError as error:
                log.warning("the volumes could not be looked after: %s", error)
            await asyncio.sleep(_EVERY_S)

    async def look(self) -> None:
        """Look at each volume once and do what is due."""
        paths = self._volumes()
        was = self.full
        self.seen = tuple([await asyncio.to_thread(_look, name, paths[name]) for name in paths])
        for volume in self.seen:
            for field, gauge in self._gauges.items():
                gauge.labels(volume.name).set(getattr(volume, field))
            course = decide(
                volume, full=self._full.get(volume.name, False), running=self._running()
            )
            self._full[volume.name] = course.full
            if course.ballast != (volume.ballast_bytes > 0):
                await asyncio.to_thread(_set_ballast, paths[volume.name], volume, course.ballast)
        self._full = {name: full for name, full in self._full.items() if name in paths}
        if self.full != was:
            log.warning(
                "volume %s is full: the applications' roles become read-only", self.full
            ) if self.full else log.info("there is room again: the applications may write")
        if write_atomically(self._read_only_conf, _READ_ONLY if self.full else ""):
            self._reload()


def _look(name: str, path: Path) -> Volume:
    found = os.statvfs(path)
    # Blocks that only root may use are nobody's here, so they do not count.
    used = found.f_blocks - found.f_bfree
    ballast = 0
    with contextlib.suppress(FileNotFoundError):
        ballast = (path / _BALLAST).stat().st_size
    return Volume(
        name,
        (used + found.f_bavail) * found.f_frsize,
        found.f_bavail * found.f_frsize,
        ballast,
    )


def _set_ballast(path: Path, volume: Volume, wanted: bool) -> None:
    file = path / _BALLAST
    if not wanted:
        log.warning("volume %s is full: its ballast is given back", volume.name)
        file.unlink(missing_ok=True)
        return
    handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(handle, 0, BALLAST_BYTES)
    except OSError:
        file.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)
    log.info("made the ballast of volume %s", volume.name)
