"""What is done about a volume that fills up, and when it ends."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from pgcluster.api.reports import InstanceReport
from pgcluster.node import space
from pgcluster.node.space import (
    BALLAST_BYTES,
    Course,
    Space,
    Volume,
    coarse_percent,
    decide,
    place_for_clone,
    worth_handing_over,
)

MIB = 1 << 20
GIB = 1 << 30


def volume(free_mib: int, *, ballast: bool = True, total: int = GIB) -> Volume:
    return Volume("data", total, free_mib * MIB, BALLAST_BYTES if ballast else 0)


@pytest.mark.parametrize(
    ("it", "full", "running", "expected"),
    [
        # much room: the ballast is made, and stays
        (volume(800, ballast=False), False, True, Course(full=False, ballast=True)),
        (volume(800), False, True, Course(full=False, ballast=True)),
        # getting tight: read-only first, the ballast behind it
        (volume(48), False, True, Course(full=False, ballast=True)),
        (volume(47), False, True, Course(full=True, ballast=True)),
        # postgres has failed: now it is needed, and not before
        (volume(0), True, True, Course(full=True, ballast=True)),
        (volume(47), True, False, Course(full=True, ballast=False)),
        (volume(0), False, False, Course(full=True, ballast=False)),
        # what was given back does not count as room
        (volume(64, ballast=False), True, True, Course(full=True, ballast=False)),
        (volume(159, ballast=False), True, True, Course(full=True, ballast=False)),
        # freed or grown
        (volume(160, ballast=False), True, True, Course(full=False, ballast=True)),
        (volume(95), True, True, Course(full=True, ballast=True)),
        (volume(96), True, True, Course(full=False, ballast=True)),
        # a volume too small for a ballast
        (volume(60, ballast=False), False, True, Course(full=False, ballast=False)),
    ],
)
def test_what_is_done_about_a_volume(
    it: Volume, full: bool, running: bool, expected: Course
) -> None:
    assert decide(it, full=full, running=running) == expected


@given(
    total_mib=st.integers(128, 1 << 24),
    used=st.floats(0, 1),
    full=st.booleans(),
    ballast=st.booleans(),
    running=st.booleans(),
)
def test_a_course_once_taken_stands_while_nothing_else_changes(
    total_mib: int, used: float, full: bool, ballast: bool, running: bool
) -> None:
    """Making or giving back the ballast moves the room by its size: that must turn nothing back."""
    total = total_mib * MIB
    seen = Volume("data", total, int(total * (1 - used)), BALLAST_BYTES if ballast else 0)
    full_next = full
    courses = []
    for _ in range(4):
        course = decide(seen, full=full_next, running=running)
        change = BALLAST_BYTES * (
            (course.ballast is False and seen.ballast_bytes > 0)
            - (course.ballast is True and seen.ballast_bytes == 0)
        )
        assert seen.free_bytes + change >= 0, "a ballast that does not fit"
        seen = Volume(
            "data",
            total,
            seen.free_bytes + change,
            BALLAST_BYTES if course.ballast else 0,
        )
        full_next = course.full
        courses.append(course)
    assert courses[1] == courses[2] == courses[3]


def report(**fields: Any) -> InstanceReport:
    told = {"pod": "shop-1", "state": "running", "role": "standby", "ready": True, **fields}
    return InstanceReport.model_validate(told)


@pytest.mark.parametrize(
    ("free_mib", "peers", "expected"),
    [
        (500, [], True),  # not a matter of room: others may try
        (3, [report(disk_used_percent=60)], True),
        (3, [report(disk_used_percent=95), report(disk_used_percent=60)], True),
        (3, [report(disk_used_percent=95)], False),
        (3, [report(disk_used_percent=60, disk_full=True)], False),
        (3, [report(disk_used_percent=60, ready=False)], False),
        (3, [report(disk_used_percent=None)], False),
        (3, [], False),
    ],
)
def test_a_full_primary_hands_over_only_to_one_with_room(
    free_mib: int, peers: list[InstanceReport], expected: bool
) -> None:
    told = {f"shop-{number}": peer for number, peer in enumerate(peers, start=1)}
    assert worth_handing_over([volume(free_mib)], told) is expected


def test_the_second_crash_is_judged_as_the_first() -> None:
    """The ballast, given back after the first, is not room that a crash had nothing to do with."""
    assert not worth_handing_over([volume(64, ballast=False)], {})


def test_a_report_rests_while_a_volume_fills_slowly() -> None:
    assert coarse_percent([]) is None
    assert [coarse_percent([volume(free)]) for free in (1000 - 64, 600, 590, 0)] == [0, 35, 35, 90]
    wal = Volume("wal", GIB, 0)
    assert coarse_percent([volume(900), wal]) == 100


@pytest.mark.parametrize(
    ("needed", "free", "old", "expected"),
    [
        (100, 100, 0, "aside"),
        (100, 100, 500, "aside"),
        (100, 40, 60, "instead"),
        (100, 40, 59, "nowhere"),
        (100, 0, 0, "nowhere"),
    ],
)
def test_a_clone_goes_aside_where_it_fits(needed: int, free: int, old: int, expected: str) -> None:
    assert place_for_clone(needed, free, old) == expected


class World:
    """A volume whose size the test decides, on a real directory."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.volume = directory / "volume"
        self.volume.mkdir()
        self.conf = directory / "space.conf"
        self.total_mib = 1024
        self.data_mib = 100
        self.running = True
        self.reloads = 0
        monkeypatch.setattr(space.os, "statvfs", self._statvfs)
        self.space = Space(
            lambda: {"data": self.volume},
            running=lambda: self.running,
            reload=self._reload,
            registry=CollectorRegistry(),
            read_only_conf=self.conf,
        )

    @property
    def ballast(self) -> Path:
        return self.volume / ".ballast"

    def _reload(self) -> None:
        self.reloads += 1

    def _statvfs(self, path: Path) -> os.statvfs_result:
        ballast = self.ballast.stat().st_size // MIB if self.ballast.exists() else 0
        free = max(0, self.total_mib - self.data_mib - ballast)
        return os.statvfs_result((MIB, MIB, self.total_mib, free, free, 0, 0, 0, 0, 255))


async def test_a_volume_fills_up_and_is_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(tmp_path, monkeypatch)
    await world.space.look()
    assert world.ballast.stat().st_size == 64 * MIB
    assert world.space.full is None
    before = world.reloads
    world.data_mib = 1024 - 64 - 20
    await world.space.look()
    assert world.space.full == "data"
    assert "default_transaction_read_only" in world.conf.read_text()
    assert world.reloads == before + 1
    assert world.ballast.exists(), "postgres still lives"
    world.data_mib, world.running = 1024 - 64, False
    await world.space.look()
    assert not world.ballast.exists()
    world.running = True
    for _ in range(3):
        await world.space.look()
        assert world.space.full == "data"
    world.total_mib = 2048  # the volume has grown
    await world.space.look()
    assert world.space.full is None
    assert world.ballast.exists()
    assert world.conf.read_text() == ""
    assert world.reloads == before + 2
