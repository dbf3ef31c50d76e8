"""The pooler agent: looks at pgbouncer, the primary and the Lease, and does what decide.py says.

Everything is derived anew in each cycle from what pgbouncer and its files show, so that an agent
that was killed at any point is continued by the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from dataclasses import replace
from pathlib import Path

from pgcluster.api import names
from pgcluster.api.errors import FatalError, PgClusterError
from pgcluster.api.reports import PoolerReport
from pgcluster.clock import monotonic_s
from pgcluster.pgbouncer.admin import Admin
from pgcluster.pgbouncer.link import LinkLost, Refused
from pgcluster.pgbouncer.rows import Database, Server, Waiting
from pgcluster.pooler import drain, http
from pgcluster.pooler.apply import Applier, NotAccepted
from pgcluster.pooler.commands import Commands
from pgcluster.pooler.decide import (
    STUCK_S,
    Apply,
    CutOff,
    Facts,
    Offer,
    Pause,
    Resume,
    acceptable,
    acknowledged,
    decide,
    differences,
    read_write,
    readiness,
)
from pgcluster.pooler.files import Files
from pgcluster.pooler.housekeeping import Housekeeping
from pgcluster.pooler.metrics import Metrics
from pgcluster.pooler.presence import Presence
from pgcluster.pooler.probe import PrimaryProbe, Target, parameters
from pgcluster.pooler.reporting import Reporter
from pgcluster.pooler.settings import Settings
from pgcluster.pooler.source import Source
from pgcluster.pooler.watching import Observed
from pgcluster.render.pgbouncer import AUTH_DATABASE, server_tls

log = logging.getLogger(__name__)

_AT_REST_S = 1.0
_BUSY_S = 0.1
_ALIVE_WITHIN_S = 30.0
# How long after a RELOAD servers of the former primary are looked for.
_LOOK_FOR_STUCK_S = 300.0


class Agent:
    """One pooler. `run()` lives as long as its container."""

    def __init__(self, settings: Settings, source: Source) -> None:
        self._settings = settings
        self._source = source
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._beat_s = monotonic_s()
        self._files = Files(settings.directory, settings.secrets, settings.certificates)
        self._admin = Admin(
            socket_dir=str(settings.directory),
            port=settings.pgbouncer_port,
            password=lambda: self._files.password("admin-password"),
            on_lost=self._wake.set,
        )
        self._applier = Applier(self._admin, self._files)
        self._metrics = Metrics()
        self._commands = Commands(self._admin, self._metrics, changed=self._wake.set)
        self._housekeeping = Housekeeping(
            self._admin,
            self._applier,
            self._files,
            self._metrics,
            pod=settings.pod,
            reports=source.reports,
        )
        self._door = drain.Door(settings.directory / Path(names.PGBOUNCER_DOOR).name)
        self._closing = False
        self._probe = PrimaryProbe(login=self._login, changed=self._wake.set)
        self._presence = Presence(login=self._login)
        self._observed = Observed(source, wake=self._wake.set, doubt=self._probe.ask_now)
        self._applied: Offer | None = None
        self._repointed_at_s: float | None = None
        self._resumed_at_s: float | None = None
        self._failed: tuple[str, float] | None = None
        self._late_since_s: float | None = None
        self._ready: tuple[bool, str] = (False, "starting")
        self._reporter = Reporter(source, PoolerReport(pod=settings.pod, address=settings.address))

    # --- life ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Live until SIGTERM; FatalError where a part of it gave up."""
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, self._stop)
        runner = await http.serve(
            port=self._settings.agent_port,
            alive=self._alive,
            ready=lambda: self._ready,
            status=lambda: self._reporter.current.model_dump_json(),
            metrics=lambda: self._metrics.scrape(self._admin),
        )
        background = [
            asyncio.create_task(coroutine, name=name)
            for name, coroutine in (
                ("api", self._source.follow(self._observed)),
                ("lease", self._observed.check_lease()),
                ("probe", self._probe.run()),
                ("report", self._reporter.run()),
                ("loop", self._live()),
            )
        ]
        stop = asyncio.create_task(self._stopping.wait(), name="stop")
        try:
            ended, _ = await asyncio.wait([*background, stop], return_when=asyncio.FIRST_COMPLETED)
            broken = [task for task in ended if task is not stop]
            for task in broken:
                error = None if task.cancelled() else task.exception()
                log.critical("%s ended: please report it", task.get_name(), exc_info=error)
            for task in (*background, stop):
                task.cancel()
            await asyncio.gather(*background, stop, return_exceptions=True)
            await self._leave()
        finally:
            self._presence.close()
            self._admin.close()
            await runner.cleanup()
        if broken:
            raise FatalError("a part of the agent ended")

    def _stop(self) -> None:
        self._stopping.set()

    def _alive(self) -> bool:
        """Whether pgbouncer has all its files and the loop turns; it starts after the first yes."""
        return self._files.complete() and monotonic_s() - self._beat_s < _ALIVE_WITHIN_S

    async def _leave(self) -> None:
        """Resume what is paused: nobody else may be there to do it."""
        try:
            async with asyncio.timeout(2):
                paused = [each.name for each in await self._admin.databases() if each.paused]
                if paused:
                    await self._commands.resume(Resume(tuple(paused), "the agent is being stopped"))
        except (PgClusterError, TimeoutError) as error:
            log.info("pgbouncer was not told to resume: %s", error)

    async def _live(self) -> None:
        await self._prepare()
        while True:
            self._beat_s = monotonic_s()
            self._wake.clear()
            delay_s = await self._cycle()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._wake.wait()

    async def _prepare(self) -> None:
        """Give pgbouncer the files to start with: the API's, or those that a former agent left."""
        self._door.install()
        said = ""
        while not self._files.complete():
            self._beat_s = monotonic_s()
            try:
                self._files.write_userlist()
                self._files.write_certificates()
                self._observed.write_first(self._files)
            except PgClusterError as error:
                if str(error) != said:
                    log.info("waiting: %s", error)
                said = str(error)
            await asyncio.sleep(0.1)
        self._applied = self._files.databases()
        # A former agent may have died between repointing and looking for what is stuck.
        self._repointed_at_s = monotonic_s()
        self._aim(self._applied)
        log.info("pgbouncer's files are there", extra={"primary": self._primary})

    # --- the cycle ----------------------------------------------------------------------------

    async def _cycle(self) -> float:
        try:
            facts = await self._look()
            actions = decide(facts)
            # Before clients go on: the primary must not believe for an instant that they wait.
            self._probe.say(acknowledged(facts))
            for action in actions:
                await self._do(action)
            if self._door.asked():
                await self._drain(facts)
            if facts.databases is None:
                self._housekeeping.prepare(self._observed.settings)
            elif facts.leaving:
                await self._let_go()
            elif not actions:
                await self._housekeeping.keep(self._observed.settings)
            self._tell(facts)
        except PgClusterError as error:
            log.warning("%s", error)
            return _BUSY_S
        except Exception:
            log.exception("unexpected: please report it")
            return _AT_REST_S
        if any(isinstance(action, Pause) for action in actions):
            return 0.0
        if actions or self._resumed_at_s is not None:
            return 0.01
        return _AT_REST_S if self._ready == (True, "") and not facts.failed else _BUSY_S

    async def _look(self) -> Facts:
        databases: list[Database] | None = None
        servers: list[Server] = []
        pools: list[Waiting] = []
        try:
            databases = await self._admin.databases()
            if not any(each.paused and each.name == AUTH_DATABASE for each in databases):
                self._resumed_at_s = None
            elif self._resumed_at_s is not None:
                pools = await self._admin.waiting()
            if self._since_repointing_s() is not None:
                servers = await self._admin.servers()
        except PgClusterError as error:
            self._resumed_at_s = None
            log.debug("pgbouncer: %s", error)
        return Facts(
            now_s=monotonic_s(),
            wanted=self._observed.wanted,
            applied=self._applied,
            databases=databases,
            probe=self._probe.seen,
            lease=self._observed.lease,
            servers=servers,
            repointed_at_s=self._repointed_at_s,
            resumed_at_s=self._resumed_at_s,
            pools=pools,
            failed=self._failed,
            leaving=self._admin.leaving,
        )

    async def _drain(self, facts: Facts) -> None:
        """Serve the clients that are left, and tell pgbouncer to end when it is time to."""
        if facts.databases is None:
            # It has ended, or is not to be reached: then only the kubelet can end it.
            self._door.let_go()
            self._closing = False
            return
        if self._closing:
            return
        clients = len(await self._admin.clients())
        reason = drain.end(
            since_s=self._door.since_s,
            timeout_s=self._settings.drain_s,
            clients=clients,
            paused=any(database.paused for database in read_write(facts)),
            now_s=facts.now_s,
        )
        if not reason:
            return
        log.info("pgbouncer is told to end: %s", reason)
        self._closing = True
        try:
            await self._admin.shutdown()
        except LinkLost:
            log.info("pgbouncer has ended")
        except Refused as refusal:
            log.info("pgbouncer is left to the kubelet: %s", refusal)
            self._door.let_go()

    async def _let_go(self) -> None:
        """pgbouncer waits for its last client, and this agent must not be it."""
        if not await self._admin.clients():
            self._admin.close()
            log.info("pgbouncer has no clients any more and may end")

    def _since_repointing_s(self) -> float | None:
        """How long ago the pool was repointed, while that is of interest."""
        if self._repointed_at_s is None:
            return None
        since_s = monotonic_s() - self._repointed_at_s
        return since_s if STUCK_S <= since_s <= _LOOK_FOR_STUCK_S else None

    async def _do(self, action: Pause | Apply | Resume | CutOff) -> None:
        match action:
            case Pause():
                self._resumed_at_s = self._resumed_at_s if action.read_only else None
                await self._commands.pause(action)
            case Resume():
                await self._commands.resume(action)
                if not action.read_only:
                    self._resumed_at_s = monotonic_s()
            case CutOff():
                # Whatever came of it, the next attempt waits as long as the first did.
                self._repointed_at_s = monotonic_s()
                await self._commands.cut_off(action)
            case Apply():
                await self._apply(action)

    async def _apply(self, action: Apply) -> None:
        # The new primary is asked while pgbouncer loads.
        self._aim(action.offer)
        try:
            with self._commands.timed("RELOAD", reason=action.reason):
                await self._applier.databases(action.offer)
        except NotAccepted as error:
            self._failed = (action.offer.content_hash, monotonic_s())
            self._metrics.not_accepted.labels("databases.ini").inc()
            log.error("%s", error)
            self._aim(self._applied)
            return
        before = self._applied.section.header if self._applied else None
        after = action.offer.section.header
        self._failed = None
        self._applied = action.offer
        if after and (
            before is None or (before.primary, before.epoch) != (after.primary, after.epoch)
        ):
            self._commands.repointed()
        self._repointed_at_s = monotonic_s()

    def _aim(self, offer: Offer | None) -> None:
        section = offer.section if offer else None
        host = section.primary_host if section else None
        self._probe.aim((host, section.primary_port) if section and host else None)
        self._presence.show(section.standbys if section else ())

    def _login(self, target: Target) -> dict[str, str | int]:
        return parameters(
            target,
            pod=self._settings.pod,
            password=self._files.password("auth-password"),
            tls=server_tls(self._files.settings()),
        )

    @property
    def _primary(self) -> str | None:
        header = self._applied.section.header if self._applied else None
        return header.primary if header else None

    # --- what others see ----------------------------------------------------------------------

    def _tell(self, facts: Facts) -> None:
        facts = replace(facts, applied=self._applied)
        if acceptable(replace(facts, failed=None)) is None:
            self._late_since_s = None
        elif self._late_since_s is None:
            self._late_since_s = facts.now_s
        self._ready = readiness(facts, late_since_s=self._late_since_s)
        needed = read_write(facts)
        paused = any(database.paused for database in needed)
        header = self._applied.section.header if self._applied else None
        self._metrics.ready.set(self._ready[0])
        self._metrics.paused.set(paused)
        self._metrics.epoch.set(header.epoch if header else 0)
        self._metrics.primary_up.set(facts.probe.state == "primary")
        in_force = facts.databases is not None and not differences(facts)
        self._reporter.current = PoolerReport(
            pod=self._settings.pod,
            ready=self._ready[0],
            paused=paused,
            reason=self._ready[1] or self._observed.trouble or self._housekeeping.trouble,
            primary=header.primary if header else None,
            epoch=header.epoch if header else 0,
            applied_hash=self._applied.content_hash if self._applied and in_force else None,
            settings_hash=self._housekeeping.settings_hash,
            settings_refused=self._housekeeping.refused,
            settings_reason=self._housekeeping.trouble if self._housekeeping.refused else "",
            paused_at=self._commands.phases.paused_at,
            reloaded_at=self._commands.phases.reloaded_at,
            resumed_at=self._commands.phases.resumed_at,
            first_transaction_at=self._commands.phases.first_transaction_at,
            pgbouncer_version=self._housekeeping.version,
            address=self._settings.address,
            mute=facts.probe.state == "mute",
            agent_version=self._reporter.current.agent_version,
        )
