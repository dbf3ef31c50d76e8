"""The pooler's report, written when it changes, and once more when it may have been undone."""

from __future__ import annotations

import asyncio
import logging

import pgcluster
from pgcluster.api.errors import PgClusterError
from pgcluster.api.reports import PoolerReport
from pgcluster.clock import monotonic_s
from pgcluster.pooler.source import Source

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.2
_AFTER_FAILURE_S = 2.0
# A write without an answer may take effect until then, and undo what was written after it.
_UNSURE_S = 30.0


class Reporter:
    """Keeps the API's copy of `current` up to date."""

    def __init__(self, source: Source, first: PoolerReport) -> None:
        self._source = source
        self._written: PoolerReport | None = None
        self.current = first.model_copy(update={"agent_version": pgcluster.__version__})

    async def run(self) -> None:
        """For ever."""
        said = ""
        unsure_until_s: float | None = None
        while True:
            report = self.current
            if unsure_until_s is not None and monotonic_s() >= unsure_until_s:
                unsure_until_s, self._written = None, None
            if report == self._written:
                await asyncio.sleep(_LOOK_EVERY_S)
                continue
            try:
                await self._source.report(report)
            except PgClusterError as error:
                if str(error) != said:
                    log.info("the report was not written: %s", error)
                said = str(error)
                unsure_until_s = monotonic_s() + _UNSURE_S
                await asyncio.sleep(_AFTER_FAILURE_S)
            else:
                said = ""
                self._written = report
                await asyncio.sleep(_LOOK_EVERY_S)
