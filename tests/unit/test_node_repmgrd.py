"""Whether repmgrd does its work."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import Any, cast

import pytest

from pgcluster.node.processes import Child
from pgcluster.node.repmgrd import Pause, Pulse, Repmgrd, Silence, read_pulse
from pgcluster.postgres.local import LocalPostgres


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Database:
    """repmgr's functions."""

    def __init__(self) -> None:
        self.pid = 0
        self.paused = False
        self.asked: list[tuple[str, tuple[object, ...]]] = []

    async def query(self, statement: str, *values: object) -> list[dict[str, Any]]:
        self.asked.append((statement, values))
        if "set_repmgrd_pid" in statement:
            self.pid = cast(int, values[0])
        if "repmgrd_pause(false)" in statement:
            self.paused = False
        return [{"pid": self.pid, "paused": self.paused}]


def silent(pulse: Pulse, looks: int, every_s: float = 1.0) -> tuple[Silence, float]:
    silence, now_s = Silence(pulse, 0.0), 0.0
    for _ in range(looks):
        now_s += every_s
        silence = silence.next(pulse, now_s)
    return silence, now_s


def test_a_loop_that_turns_is_never_silent() -> None:
    silence = Silence(Pulse(7, 1), 0.0)
    for second in range(1, 500):
        silence = silence.next(Pulse(7, 1 + second), float(second))
        assert silence.hangs(float(second)) is None


def test_a_loop_that_has_not_turned_for_half_a_minute_hangs() -> None:
    silence, now_s = silent(Pulse(7, 1), 29)
    assert silence.hangs(now_s) is None
    silence, now_s = silent(Pulse(7, 1), 30)
    assert silence.hangs(now_s) == "its loop has not turned for 30 s"


def test_one_that_waits_at_the_gate_or_follows_is_given_its_time() -> None:
    silence, now_s = silent(Pulse(7, 1, command=True), 200)
    assert silence.hangs(now_s) is None


def test_one_that_was_stopped_by_a_signal_is_found_soon() -> None:
    assert silent(Pulse(7, 1, stopped=True), 2)[0].hangs(2.0) is None
    assert silent(Pulse(7, 1, stopped=True), 3)[0].hangs(3.0) == "it was stopped by a signal"


def test_a_machine_that_was_asleep_accuses_nobody() -> None:
    silence, now_s = silent(Pulse(7, 1), 2, every_s=3600)
    assert silence.hangs(now_s) is None


def test_another_process_begins_anew() -> None:
    silence, now_s = silent(Pulse(7, 1), 29)
    silence = silence.next(Pulse(8, 1), now_s + 1)
    assert silence.hangs(now_s + 1) is None


def test_a_pause_is_left_behind_where_the_lease_changed_hands_under_it() -> None:
    pause = Pause(3, 0.0).at(3, 86400.0)
    assert not pause.left_behind(86400.0), "a person's: only that person knows until when"
    pause = pause.at(4, 90000.0)
    assert not pause.at(4, 90599.0).left_behind(90599.0)
    assert pause.at(4, 90600.0).left_behind(90600.0)


def test_the_pulse_of_a_real_process_shows_its_sleep_and_its_stop() -> None:
    with subprocess.Popen([sys.executable, "-c", "import time\nwhile 1: time.sleep(.01)"]) as child:
        try:
            first = read_pulse(child.pid)
            assert first is not None
            assert not first.stopped
            for _ in range(500):
                second = read_pulse(child.pid)
                assert second is not None
                if second.switches > first.switches:
                    break
                subprocess.run(["sleep", "0.01"], check=True)
            else:
                pytest.fail("it has not moved")
            child.send_signal(signal.SIGSTOP)
            os.waitpid(child.pid, os.WUNTRACED)
            third = read_pulse(child.pid)
            assert third is not None
            assert third.stopped
        finally:
            child.kill()
    assert read_pulse(child.pid) is None


async def test_a_frozen_repmgrd_is_killed_so_that_another_can_start() -> None:
    clock, ended = Clock(), asyncio.Event()
    child = Child("repmgrd", ended=ended)
    database = Database()
    watch = Repmgrd(child, cast(LocalPostgres, database), epoch=lambda: 1, clock=clock)
    await child.start(["sleep", "60"], env=os.environ)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGSTOP)
    found = []
    for _ in range(8):
        clock.now_s += 1
        found.append(await watch.see_to())
        await asyncio.sleep(0.05)
        if not child.running:
            break
    assert found[-1] == "it was stopped by a signal"
    assert not child.running


async def test_postgres_is_told_again_of_a_repmgrd_that_it_forgot() -> None:
    clock = Clock()
    child = Child("repmgrd", ended=asyncio.Event())
    database = Database()
    watch = Repmgrd(child, cast(LocalPostgres, database), epoch=lambda: 1, clock=clock)
    await child.start(["sleep", "60"], env=os.environ)
    try:
        for _ in range(2):
            clock.now_s += 5
            await watch.see_to()
        assert database.pid == 0, "a repmgrd that has just started tells by itself"
        clock.now_s += 5
        await watch.see_to()
        assert database.pid == child.pid
    finally:
        await child.stop(signal.SIGKILL, within_s=5)


async def test_a_pause_is_seen_and_only_a_switchovers_leftover_is_lifted() -> None:
    clock, epoch = Clock(), [3]
    child = Child("repmgrd", ended=asyncio.Event())
    database = Database()
    watch = Repmgrd(child, cast(LocalPostgres, database), epoch=lambda: epoch[0], clock=clock)
    database.paused = True
    for _ in range(3):
        clock.now_s += 3600
        await watch.see_to()
        assert watch.paused
        assert database.paused
    epoch[0] = 4
    clock.now_s += 5
    await watch.see_to()
    assert watch.paused, "a switchover may still be at work"
    clock.now_s += 600
    await watch.see_to()
    assert not database.paused
    assert not watch.paused
