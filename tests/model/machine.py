"""Processes on machines: each has its machine's clock, may stand still, and may end at any line.

Real code runs in them without knowing: whatever a task of a process asks the event loop for (a
sleep, a deadline, the time) goes by the process's clock, and nothing of it runs while the process
is frozen. What became due meanwhile runs when it wakes up, in the order in which it became due. A
process that was killed just never runs again, and so leaves everything as it was in the middle.
"""

from __future__ import annotations

import asyncio
import contextvars
import signal
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from dataclasses import dataclass, field
from typing import Any

from tests.model.loop import VirtualLoop

_running: ContextVar[Process | None] = ContextVar("the process that runs", default=None)


@dataclass(frozen=True, slots=True)
class Clock:
    """A monotonic clock: it began at `offset_s`, and runs `rate` times as fast as it should."""

    offset_s: float = 0.0
    rate: float = 1.0

    def local_s(self, true_s: float) -> float:
        """What it shows."""
        return self.offset_s + true_s * self.rate

    def true_s(self, local_s: float) -> float:
        """When it shows that."""
        return (local_s - self.offset_s) / self.rate


@dataclass(slots=True, eq=False)
class _Due:
    """A callback of a process, and the handle by which it may still be cancelled."""

    callback: Callable[..., object]
    arguments: tuple[Any, ...]
    context: Context
    handle: asyncio.Handle | None = None


@dataclass(slots=True, eq=False)
class Process:
    """One process of a machine; `owner` is what it belongs to."""

    loop: MachineLoop
    clock: Clock
    owner: Any = None
    alive: bool = True
    frozen: int = 0  # by how many
    buried: bool = False
    signals: dict[signal.Signals, Callable[[], object]] = field(default_factory=dict)
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    _due: list[_Due] = field(default_factory=list)

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task of this process."""
        context = contextvars.copy_context()
        context.run(_running.set, self)
        task = self.loop.create_task(coroutine, context=context)
        self.tasks.append(task)
        return task

    def later(self, delay_s: float, callback: Callable[..., object], *args: Any) -> None:
        """Something that it does by itself, after `delay_s` of its clock."""
        context = contextvars.copy_context()
        context.run(_running.set, self)
        context.run(self.loop.call_later, delay_s, callback, *args)

    def freeze(self) -> None:
        """Nothing of it runs from now on."""
        self.frozen += 1

    def thaw(self) -> None:
        """It goes on where it was, unless something else keeps it."""
        self.frozen = max(0, self.frozen - 1)
        if self.frozen:
            return
        due, self._due = self._due, []
        for each in due:
            self.loop.repeat(self, each)

    def kill(self) -> None:
        """It never runs again."""
        self.alive = self.buried

    def bury(self) -> None:
        """The end of the world: let its tasks be cancelled."""
        self.alive = self.buried = True
        self.frozen = 0
        for task in self.tasks:
            task.cancel()
        self.thaw()

    def now_s(self) -> float:
        """What its clock shows."""
        return self.clock.local_s(self.loop.true_s)

    def run(self, due: _Due) -> None:
        """Run what is due, unless it cannot run now, or never."""
        if self.frozen or not self.alive:
            self._due.append(due)
        elif due.handle is None or not due.handle.cancelled():
            # Its handle may have been cancelled since it was due, by what was due before it.
            due.callback(*due.arguments)


def running() -> Process | None:
    """The process whose code runs right now, if it is anybody's."""
    return _running.get()


def current() -> Process:
    """The process whose code runs right now."""
    process = _running.get()
    assert process is not None, "nobody's code"
    return process


class MachineLoop(VirtualLoop):
    """An event loop that many processes share; what belongs to none lives in true time."""

    @property
    def true_s(self) -> float:
        """True time, whoever asks."""
        return self._virtual_s

    def time(self) -> float:
        """By the clock of the process that asks."""
        process = _running.get()
        return self._virtual_s if process is None else process.clock.local_s(self._virtual_s)

    def call_soon(  # type: ignore[override] # the base's is typed by its arguments
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """As the base does, in the process of `context`."""
        context = context or contextvars.copy_context()
        process = context.get(_running)
        if process is None:
            return super().call_soon(callback, *args, context=context)
        due = _Due(callback, args, context)
        due.handle = super().call_soon(process.run, due, context=context)
        return due.handle

    def call_at(  # type: ignore[override] # the base's is typed by its arguments
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        """`when` is of the clock of the process that asks."""
        asking = _running.get()
        true_s = when if asking is None else asking.clock.true_s(when)
        context = context or contextvars.copy_context()
        process = context.get(_running)
        if process is None:
            return super().call_at(true_s, callback, *args, context=context)
        due = _Due(callback, args, context)
        handle = super().call_at(true_s, process.run, due, context=context)
        due.handle = handle
        return handle

    def repeat(self, process: Process, due: _Due) -> None:
        """What became due while a process stood still; its first handle is the one that counts."""
        super().call_soon(process.run, due, context=due.context)

    def later(self, delay_s: float, callback: Callable[..., object], *args: Any) -> None:
        """Something that belongs to no process, after `delay_s` of true time."""
        context = contextvars.copy_context()
        context.run(_running.set, None)
        super().call_at(self._virtual_s + delay_s, callback, *args, context=context)

    def outside(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task that belongs to no process."""
        context = contextvars.copy_context()
        context.run(_running.set, None)
        return self.create_task(coroutine, context=context)

    def add_signal_handler(  # type: ignore[override] # the base's is typed by its arguments
        self, sig: int, callback: Callable[..., object], *args: Any
    ) -> None:
        """A signal to one process, not to all."""
        current().signals[signal.Signals(sig)] = lambda: callback(*args)
