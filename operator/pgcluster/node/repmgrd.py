"""Whether a repmgrd that runs does its work: its loop turns, repmgr knows it, it is not paused.

A dead repmgrd is noticed by its end. One that hangs is not noticed by anybody: for repmgr a process
that exists is running, so the others wait for its vote and `repmgr service status` calls it well.
"""

from __future__ import annotations

import contextlib
import logging
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pgcluster.clock import monotonic_s
from pgcluster.node.processes import Child
from pgcluster.postgres.local import LocalPostgres

log = logging.getLogger(__name__)

# repmgrd's loop sleeps for monitor_interval_secs, 1 s, and its waits are no longer. Only libpq may
# hold it up, against a server that accepts connections and says nothing.
_SILENT_S = 30.0
_SILENT_LOOKS = 15
# A command of its own (gate, promote, follow) runs: the longest of them has 180 s.
_SILENT_WITH_COMMAND_S = 300.0
_STOPPED_LOOKS = 3
_LISTEN_EVERY_S = 1.0
_ASK_EVERY_S = 3.0
_UNKNOWN_LOOKS = 3
# A switchover takes seconds and pauses every repmgrd meanwhile.
LEFT_PAUSED_S = 600.0


@dataclass(frozen=True, slots=True)
class Pulse:
    """What the kernel says of a process: how often it has slept and woken, whether it is stopped
    by a signal, and whether it waits for a command that it runs."""

    pid: int
    switches: int
    stopped: bool = False
    command: bool = False


def read_pulse(pid: int, proc: Path = Path("/proc")) -> Pulse | None:
    """The pulse of a process; None where it is gone."""
    with contextlib.suppress(OSError):
        directory = proc / str(pid)
        status = (directory / "status").read_text()
        children = (directory / f"task/{pid}/children").read_text()
        state = re.search(r"^State:\s+(\S)", status, re.MULTILINE)
        return Pulse(
            pid,
            sum(int(n) for n in re.findall(r"ctxt_switches:\s+(\d+)", status)),
            stopped=state is not None and state[1] == "T",
            command=bool(children.strip()),
        )
    return None


@dataclass(frozen=True, slots=True)
class Silence:
    """Since when a process has not moved, and how often that was seen.

    Looks are counted beside the time, so that a machine that was asleep accuses nobody.
    """

    pulse: Pulse
    since_s: float
    looks: int = 0

    def next(self, pulse: Pulse, now_s: float) -> Silence:
        """After one more look."""
        # A process that is stopped by a signal is switched once on its way there.
        if (pulse.pid, pulse.switches) == (self.pulse.pid, self.pulse.switches):
            return replace(self, pulse=pulse, looks=self.looks + 1)
        return Silence(pulse, now_s)

    def hangs(self, now_s: float) -> str | None:
        """Why this process will not come back by itself; None while it may. Pure."""
        if self.pulse.stopped:
            return "it was stopped by a signal" if self.looks >= _STOPPED_LOOKS else None
        limit_s = _SILENT_WITH_COMMAND_S if self.pulse.command else _SILENT_S
        if self.looks >= _SILENT_LOOKS and now_s - self.since_s >= limit_s:
            return f"its loop has not turned for {now_s - self.since_s:.0f} s"
        return None


@dataclass(frozen=True, slots=True)
class Pause:
    """A paused repmgrd: since when it is so under this epoch of the Lease, and whether the Lease
    has changed hands meanwhile."""

    epoch: int
    since_s: float
    handed_over: bool = False

    def at(self, epoch: int, now_s: float) -> Pause:
        """Still paused, at this epoch."""
        return self if epoch == self.epoch else Pause(epoch, now_s, handed_over=True)

    def left_behind(self, now_s: float) -> bool:
        """Whether it is what a switchover that died has left. Pure.

        `repmgr standby switchover` pauses every repmgrd, hands over and unpauses. So a pause under
        which the Lease has changed hands, and that lasts ten minutes more, is nobody's any longer.
        One without a change of primary is left alone, however old: a person may have asked for it,
        and only that person knows until when.
        """
        return self.handed_over and now_s - self.since_s >= LEFT_PAUSED_S


class Repmgrd:
    """The agent's look at its repmgrd; `database` is a connection to repmgr's database."""

    def __init__(
        self,
        child: Child,
        database: LocalPostgres,
        *,
        epoch: Callable[[], int],
        clock: Callable[[], float] = monotonic_s,
    ) -> None:
        self._child = child
        self._database = database
        self._epoch = epoch
        self._clock = clock
        self._silence: Silence | None = None
        self._pause: Pause | None = None
        self._unknown = 0
        self._listened_s = 0.0
        self._asked_s = 0.0

    @property
    def paused(self) -> bool:
        """Whether it is paused, so that it takes part in no failover."""
        return self._pause is not None

    async def is_paused(self) -> bool:
        """Whether it is paused at this moment; RetryError where postgres does not answer."""
        rows = await self._database.query("SELECT repmgr.repmgrd_is_paused() AS paused")
        await self._look_at_pause(bool(rows[0]["paused"]))
        return self.paused

    async def see_to(self) -> str | None:
        """Find out whether it works, mend what can be mended; what was found wrong, for people.

        RetryError where postgres does not answer. One that hangs is killed: the caller, who keeps
        it running, starts another.
        """
        trouble = await self._listen()
        if trouble is None and self._clock() - self._asked_s >= _ASK_EVERY_S:
            self._asked_s = self._clock()
            await self._ask()
        return trouble

    async def _listen(self) -> str | None:
        now_s = self._clock()
        if now_s - self._listened_s < _LISTEN_EVERY_S:
            return None
        self._listened_s = now_s
        pid = self._child.pid
        pulse = read_pulse(pid) if pid is not None else None
        if pulse is None:
            self._silence = None
            return None
        known = self._silence
        self._silence = known.next(pulse, now_s) if known else Silence(pulse, now_s)
        reason = self._silence.hangs(now_s)
        if reason is None:
            return None
        self._silence = None
        log.warning("repmgrd hangs: %s; it is killed and started again", reason)
        # What hangs or is stopped does not hear SIGTERM.
        await self._child.stop(signal.SIGKILL, within_s=5)
        return reason

    async def _ask(self) -> None:
        rows = await self._database.query(
            "SELECT repmgr.get_repmgrd_pid() AS pid, repmgr.repmgrd_is_paused() AS paused"
        )
        await self._make_known(int(rows[0]["pid"] or 0))
        await self._look_at_pause(bool(rows[0]["paused"]))

    async def _make_known(self, known: int) -> None:
        """postgres has its pid in shared memory, which a crash wipes: without it repmgrd counts as
        not running, and the next election skips its vote (repmgr issue 622)."""
        pid = self._child.pid
        self._unknown = self._unknown + 1 if pid is not None and known != pid else 0
        if self._unknown >= _UNKNOWN_LOOKS:
            self._unknown = 0
            log.warning("postgres did not know repmgrd", extra={"known": known, "pid": pid})
            await self._database.query("SELECT repmgr.set_repmgrd_pid(%s, NULL)", pid)

    async def _look_at_pause(self, paused: bool) -> None:
        if not paused:
            self._pause = None
            return
        now_s = self._clock()
        if self._pause is None:
            log.info("repmgrd is paused")
            self._pause = Pause(self._epoch(), now_s)
        self._pause = self._pause.at(self._epoch(), now_s)
        if self._pause.left_behind(now_s):
            log.warning("repmgrd was left paused by a switchover: unpausing it")
            await self._database.query("SELECT repmgr.repmgrd_pause(false)")
            self._pause = None
