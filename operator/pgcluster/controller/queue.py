"""The work queue: one key a cluster, whatever woke it, and never two workers on one key.

Semantics of client-go's workqueue: a key that is added while it waits is there once; one that is
added while it is worked on is worked on once more afterwards. Wake-ups may therefore be lost in
each other, never altogether.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)

_BACKOFF_FIRST_S = 0.5
_BACKOFF_LIMIT_S = 60.0
# Of the delay: clusters that failed together do not come back together.
_JITTER = 0.25


class WorkQueue(Generic[Key]):
    """A deduplicating queue with delays and a back-off per key. Not for several threads."""

    def __init__(self, *, random_: Callable[[], float] = random.random) -> None:
        self._random = random_
        self._ready: deque[Key] = deque()
        self._dirty: set[Key] = set()  # wanted, whether in `_ready` or worked on
        self._working: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._timers: dict[Key, asyncio.TimerHandle] = {}
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ready)

    def add(self, key: Key) -> None:
        """Have a key worked on, once, soon."""
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._working:
            self._ready.append(key)
            self._wake.set()

    def add_after(self, key: Key, delay_s: float) -> None:
        """Have a key worked on after a while; the earliest of several such wishes counts."""
        loop = asyncio.get_running_loop()
        at = loop.time() + delay_s
        pending = self._timers.get(key)
        if pending is not None:
            if pending.when() <= at:
                return
            pending.cancel()
        self._timers[key] = loop.call_at(at, self._expired, key)

    def add_failed(self, key: Key) -> float:
        """Have a key worked on again after a back-off that grows; returns the delay in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        delay_s = min(_BACKOFF_FIRST_S * 2.0 ** min(failures, 16), _BACKOFF_LIMIT_S)
        delay_s = min(delay_s * (1 + _JITTER * self._random()), _BACKOFF_LIMIT_S)
        self.add_after(key, delay_s)
        return delay_s

    def forgive(self, key: Key) -> None:
        """Start its back-off anew: it succeeded, or is gone.

        A delay stays: who asked for it may know of a change that the work just done did not see.
        """
        self._failures.pop(key, None)

    async def get(self) -> Key:
        """Wait for a key; give it back with `done`."""
        while not self._ready:
            self._wake.clear()
            await self._wake.wait()
        key = self._ready.popleft()
        self._dirty.discard(key)
        self._working.add(key)
        return key

    def done(self, key: Key) -> None:
        """The work on a key has ended, well or not."""
        self._working.discard(key)
        if key in self._dirty:
            self._ready.append(key)
            self._wake.set()

    def _expired(self, key: Key) -> None:
        self._timers.pop(key, None)
        self.add(key)
