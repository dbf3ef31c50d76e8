"""Running other programs: arguments as lists, never a shell, every wait with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """How a program ended; `output` is standard output, and error too where it is not apart."""

    status: int
    output: str
    errors: str = ""

    @property
    def last_line(self) -> str:
        """The last line that says something, or the exit status where none does."""
        lines = [line for line in self.output.splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"exit status {self.status}"


async def run(
    arguments: Sequence[str],
    *,
    deadline_s: float,
    env: Mapping[str, str] | None = None,
    cwd: str | None = None,
    apart: bool = False,
) -> Result:
    """Run a program to its end and collect what it prints; `apart`: errors for themselves.

    A program that is still there at the deadline is killed and reported with status 124, as
    timeout(1) does; one that was cancelled is killed too.
    """
    process = await asyncio.create_subprocess_exec(
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE if apart else asyncio.subprocess.STDOUT,
        env=env,
        cwd=cwd,
    )
    try:
        async with asyncio.timeout(deadline_s):
            output, errors = await process.communicate()
    except TimeoutError:
        await _kill(process)
        told = f"{arguments[0]} did not end within {deadline_s:g} s"
        return Result(124, "", told) if apart else Result(124, told)
    except BaseException:
        await _kill(process)
        raise
    return Result(
        process.returncode or 0,
        output.decode(errors="replace"),
        errors.decode(errors="replace") if errors else "",
    )


async def _kill(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
