"""postgres of this instance: started in one role or the other, stopped in one of three ways."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig
from pgcluster.api.errors import RetryError
from pgcluster.clock import monotonic_s
from pgcluster.node.data import DataDirectories
from pgcluster.node.fence import Fence
from pgcluster.node.processes import Child, clear_survivors
from pgcluster.postgres import control
from pgcluster.postgres.control import ControlData
from pgcluster.postgres.local import LocalPostgres, Observation
from pgcluster.proc import run
from pgcluster.render import repmgr as render_repmgr

log = logging.getLogger(__name__)

_POLL_S = 0.02
_PROMOTED_POLL_S = 0.005
_PROMOTE_S = 60.0
_CHECKPOINT_S = 3600.0
# A fast shutdown writes a checkpoint, which takes as long as there are dirty buffers.
_FAST_STOP_S = 90.0
_IMMEDIATE_STOP_S = 2.0


class TooSlow(RetryError):
    """postgres was stopped because its recovery took longer than it may."""


class VolumeLock:
    """One postgres a volume: held as long as anything of this container lives.

    Containers see one volume from different PID namespaces, so postmaster.pid proves nothing.
    postgres inherits the descriptor, so that whatever is left of it keeps the lock too.
    """

    def __init__(self, path: Path = Path(names.VOLUME_LOCK)) -> None:
        self._path = path
        self._handle: int | None = None

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What postgres is to inherit."""
        return () if self._handle is None else (self._handle,)

    def take(self) -> bool:
        """Try to take the lock; False while another container holds it."""
        if self._handle is None:
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


class Server:
    """The postmaster, its data directory, and the fence that watches it as a primary."""

    def __init__(
        self, config: Callable[[], ClusterConfig], instance: str, *, ended: asyncio.Event
    ) -> None:
        self._config = config
        self.data = DataDirectories(config, instance)
        self.lock = VolumeLock()
        self.local = LocalPostgres()
        self.child = Child("postgres", ended=ended)
        self.fence = Fence(monotonic_s, self.data.current)

    @property
    def running(self) -> bool:
        """Whether there is a postmaster."""
        return self.child.running

    @property
    def _bindir(self) -> str:
        return render_repmgr.bindir(self._config().postgres_major)

    async def control(self) -> ControlData | None:
        """What the stopped data directory is; None where there is none."""
        return await control.read(self._bindir, self.data.current)

    async def start(
        self, *, primary_until_s: float | None, within_s: float | None = None
    ) -> Observation:
        """Start postgres and wait until it answers; RetryError where it ended instead, or TooSlow.

        `primary_until_s` is the fence's deadline for a start as primary; None starts a standby,
        with standby.signal in place before anything runs. `within_s` bounds its recovery: where
        another instance could take over, that may take less. Without it, it takes what it takes.
        """
        if primary_until_s is None:
            self.data.put_standby_signal()
        else:
            self.data.remove_standby_signal()
        await clear_survivors(self.data.current)
        self.fence.disarm()
        if primary_until_s is not None:
            # Before there is anything to be fenced.
            self.fence.arm(primary_until_s)
        await self.child.start(
            [
                f"{self._bindir}/postgres",
                "-D",
                str(self.data.current),
                "-c",
                f"config_file={names.POSTGRESQL_CONF}",
            ],
            env=os.environ,
            inherited=self.lock.descriptors,
        )
        return await self._answering(within_s)

    async def _answering(self, within_s: float | None) -> Observation:
        began_s = monotonic_s()
        while self.child.running:
            try:
                return await self.local.observe()
            except RetryError:
                await asyncio.sleep(_POLL_S)
            if within_s is not None and monotonic_s() - began_s > within_s:
                await self.stop(fast=False)
                raise TooSlow(f"postgres has not recovered within {within_s:g} s")
        raise RetryError(f"postgres ended while starting, status {self.child.last_status}")

    async def promote(self, until_s: float, *, after: int, timeline: int) -> str | None:
        """Turn a standby into the primary under the fence; the reason where that failed.

        It is on timeline `after`, and is to begin `timeline`.
        """
        if self.child.pid is None:
            return "postgres does not run"
        self.data.use_up_timelines(timeline)
        self.fence.arm(until_s)
        try:
            await promote(self.local, within_s=_PROMOTE_S)
        except RetryError as error:
            log.warning("promoting by pg_ctl: %s", error)
            directory = str(self.data.current)
            result = await run(
                [f"{self._bindir}/pg_ctl", "-D", directory, "-w", "-t", "60", "promote"],
                deadline_s=65,
            )
            if result.status != 0 and not await self._is_primary():
                return f"pg_ctl promote failed: {result.last_line}"
        with contextlib.suppress(OSError):
            self.data.tell_timelines(after + 1, timeline)
        return None

    async def _is_primary(self) -> bool:
        """pg_ctl refuses to promote what the first attempt has promoted after all."""
        try:
            return not (await self.local.observe()).in_recovery
        except RetryError:
            return False

    async def stop(self, *, fast: bool = True) -> None:
        """Stop postgres: fast (a clean end, clients are cut), or at once (recovery follows)."""
        await self.local.close()
        if fast:
            await self.child.stop(signal.SIGINT, within_s=_FAST_STOP_S)
        else:
            await self.child.stop(signal.SIGQUIT, within_s=_IMMEDIATE_STOP_S)
        await clear_survivors(self.data.current)
        self.fence.disarm()

    async def checkpoint(self) -> None:
        """Write dirty buffers now, so that the shutdown that follows is short."""
        try:
            await self.local.query("CHECKPOINT")
        except RetryError as error:
            # It goes on by itself after our deadline, and the shutdown makes its own.
            log.info("the checkpoint before the stop was not waited for: %s", error)

    async def settle(self) -> None:
        """Let the control file know of a new timeline, for pg_rewind and for `cluster show`.

        The checkpoint that a promotion asks for by itself takes its time.
        """
        patient = LocalPostgres(deadline_s=_CHECKPOINT_S)
        try:
            await patient.query("CHECKPOINT")
        except RetryError as error:
            log.warning("the checkpoint after the promotion failed: %s", error)
        finally:
            await patient.close()

    def reload(self) -> None:
        """Make postgres read its configuration again."""
        self.child.signal(signal.SIGHUP)


async def promote(local: LocalPostgres, *, within_s: float) -> None:
    """End the recovery of a running standby; RetryError where that cannot be seen.

    Clients wait for this, and pg_ctl looks ten times a second only.
    """
    await local.query("SELECT pg_promote(wait => false)")
    deadline_s = monotonic_s() + within_s
    while (await local.query("SELECT pg_is_in_recovery() AS r"))[0]["r"]:
        if monotonic_s() > deadline_s:
            raise RetryError(f"the promotion did not end within {within_s:g} s")
        await asyncio.sleep(_PROMOTED_POLL_S)
