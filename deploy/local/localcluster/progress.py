"""What a person sees: each step with the time it took, or the reason why it failed."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


class LocalkubeError(Exception):
    """Says in one sentence what went wrong; `log` is the file whose end tells why."""

    def __init__(self, message: str, log: Path | None = None) -> None:
        super().__init__(message)
        self.log = log


@contextmanager
def step(title: str) -> Iterator[None]:
    started = time.monotonic()
    terminal = sys.stdout.isatty()
    print(f"  ·  {title} …", end="" if terminal else "\n", flush=True)
    done = False
    try:
        yield
        done = True
    finally:
        mark = "ok" if done else "FAILED"
        line = f"{mark:>6}  {title} ({time.monotonic() - started:.1f} s)"
        print(("\r\033[K" if terminal else "") + line, flush=True)


def eventually(
    condition: Callable[[], bool],
    *,
    within_s: float,
    what: str,
    every_s: float = 0.25,
    log: Path | None = None,
) -> None:
    """Wait until the condition holds, or fail with a sentence that says what never came true."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise LocalkubeError(f"after {within_s:.0f} s still not true: {what}", log)
        time.sleep(every_s)


def tail(path: Path, lines: int = 25) -> str:
    try:
        text = path.read_text(errors="replace")
    except OSError as error:
        return f"({error})"
    return "\n".join(text.splitlines()[-lines:])
