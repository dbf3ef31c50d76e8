"""The work queue: nothing twice at once, nothing lost."""

from __future__ import annotations

import asyncio

import pytest

from pgcluster.controller.queue import WorkQueue


@pytest.fixture
def queue() -> WorkQueue[str]:
    return WorkQueue(random_=lambda: 0.0)


async def test_a_key_that_waits_is_there_once(queue: WorkQueue[str]) -> None:
    queue.add("a")
    queue.add("b")
    queue.add("a")
    assert [await queue.get(), await queue.get()] == ["a", "b"]
    assert len(queue) == 0


async def test_a_key_added_while_it_is_worked_on_comes_once_more_afterwards(
    queue: WorkQueue[str],
) -> None:
    queue.add("a")
    key = await queue.get()
    queue.add("a")
    queue.add("a")
    assert len(queue) == 0, "never two workers on one key"
    queue.done(key)
    assert len(queue) == 1
    queue.done(await queue.get())
    assert len(queue) == 0


async def test_workers_that_wait_are_woken_one_a_key(queue: WorkQueue[str]) -> None:
    workers = [asyncio.create_task(queue.get()) for _ in range(3)]
    await asyncio.sleep(0)
    for key in ("a", "b", "c"):
        queue.add(key)
    assert sorted(await asyncio.gather(*workers)) == ["a", "b", "c"]


async def test_of_several_delays_the_earliest_counts(queue: WorkQueue[str]) -> None:
    queue.add_after("a", 30)
    queue.add_after("a", 0.01)
    queue.add_after("a", 60)
    async with asyncio.timeout(5):
        assert await queue.get() == "a"
    queue.done("a")
    await asyncio.sleep(0.03)
    assert len(queue) == 0, "one wish, one wake-up"


async def test_the_back_off_doubles_up_to_a_minute_and_ends_with_success(
    queue: WorkQueue[str],
) -> None:
    delays = [queue.add_failed("a") for _ in range(9)]
    assert delays == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    queue.forgive("a")
    assert queue.add_failed("a") == 0.5
    assert [queue.add_failed("b") for _ in range(2)] == [0.5, 1], "each key has its own"


async def test_the_back_off_is_spread() -> None:
    assert WorkQueue[str](random_=lambda: 1.0).add_failed("a") == pytest.approx(0.625)


async def test_a_delayed_wake_up_survives_what_was_done_meanwhile(queue: WorkQueue[str]) -> None:
    """A cluster that is made anew while the worker finds the old one gone is not forgotten."""
    queue.add("a")
    key = await queue.get()
    queue.add_after("a", 0.01)
    queue.forgive(key)
    queue.done(key)
    async with asyncio.timeout(5):
        assert await queue.get() == "a"
