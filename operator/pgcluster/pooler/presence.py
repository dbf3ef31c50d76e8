"""Being heard by the standbys, too: the one that becomes the primary then knows who is there.

Without it a new primary would have to wait for each pooler to find it before it could tell which of
them went down together with its predecessor.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from pgcluster.pgbouncer.link import Link, LinkLost, Refused
from pgcluster.pooler.probe import QUESTION, Login, Target

log = logging.getLogger(__name__)

_OPEN_S = 2.0
_ANSWER_S = 2.0
_EVERY_S = 1.0


class Presence:
    """A connection to each of some servers, and a question a second; its answer is no matter."""

    def __init__(self, *, login: Login) -> None:
        self._login = login
        self._tasks: dict[Target, asyncio.Task[None]] = {}

    def show(self, targets: Collection[Target]) -> None:
        """Be heard by exactly these from now on."""
        for target in self._tasks.keys() - set(targets):
            self._tasks.pop(target).cancel()
        for target in set(targets) - self._tasks.keys():
            self._tasks[target] = asyncio.create_task(self._ask(target), name=f"at-{target[0]}")

    def close(self) -> None:
        """Be heard by nobody."""
        self.show(())

    async def _ask(self, target: Target) -> None:
        """For ever; a server that does not answer is the others' business."""
        while True:
            try:
                link = await Link.open(self._login(target), deadline_s=_OPEN_S)
                try:
                    while True:
                        await link.query(QUESTION, deadline_s=_ANSWER_S)
                        await asyncio.sleep(_EVERY_S)
                finally:
                    link.close()
            except (LinkLost, Refused) as error:
                log.debug("not heard by %s: %s", target[0], error)
            except Exception:
                log.exception("unexpected: please report it")
            await asyncio.sleep(_EVERY_S)
