"""Whose turn it is to take changed settings: one pooler after the other, in the order of names.

Nobody grants the turns, because the operator may be away: each pooler looks at the others' reports.
A pooler that did not take the settings, or that is not ready with them, stops all behind it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pgcluster.api.reports import PoolerReport

# One that does not take its turn for so long is believed to be gone; its report outlives it.
SKIP_AFTER_S = 30.0


@dataclass(frozen=True, slots=True)
class Wait:
    """Why it is not one's turn; `behind` is who may be passed over if it does nothing."""

    reason: str
    behind: str | None = None


def wait(
    me: str, wanted: str, reports: Mapping[str, PoolerReport], *, skipped: Collection[str] = ()
) -> Wait | None:
    """Why `me` may not take the settings with hash `wanted` yet; None where it may. Pure."""
    for pod, report in sorted(reports.items()):
        if pod != me and report.settings_refused == wanted:
            return Wait(f"{pod} did not take the changed settings: {report.settings_reason}")
    for pod, report in sorted(reports.items()):
        if pod >= me:
            return None
        if report.settings_hash == wanted and not report.ready:
            return Wait(f"{pod} is not ready with the changed settings: {report.reason}")
        if report.settings_hash != wanted and pod not in skipped:
            return Wait(f"{pod} takes the changed settings first", behind=pod)
    return None


class Line:
    """Waits for one's turn; knows for how long the first in the line has done nothing."""

    def __init__(self, me: str) -> None:
        self._me = me
        self._wanted = ""
        self._first: str | None = None
        self._first_since_s = 0.0
        self._skipped: set[str] = set()

    def wait(self, wanted: str, reports: Mapping[str, PoolerReport], now_s: float) -> Wait | None:
        """As above, passing over who is gone."""
        if wanted != self._wanted:
            self._wanted, self._first = wanted, None
            self._skipped.clear()
        while True:
            found = wait(self._me, wanted, reports, skipped=self._skipped)
            if found is None or found.behind is None:
                return found
            if found.behind != self._first:
                self._first, self._first_since_s = found.behind, now_s
            if now_s - self._first_since_s < SKIP_AFTER_S:
                return found
            self._skipped.add(found.behind)
