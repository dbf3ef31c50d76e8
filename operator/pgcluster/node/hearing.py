"""Which poolers are heard, and which standbys are attached: from what the server shows. Pure.

A node that is lost says nothing, and Kubernetes notices after 50 s. But each pooler's agent asks
the instances a question a second, so a server sees in `pg_stat_activity` who has fallen silent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pgcluster.api import names

# An agent asks once a second, and gives a question up after two: this is more than one lost answer.
SILENT_AFTER_S = 4.0
# The time between two looks counts up to this: a longer pause of the listener proves nothing.
_LOOK_COUNTS_S = 1.5
# A silence that began this shortly before a promotion began with what led to it.
_OF_THE_SAME_FAULT_S = 15.0
# How long the standbys of a new primary have to find it, before it says that they are not there.
ATTACH_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Pooler:
    """A pooler that has registered; one that is `mute` is refused and cannot be heard."""

    pod: str
    address: str
    mute: bool = False


@dataclass(frozen=True, slots=True)
class Backend:
    """A client's connection: `changed` is when its state last did, as an opaque value."""

    pid: int
    application: str
    address: str
    changed: str


class Hearing:
    """When each pooler was last heard by this agent's own clock.

    A pooler is heard when any connection of its pod is new or has changed its state: the agent's,
    or one of pgbouncer's. The server's timestamps are only compared for being the same, so that a
    clock that is set does not matter, and connections of a lost node that the server ends one after
    the other are no sign of life. Silence counts only while this agent looks.
    """

    def __init__(self) -> None:
        self._signs: dict[str, frozenset[tuple[int, str]]] = {}
        self._heard_s: dict[str, float] = {}
        self._looked_s: float | None = None
        self._primary = False

    def look(
        self,
        now_s: float,
        poolers: Iterable[Pooler],
        backends: Iterable[Backend],
        *,
        primary: bool,
    ) -> tuple[str, ...]:
        """Pods of the poolers that are silent, by name.

        Standbys listen too, so that one that becomes the primary knows at once who went down with
        its predecessor. From whomever it had not heard anyway it waits to be found first.
        """
        known = {pooler.pod: pooler for pooler in poolers}
        seen = tuple(backends)
        self._discount(now_s)
        for pod in self._signs.keys() - known.keys():
            del self._signs[pod], self._heard_s[pod]
        for pod, pooler in known.items():
            signs = frozenset(
                (backend.pid, backend.changed) for backend in seen if _of(backend, pooler)
            )
            if pod not in self._signs or pooler.mute or signs - self._signs[pod]:
                self._heard_s[pod] = now_s
            self._signs[pod] = signs
        if primary and not self._primary:
            for pod, heard_s in self._heard_s.items():
                if now_s - heard_s > _OF_THE_SAME_FAULT_S:
                    self._heard_s[pod] = now_s
        self._primary = primary
        return tuple(
            sorted(pod for pod, at_s in self._heard_s.items() if now_s - at_s >= SILENT_AFTER_S)
        )

    def _discount(self, now_s: float) -> None:
        looked_s, self._looked_s = self._looked_s, now_s
        if looked_s is not None and (beyond_s := now_s - looked_s - _LOOK_COUNTS_S) > 0:
            for pod in self._heard_s:
                self._heard_s[pod] += beyond_s


class Attachment:
    """Which standbys a primary streams to, once it can be expected that they have found it."""

    def __init__(self) -> None:
        self._since_s: float | None = None

    def forget(self) -> None:
        """The server has started, or has become a primary: its standbys have to find it."""
        self._since_s = None

    def look(self, now_s: float, streaming: Iterable[str]) -> tuple[str, ...] | None:
        """Their pods by name; None for the first moments."""
        if self._since_s is None:
            self._since_s = now_s
        if now_s - self._since_s < ATTACH_WITHIN_S:
            return None
        return tuple(sorted(streaming))


def _of(backend: Backend, pooler: Pooler) -> bool:
    """By its name too: a network that translates addresses hides the pod's."""
    return backend.address == pooler.address or backend.application == names.pooler_application(
        pooler.pod
    )
