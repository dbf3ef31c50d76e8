"""A restart of postgres in place, where parameters wait for that and the operator says that it may.

The pod stays. A standby just stops and starts. A primary keeps its Lease, and the pools hold their
clients meanwhile; the loop starts postgres again by the start table, as after a crash.
"""

from __future__ import annotations

import logging
from typing import Protocol

from pgcluster.api.errors import RetryError
from pgcluster.clock import monotonic_s
from pgcluster.node.instance import Instance
from pgcluster.postgres.local import Observation

log = logging.getLogger(__name__)

# After an attempt that came to nothing.
_AGAIN_S = 15.0


class Holds(Protocol):
    """What holds the clients of the pools (node/handover.py)."""

    async def hold(self) -> str | None:
        """Announce, and wait until the pools hold their clients; or why that cannot be had."""

    async def let_go(self) -> None:
        """Withdraw the announcement: the pools go on when the primary answers."""


class Restart:
    """The restarts of one instance."""

    def __init__(self, instance: Instance, pools: Holds) -> None:
        self._instance = instance
        self._pools = pools
        self._holding = False
        self._not_before_s = 0.0

    def due(self, observed: Observation) -> bool:
        """Whether this instance is to restart now; each request is fulfilled once."""
        order = self._instance.config.restart
        return (
            order is not None
            and order.instance == self._instance.me
            and order.request != self._instance.restarted
            and bool(observed.pending_restart)
        )

    async def standby(self, observed: Observation) -> None:
        """Stop; the loop starts it again, and it streams from where it was."""
        self._begin(observed)
        await self._instance.stop_repmgrd()
        await self._instance.stop_postgres()

    async def primary(self, observed: Observation) -> None:
        """Hold the pools, then stop; the loop starts it again under the same Lease.

        A checkpoint comes first, and is not the clients' time.
        """
        instance = self._instance
        if monotonic_s() < self._not_before_s:
            return
        self._not_before_s = monotonic_s() + _AGAIN_S
        if (reason := await self._pools.hold()) is not None:
            log.info("no restart in place yet: %s", reason)
            return
        self._holding = True
        try:
            if not instance.lease.holding():
                raise RetryError("the Lease was lost before the restart")
            self._begin(observed)
            await instance.stop_repmgrd()
            await instance.stop_postgres(checkpoint=False)
        except BaseException:
            instance.restarted = None
            await self.over()
            raise
        # It goes on writing in a moment: the end of its WAL is not the cluster's.
        instance.final_point = None

    async def over(self) -> None:
        """postgres answers again, or nothing has come of it: let the clients go on."""
        if not self._holding:
            return
        try:
            await self._pools.let_go()
        except RetryError as error:
            # The next look tries again, and the pools do not wait for ever.
            log.info("the pools were not let go: %s", error)
            return
        self._holding = False

    def _begin(self, observed: Observation) -> None:
        instance = self._instance
        order = instance.config.restart
        instance.restarted = order.request if order else None
        waiting = ", ".join(observed.pending_restart)
        instance.say("stopping", f"restarting postgres for {waiting}")
        log.info("restarting postgres in place for %s", waiting)
