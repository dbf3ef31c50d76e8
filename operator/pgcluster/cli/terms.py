"""How the plugin speaks and ends: exit statuses, sentences, colours on a terminal alone."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pgcluster.controller.observe import Key
    from pgcluster.kube.client import KubeClient

DONE, REFUSED, TIMED_OUT, NO_API = 0, 1, 3, 4

# An exit status; or the command line that this process becomes, such as that of psql.
Ending = int | tuple[str, ...]
# The key's name is empty for a command that is not about one cluster.
Command = Callable[["KubeClient", "Key", "Namespace"], Awaitable[Ending]]

_COLOURS = {"good": "32", "bad": "31", "busy": "33", "quiet": "2", "strong": "1"}


class Refused(Exception):
    """What is told in one sentence, with status 1."""


def say(text: str) -> None:
    """One line for the person, at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def warn(text: str) -> None:
    """One line beside the output."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def fail(text: str, status: int) -> int:
    """Tell why it ends, and give back the exit status."""
    warn(f"error: {text}")
    return status


def coloured() -> bool:
    """Whether a person looks at a terminal that has colours, and has not asked for none."""
    return (
        sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )


def paint(text: str, tone: str | None, *, on: bool) -> str:
    """`text` in a tone (good, bad, busy, quiet, strong), where colours are on."""
    if not on or tone is None or not text:
        return text
    return f"\x1b[{_COLOURS[tone]}m{text}\x1b[0m"
