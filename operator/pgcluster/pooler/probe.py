"""Asking the primary itself: a connection that stays open tells at once when its server is gone.

The end of the stream arrives within a millisecond of a crash. Everything slower (a frozen server,
a cut network, a new role) is found by a question once a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping

from pgcluster.api import names
from pgcluster.clock import monotonic_s
from pgcluster.pgbouncer.link import Link, LinkLost, Refused, accepts_connections
from pgcluster.pooler.decide import Probe, ProbeState

log = logging.getLogger(__name__)

_OPEN_S = 2.0
_ANSWER_S = 2.0
_EVERY_S = 1.0
_RETRY_S = 0.05
QUESTION = "SELECT pg_catalog.pg_is_in_recovery() AS in_recovery"

Target = tuple[str, int]
Login = Callable[[Target], dict[str, str | int]]


def question(paused: int | None) -> str:
    """What the primary is asked; with the epoch in which it told its pools to hold their clients.

    The primary sees it in `pg_stat_activity`: an acknowledgement that is there as soon as it can
    be, and that needs no API.
    """
    return QUESTION if paused is None else f"{QUESTION} /* paused {paused} */"


def parameters(
    target: Target, *, pod: str, password: str | None, tls: Mapping[str, str]
) -> dict[str, str | int]:
    """How a pooler's agent connects to an instance: by its name there it is heard.

    `tls`: libpq's parameters, as pgbouncer itself connects.
    """
    given: dict[str, str | int] = {
        "host": target[0],
        "port": target[1],
        "user": names.ROLE_POOLER,
        "dbname": "postgres",
        "application_name": names.pooler_application(pod),
        "gssencmode": "disable",
        **tls,
    }
    return given | ({"password": password} if password else {})


class PrimaryProbe:
    """Follows one server at a time; `changed` is called when what it says has changed."""

    def __init__(self, *, login: Login, changed: Callable[[], None]) -> None:
        self._login = login
        self._changed = changed
        self._target: Target | None = None
        self._probe = Probe()
        self._aimed = asyncio.Event()
        self._nudge = asyncio.Event()
        self._asked = False
        self._paused: int | None = None

    @property
    def seen(self) -> Probe:
        """What is known of the target."""
        return self._probe

    def aim(self, target: Target | None) -> None:
        """Follow another server; nothing is known of it yet."""
        if target != self._target:
            self._target = target
            self._probe = Probe("unknown", monotonic_s())
            self._aimed.set()

    def ask_now(self) -> None:
        """Do not wait for the next question: something else casts doubt on the primary."""
        self._asked = True
        self._nudge.set()

    def say(self, paused: int | None) -> None:
        """Tell the server at once that this pool holds its clients as announced, or none."""
        if paused != self._paused:
            self._paused = paused
            self._nudge.set()

    async def run(self) -> None:
        """Follow the target for ever."""
        while True:
            self._aimed.clear()
            if self._target is None:
                await self._aimed.wait()
                continue
            # A target that vanished is not waited for when another one is known: its deadlines
            # would be clients' waiting.
            following = asyncio.create_task(self._follow(self._target))
            aimed = asyncio.create_task(self._aimed.wait())
            try:
                await asyncio.wait((following, aimed), return_when=asyncio.FIRST_COMPLETED)
            finally:
                following.cancel()
                aimed.cancel()
                ends = await asyncio.gather(following, aimed, return_exceptions=True)
            if isinstance(ends[0], Exception):
                raise ends[0]

    async def _follow(self, target: Target) -> None:
        """Connect and ask for ever."""
        while True:
            self._nudge.clear()
            try:
                link = await self._connect(target)
            except LinkLost as error:
                await self._not_answering(target, str(error))
                await self._sleep(_RETRY_S)
                continue
            try:
                await self._ask(link, target)
            except LinkLost as error:
                # Connect again at once: it may have been only this connection that was ended.
                log.info("the connection to the primary was lost: %s", error)
                self._set(target, "lost")

    async def _connect(self, target: Target) -> Link:
        def lost() -> None:
            self._set(target, "lost")
            self._nudge.set()

        return await Link.open(self._login(target), deadline_s=_OPEN_S, on_lost=lost)

    async def _ask(self, link: Link, target: Target) -> None:
        """Ask again and again until the connection ends: LinkLost."""
        try:
            while True:
                self._nudge.clear()
                try:
                    rows = await link.query(question(self._paused), deadline_s=_ANSWER_S)
                except Refused as refusal:
                    log.warning("the primary refuses the probe: %s", refusal)
                    self._set(target, "mute")
                else:
                    in_recovery = bool(rows) and rows[0]["in_recovery"] == "t"
                    self._set(target, "standby" if in_recovery else "primary")
                await self._sleep(_EVERY_S)
        finally:
            link.close()

    async def _not_answering(self, target: Target, reason: str) -> None:
        log.debug("probe: %s", reason)
        given = {**self._login(target), "connect_timeout": 2}
        given.pop("password", None)
        timed_out = "within" in reason
        accepted = not timed_out and await asyncio.to_thread(accepts_connections, given)
        self._set(target, "mute" if accepted else "lost")

    def _set(self, target: Target, state: ProbeState) -> None:
        if target != self._target:
            return
        before, now_s = self._probe, monotonic_s()
        self._probe = Probe(
            state=state,
            since_s=before.since_s if before.state == state else now_s,
            confirmed_at_s=now_s if state == "primary" else before.confirmed_at_s,
        )
        if before.state != state or self._asked:
            self._asked = False
            self._changed()

    async def _sleep(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._nudge.wait()
