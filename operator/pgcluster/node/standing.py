"""What this instance is doing and why, as one place that the report is made from."""

from __future__ import annotations

from dataclasses import dataclass, field

from pgcluster.api.reports import (
    HandoverReport,
    InstanceReport,
    InstanceState,
    PromotionPhases,
)
from pgcluster.api.wal import WalPoint
from pgcluster.clock import monotonic_s
from pgcluster.postgres.control import ControlData
from pgcluster.postgres.local import Observation

# A standby that has read nothing new for so long has read what there is.
_READ_ALL_S = 1.0
# A standby under load is always some kilobytes behind: what is below the first step is no lag.
_NO_LAG_BYTES = 1 << 20
_LAG_STEPS_BYTES = (1 << 24, 1 << 28, 1 << 32, 1 << 40)


def coarse(lag_bytes: int | None) -> int | None:
    """The lag rounded up to a step, so that a report changes only when the matter does."""
    if lag_bytes is None:
        return None
    if lag_bytes <= _NO_LAG_BYTES:
        return 0
    return next((step for step in _LAG_STEPS_BYTES if lag_bytes <= step), _LAG_STEPS_BYTES[-1])


@dataclass(slots=True)
class Standing:
    """Mutable on purpose: the agent's loop writes it, everything else reads it."""

    state: InstanceState = "waiting"
    reason: str = "starting"
    # The last look at the running server; None while there is none.
    observed: Observation | None = None
    # The last look at the stopped data directory.
    control: ControlData | None = None
    holding: bool = False
    registered: bool = False
    repmgrd: bool = False
    repmgrd_paused: bool = False
    upstream: str | None = None
    progress: str | None = None
    promotion: PromotionPhases | None = None
    handover: HandoverReport | None = None
    failed_objects: dict[str, str] = field(default_factory=dict)
    # What the primary sees of the others; see InstanceReport.
    streaming: tuple[str, ...] | None = None
    silent_poolers: tuple[str, ...] = ()
    # The highest timeline seen since the data directory was last replaced: a standby that lost
    # its upstream knows its own only from its last restartpoint.
    timeline: int = 0
    # Whether `point` is all that this instance has, and not the least that it has.
    exact: bool = False
    synchronous_missing: int = 0
    failsafe: bool = False
    _unmoved_since_s: float = 0.0

    def see(self, observed: Observation) -> None:
        """Take note of a look at the running server."""
        before, now_s = self.observed, monotonic_s()
        if before is None or before.point != observed.point:
            self._unmoved_since_s = now_s
        self.exact = (
            not observed.in_recovery
            or observed.received
            or now_s - self._unmoved_since_s >= _READ_ALL_S
        )
        self.observed = observed
        self.timeline = max(self.timeline, observed.point.timeline)

    def rest(self, control: ControlData | None) -> None:
        """postgres does not run: take note of its data directory."""
        self.observed = None
        self.control = control
        # A standby may have WAL that it has not read yet, a crashed primary some after its
        # last checkpoint.
        self.exact = control is not None and control.was_primary and control.clean

    def replaced(self) -> None:
        """The data directory is another one now."""
        self.observed = None
        self.control = None
        self.timeline = 0
        self.exact = False

    @property
    def point(self) -> WalPoint | None:
        """The newest WAL that this instance is known to have."""
        if self.observed is not None:
            return WalPoint(
                max(self.timeline, self.observed.point.timeline), self.observed.point.lsn
            )
        return self.control.point if self.control else None

    @property
    def system_identifier(self) -> str | None:
        """Whose data is on the volume."""
        if self.observed is not None:
            return self.observed.system_identifier
        return self.control.system_identifier if self.control else None

    @property
    def primary(self) -> bool:
        """Whether this instance is the primary, lawfully."""
        return self.observed is not None and not self.observed.in_recovery and self.holding

    def ready(self, maximum_lag_bytes: int) -> tuple[bool, str]:
        """Whether it is in its role, which is more than that it answers; and why not."""
        seen = self.observed
        if self.state != "running" or seen is None:
            return False, self.reason
        if not self.registered:
            return False, "not yet registered with repmgr"
        if self.primary:
            return True, "primary"
        if not seen.in_recovery:
            return False, "postgres accepts writes without the Lease"
        if not seen.streaming:
            return False, "not streaming"
        if (seen.lag_bytes or 0) > maximum_lag_bytes:
            return False, f"replay lags by {seen.lag_bytes} bytes"
        return True, "streaming"

    def report(self, pod: str, *, maximum_lag_bytes: int, version: str) -> InstanceReport:
        """The report that others see."""
        seen = self.observed
        ready, why = self.ready(maximum_lag_bytes)
        role = None
        if seen is not None and self.state == "running":
            role = "primary" if self.primary else "standby" if seen.in_recovery else None
        return InstanceReport.model_validate(
            {
                "pod": pod,
                "state": self.state,
                "reason": why if self.state == "running" else self.reason,
                "role": role,
                "ready": ready,
                "timeline": self.point.timeline if self.point else None,
                "system_identifier": self.system_identifier,
                "lag_bytes": coarse(seen.lag_bytes) if seen and seen.in_recovery else None,
                "upstream": self.upstream if role == "standby" else None,
                "repmgrd": self.repmgrd,
                "repmgrd_paused": self.repmgrd_paused,
                "postgres_version": seen.version if seen else None,
                "synchronous": seen.synchronous if seen and role == "primary" else None,
                "synchronous_missing": self.synchronous_missing if role == "primary" else 0,
                "failsafe": self.failsafe and role == "primary",
                "pending_restart": seen.pending_restart if seen else (),
                "progress": self.progress,
                "promotion": self.promotion,
                "handover": self.handover,
                "failed_objects": self.failed_objects,
                "streaming": self.streaming if role == "primary" else None,
                "silent_poolers": self.silent_poolers if role == "primary" else (),
                "agent_version": version,
            }
        )
