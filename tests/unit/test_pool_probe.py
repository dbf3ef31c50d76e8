"""The probe leaves a server that has vanished as soon as it is told of another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from pgcluster.pooler.probe import PrimaryProbe, parameters


@asynccontextmanager
async def silent_server() -> AsyncIterator[tuple[tuple[str, int], asyncio.Event]]:
    """A server that takes connections and never says a word, and whether it was found."""
    found = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.set()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        host, port = server.sockets[0].getsockname()
        yield (host, port), found
    finally:
        server.close()


@pytest.fixture
async def probe() -> AsyncIterator[PrimaryProbe]:
    made = PrimaryProbe(
        login=lambda target: parameters(target, pod="shop-pgbouncer-5d8f-x", password=None, tls={}),
        changed=lambda: None,
    )
    running = asyncio.create_task(made.run())
    yield made
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_another_target_is_asked_at_once_though_the_last_does_not_answer(
    probe: PrimaryProbe,
) -> None:
    async with silent_server() as (old, found_old), silent_server() as (new, found_new):
        probe.aim(old)
        await asyncio.wait_for(found_old.wait(), 1)
        probe.aim(new)
        await asyncio.wait_for(found_new.wait(), 0.5)
        assert probe.seen.state == "unknown"


async def test_a_target_that_refuses_is_lost_and_tried_again(probe: PrimaryProbe) -> None:
    async with silent_server() as (target, _):
        pass
    probe.aim(target)
    await asyncio.sleep(0.5)
    assert probe.seen.state == "lost"
    # No target is no doubt.
    probe.aim(None)
    assert probe.seen.state == "unknown"
