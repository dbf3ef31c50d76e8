"""The pooler's report, written when it changes and only then."""

from __future__ import annotations

import asyncio
import logging

import pgcluster
from pgcluster.api.errors import PgClusterError
from pgcluster.api.reports import PoolerReport
from pgcluster.pooler.source import Source

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.2
_AFTER_FAILURE_S = 2.0


class Reporter:
    """Keeps the API's copy of `current` up to date."""

    def __init__(self, source: Source, first: PoolerReport) -> None:
        self._source = source
        self._written: PoolerReport | None = None
        self.current = first.model_copy(update={"agent_version": pgcluster.__version__})

    async def run(self) -> None:
        """For ever."""
        said = ""
        while True:
            report = self.current
            if report == self._written:
                await asyncio.sleep(_LOOK_EVERY_S)
                continue
            try:
                await self._source.report(report)
            except PgClusterError as error:
                if str(error) != said:
                    log.info("the report was not written: %s", error)
                said = str(error)
                await asyncio.sleep(_AFTER_FAILURE_S)
            else:
                said = ""
                self._written = report
                await asyncio.sleep(_LOOK_EVERY_S)
