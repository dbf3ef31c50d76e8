"""Running kubectl for what a pod says: bounded in time and size, whatever the other side does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass

_CHUNK = 1 << 16
_KILLED_S = 5.0
_ERROR_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Done:
    """How a program ended; `output` is the end of what it wrote where that was too much."""

    status: int
    output: str
    error: str
    cut: bool = False

    @property
    def reason(self) -> str:
        """Why it failed, in a line."""
        lines = [line for line in self.error.splitlines() if line.strip()]
        return lines[-1].strip() if lines else f"exit status {self.status}"


async def run(
    words: Sequence[str], *, stdin: str | None = None, timeout_s: float, limit: int = 1 << 20
) -> Done:
    """Run a program, given as a list; TimeoutError, and it is killed, where it takes too long."""
    process = await asyncio.create_subprocess_exec(
        *words,
        stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        # Of its own, so that what it has started ends with it, and lets go of the pipes.
        process_group=0,
    )
    try:
        async with asyncio.timeout(timeout_s):
            _, (output, cut), (error, _), status = await asyncio.gather(
                _write(process.stdin, stdin),
                _tail(process.stdout, limit),
                _tail(process.stderr, _ERROR_BYTES),
                process.wait(),
            )
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_KILLED_S):
                    await process.wait()
    text, told = output.decode(errors="replace"), error.decode(errors="replace")
    return Done(status, text, told, cut)


async def _write(pipe: asyncio.StreamWriter | None, text: str | None) -> None:
    if pipe is None or text is None:
        return
    # One that ends without reading it all says why by its status.
    with contextlib.suppress(ConnectionError):
        pipe.write(text.encode())
        await pipe.drain()
        pipe.close()


async def _tail(pipe: asyncio.StreamReader | None, limit: int) -> tuple[bytes, bool]:
    """The last `limit` bytes, and whether there were more; never much more in memory."""
    kept = bytearray()
    cut = False
    while pipe is not None and (chunk := await pipe.read(_CHUNK)):
        kept += chunk
        if len(kept) > 2 * limit + _CHUNK:
            del kept[:-limit]
            cut = True
    if len(kept) > limit:
        del kept[:-limit]
        cut = True
    return bytes(kept), cut
