"""While postgres runs: see to the duties of its role, and to that it has the right one."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from pgcluster.api.errors import RetryError
from pgcluster.clock import monotonic_s
from pgcluster.node.handover import Handover
from pgcluster.node.instance import Instance
from pgcluster.node.metrics import Metrics
from pgcluster.node.promotion import host
from pgcluster.node.restart import Restart
from pgcluster.node.retention import wal_gone
from pgcluster.node.synchronous import as_primary
from pgcluster.postgres.local import Observation
from pgcluster.render import repmgr as render_repmgr
from pgcluster.topology.election import Elected, Rules, elect
from pgcluster.topology.lease import HANDOVER_S, LeaseView

log = logging.getLogger(__name__)

_CYCLE_S = 1.0
_WAITING_CYCLE_S = 0.5
# Where the Lease was given up repmgrd's own election comes first; these are for when it came to
# nothing. Where it ran out repmgrd is slow by construction: each of its probes of a lost node takes
# its whole timeout.
_WATCHDOG_S = 1.5
_PROMOTE_AFTER_GATE_S = 3.0
# How long an instance that is still reading its WAL is waited for.
_PATIENCE_S = 10.0
# A postgres that does not answer over its socket for so long hangs.
_HUNG_S = 15.0
_PROMOTE_GIVE_UP_S = 30.0
_FOLLOW_AFTER_S = 2.0
# `repmgr standby switchover --siblings-follow` pauses repmgrd and has the siblings follow by
# itself; it counts as failed where one follows already.
_FOLLOW_AFTER_REPMGR_S = 15.0
_PLANNED_CYCLE_S = 0.1
_REJOIN_AFTER_S = 20.0


class Running:
    """The running half of the agent's loop."""

    def __init__(
        self, instance: Instance, handover: Handover, restart: Restart, metrics: Metrics
    ) -> None:
        self._instance = instance
        self._handover = handover
        self._restart = restart
        self._metrics = metrics
        self._lease_free_since_s: float | None = None
        self._holding_since_s: float | None = None
        self._adrift_since_s: float | None = None
        self._followed_s = 0.0
        # Whom it was told to follow since it last streamed.
        self._followed: str | None = None
        # Whom the last primary was to hand over to, as the Lease said.
        self._heir: str | None = None
        # The epoch and the timeline of the last checkpoint that a promotion asked for.
        self._settled: tuple[int, int] | None = None
        self._settling: asyncio.Task[None] | None = None

    async def cycle(self) -> float:
        """Look, decide, do one thing; returns the seconds until the next look."""
        instance = self._instance
        if instance.server.fence.fenced:
            # The fence has struck; see to it that nothing is left, then start anew.
            await instance.server.stop(fast=False)
            return 0.0
        armings = instance.server.fence.armings
        steady = not instance.promotion.under_way
        observed = await self._look()
        instance.standing.see(observed)
        await instance.parameters.see(observed, instance.server.local)
        await self._restart.over()
        instance.synchronous.loaded(observed.synchronous)
        instance.standing.holding = instance.lease.holding()
        instance.standing.failsafe = instance.lease.failsafe_since_s is not None
        self._metrics.observe(instance.standing)
        if observed.in_recovery:
            await instance.look_around(primary=False)
            if instance.promotion.under_way:
                return _WAITING_CYCLE_S
            if not steady or instance.server.fence.armings != armings:
                # What was seen may be of the time before a promotion, whose fence stays armed.
                return 0.0
            return await self._standby(observed)
        if instance.lease.holding():
            return await self._primary(observed)
        return await self._unlawful()

    async def _look(self) -> Observation:
        """What postgres says; one that hangs is ended, so that the start table has its say."""
        instance = self._instance
        try:
            observed = await instance.server.local.observe()
        except RetryError:
            mute_s = monotonic_s() - instance.answered_s
            if mute_s > _HUNG_S and instance.in_service:
                instance.events.post(
                    instance.config,
                    "PostgresHangs",
                    f"postgres on {instance.me} has not answered for {mute_s:.0f} s: stopping it",
                    normal=False,
                )
                await instance.server.stop(fast=False)
            raise
        instance.answered_s = monotonic_s()
        return observed

    async def _unlawful(self) -> float:
        """postgres accepts writes, but the Lease is not ours: stop it before anything else."""
        instance = self._instance
        log.warning("postgres runs as a primary without the Lease: stopping it")
        # On a full volume it may fail; the next start as a standby will not do without.
        with contextlib.suppress(RetryError):
            instance.server.data.put_standby_signal()
        # Whether its history has parted from the cluster's is for the start table to find out.
        await instance.stop_at_once()
        instance.say("fenced", "postgres ran as a primary without the Lease")
        return 0.0

    # --- primary ------------------------------------------------------------------------------

    async def _primary(self, observed: Observation) -> float:
        instance = self._instance
        duties = instance.duties
        self._lease_free_since_s = self._holding_since_s = self._adrift_since_s = None
        instance.rewind_failed = False
        instance.lost_wal = None
        if instance.promotion.note(observed):
            duties.forget()
        await instance.look_around(primary=True)
        await instance.point_pools()
        await instance.heed_demands(primary=True)
        if self._restart.due(observed):
            await self._restart.primary(observed)
            return _WAITING_CYCLE_S if instance.server.running else 0.0
        self._keep_synchronous(observed)
        began = (instance.lease.epoch, observed.point.timeline)
        if self._settled != began:
            # Not waited for: with large buffers it takes minutes.
            self._settling = asyncio.create_task(instance.server.settle(), name="settle")
            self._settled = began
        await duties.claim_label()
        await duties.ensure_internal()
        await duties.ensure_primary_row()
        await instance.keep_repmgrd()
        await duties.drop_stale_slots()
        await instance.server.data.remove_aside()
        if await instance.importing.see_to():
            await duties.ensure_declared()
        instance.standing.failed_objects = duties.failed_objects
        instance.standing.registered = True
        instance.say("running", "primary")
        self._handover.obey()
        return _CYCLE_S

    def _keep_synchronous(self, observed: Observation) -> None:
        """Have commits wait for as many standbys as they should (node/synchronous.py)."""
        instance = self._instance
        lease = instance.lease.view
        before = instance.synchronous.quorums(instance.config)
        if instance.synchronous.lead(
            instance.config, observed.standbys, lease.record.quorums if lease else None
        ):
            instance.write_configuration()
            instance.reload()
        if instance.synchronous.quorums(instance.config) != before:
            instance.lease.renew_soon()
        full = as_primary(instance.config, instance.me)
        there = sum(pod in observed.standbys for pod in full.members)
        instance.standing.synchronous_missing = max(0, full.standbys - there)

    # --- standby ------------------------------------------------------------------------------

    async def _standby(self, observed: Observation) -> float:
        instance = self._instance
        lease = instance.lease.view
        if lease is None:
            return _WAITING_CYCLE_S
        instance.server.fence.disarm()
        await instance.importing.watch()
        now_s = monotonic_s()
        if instance.lease.holding():
            return await self._promote_when_due(now_s)
        if reason := instance.config.held(instance.me):
            log.info("stopping postgres: %s", reason)
            await instance.hold(reason)
            return 0.0
        if (
            instance.synchronous.follow(instance.config, lease.record.quorums)
            and instance.write_configuration()
        ):
            instance.reload()
        self._holding_since_s = None
        if lease.record.successor is not None:
            self._heir = lease.record.successor
        if lease.free(now_s):
            return await self._watchdog(now_s)
        self._lease_free_since_s = None
        delay_s = await self._beside(observed, lease, now_s)
        # Awake when the Lease runs out, so that nobody waits for this instance.
        return max(0.02, min(delay_s, lease.expires_at_s() - monotonic_s() + 0.02))

    async def _beside(self, observed: Observation, lease: LeaseView, now_s: float) -> float:
        """Another instance holds the Lease: follow it."""
        instance = self._instance
        holder = lease.record.holder
        if holder == instance.me:
            # Ours by name but not renewed by this process: it runs out, or the gate takes it.
            return _WAITING_CYCLE_S
        planned = lease.record.pausing and lease.record.successor is not None
        if planned:
            await instance.quieten_repmgrd()
        else:
            await instance.heed_demands(primary=False)
            await instance.duties.encrypt_stream()
            if self._restart.due(observed):
                await self._restart.standby(observed)
                return 0.0
        if observed.streaming and self._streams_from(observed, holder):
            await self._attached(holder, planned=planned)
            return _CYCLE_S
        return await self._reattach(holder, now_s)

    def _streams_from(self, observed: Observation, holder: str) -> bool:
        instance = self._instance
        return observed.upstream_host in (
            host(holder, instance.config),
            instance.members.addresses().get(holder),
        )

    async def _attached(self, holder: str, *, planned: bool) -> None:
        """Streaming from the primary; `planned`: which is about to stop, so that repmgrd waits."""
        instance = self._instance
        self._adrift_since_s = self._followed = None
        instance.rewind_failed = False
        instance.lost_wal = None
        instance.promotion.all_well(holder)
        instance.standing.upstream = holder
        await instance.duties.ensure_standby_row(holder)
        instance.standing.registered = True
        instance.say("running", "streaming")
        if not planned:
            await instance.keep_repmgrd()
        await instance.duties.drop_own_slots()
        await instance.server.data.remove_aside()

    async def _reattach(self, holder: str, now_s: float) -> float:
        """Not streaming from the primary: repmgrd mends that first, then this agent, harder."""
        instance = self._instance
        follow_after_s = self._follow_after_s(holder)
        if self._adrift_since_s is None:
            self._adrift_since_s = self._followed_s = now_s
            instance.promotion.suspect()
        adrift_s = now_s - self._adrift_since_s
        if adrift_s < follow_after_s or not await instance.promotion.ask(holder):
            soon = follow_after_s == 0.0 and adrift_s < HANDOVER_S
            return _PLANNED_CYCLE_S if soon else _WAITING_CYCLE_S
        if adrift_s > _REJOIN_AFTER_S:
            log.warning("following %s came to nothing: rejoining it", holder)
            await instance.stop_repmgrd()
            await instance.stop_postgres()
            self._adrift_since_s = None
            instance.must_rejoin = True
            return 0.0
        at_once = follow_after_s == 0.0 and self._followed != holder
        if at_once or now_s - self._followed_s >= _FOLLOW_AFTER_S:
            if reason := await self._wal_gone(holder):
                # A rejoin finds no divergence and would start it again and again.
                log.warning("cloning anew: %s", reason)
                await instance.stop_repmgrd()
                await instance.stop_postgres()
                self._adrift_since_s = None
                instance.lost_wal = reason
                instance.must_rejoin = instance.rewind_failed = True
                return 0.0
            await instance.duties.repmgr.standby_follow(holder)
            self._followed_s, self._followed = monotonic_s(), holder
        return _WAITING_CYCLE_S

    def _follow_after_s(self, holder: str) -> float:
        """How long somebody else is left to have this standby follow a new primary.

        After a planned hand-over nobody but this agent does, unless it was repmgr's.
        """
        if holder != self._heir:
            return _FOLLOW_AFTER_S
        return _FOLLOW_AFTER_REPMGR_S if self._instance.repmgrd_watch.paused else 0.0

    async def _wal_gone(self, holder: str) -> str | None:
        point = self._instance.standing.point
        if point is None or point.lsn.value == 0:
            return None
        config = self._instance.config
        return await wal_gone(render_repmgr.conninfo(host(holder, config), config), point.lsn)

    async def _promote_when_due(self, now_s: float) -> float:
        """The Lease is ours and repmgr has not promoted: do it, or let another try."""
        if self._holding_since_s is None:
            self._holding_since_s = now_s
        waited_s = now_s - self._holding_since_s
        if waited_s > _PROMOTE_GIVE_UP_S:
            log.warning("the promotion came to nothing: releasing the Lease")
            self._holding_since_s = None
            await self._instance.lease.release()
        elif self._instance.lease.taken_over:
            await self._promote_past_repmgr()
        elif waited_s >= _PROMOTE_AFTER_GATE_S:
            await self._promote()
        return _WAITING_CYCLE_S

    async def _watchdog(self, now_s: float) -> float:
        """Nobody holds the Lease: where repmgrd's one election came to nothing, hold another."""
        instance = self._instance
        view = instance.lease.view
        if self._lease_free_since_s is None:
            self._lease_free_since_s = now_s
        free_s = now_s - self._lease_free_since_s
        if view is None:
            return _WAITING_CYCLE_S
        kept_for = view.kept_for(now_s)
        if kept_for == instance.me:
            # The first attempt, which does not wait for this loop, came to nothing.
            await instance.succeed()
            return _PLANNED_CYCLE_S
        if kept_for is not None:
            instance.say("running", f"the primary hands over to {kept_for}")
            return _WAITING_CYCLE_S
        patience_s = HANDOVER_S if view.record.handover else _WATCHDOG_S
        if view.released() and free_s < patience_s:
            return min(_WAITING_CYCLE_S, patience_s - free_s)
        rules = Rules.of(
            view.record,
            members=instance.config.instances,
            maximum_lag_bytes=instance.config.failover.maximum_lag_bytes,
            forced=instance.config.failover.forced,
        )
        if not instance.config.failover.automatic and rules.forced is None:
            return _WAITING_CYCLE_S
        others = await instance.members.candidates(without=view.record.holder)
        outcome = elect(
            {**others, instance.me: instance.candidate()}, rules, patient=free_s < _PATIENCE_S
        )
        instance.say("running", f"no primary: {outcome.reason}")
        if isinstance(outcome, Elected) and outcome.pod == instance.me:
            log.warning("no primary, and nobody is promoting: %s", outcome.reason)
            instance.promotion.suspect()
            if view.released():
                await self._promote()
            else:
                await self._promote_past_repmgr()
        return _WAITING_CYCLE_S

    async def _promote(self) -> None:
        """Promote by repmgr, whose metadata then says so; where it refuses, past it.

        repmgr refuses, for instance, where its own table still names an active primary. The gate
        has the last word on both ways.
        """
        result = await self._instance.duties.repmgr.standby_promote()
        if result.status != 0:
            await self._promote_past_repmgr()

    async def _promote_past_repmgr(self) -> None:
        """Promote without `repmgr standby promote`, which would wait for a lost node first.

        Its metadata is put right by the duties of a primary.
        """
        instance = self._instance
        done, message = await instance.promotion.promote()
        log.log(logging.INFO if done else logging.WARNING, "promotion: %s", message)
        if done:
            await instance.promoted(
                f"{instance.me} was promoted by its agent, which did not wait for the lost primary"
            )
