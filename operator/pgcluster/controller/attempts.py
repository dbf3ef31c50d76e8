"""When a wish for another primary is uttered again after it was refused or has failed. Pure.

A request is done once, so another attempt is another request. The status remembers only the last
one, whoever's it was, and how many have come to nothing: attempts are numbered by that. Two wishes
that nobody can fulfil would otherwise forget each other's attempts, take turns without a pause, and
ask for what the agents have dealt with already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pgcluster.api.times import time_of
from pgcluster.controller.observe import Observed

_FIRST_PAUSE_S = 15.0
_LONGEST_PAUSE_S = 300.0
# Another wish than the one that came to nothing need not wait for as long.
_LONGEST_TURN_S = 60.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """The next attempt of a wish: its name, not before when, and why the last one failed."""

    request: str
    not_before: datetime | None = None
    why: str = ""


def last(observed: Observed) -> Mapping[str, Any]:
    """The record of the last switchover as it is stored; empty where there was none."""
    found: Mapping[str, Any] = (observed.cluster.get("status") or {}).get("lastSwitchover") or {}
    return found


def attempt(observed: Observed, prefix: str) -> Attempt:
    """The next attempt of what `prefix` names; the present one while it is under way."""
    before = last(observed)
    known, _, number = str(before.get("request") or "").rpartition("-")
    same = known == prefix and number.isdecimal()
    if same and before.get("state") not in ("Refused", "Failed", "Succeeded"):
        return Attempt(f"{prefix}-{number}")
    done = max(int(number) if same else 0, int(before.get("failures") or 0))
    if not done:
        return Attempt(f"{prefix}-1")
    pause_s = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(done - 1, 10))
    if not same:
        pause_s = min(pause_s / 2, _LONGEST_TURN_S)
    ended = time_of(before.get("endedAt"))
    return Attempt(
        f"{prefix}-{done + 1}",
        ended + timedelta(seconds=pause_s) if ended is not None else None,
        str(before.get("reason") or "no reason was given"),
    )


def request(observed: Observed, prefix: str, now: datetime) -> str | None:
    """The request for the next attempt of what `prefix` names; None while it is too early."""
    found = attempt(observed, prefix)
    early = found.not_before is not None and now < found.not_before
    return None if early else found.request


def becoming(observed: Observed) -> str | None:
    """The instance that a switchover under way is about to make the primary."""
    record = last(observed)
    return record.get("to") if record.get("state") == "Running" else None


def digest(*parts: object) -> str:
    """A short identity of what a wish is about."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:12]
