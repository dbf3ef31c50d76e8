"""Becoming the primary: the gate's shell, the promotion behind it, and when each phase ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig
from pgcluster.api.errors import RetryError
from pgcluster.api.reports import PromotionPhases
from pgcluster.clock import monotonic_s, utc_now
from pgcluster.node.gate import Ask, Deny, GateFacts, Pass, Take, decide_gate
from pgcluster.node.lease import LeaseKeeper
from pgcluster.node.members import Members
from pgcluster.node.server import Server
from pgcluster.node.standing import Standing
from pgcluster.postgres.local import Observation, serves_as_primary
from pgcluster.render import repmgr as render_repmgr
from pgcluster.topology.election import Candidate
from pgcluster.topology.lease import LeaseRecord, LeaseView

log = logging.getLogger(__name__)

# Less than repmgr's primary_notification_timeout, and than the client's own deadline.
_GATE_DEADLINE_S = 50.0
_GATE_POLL_S = 0.1
_ANSWER_IS_FRESH_S = 1.0
# Since the last renewal that was seen: a container is back and renews within this, or is given up.
_RETURNS_WITHIN_S = 2.5


class Promotion:
    """The way of this instance from standby to primary.

    `leaving` is whether the pod is being stopped; `promoted` is called, once an epoch, as soon as
    this instance accepts writes.
    """

    def __init__(
        self,
        *,
        me: str,
        config: Callable[[], ClusterConfig],
        lease: LeaseKeeper,
        members: Members,
        server: Server,
        standing: Standing,
        leaving: Callable[[], bool],
    ) -> None:
        self._me = me
        self._config = config
        self._lease = lease
        self._members = members
        self._server = server
        self._standing = standing
        self._leaving = leaving
        self._lock = asyncio.Lock()
        self._detected: str | None = None
        self._passed: str | None = None
        self.followed: str | None = None  # the primary that this instance followed last
        # Who has handed over to this instance, until it is the primary.
        self._predecessor: str | None = None
        self._answer: tuple[str, float, bool] | None = None
        self._probe: asyncio.Task[bool] | None = None

    @property
    def under_way(self) -> bool:
        """Whether a promotion is being tried right now."""
        return self._lock.locked()

    def suspect(self) -> None:
        """The primary may be lost: the first word of it is when the failover began."""
        if self._detected is None:
            self._detected = utc_now()

    def all_well(self, upstream: str) -> None:
        """This instance streams from `upstream`: whatever was suspected is over."""
        self._detected = None
        self._passed = None
        self._predecessor = None
        self.followed = upstream

    async def gate(self) -> tuple[bool, str]:
        """Block until this instance holds the Lease (True) or is refused, with the reason."""
        self.suspect()
        deadline_s = monotonic_s() + _GATE_DEADLINE_S
        said = ""
        others: Mapping[str, Candidate] | None = None
        asked_on: LeaseRecord | None = None
        while monotonic_s() < deadline_s:
            view = self._lease.view
            if asked_on is not None and (view is None or view.record.hands != asked_on.hands):
                # Somebody has held it since they were asked, and may have written.
                others = None
            facts = self._facts(others)
            record = facts.lease.record if facts.lease else None
            verdict = decide_gate(facts)
            if verdict.reason != said:
                said = verdict.reason
                log.info("gate: %s", said, extra={"verdict": type(verdict).__name__})
            match verdict:
                case Pass():
                    return True, said
                case Deny():
                    return False, said
                case Ask():
                    asked_on = record
                    others = await self._members.candidates(without=self._lost_holder())
                    continue
                case Take():
                    ended = record.container if record and facts.holder_ended else None
                    accepted = self._standing.point if verdict.forced else None
                    if await self._lease.take(record, ended=ended, accepted=accepted):
                        self._passed = utc_now()
                        continue
            # What the others had is true for the moment only.
            others = None
            await asyncio.sleep(_GATE_POLL_S)
        return False, f"gave up after {_GATE_DEADLINE_S:g} s: {said}"

    async def promote(self) -> tuple[bool, str]:
        """The gate, then the promotion; nothing of it by a second caller at the same time."""
        async with self._lock:
            if await self._is_done():
                return True, f"{self._me} is the primary already"
            passed, reason = await self.gate()
            if not passed:
                return False, reason
            timeline = self._standing.point.timeline if self._standing.point else 0
            return await self._promote(timeline, await self._lease.reserve(timeline))

    async def succeed(self) -> tuple[bool, str]:
        """Become the primary after one that has stopped in order and named this instance.

        Past repmgr's own polling and past the gate's, though by the same rules: clients wait.
        """
        async with self._lock:
            view = self._lease.view
            if view is None or view.kept_for(monotonic_s()) != self._me:
                return False, "nobody hands over to this instance"
            self.suspect()
            self._standing.see(await self._server.local.observe())
            verdict = decide_gate(self._facts(None))
            if not isinstance(verdict, Take):
                return False, verdict.reason
            point = self._standing.point
            timeline = point.timeline if point else 0
            reserved = await self._lease.succeed(timeline)
            if reserved is None and self._lease.holding():
                # The gate was faster, for repmgrd or a person.
                reserved = await self._lease.reserve(timeline)
            if reserved is None:
                return False, "the Lease was not taken"
            self._passed = utc_now()
            self._predecessor = view.record.last_holder
            return await self._promote(timeline, reserved)

    async def _is_done(self) -> bool:
        """Whether this instance has been promoted already, lawfully: by a hand-over, while
        repmgr's own switchover was on its way."""
        if not self._lease.holding():
            return False
        try:
            return not (await self._server.local.observe()).in_recovery
        except RetryError:
            return False

    async def _promote(self, timeline: int, reserved: int | None) -> tuple[bool, str]:
        """From `timeline` to the one that the Lease has on record for it."""
        if reserved is None:
            return False, "the timeline of the promotion could not be recorded in the Lease"
        until_s = self._lease.valid_until_s
        if until_s is None:
            return False, "the Lease was lost before the promotion"
        trouble = await self._server.promote(until_s, after=timeline, timeline=reserved)
        if trouble is not None:
            return False, trouble
        observed = await self._server.local.observe()
        self._standing.see(observed)
        self._standing.holding = self._lease.holding()
        self.note(observed)
        return True, "promoted"

    def note(self, observed: Observation) -> bool:
        """Record that this instance is the primary of this epoch; False where that is not news.

        One that gets its Lease back may begin another timeline in the same epoch (node/start.py).
        """
        known = self._standing.promotion
        began = (self._lease.epoch, observed.point.timeline)
        if known is not None and (known.epoch, known.timeline) == began:
            return False
        planned = self._predecessor is not None
        failover = self.followed not in (None, self._me) and self._detected is not None
        self._standing.promotion = PromotionPhases(
            primary=self._me,
            previous=self._predecessor or (self.followed if failover else None),
            timeline=observed.point.timeline,
            epoch=self._lease.epoch,
            cause="switchover" if planned else "failover" if failover else "start",
            detected=self._detected,
            gate=self._passed,
            promoted=utc_now(),
        )
        self._detected = None
        self._passed = None
        self.followed = self._predecessor = None
        self._standing.upstream = None
        log.info(
            "this instance is the primary",
            extra={"timeline": observed.point.timeline, "epoch": self._lease.epoch},
        )
        return True

    def note_config(self, at: str) -> None:
        """Record when the pools' databases section was first made to name this primary."""
        known = self._standing.promotion
        if known is not None and known.config is None:
            self._standing.promotion = known.model_copy(update={"config": at})

    async def ask(self, holder: str, *, settled: bool = False) -> bool:
        """Whether the Lease's holder answers as a primary, asked now by its pod's address.

        `settled`: and can be rejoined (postgres/local.py says what that takes).
        """
        address = self._members.addresses().get(holder)
        config = self._config()
        serves = address is not None and await serves_as_primary(
            render_repmgr.conninfo(host(holder, config), config, address=address), settled=settled
        )
        self._answer = (holder, monotonic_s(), serves)
        return serves

    def _facts(self, others: Mapping[str, Candidate] | None) -> GateFacts:
        lease = self._lease.view
        now_s = monotonic_s()
        config, standing = self._config(), self._standing
        serves, ended = None, False
        if lease is not None and lease.held_by_other(self._me, now_s):
            serves = self._last_answer(lease.record.holder)
            ended = self._has_ended(lease, now_s)
        return GateFacts(
            me=self._me,
            now_s=now_s,
            lease=lease,
            holding=self._lease.holding(),
            candidate=Candidate(standing.system_identifier, standing.point, exact=standing.exact)
            if self._server.running
            else None,
            members=config.instances,
            maximum_lag_bytes=config.failover.maximum_lag_bytes,
            holder_serves=serves,
            others=others,
            forced=config.failover.forced,
            holder_ended=ended,
            leaving=self._leaving(),
            held=config.held(self._me),
        )

    def _has_ended(self, lease: LeaseView, now_s: float) -> bool:
        """Whether the holder's container has ended, and no other of it is to be waited for.

        The next one of the same pod goes on where it ended, which loses nothing; but not for ever.
        """
        record = lease.record
        returns = (
            self._config().failover.on_crash == "restart"
            and now_s - lease.changed_at_s < _RETURNS_WITHIN_S
        )
        return record.container is not None and self._members.ended(
            record.holder, record.container, for_good=returns
        )

    def _lost_holder(self) -> str:
        """A holder that let its Lease run out: its node may be gone, so it is not asked."""
        lease = self._lease.view
        return "" if lease is None else lease.record.holder

    def _last_answer(self, holder: str) -> bool | None:
        """A probe runs beside the gate, which must notice a released Lease meanwhile."""
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self.ask(holder), name=f"probe-{holder}")
        if self._answer is None or self._answer[0] != holder:
            return None
        _, asked_s, serves = self._answer
        return serves if monotonic_s() - asked_s < _ANSWER_IS_FRESH_S else None


def host(pod: str, config: ClusterConfig) -> str:
    """Stable name of an instance of this cluster."""
    return names.pod_host(pod, config.name, config.namespace)
