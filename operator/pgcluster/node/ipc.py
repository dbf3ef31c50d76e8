"""The unix socket on which repmgr's commands reach the agent (the other end is client.py)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

log = logging.getLogger(__name__)

# Words of one request → whether it succeeded, and a sentence for people.
Handler = Callable[[list[str]], Awaitable[tuple[bool, str]]]

_REQUEST_BYTES = 64 * 1024


async def serve(path: str, handler: Handler) -> asyncio.Server:
    """Listen on `path`, readable by this container's user alone."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await reader.readline()
            words = line.decode(errors="replace").rstrip("\n").split("\0")
            done, message = await handler(words)
            writer.write(f"{0 if done else 1}\n{message}\n".encode())
            await writer.drain()
        except (ConnectionError, ValueError) as error:
            log.warning("a request on the agent's socket broke off: %s", error)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    Path(path).unlink(missing_ok=True)
    server = await asyncio.start_unix_server(answer, path, limit=_REQUEST_BYTES)
    Path(path).chmod(0o600)
    return server
