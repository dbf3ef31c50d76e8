"""The only place of the suite that sleeps."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import TypeVar

from tests.e2e.kubectl import KubectlError

T = TypeVar("T")

# What a look at a moving cluster may raise without being an error of the test: an object that is
# not there yet, a pod that is just gone, an API server that does not answer.
_NOT_YET = (AssertionError, KubectlError, KeyError, IndexError, subprocess.TimeoutExpired)


def eventually(
    condition: Callable[[], T], *, within: float, every: float = 0.3, what: str = ""
) -> T:
    """Wait until `condition()` is true and return its value.

    A condition may also raise AssertionError to say what is missing. Fails with the distinct
    things that were seen, and when.
    """
    started_s = time.monotonic()
    history: list[tuple[float, str]] = []
    while True:
        try:
            value = condition()
            if value:
                return value
            seen = repr(value)
        except _NOT_YET as error:
            seen = f"{type(error).__name__}: {error}"
        waited_s = time.monotonic() - started_s
        # pytest adds the operands of a failed assertion below its message: never twice the same.
        if not history or history[-1][1].partition("\n")[0] != seen.partition("\n")[0]:
            history.append((waited_s, seen))
        if waited_s > within:
            name = what or getattr(condition, "__name__", "condition")
            lines = "\n".join(f"  {at_s:6.1f} s  {text[:1500]}" for at_s, text in history[-25:])
            raise AssertionError(f"{name}: not within {within} s; seen:\n{lines}")
        time.sleep(every)


def stays(condition: Callable[[], object], *, for_s: float, every: float = 1.0) -> None:
    """Fail at the first moment in `for_s` seconds at which `condition()` is not true."""
    started_s = time.monotonic()
    while time.monotonic() - started_s < for_s:
        assert condition(), f"no longer so after {time.monotonic() - started_s:.1f} s"
        time.sleep(every)


def measured_over(sample: Callable[[], dict[str, float]], seconds: float) -> dict[str, float]:
    """By how much each counter of `sample()` rises in a second, seen over some seconds."""
    before, started_s = sample(), time.monotonic()
    time.sleep(seconds)
    after, elapsed_s = sample(), time.monotonic() - started_s
    return {key: (after[key] - before[key]) / elapsed_s for key in before.keys() & after.keys()}


def pause(seconds: float) -> None:
    """Let time pass where time is the matter: until a random moment, or how long a fault lasts."""
    time.sleep(max(0.0, seconds))
