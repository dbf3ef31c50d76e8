"""Wishes for another primary: the parts of the operator utter them, one place decides."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal


@dataclass(frozen=True, slots=True)
class Wish:
    """Somebody wants another instance to be the primary."""

    cause: Literal["request", "rollout", "scale", "node", "maintenance"]
    request: str  # identity; one that was refused is not tried again
    reason: str  # a sentence
    target: str | None = None  # None: the best
    avoid: frozenset[str] = frozenset()  # instances that are not to become the primary
    not_before: datetime | None = None  # the last attempt came to nothing, and it is too early
