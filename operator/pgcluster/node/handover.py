"""The planned hand-over of the primary: clients wait for a moment, and none gets an error.

Check, CHECKPOINT, announce (the pools hold their clients), wait until they do, stop in order, leave
the exact end of WAL in the Lease, give it up for the successor. Whatever fails before the Lease is
given up puts everything back: the announcement is withdrawn, and postgres goes on, or is started
again by the loop as this instance still holds the Lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal, LiteralString

from pgcluster.api import names
from pgcluster.api.config import SwitchoverConfig
from pgcluster.api.errors import PgClusterError, RetryError
from pgcluster.api.reports import HandoverReport
from pgcluster.api.wal import WalPoint
from pgcluster.clock import monotonic_s, utc_now
from pgcluster.node.draining import CONNECTIONS, Connection, undrained
from pgcluster.node.instance import Instance
from pgcluster.node.members import Status
from pgcluster.postgres.local import LocalPostgres
from pgcluster.topology.succession import Choice, Heir, choose

log = logging.getLogger(__name__)

_POLL_S = 0.015
# From the announcement to the stop: the pools wait for 15 s at most.
_ANNOUNCED_S = 10.0
_ANSWER_S = 1.0
# `repmgr standby switchover --dry-run` on the target, and the way there.
_REHEARSAL_S = 17.0
# Giving up now costs clients more than asking once more: postgres would have to start again.
_COMPLETE_S = 0.6
_COMPLETE_ASKED = 2
# A checkpoint this short leaves little for the shutdown to write; one more makes it so.
_SHORT_CHECKPOINT_S = 0.5
_CHECKPOINTS = 3
_CHOICES = 3
_ASK_AGAIN_S = 0.2
_ORDERED_CHECKPOINT_S = 300.0
_HURRIED_CHECKPOINT_S = 30.0
# Nobody but this starts postgres while the stop lasts.
_HANDS_OFF_S = 120.0

_STANDBYS: LiteralString = """
SELECT application_name AS pod,
       min(pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn))::bigint AS lag
FROM pg_stat_replication WHERE state = 'streaming' AND replay_lsn IS NOT NULL
GROUP BY application_name
"""

State = Literal["checking", "holding", "stopping", "done", "refused", "failed"]


class Abandoned(Exception):
    """The hand-over is given up; its text is a sentence. `begun`: something is to be put back."""

    def __init__(self, reason: str, *, begun: bool) -> None:
        super().__init__(reason)
        self.begun = begun


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether another instance takes over, and why (not)."""

    done: bool
    reason: str


def due(
    order: SwitchoverConfig | None, *, me: str, epoch: int, dealt: frozenset[tuple[str, int]]
) -> bool:
    """Whether the operator's order is to be carried out by this primary of `epoch`. Pure.

    One of another epoch has been carried out, or means nothing any more; one that was dealt with
    is not tried again.
    """
    if order is None or order.epoch != epoch or order.target == me:
        return False
    return (order.request, order.epoch) not in dealt


def interrupted(report: HandoverReport) -> HandoverReport:
    """What an agent that starts makes of its predecessor's report. Pure."""
    if not report.under_way:
        return report
    reason = f"the agent ended while it was {report.state}"
    return report.model_copy(update={"state": "failed", "reason": reason})


def heir(pod: str, lag_bytes: int | None, status: Status | None) -> Heir:
    """What is known of an instance: by what streams from here, and by its agent's word. Pure."""
    if status is None:
        return Heir(pod, lag_bytes, None)
    return Heir(
        pod,
        lag_bytes,
        status.candidate,
        follows_plans=status.follows_plans,
        disk_full=status.disk_full,
    )


