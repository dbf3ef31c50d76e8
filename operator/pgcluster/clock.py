"""The agent's clocks."""

from __future__ import annotations

import time
from datetime import UTC, datetime


def monotonic_s() -> float:
    """Seconds that also pass while the machine sleeps or the process is frozen.

    CLOCK_MONOTONIC stands still while a virtual machine is suspended, and a Lease runs out
    meanwhile.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def utc_now() -> str:
    """The wall clock as Kubernetes writes it: RFC 3339 with microseconds."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
