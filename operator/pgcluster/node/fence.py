"""The fence: a primary that may no longer write is stopped, whatever else hangs.

A thread of its own, because the event loop may be blocked or the whole process may have been
frozen: its first act on waking is to look at the clock, and it needs neither the loop nor the
API to stop the postmaster.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.1
# An immediate shutdown takes milliseconds; what is left after this is killed.
_KILL_AFTER_S = 1.0


class Fence(threading.Thread):
    """Watches a deadline and stops the postmaster when it has passed.

    `arm(pid, deadline)` before an instance becomes primary, `extend(deadline)` at each renewal,
    `disarm()` when it is a standby or is stopped. `fenced` is set once it has struck.
    """

    def __init__(self, now_s: Callable[[], float], standby_signal: Path) -> None:
        super().__init__(name="fence", daemon=True)
        self._now_s = now_s
        self._standby_signal = standby_signal
        self._guard = threading.Lock()
        self._target: tuple[int, float] | None = None
        self._struck_s: float | None = None
        self._ended = threading.Event()

    def arm(self, postmaster: int, deadline_s: float) -> None:
        """Let the postmaster live until `deadline_s`."""
        with self._guard:
            if self._struck_s is None:
                self._target = (postmaster, deadline_s)

    def extend(self, deadline_s: float) -> None:
        """Let an armed postmaster live until `deadline_s`; nothing where none is armed."""
        with self._guard:
            if self._struck_s is None and self._target is not None:
                self._target = (self._target[0], deadline_s)

    def disarm(self) -> None:
        """There is no primary here to be stopped."""
        with self._guard:
            self._target = None
            self._struck_s = None

    @property
    def fenced(self) -> bool:
        """Whether the fence has struck."""
        with self._guard:
            return self._struck_s is not None

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()

    def run(self) -> None:
        """Look at the clock ten times a second."""
        while not self._ended.wait(_LOOK_EVERY_S):
            self.look()

    def look(self) -> None:
        """One look: strike where the deadline has passed, harder where that was a while ago."""
        with self._guard:
            if self._target is None:
                return
            postmaster, deadline_s = self._target
            now_s = self._now_s()
            if now_s < deadline_s:
                return
            first = self._struck_s is None
            if first:
                self._struck_s = now_s
            hard = self._struck_s is not None and now_s - self._struck_s > _KILL_AFTER_S
        if first:
            # Before anything else, so that no later start can make it a primary again.
            with contextlib.suppress(OSError):
                self._standby_signal.touch()
            log.warning(
                "fenced: the Lease was not renewed in time, stopping postgres at once",
                extra={"late_s": round(now_s - deadline_s, 3)},
            )
        with contextlib.suppress(ProcessLookupError):
            if first:
                os.kill(postmaster, signal.SIGQUIT)
            elif hard:
                # SIGQUIT may go unheard by a stopped process; its children follow it by themselves.
                os.kill(postmaster, signal.SIGKILL)
