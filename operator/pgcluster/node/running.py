"""While postgres runs: see to the duties of its role, and to that it has the right one."""

from __future__ import annotations

import asyncio
import logging

from pgcluster.clock import monotonic_s
from pgcluster.node.instance import Instance
from pgcluster.node.metrics import Metrics
from pgcluster.node.promotion import host
from pgcluster.postgres.local import Observation
from pgcluster.topology.election import Elected, elect

log = logging.getLogger(__name__)

_CYCLE_S = 1.0
_WAITING_CYCLE_S = 0.5
# repmgrd's own election comes first; these are for when it came to nothing.
_WATCHDOG_S = 4.0
_PROMOTE_AFTER_GATE_S = 3.0
_PROMOTE_GIVE_UP_S = 30.0
_FOLLOW_AFTER_S = 3.0
_REJOIN_AFTER_S = 20.0


class Running:
    """The running half of the agent's loop."""

    def __init__(self, instance: Instance, metrics: Metrics) -> None:
        self._instance = instance
        self._metrics = metrics
        self._lease_free_since_s: float | None = None
        self._holding_since_s: float | None = None
        self._adrift_since_s: float | None = None
        self._followed_s = 0.0
        self._settled_epoch: int | None = None
        self._settling: asyncio.Task[None] | None = None

    async def cycle(self) -> float:
        """Look, decide, do one thing; returns the seconds until the next look."""
        instance = self._instance
        if instance.server.fence.fenced:
            # The fence has struck; see to it that nothing is left, then start anew.
            await instance.server.stop(fast=False)
            return 0.0
        observed = await instance.server.local.observe()
        instance.standing.see(observed)
        instance.standing.holding = instance.lease.holding()
        self._metrics.observe(instance.standing)
        if observed.in_recovery:
            await instance.look_around(primary=False)
            return await self._standby(observed)
        if instance.lease.holding():
            return await self._primary(observed)
        return await self._unlawful()

    async def _unlawful(self) -> float:
        """postgres accepts writes, but the Lease is not ours: stop it before anything else."""
        instance = self._instance
        log.warning("postgres runs as a primary without the Lease: stopping it")
        instance.server.data.put_standby_signal()
        await instance.stop_at_once()
        instance.must_rejoin = True
        instance.say("fenced", "postgres ran as a primary without the Lease")
        return 0.0

    # --- primary ------------------------------------------------------------------------------

    async def _primary(self, observed: Observation) -> float:
        instance = self._instance
        duties = instance.duties
        self._lease_free_since_s = self._holding_since_s = self._adrift_since_s = None
        instance.rewind_failed = False
        if instance.promotion.note(observed):
            duties.forget()
        await instance.look_around(primary=True)
        await instance.point_pools()
        if self._settled_epoch != instance.lease.epoch:
            # Not waited for: with large buffers it takes minutes.
            self._settling = asyncio.create_task(instance.server.settle(), name="settle")
            self._settled_epoch = instance.lease.epoch
        await duties.claim_label()
        await duties.ensure_internal()
        await duties.ensure_primary_row()
        await instance.keep_repmgrd()
        await duties.drop_stale_slots()
        await instance.server.data.remove_aside()
        await duties.ensure_declared()
        instance.standing.failed_objects = duties.failed_objects
        instance.standing.registered = True
        instance.say("running", "primary")
        return _CYCLE_S

    # --- standby ------------------------------------------------------------------------------

    async def _standby(self, observed: Observation) -> float:
        instance = self._instance
        lease = instance.lease.view
        if instance.promotion.under_way or lease is None:
            return _WAITING_CYCLE_S
        instance.server.fence.disarm()
        now_s = monotonic_s()
        if instance.lease.holding():
            return await self._promote_when_due(now_s)
        self._holding_since_s = None
        if lease.free(now_s):
            return await self._watchdog(now_s)
        self._lease_free_since_s = None
        holder = lease.record.holder
        if holder == instance.me:
            # Ours by name but not renewed by this process: it runs out, or the gate takes it.
            return _WAITING_CYCLE_S
        if observed.streaming and self._streams_from(observed, holder):
            await self._attached(holder)
            return _CYCLE_S
        return await self._reattach(holder, now_s)

    def _streams_from(self, observed: Observation, holder: str) -> bool:
        instance = self._instance
        return observed.upstream_host in (
            host(holder, instance.config),
            instance.members.addresses().get(holder),
        )

    async def _attached(self, holder: str) -> None:
        instance = self._instance
        self._adrift_since_s = None
        instance.rewind_failed = False
        instance.promotion.all_well(holder)
        instance.standing.upstream = holder
        await instance.duties.ensure_standby_row(holder)
        instance.standing.registered = True
        instance.say("running", "streaming")
        await instance.keep_repmgrd()
        await instance.duties.drop_own_slots()
        await instance.server.data.remove_aside()

    async def _reattach(self, holder: str, now_s: float) -> float:
        """Not streaming from the primary: repmgrd mends that first, then this agent, harder."""
        instance = self._instance
        if self._adrift_since_s is None:
            self._adrift_since_s = self._followed_s = now_s
        adrift_s = now_s - self._adrift_since_s
        if adrift_s < _FOLLOW_AFTER_S or not await instance.promotion.ask(holder):
            return _WAITING_CYCLE_S
        if adrift_s > _REJOIN_AFTER_S:
            log.warning("following %s came to nothing: rejoining it", holder)
            await instance.stop_repmgrd()
            await instance.stop_postgres()
            self._adrift_since_s = None
            instance.must_rejoin = True
            return 0.0
        if now_s - self._followed_s >= _FOLLOW_AFTER_S:
            await instance.duties.repmgr.standby_follow(holder)
            self._followed_s = monotonic_s()
        return _WAITING_CYCLE_S

    async def _promote_when_due(self, now_s: float) -> float:
        """The Lease is ours and repmgr has not promoted: do it, or let another try."""
        if self._holding_since_s is None:
            self._holding_since_s = now_s
        waited_s = now_s - self._holding_since_s
        if waited_s > _PROMOTE_GIVE_UP_S:
            log.warning("the promotion came to nothing: releasing the Lease")
            self._holding_since_s = None
            await self._instance.lease.release()
        elif waited_s >= _PROMOTE_AFTER_GATE_S:
            await self._promote()
        return _WAITING_CYCLE_S

    async def _watchdog(self, now_s: float) -> float:
        """Nobody holds the Lease: where repmgrd's one election came to nothing, hold another."""
        instance = self._instance
        view = instance.lease.view
        if self._lease_free_since_s is None:
            self._lease_free_since_s = now_s
        if (
            view is None
            or now_s - self._lease_free_since_s < _WATCHDOG_S
            or not instance.config.failover.automatic
        ):
            return _WAITING_CYCLE_S
        outcome = elect(
            {**await instance.members.candidates(), instance.me: instance.candidate()},
            members=instance.config.instances,
            mark=view.record.mark,
            maximum_lag_bytes=instance.config.failover.maximum_lag_bytes,
        )
        instance.say("running", f"no primary: {outcome.reason}")
        if isinstance(outcome, Elected) and outcome.pod == instance.me:
            log.warning("no primary, and nobody is promoting: %s", outcome.reason)
            await self._promote()
        return _WAITING_CYCLE_S

    async def _promote(self) -> None:
        """Promote by repmgr, whose metadata then says so; where it refuses, past it.

        repmgr refuses, for instance, where its own table still names an active primary. The gate
        has the last word on both ways.
        """
        instance = self._instance
        result = await instance.duties.repmgr.standby_promote()
        if result.status != 0:
            done, message = await instance.promotion.promote()
            log.log(logging.INFO if done else logging.WARNING, "promotion: %s", message)
