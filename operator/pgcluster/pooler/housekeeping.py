"""What is not urgent: settings, passwords, the version. Only while nothing else is to be done."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

from pgcluster.api import names
from pgcluster.api.errors import PgClusterError
from pgcluster.api.reports import PoolerReport
from pgcluster.clock import monotonic_s
from pgcluster.pgbouncer.admin import Admin
from pgcluster.pooler.apply import Applier, NotAccepted
from pgcluster.pooler.decide import RETRY_S
from pgcluster.pooler.files import Files
from pgcluster.pooler.metrics import Metrics
from pgcluster.pooler.turn import Line
from pgcluster.render.pgbouncer import content_hash

log = logging.getLogger(__name__)

_PASSWORDS_EVERY_S = 5.0
# While others take changed settings first.
_LOOK_EVERY_S = 1.0


class Housekeeping:
    """`trouble` says what was not accepted, or is waited for; `settings_hash` is of the settings in
    force, `refused` of those that pgbouncer did not take."""

    def __init__(
        self,
        admin: Admin,
        applier: Applier,
        files: Files,
        metrics: Metrics,
        *,
        pod: str,
        reports: Callable[[], Awaitable[Mapping[str, PoolerReport]]],
    ) -> None:
        self._admin = admin
        self._applier = applier
        self._files = files
        self._metrics = metrics
        self._checked: str | None = None
        self._failed: tuple[str, float] | None = None
        self._passwords_at_s = 0.0
        self._line = Line(pod)
        self._reports = reports
        self._looked_at_s = 0.0
        self.refused: str | None = None
        self.trouble = ""
        self._waiting = ""
        self.settings_hash: str | None = None
        self.version: str | None = None

    def prepare(self, wanted: str | None) -> None:
        """While pgbouncer is down: it may be down because of its settings, and starts with these.

        They are verified when it answers again.
        """
        self._checked = self.version = None
        if wanted is not None and wanted != self._files.settings():
            self._files.write_settings(wanted)
            log.info("settings written for the next start of pgbouncer")

    async def keep(self, wanted: str | None) -> None:
        """One round."""
        if self.version is None:
            self.version = await self._admin.version()
        await self._keep_settings(wanted)
        now_s = monotonic_s()
        if now_s - self._passwords_at_s >= _PASSWORDS_EVERY_S:
            self._passwords_at_s = now_s
            try:
                if await self._applier.users():
                    log.info("the user list was reloaded")
                if await self._applier.certificates():
                    log.info("the certificates were reloaded")
            except PgClusterError as error:
                log.warning("%s", error)

    async def _keep_settings(self, wanted: str | None) -> None:
        text = wanted or self._files.settings()
        if self._failed and self._failed[0] != text:
            # Corrected, or taken back.
            self._failed = self.refused = None
        if text is None or text == self._checked:
            self.trouble = self._waiting
            return
        now_s = monotonic_s()
        if self._failed and now_s - self._failed[1] < RETRY_S:
            return
        if text != self._files.settings() and not await self._my_turn(text, now_s):
            return
        try:
            waiting = await self._applier.settings(text)
        except NotAccepted as error:
            self._failed = (text, now_s)
            if self.trouble != str(error):
                log.error("%s", error)
                self._metrics.not_accepted.labels(names.PGBOUNCER_INI_KEY).inc()
            self.trouble = str(error)
            self.refused = content_hash(text)
            return
        self._failed = self.refused = None
        self._checked = text
        self.settings_hash = content_hash(text)
        self._waiting = (
            f"these settings wait for a restart: {', '.join(waiting)}" if waiting else ""
        )
        self.trouble = self._waiting
        log.info("settings in force", extra={"hash": self.settings_hash, "waiting": waiting})

    async def _my_turn(self, text: str, now_s: float) -> bool:
        """Whether changed settings may be taken now, after the poolers whose turn is before."""
        if now_s - self._looked_at_s < _LOOK_EVERY_S:
            return False
        self._looked_at_s = now_s
        try:
            reports = await self._reports()
        except PgClusterError as error:
            log.debug("the other poolers' reports: %s", error)
            return False
        waits = self._line.wait(content_hash(text), reports, now_s)
        if waits is None:
            return True
        if waits.reason != self.trouble and self.refused is None:
            log.info("settings wait: %s", waits.reason)
            self.trouble = waits.reason
        return False
