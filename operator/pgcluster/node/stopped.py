"""While postgres does not run: look up the start table and do what it says."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import replace

from pgcluster.api.errors import RetryError
from pgcluster.clock import monotonic_s
from pgcluster.node.instance import Instance
from pgcluster.node.promotion import host
from pgcluster.node.server import TooSlow
from pgcluster.node.space import worth_handing_over
from pgcluster.node.start import (
    Bootstrap,
    Clone,
    DataDirectory,
    Decision,
    Refuse,
    Rejoin,
    StartFacts,
    StartPrimary,
    StartStandby,
    TakeLease,
    Wait,
    decide_start,
)
from pgcluster.render import repmgr as render_repmgr
from pgcluster.topology.lease import LeaseRecord

log = logging.getLogger(__name__)

# A postmaster that keeps dying in place is somebody else's turn.
_CRASHES_IN_PLACE = 3
_CRASH_WINDOW_S = 60.0
# A recovery in place loses nothing, but another instance may take over before clients give up.
_RECOVERY_S = 60.0


class Stopped:
    """The stopped half of the agent's loop."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._crashes_s: list[float] = []

    async def cycle(self) -> float:
        """Look, decide, do one thing; returns the seconds until the next look."""
        instance = self._instance
        if instance.in_service:
            await self._ended()
        if monotonic_s() < instance.hands_off_until_s:
            instance.say("waiting", "postgres was stopped for a hand-over, or by a person")
            return 1.0
        instance.rest(await instance.server.control())
        if (reason := self._held()) is not None:
            instance.say("maintenance", reason)
            return 1.0
        facts = await self._facts()
        decision = decide_start(facts)
        if decision.reason != instance.standing.reason:
            log.info("start: %s", decision.reason, extra={"decision": type(decision).__name__})
        if isinstance(decision, Wait | Refuse) and instance.lease.holding():
            await instance.lease.release()
        return await self._act(decision, facts.lease.record if facts.lease else None)

    def _held(self) -> str | None:
        """Why postgres stays down; never that of whoever holds the Lease, who is the primary."""
        instance = self._instance
        lease = instance.lease.view
        if instance.lease.holding() or (lease is not None and lease.record.holder == instance.me):
            return None
        return instance.config.held(instance.me)

    # --- how it came to this ------------------------------------------------------------------

    async def _ended(self) -> None:
        """postgres ended by itself, or was fenced."""
        instance = self._instance
        instance.in_service = False
        await instance.duties.close()
        await instance.server.local.close()
        fenced = instance.server.fence.fenced
        instance.server.fence.disarm()
        if fenced:
            instance.lease.drop()
            instance.say("fenced", "the Lease was not renewed in time")
            instance.events.post(
                instance.config,
                "Fenced",
                f"{instance.me} could not renew the Lease in time and was stopped",
                normal=False,
            )
            return
        log.warning("postgres ended", extra={"status": instance.server.child.last_status})
        if instance.lease.holding():
            await self._count_crash()

    async def _count_crash(self) -> None:
        """A primary ended or did not start: once more in place, or another instance's turn?"""
        instance = self._instance
        now_s = monotonic_s()
        self._crashes_s = [at for at in self._crashes_s if now_s - at < _CRASH_WINDOW_S] + [now_s]
        failover = instance.config.failover
        in_place = failover.on_crash == "restart" and len(self._crashes_s) < _CRASHES_IN_PLACE
        if in_place or instance.config.instances == 1 or not failover.automatic:
            return
        with contextlib.suppress(OSError):
            await instance.space.look()
        if not worth_handing_over(instance.space.seen, instance.members.reports()):
            log.warning("the volume is full, and so are those of the others: staying the primary")
            return
        await self._give_up()

    async def _give_up(self) -> None:
        log.warning("giving the Lease up for another instance")
        self._instance.server.data.put_standby_signal()
        await self._instance.lease.release()

    # --- the table ----------------------------------------------------------------------------

    async def _facts(self) -> StartFacts:
        instance = self._instance
        control = instance.standing.control
        lease = instance.lease.view
        holding = instance.lease.holding()
        facts = StartFacts(
            me=instance.me,
            members=instance.config.instances,
            now_s=monotonic_s(),
            agent_started_s=instance.started_s,
            data=None
            if control is None
            else DataDirectory(
                control.system_identifier, control.point, control.was_primary, control.clean
            ),
            lease=lease,
            recorded_system_identifier=instance.config.system_identifier,
            holding=holding,
            maximum_lag_bytes=instance.config.failover.maximum_lag_bytes,
            forced=instance.config.failover.forced,
            rewind_failed=instance.rewind_failed,
            must_rejoin=instance.must_rejoin,
        )
        if lease is None or holding:
            return facts
        if lease.held_by_other(instance.me, facts.now_s):
            serves = await instance.promotion.ask(lease.record.holder, settled=control is not None)
            return replace(facts, holder_serves=serves)
        peers = await instance.members.candidates(without=lease.record.holder)
        return replace(facts, peers=peers, now_s=monotonic_s())

    async def _act(self, decision: Decision, decided_on: LeaseRecord | None) -> float:
        instance = self._instance
        match decision:
            case Refuse():
                instance.say("refused", decision.reason)
                return 5.0
            case TakeLease():
                instance.say("waiting", decision.reason)
                accepted = instance.standing.point if decision.forced else None
                control = instance.standing.control
                writes = control is not None and control.was_primary
                took = await instance.lease.take(decided_on, accepted=accepted, writes=writes)
                return 0.0 if took else 0.5
            case Bootstrap():
                await self._bootstrap(decision, decided_on)
            case StartPrimary():
                await self._start(decision, primary=True)
            case StartStandby():
                instance.standing.upstream = decision.upstream
                await self._start(decision, primary=False)
            case Rejoin():
                await self._rejoin(decision)
            case Clone():
                await self._clone(decision)
            case _:
                instance.say("waiting", decision.reason)
                return 0.5
        return 0.0

    # --- what it may say ----------------------------------------------------------------------

    async def _bootstrap(self, decision: Bootstrap, decided_on: LeaseRecord | None) -> None:
        instance = self._instance
        instance.say("bootstrapping", decision.reason)
        await instance.server.data.initdb()
        instance.standing.replaced()
        instance.standing.control = await instance.server.control()
        # The identity is on record before the first start: from here on nobody else may initdb.
        if not await instance.lease.take(decided_on, writes=True):
            raise RetryError("the new cluster's identity could not be recorded in the Lease")
        log.info("made a new cluster")

    async def _start(self, decision: Decision, *, primary: bool) -> None:
        instance = self._instance
        instance.say("starting", decision.reason)
        until_s = instance.lease.valid_until_s if primary else None
        if primary and until_s is None:
            raise RetryError("the Lease was lost before the start")
        others = instance.config.instances > 1 and instance.config.failover.automatic
        bounded = primary and others and not instance.recovers_alone
        try:
            observed = await instance.server.start(
                primary_until_s=until_s, within_s=_RECOVERY_S if bounded else None
            )
        except TooSlow as error:
            # Should it come back here, then because nobody else took over.
            log.warning("%s", error)
            instance.recovers_alone = True
            await self._give_up()
            return
        except RetryError as error:
            instance.start_failed(error)
            if primary:
                await self._count_crash()
            raise
        instance.serving(observed)

    async def _rejoin(self, decision: Rejoin) -> None:
        instance = self._instance
        instance.say("rewinding", decision.reason)
        instance.server.data.put_standby_signal()
        # A rewind is tried once: a second one on a half-started result can look like success and
        # never attach. Whatever goes wrong from here on is mended by a clone.
        instance.rewind_failed = True
        instance.rejoining = True
        upstream = host(decision.upstream, instance.config)
        try:
            conninfo = render_repmgr.conninfo(upstream, instance.config)
            result = await instance.duties.repmgr.node_rejoin(conninfo)
        finally:
            instance.rejoining = False
        if result.status != 0 or not instance.server.running:
            await instance.stop_at_once()
            instance.must_rejoin = True
            instance.events.post(
                instance.config,
                "RejoinFailed",
                f"{instance.me}: repmgr node rejoin failed, cloning instead: {result.last_line}",
                normal=False,
            )
            raise RetryError(f"repmgr node rejoin failed: {result.last_line}")
        instance.must_rejoin = False
        instance.standing.upstream = decision.upstream
        instance.serving(await instance.server.local.observe())

    async def _clone(self, decision: Clone) -> None:
        instance = self._instance
        instance.say("cloning", decision.reason)

        def progress(text: str | None) -> None:
            instance.standing.progress = text

        await instance.server.data.clone(
            host(decision.upstream, instance.config), progress=progress
        )
        instance.standing.replaced()
        instance.standing.upstream = decision.upstream
        instance.rewind_failed = False
        instance.must_rejoin = False