class Handover:
    """The hand-overs of one instance, one at a time."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self._lock = asyncio.Lock()
        self._local = LocalPostgres(deadline_s=_ANSWER_S)
        self._order: asyncio.Task[None] | None = None
        self._dealt: frozenset[tuple[str, int]] = frozenset()
        self._recalled = False

    # --- who asks for it ----------------------------------------------------------------------

    def obey(self) -> None:
        """Carry out the operator's order, where there is one for this primary; not waited for."""
        instance = self._instance
        order, epoch = instance.config.switchover, instance.lease.epoch
        if order is None or self._lock.locked() or not self._recalled:
            return
        if due(order, me=instance.me, epoch=epoch, dealt=self._dealt):
            self._dealt |= {(order.request, order.epoch)}
            self._order = asyncio.create_task(self._obey(order), name="switchover")

    async def _obey(self, order: SwitchoverConfig) -> None:
        outcome = await self.give(order.target, request=order.request, rehearse=True)
        # The loop takes it from here: as a standby of the successor, or as the primary again.
        self._instance.hands_off_until_s = 0.0
        self._instance.wake.set()
        log.info("switchover %s: %s", order.request, outcome.reason)

    async def leave(self) -> Outcome:
        """The pod is being stopped: hand over to the best standby, if there is one."""
        order = self._order
        if order is not None and not order.done():
            report = self._instance.standing.handover
            if report is not None and report.state == "checking":
                order.cancel()
            await asyncio.gather(order, return_exceptions=True)
        if not self._instance.lease.holding() or not self._instance.server.running:
            return Outcome(False, "this instance is not the primary any more")
        return await self.give(None)

    async def give(
        self, target: str | None, *, request: str | None = None, rehearse: bool = False
    ) -> Outcome:
        """Hand over to `target`, else to the best standby; False where nothing has changed.

        `rehearse`: have repmgr on the target try it first. Afterwards postgres stays down until the
        caller says otherwise (`hands_off_until_s`).
        """
        if self._lock.locked():
            return Outcome(False, "another hand-over is under way")
        async with self._lock:
            report = HandoverReport(
                request=request,
                target=target,
                epoch=self._instance.lease.epoch,
                state="checking",
                at=utc_now(),
            )
            return await self._attempt(report, lambda: self._give(target, rehearse=rehearse))

    async def hold(self) -> str | None:
        """Have the pools hold their clients for a restart of postgres in place; None once they do.

        Where it cannot be had, why not: then nothing has changed. To be ended by `let_go` within
        seconds: the pools do not wait for longer than 15 s.
        """
        if self._lock.locked():
            return "another hand-over is under way"
        async with self._lock:
            try:
                await self._checkpoint(_HURRIED_CHECKPOINT_S)
                await self._announce(None)
            except Abandoned as error:
                if error.begun:
                    await self.let_go()
                return str(error)
            except BaseException:
                await self.let_go()
                raise
        return None

    async def let_go(self) -> None:
        """Have the pools go on."""
        await self._instance.lease.withdraw()
        self._instance.handing_over = False
        await self._local.close()

    async def stop(self) -> str | None:
        """A person stops this primary: with the pools held, where a standby could take over; why
        they are not held."""
        choice = await self._choose(None)
        return choice.reason if choice.pod is None else await self.hold()

    # --- what became of it --------------------------------------------------------------------

    def recall(self, report: HandoverReport | None) -> None:
        """Take note of what a former process of this instance has reported: before that, no order
        is known to be new."""
        self._recalled = True
        if report is None or self._instance.standing.handover is not None:
            return
        self._instance.standing.handover = interrupted(report)
        if report.request is not None:
            self._dealt |= {(report.request, report.epoch)}

    def _say(self, state: State, reason: str = "", *, target: str | None = None) -> None:
        before = self._instance.standing.handover
        if before is None:
            return
        change: dict[str, Any] = {"state": state, "reason": reason, "at": utc_now()}
        if target is not None:
            change["target"] = target
        self._instance.standing.handover = before.model_copy(update=change)
        log.info("hand-over: %s", " ".join(word for word in (state, target, reason) if word))

    async def _attempt(
        self, report: HandoverReport, steps: Callable[[], Coroutine[Any, Any, str]]
    ) -> Outcome:
        """Take the steps, and put everything back where one of them fails."""
        instance = self._instance
        instance.standing.handover = report
        try:
            successor = await steps()
        except Abandoned as error:
            if error.begun:
                await self._put_back()
            self._say("failed" if error.begun else "refused", str(error))
            return Outcome(False, str(error))
        except asyncio.CancelledError:
            await self._put_back()
            self._say("failed", f"{instance.me} is being stopped")
            raise
        except Exception as error:
            await self._put_back()
            self._say("failed", str(error) or type(error).__name__)
            if not isinstance(error, PgClusterError):
                log.exception("unexpected: please report it")
            return Outcome(False, str(error))
        instance.handing_over = False
        self._say("done", f"{successor} takes over")
        return Outcome(True, f"{successor} takes over")

    async def _put_back(self) -> None:
        instance = self._instance
        instance.hands_off_until_s = 0.0
        await self.let_go()
        instance.wake.set()

    # --- the steps ----------------------------------------------------------------------------

    async def _give(self, target: str | None, *, rehearse: bool) -> str:
        instance = self._instance
        successor = await self._successor(target)
        self._say("checking", target=successor)
        if rehearse:
            await self._rehearse(successor)
        await self._checkpoint(_ORDERED_CHECKPOINT_S if rehearse else _HURRIED_CHECKPOINT_S)
        # What was true before a rehearsal and a checkpoint may be so no more.
        successor = await self._successor(successor if rehearse else target)
        self._say("holding", target=successor)
        announced_s = await self._announce(successor)
        if monotonic_s() - announced_s > _ANNOUNCED_S or not instance.lease.holding():
            raise Abandoned("it took too long to hold the pools", begun=True)
        self._say("stopping")
        await self._stop(successor)
        return successor

    async def _successor(self, target: str | None) -> str:
        """Who takes over; asked again where nobody can, since an answer may be lost."""
        for _ in range(_CHOICES - 1):
            if (choice := await self._choose(target)).pod is not None:
                return choice.pod
            await asyncio.sleep(_ASK_AGAIN_S)
        choice = await self._choose(target)
        if choice.pod is None:
            raise Abandoned(choice.reason, begun=False)
        return choice.pod

    async def _choose(self, target: str | None) -> Choice:
        instance = self._instance
        if not instance.standing.primary or not instance.lease.holding():
            return Choice(None, f"{instance.me} is not the primary")
        if instance.lease.failsafe_since_s is not None:
            return Choice(None, "the API server does not answer")
        try:
            observed = await instance.server.local.observe()
            rows = await instance.server.local.query(_STANDBYS)
        except RetryError as error:
            return Choice(None, str(error))
        lags = {row["pod"]: max(0, int(row["lag"])) for row in rows}
        told = await instance.members.statuses(target)
        pods = (names.pod(instance.config.name, n) for n in range(instance.config.instances))
        return choose(
            [heir(pod, lags.get(pod), told.get(pod)) for pod in pods if pod != instance.me],
            target=target,
            system_identifier=observed.system_identifier,
            timeline=observed.point.timeline,
        )

    async def _rehearse(self, successor: str) -> None:
        """repmgr's own checks (WAL senders, slots, archive, connections), from where it would run.

        They take seconds, and hold nobody.
        """
        try:
            answer = await self._instance.members.request(
                successor, "/ready-for-switchover", {}, deadline_s=_REHEARSAL_S
            )
        except RetryError as error:
            raise Abandoned(f"{successor} could not be asked: {error}", begun=False) from error
        if refusal := answer.get("refused"):
            raise Abandoned(f"repmgr on {successor} refuses: {refusal}", begun=False)

    async def _checkpoint(self, within_s: float) -> None:
        """Have the shutdown, during which clients wait, find little to write."""
        patient = LocalPostgres(deadline_s=within_s)
        try:
            for _ in range(_CHECKPOINTS):
                began_s = monotonic_s()
                await patient.query("CHECKPOINT")
                if monotonic_s() - began_s < _SHORT_CHECKPOINT_S:
                    return
        except RetryError as error:
            log.info("the checkpoint before the hand-over was not waited for: %s", error)
        finally:
            await patient.close()

    async def _announce(self, successor: str | None) -> float:
        """Have the pools hold their clients and wait until they do; when that was announced."""
        instance = self._instance
        poolers = instance.poolers.heard()
        # Opened before anybody waits.
        await self._connections()
        instance.handing_over = True
        try:
            # It would take the stop for a loss.
            await instance.quieten_repmgrd()
            announced_s = monotonic_s()
            if not await instance.lease.announce(successor):
                raise Abandoned("the API server did not hear of it", begun=True)
            heard_s = monotonic_s()
            epoch = instance.lease.epoch
            said = ""
            while reason := undrained(
                poolers,
                await self._connections(),
                epoch=epoch,
                waited_s=monotonic_s() - heard_s,
            ):
                said = reason
                await asyncio.sleep(_POLL_S)
        except RetryError as error:
            raise Abandoned(str(error), begun=True) from error
        held_s = monotonic_s() - announced_s
        log.info("the pools hold their clients", extra={"after_s": round(held_s, 3), "last": said})
        return announced_s

    async def _connections(self) -> list[Connection]:
        addresses = [pooler.address for pooler in self._instance.poolers.heard()]
        pooler = names.ROLE_POOLER
        rows = await self._local.query(CONNECTIONS, pooler, pooler, addresses)
        return [Connection(**row) for row in rows]

    async def _stop(self, successor: str) -> None:
        instance = self._instance
        await self._local.close()
        # First of all, so that the loop does not take the end for a crash.
        instance.hands_off_until_s = monotonic_s() + _HANDS_OFF_S
        await instance.stop_postgres(checkpoint=False)
        point = instance.final_point
        if point is None:
            raise Abandoned("postgres did not stop in order", begun=True)
        if missing := await self._missing(successor, point):
            raise Abandoned(missing, begun=True)
        if not await instance.lease.release(handover=True, successor=successor):
            raise Abandoned("the API server did not hear that the Lease was given up", begun=True)

    async def _missing(self, successor: str, point: WalPoint) -> str | None:
        """What the successor has not received of what was acknowledged; None where it has all.

        postgres does not end before its standbys have everything, but a connection may have broken
        in that very moment.
        """
        body = {"timeline": point.timeline, "lsn": str(point.lsn)}
        for _ in range(_COMPLETE_ASKED):
            with contextlib.suppress(RetryError):
                answer = await self._instance.members.request(
                    successor, "/complete", body, deadline_s=_COMPLETE_S
                )
                refused = answer.get("refused")
                return f"{successor}: {refused}" if refused else None
        return f"{successor} did not answer whether it has received everything"
