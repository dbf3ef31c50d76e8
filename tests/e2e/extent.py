"""How much of each scenario is run: once, or as often and as long as its row of acceptance says."""

from __future__ import annotations

import os

FULL = os.environ.get("E2E_FULL", "") not in ("", "0")


def times(full: int, *, short: int = 1) -> int:
    """How often a fault is repeated; `full` with E2E_FULL=1 (`make e2e-full`)."""
    return full if FULL else short


def lasting(full_s: float, *, short_s: float) -> float:
    """How long a fault lasts; `full_s` with E2E_FULL=1."""
    return full_s if FULL else short_s
