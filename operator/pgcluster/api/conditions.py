"""Conditions as Kubernetes has them (metav1.Condition), readable by kstatus.

Sources: Kubernetes API conventions, "Typical status properties"; cli-utils kstatus. Whoever waits
by kstatus (Helm, Flux) reads, in this order: `observedGeneration`, `Reconciling` and `Stalled`,
`Ready`. So `Reconciling` is there as long as the present spec is not fulfilled, also where the
cluster serves all the while; and never beside `Stalled`, since the first of the two that it meets
is the answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from pgcluster.api.schema import Model

# Types.
READY = "Ready"  # all that was asked for is there
PROGRESSING = "Progressing"  # a change is under way
RECONCILING = "Reconciling"  # the same for kstatus, which knows that name; only while it is so
DEGRADED = "Degraded"  # it serves, but something is missing
STALLED = "Stalled"  # only a change of the spec or of the world helps
MAINTENANCE = "Maintenance"  # instances that somebody works on; there only while there are any

# Reasons: stable identifiers. api/reasons.py says what each means, and makes docs/conditions.md.
ALL_READY = "AllReady"
BOOTSTRAPPING = "Bootstrapping"
CREATING = "Creating"
FAILING_OVER = "FailingOver"
NO_PRIMARY = "NoPrimary"
INSTANCES_NOT_READY = "InstancesNotReady"
POOLERS_NOT_READY = "PoolersNotReady"
IMPORTING = "Importing"
IMPORT_FAILED = "ImportFailed"
INVALID_SPEC = "InvalidSpec"
NAME_CONFLICT = "NameConflict"
STORAGE_CLASS_MISSING = "StorageClassMissing"
IMAGE_PULL = "ImagePull"
UNSCHEDULABLE = "Unschedulable"
CRASH_LOOP = "CrashLoop"
FOREIGN_DATA = "ForeignData"
SCALE_REFUSED = "ScaleRefused"
SCALING = "Scaling"
VOLUME_GROWTH_REFUSED = "VolumeGrowthRefused"
VOLUME_RESIZING = "VolumeResizing"
HIBERNATED = "Hibernated"
HIBERNATING = "Hibernating"
HIBERNATE_REFUSED = "HibernateRefused"
WAKING = "Waking"
IN_MAINTENANCE = "InMaintenance"
MAINTENANCE_REFUSED = "MaintenanceRefused"
ROLLOUT_PENDING = "RolloutPending"
SWITCHING_OVER = "SwitchingOver"
SWITCHOVER_REFUSED = "SwitchoverRefused"
SWITCHOVER_FAILED = "SwitchoverFailed"
ROLLING_OUT = "RollingOut"
ROLLOUT_STOPPED = "RolloutStopped"
PARAMETERS_REFUSED = "ParametersRefused"
PARAMETERS_OVERRIDDEN = "ParametersOverridden"
OBJECTS_FAILED = "ObjectsFailed"
SYNCHRONOUS_MISSING = "SynchronousStandbysMissing"
FAILSAFE = "Failsafe"
DISK_FULL = "DiskFull"
DISK_NEARLY_FULL = "DiskNearlyFull"
STANDBY_LOST_WAL = "StandbyLostWal"
WAL_RETAINED = "WalRetained"
REPMGRD_PAUSED = "RepmgrdPaused"
REPMGRD_DOWN = "RepmgrdDown"
POOL_SETTINGS = "PoolSettings"
POOL_SETTINGS_REFUSED = "PoolSettingsRefused"
CERTIFICATE_MISSING = "CertificateMissing"
CERTIFICATE_INVALID = "CertificateInvalid"
CERT_MANAGER_MISSING = "CertManagerMissing"
POOLERS_ROLLING = "PoolersRolling"
PAUSED = "Paused"
SETTLED = "Settled"
APPLYING = "Applying"
API_REFUSED = "ApiRefused"


class Condition(Model):
    """One aspect of the state."""

    type: str = Field(max_length=316)
    """Which aspect."""
    status: Literal["True", "False", "Unknown"]
    """Whether it is so."""
    reason: str = Field(max_length=1024)
    """Why, as a stable identifier."""
    message: str = Field(default="", max_length=32768)
    """Why, and what to do, as a sentence."""
    last_transition_time: str
    """When the status last changed."""
    observed_generation: int | None = None
    """Generation of the spec that it is about."""


def merge(
    known: Iterable[Condition],
    wanted: Iterable[tuple[str, bool, str, str]],
    *,
    generation: int,
    now: str,
) -> tuple[Condition, ...]:
    """Conditions from (type, status, reason, message); a time moves only with its status."""
    before = {condition.type: condition for condition in known}
    merged = []
    for type_, is_true, reason, message in wanted:
        status: Literal["True", "False"] = "True" if is_true else "False"
        old = before.get(type_)
        since = old.last_transition_time if old is not None and old.status == status else now
        merged.append(
            Condition(
                type=type_,
                status=status,
                reason=reason,
                message=message,
                last_transition_time=since,
                observed_generation=generation,
            )
        )
    return tuple(merged)
