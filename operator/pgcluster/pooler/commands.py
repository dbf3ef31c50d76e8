"""PAUSE, RELOAD and RESUME, each with the time it took, and when the last repointing had which."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from pgcluster.api.errors import PgClusterError
from pgcluster.clock import utc_now
from pgcluster.pgbouncer.admin import Admin
from pgcluster.pooler.decide import CutOff, Pause, Resume
from pgcluster.pooler.metrics import Metrics

log = logging.getLogger(__name__)

# PAUSE is in force before its answer, which waits for transactions that may never end.
_PAUSE_WAIT_S = 0.1
_IN_FORCE_EVERY_S = 0.001
_FIRST_TRANSACTION_S = 60.0
_LOOK_EVERY_S = 0.05


@dataclass(slots=True)
class Phases:
    """When the last repointing had which phase, as the report has it."""

    paused_at: str | None = None
    reloaded_at: str | None = None
    resumed_at: str | None = None
    first_transaction_at: str | None = None


class Commands:
    """Carries out what decide.py decided; `changed` is called when a phase ends by itself."""

    def __init__(self, admin: Admin, metrics: Metrics, *, changed: Callable[[], None]) -> None:
        self._admin = admin
        self._metrics = metrics
        self._changed = changed
        self._watch: asyncio.Task[None] | None = None
        # Of the last repointing, and of the pause that may become one.
        self.phases = Phases()
        self._current = Phases()

    async def pause(self, action: Pause) -> None:
        """PAUSE all of them at the same time, and wait only until pgbouncer has read that."""
        at = utc_now()
        with self.timed("PAUSE", databases=action.databases, reason=action.reason):
            telling = asyncio.gather(
                *(self._admin.pause(name, wait_s=_PAUSE_WAIT_S) for name in action.databases)
            )
            try:
                while not telling.done() and not await self._paused(action.databases):  # noqa: ASYNC110 # it tells nobody
                    await asyncio.sleep(_IN_FORCE_EVERY_S)
                if telling.done():
                    telling.result()
            finally:
                # Those left wait for transactions that run; pauses stay when they are dropped.
                telling.cancel()
                await asyncio.gather(telling, return_exceptions=True)
        if action.read_only:
            return
        if self._current.paused_at is None or self._current.resumed_at is not None:
            self._forget_watch()
            self._current = Phases(paused_at=at)

    def repointed(self) -> None:
        """The section of another primary or epoch was loaded and verified.

        A pause that comes to nothing, as with a primary that crashed and returned, is not told:
        its times would be taken for those of the failover before it.
        """
        if self._current.resumed_at is not None:
            self._forget_watch()
            self._current = Phases()
        self._current.reloaded_at = utc_now()
        self.phases = self._current

    async def resume(self, action: Resume) -> None:
        """RESUME each of them.

        What pgbouncer knows of a server lets it greet a client that logs in without one: to be
        failed at the client's first query, if the last connection was. A database that has no
        server forgets that first, so that logins wait for one.
        """
        before = await self._transactions()
        served = {pool.database for pool in await self._admin.waiting() if pool.servers}
        with self.timed("RESUME", databases=action.databases, reason=action.reason):
            for name in action.databases:
                if name not in served:
                    await self._admin.reconnect(name)
                await self._admin.resume(name)
        if not action.read_only and self._current.resumed_at is None:
            self._current.resumed_at = utc_now()
            self._forget_watch()
            self._watch = asyncio.create_task(self._first_transaction(self._current, before))

    async def cut_off(self, action: CutOff) -> None:
        """End the clients of these servers where pgbouncer can, else all of their databases'.

        KILL leaves a database paused; the next cycle resumes it.
        """
        clients = {row["ptr"]: row.get("id") for row in await self._admin.clients()}
        log.warning("cutting off clients", extra={"reason": action.reason})
        databases = set()
        for server in action.servers:
            client = clients.get(server.client)
            if client is None:
                databases.add(server.database)
                continue
            try:
                await self._admin.kill_client(int(client))
            except PgClusterError as error:
                log.info("KILL_CLIENT: %s", error)
                databases.add(server.database)
        for database in sorted(databases):
            with self.timed("KILL", databases=(database,), reason=action.reason):
                await self._admin.kill(database)

    @contextlib.contextmanager
    def timed(self, command: str, **about: object) -> Iterator[None]:
        """Log a command with the milliseconds it took."""
        began = time.perf_counter()
        yield
        seconds = time.perf_counter() - began
        self._metrics.commands.labels(command).observe(seconds)
        log.info(command, extra={**about, "ms": round(seconds * 1000, 1)})

    async def _paused(self, names: Collection[str]) -> bool:
        """Whether pgbouncer shows them as paused."""
        paused = {database.name for database in await self._admin.databases() if database.paused}
        return paused.issuperset(names)

    async def _transactions(self) -> int:
        try:
            rows = await self._admin.totals()
        except PgClusterError:
            return 0
        return sum(int(row["xact_count"] or 0) for row in rows if row["database"] != "pgbouncer")

    async def _first_transaction(self, phases: Phases, before: int) -> None:
        """Notice the first transaction after a RESUME; nobody may have one to do."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_TRANSACTION_S):
                while await self._transactions() <= before:  # noqa: ASYNC110 # it tells nobody
                    await asyncio.sleep(_LOOK_EVERY_S)
                phases.first_transaction_at = utc_now()
                log.info("the first transaction after the RESUME is done")
                self._changed()

    def _forget_watch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
