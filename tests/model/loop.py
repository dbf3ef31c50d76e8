"""An event loop whose time passes only when nobody has anything to do: minutes take moments."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Mapping
from typing import Any


class _Selector(selectors.SelectSelector):
    def __init__(self) -> None:
        super().__init__()
        self.passed: Callable[[float], None] = lambda _: None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready and timeout:
            self.passed(timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """`observe` is called after each moment in which something has happened."""

    def __init__(self, observe: Callable[[], None]) -> None:
        self._virtual_s = 0.0
        selector = _Selector()
        selector.passed = self._pass
        super().__init__(selector)
        self._observe = observe
        self.broken: BaseException | None = None
        self.set_exception_handler(self._remember)

    def time(self) -> float:
        """Seconds since the loop was made, in its own time."""
        return self._virtual_s

    def _pass(self, seconds: float) -> None:
        self._observe()
        self._virtual_s += seconds

    def _remember(self, _: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        self.broken = self.broken or context.get("exception")
