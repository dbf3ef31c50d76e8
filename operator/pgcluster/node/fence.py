"""The fence: a primary that may no longer write is stopped, whatever else hangs.

What does the stopping is a process of its own (guard.py): the agent may be blocked, or stopped by a
signal. This is the agent's end of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path

from pgcluster.api import names
from pgcluster.api.errors import FatalError
from pgcluster.node import guard

log = logging.getLogger(__name__)

_STOP_S = 2.0


class Fence:
    """Has postgres killed at a deadline.

    `arm(deadline)` before an instance becomes primary, `extend(deadline)` at each renewal,
    `disarm()` when it is a standby or is stopped. Deadlines are of the clock `now_s`.
    """

    def __init__(
        self,
        now_s: Callable[[], float],
        pgdata: Path,
        lease_file: Path = Path(names.LEASE_FILE),
    ) -> None:
        self._now_s = now_s
        self._pgdata = pgdata
        self._lease_file = lease_file
        self._until_s: float | None = None
        self.armings = 0  # how often it was armed
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Have the guard run, and again whenever it ends."""
        self._lease_file.write_bytes(bytes(guard.WORD))
        await self._spawn()
        self._watch = asyncio.create_task(self._keep(), name="guard")

    async def stop(self) -> None:
        """End the guard; what is armed then is struck."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        process = self._process
        if process is None or process.stdin is None or process.returncode is not None:
            return
        process.stdin.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()

    def arm(self, deadline_s: float) -> None:
        """Let postgres live until then; FatalError where there is no guard to see to it."""
        if self._process is None or self._process.returncode is not None:
            raise FatalError("the guard does not run, so this instance must not be the primary")
        self._until_s = deadline_s
        self.armings += 1
        self._tell()

    def extend(self, deadline_s: float) -> None:
        """Let an armed postgres live until then; nothing where none is armed, or it is too late."""
        if self._until_s is not None and not self.fenced:
            self._until_s = deadline_s
            self._tell()

    def disarm(self) -> None:
        """There is no primary here to be stopped."""
        if self._until_s is not None:
            self._until_s = None
            self._tell()

    @property
    def fenced(self) -> bool:
        """Whether the deadline has passed, so that the guard has struck."""
        return self._until_s is not None and self._now_s() >= self._until_s

    def _tell(self) -> None:
        process = self._process
        if process is not None and process.stdin is not None:
            line = "off" if self._until_s is None else f"until {self._until_s!r}"
            process.stdin.write(f"{line}\n".encode())

    async def _spawn(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", guard.__file__, str(self._pgdata), str(self._lease_file)),
            stdin=asyncio.subprocess.PIPE,
            # A signal to the agent's group must not reach it.
            process_group=0,
        )
        self._tell()

    async def _keep(self) -> None:
        while self._process is not None:
            status = await self._process.wait()
            log.error("the guard ended: starting another", extra={"status": status})
            await self._spawn()
