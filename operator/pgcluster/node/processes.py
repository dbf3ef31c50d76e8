"""The agent's two children, postgres and repmgrd, and nothing of them left behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

log = logging.getLogger(__name__)


class Child:
    """A program that the agent starts, whose end it notices at once.

    Its output goes where the agent's goes, so that `kubectl logs` shows it. It gets a process
    group of its own: a signal to the agent's group must not reach it behind the agent's back.
    """

    def __init__(self, name: str, *, ended: asyncio.Event) -> None:
        self.name = name
        self._ended = ended
        self._process: asyncio.subprocess.Process | None = None
        self._waiter: asyncio.Task[None] | None = None
        self.last_status: int | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self.running and self._process else None

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.returncode is None

    async def start(
        self, arguments: Sequence[str], *, env: Mapping[str, str], inherited: Sequence[int] = ()
    ) -> None:
        """Start it, with the descriptors `inherited`; the caller knows that it does not run."""
        self._process = await asyncio.create_subprocess_exec(
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            env=env,
            process_group=0,
            pass_fds=inherited,
        )
        self._waiter = asyncio.create_task(self._wait(self._process), name=f"wait-{self.name}")
        log.info("started %s", self.name, extra={"pid": self._process.pid})

    async def stop(self, sig: signal.Signals, *, within_s: float) -> bool:
        """Send `sig` and wait; kill what is left at the deadline and return False then."""
        process = self._process
        if process is None or process.returncode is not None:
            return True
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(sig)
        try:
            async with asyncio.timeout(within_s):
                await process.wait()
        except TimeoutError:
            log.warning("%s did not stop within %g s: killing it", self.name, within_s)
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            return False
        return True

    def signal(self, sig: signal.Signals) -> None:
        """Send a signal if it runs."""
        if self.running and self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(sig)

    async def _wait(self, process: asyncio.subprocess.Process) -> None:
        self.last_status = await process.wait()
        log.info("%s ended", self.name, extra={"status": self.last_status})
        self._ended.set()


def survivors(pgdata: Path) -> list[int]:
    """Processes that work in `pgdata`: what a killed postmaster left behind.

    The agent holds the volume's lock, so they can only be of this container. postgres changes its
    working directory to the data directory and stays there; nothing else does.
    """
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if Path(os.readlink(entry / "cwd")) == pgdata:
                    found.append(int(entry.name))
    return found


async def clear_survivors(pgdata: Path, *, within_s: float = 10.0) -> None:
    """Kill what a dead postmaster left behind, and remove the pid file it no longer guards.

    A backend that outlives its postmaster could still acknowledge a commit, and holds the shared
    memory that a new postmaster refuses to share. A pid file of a former container may name a
    process of this one.
    """
    deadline = asyncio.get_running_loop().time() + within_s
    while pids := survivors(pgdata):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if asyncio.get_running_loop().time() > deadline:
            raise TimeoutError(f"processes {pids} still work in {pgdata}")
        await asyncio.sleep(0.02)
    (pgdata / "postmaster.pid").unlink(missing_ok=True)
