"""How many Events are posted about one object: enough to tell, never a storm. Pure.

Each Event is a write to etcd, and the API server keeps it for an hour: something that flaps every
few seconds, on a thousand clusters, would cost more than what it is about. So of each reason, and
of all together, only so many are posted within a window. What is not posted is counted; it stands
in the log anyway.
Source of the numbers: client-go aggregates from the tenth similar Event in ten minutes on.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

TOO_MANY = "TooManyEvents"

_WINDOW_S = 600.0
_OF_A_REASON = 10
_IN_ALL = 50
_NOTE_LIMIT = 1024  # bytes, of the API


@dataclass(frozen=True, slots=True)
class Admission:
    """Whether to post an Event; `announce`: say once that others of the kind will be missing.

    `dropped` is how many of that reason were not posted since the last that was.
    """

    post: bool
    announce: bool = False
    dropped: int = 0


class EventRate:
    """Counts what is posted about one object; keeps nothing that a restart could not lose."""

    def __init__(self) -> None:
        self._posted: deque[tuple[float, str]] = deque()
        self._dropped: dict[str, int] = {}
        self._announced_s = float("-inf")

    def admit(self, reason: str, now_s: float) -> Admission:
        """Count one Event that is about to be posted, or is not."""
        while self._posted and self._posted[0][0] <= now_s - _WINDOW_S:
            self._posted.popleft()
        same = sum(each == reason for _, each in self._posted)
        if same < _OF_A_REASON and len(self._posted) < _IN_ALL:
            self._posted.append((now_s, reason))
            return Admission(True, dropped=self._dropped.pop(reason, 0))
        self._dropped[reason] = self._dropped.get(reason, 0) + 1
        if now_s - self._announced_s < _WINDOW_S:
            return Admission(False)
        self._announced_s = now_s
        return Admission(False, announce=True)


def announcement(reason: str, who: str) -> str:
    """The note of the one Event that says that others will be missing."""
    return (
        f"more happens than is worth an Event each, of late {reason}: {who} posts no more than"
        f" {_OF_A_REASON} of a reason and {_IN_ALL} in all in {_WINDOW_S / 60:.0f} minutes; its log"
        " has the others"
    )


def counted(note: str, dropped: int) -> str:
    """A note, as long as the API takes it, with how many of its reason were not posted before."""
    if not dropped:
        return shortened(note)
    more = f" ({dropped} more of this reason before it were not posted)"
    return shortened(note, room=_NOTE_LIMIT - len(more)) + more


def shortened(note: str, *, room: int = _NOTE_LIMIT) -> str:
    """A note of at most so many bytes."""
    encoded = note.encode()
    if len(encoded) <= room:
        return note
    return encoded[: room - 3].decode(errors="ignore") + "…"
