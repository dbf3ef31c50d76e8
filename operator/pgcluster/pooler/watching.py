"""What the API has shown: the wanted files, and the Lease by this agent's own clock."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from pgcluster.api import names
from pgcluster.api.errors import PgClusterError, RetryError
from pgcluster.clock import monotonic_s
from pgcluster.pooler.decide import Lease, Offer
from pgcluster.pooler.files import Files, offer
from pgcluster.pooler.source import Source
from pgcluster.render.pgbouncer import EMPTY_SECTION
from pgcluster.topology.lease import LeaseRecord, LeaseView

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5
_ASK_AGAIN_S = 2.0


class Observed:
    """Told by a Source; `wake` is called when something changed, `doubt` when the Lease is free."""

    def __init__(
        self, source: Source, *, wake: Callable[[], None], doubt: Callable[[], None]
    ) -> None:
        self._source = source
        self._wake = wake
        self._doubt = doubt
        self._view: LeaseView | None = None
        self._asked_at_s = 0.0
        self.wanted: Offer | None = None
        self.settings: str | None = None
        self.lease = Lease()
        self.trouble = ""

    def files_seen(self, data: dict[str, str]) -> None:
        """The ConfigMap with pgbouncer's files, as it is now."""
        plain = data.get(names.PGBOUNCER_INI_KEY)
        # Without the second: an operator of a version that knows no TLS.
        self.settings = data.get(names.PGBOUNCER_TLS_INI_KEY) or plain or self.settings
        text = data.get(names.DATABASES_KEY)
        if text:
            try:
                self.wanted = offer(text)
                self.trouble = ""
            except ValueError as error:
                self.trouble = f"the databases section cannot be read: {error}"
                log.error("%s", self.trouble)
        self._wake()

    def lease_seen(self, record: LeaseRecord | None) -> None:
        """The Lease as it is now; None where there is none, which says nothing about the primary.

        What was last known of a deleted Lease is forgotten too: its epochs start over.
        """
        now_s = monotonic_s()
        if record is None:
            self._view = None
            self._set(Lease(None, current=True))
            return
        before = self._view
        self._view = LeaseView(record, now_s) if before is None else before.next(record, now_s)
        free_since_s = None
        if self._view is before:
            free_since_s = self.lease.free_since_s
        elif self._view.released():
            free_since_s = self._free_since(now_s)
        self._set(
            Lease(
                record,
                current=True,
                free_since_s=free_since_s,
                pausing_since_s=self._pausing_since(record, now_s),
            )
        )

    def api_lost(self) -> None:
        """What was seen may be old from now on."""
        self._set(replace(self.lease, current=False))

    async def check_lease(self) -> None:
        """Find a Lease that has run out, for ever.

        A watch that hangs looks like a Lease that nobody renews, so the API is asked before the
        primary is doubted: without its answer nothing is known, and nothing healthy is disturbed.
        """
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            now_s = monotonic_s()
            view = self._view
            if view is None or not view.expired(now_s) or view.released():
                continue
            if self.lease.free_since_s is not None or now_s - self._asked_at_s < _ASK_AGAIN_S:
                continue
            self._asked_at_s = now_s
            await self._ask(view)

    async def _ask(self, view: LeaseView) -> None:
        try:
            async with asyncio.timeout(_ASK_AGAIN_S):
                record = await self._source.lease()
        except (PgClusterError, TimeoutError):
            self.api_lost()
            return
        if record != view.record or self._view is not view:
            self.lease_seen(record)
            return
        log.warning("the Lease of %s has run out", record.holder)
        self._set(replace(self.lease, current=True, free_since_s=monotonic_s()))

    def write_first(self, files: Files) -> None:
        """Write the files that pgbouncer starts with; RetryError while the API shows none."""
        if self.settings is None:
            raise RetryError("the ConfigMap with pgbouncer's files is not there")
        files.write_databases(self.wanted.text if self.wanted else EMPTY_SECTION)
        files.write_settings(self.settings)

    def _free_since(self, now_s: float) -> float:
        since_s = self.lease.free_since_s
        return now_s if since_s is None else since_s

    def _pausing_since(self, record: LeaseRecord, now_s: float) -> float | None:
        """Since when this epoch's holder has been about to stop; renewals change nothing of it."""
        if not record.pausing:
            return None
        before = self.lease
        same = before.record is not None and before.record.epoch == record.epoch
        return before.pausing_since_s if same and before.pausing_since_s is not None else now_s

    def _set(self, lease: Lease) -> None:
        before, self.lease = self.lease, lease
        if lease.free_since_s is not None and before.free_since_s is None:
            self._doubt()
        if (
            (before.record is None) != (lease.record is None)
            or (
                before.record is not None
                and lease.record is not None
                and (before.record.holder, before.record.epoch)
                != (lease.record.holder, lease.record.epoch)
            )
            or before.free_since_s != lease.free_since_s
            or before.pausing_since_s != lease.pausing_since_s
        ):
            self._wake()
