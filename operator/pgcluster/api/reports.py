"""What the agents tell the operator, and each other.

An instance writes its report as annotation `pgcluster.dev/instance` on its own pod, a pooler as
one key of ConfigMap `<cluster>-poolers`. Both write on change only, so that a cluster at rest
costs the API nothing; positions that move all the time are therefore coarse or absent.
Unknown fields are ignored: operator and agents of neighbouring versions understand each other.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

# What an instance is doing, in the order of its life.
InstanceState = Literal[
    "waiting",  # for the Lease, a primary to clone from, the volume's lock: `reason` says which
    "bootstrapping",
    "cloning",
    "rewinding",
    "starting",
    "running",
    "promoting",
    "stopping",
    "fenced",  # it may not write and postgres was stopped for that
    "maintenance",  # postgres is kept down, for somebody's work or the cluster's sleep
    "refused",  # foreign data on the volume: nothing is touched
]


class _Report(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class PromotionPhases(_Report):
    """When each phase of the last promotion ended, RFC 3339 UTC with microseconds.

    `cause` is `failover`, `switchover` (`previous` has handed over) or `start`. `detected` is when
    the promoted instance noticed the loss of its primary (or was asked to take over), `gate` when
    it had the Lease, `promoted` when it accepted writes, `config` when it sent the pools' databases
    section that names it.
    """

    primary: str
    previous: str | None = None
    timeline: int
    epoch: int
    cause: str = "failover"
    detected: str | None = None
    gate: str | None = None
    promoted: str | None = None
    config: str | None = None


class HandoverReport(_Report):
    """A planned hand-over as the primary that hands over sees it.

    `request` is that of the operator's wish; None for one that nobody asked for by name: a pod
    that is deleted, or `repmgr standby switchover`. `refused`: nothing was begun; `failed`: it was
    begun, and everything was put back. `at` is when it came to this state, RFC 3339 UTC.
    """

    request: str | None = None
    target: str | None = None
    epoch: int = 0
    state: Literal["checking", "holding", "stopping", "done", "refused", "failed"]
    reason: str = ""
    at: str = ""

    @property
    def under_way(self) -> bool:
        """Whether it has come to no end yet."""
        return self.state in ("checking", "holding", "stopping")


class ImportReport(_Report):
    """How far a new cluster's primary is with the data that it takes over from elsewhere."""

    state: Literal["running", "failed", "done"]
    reason: str = ""  # of a failure: what hindered it last
    at: str | None = None  # when it was done, RFC 3339 UTC


class InstanceReport(_Report):
    """One instance as its agent sees it."""

    pod: str
    state: InstanceState
    reason: str = ""
    role: Literal["primary", "standby"] | None = None
    ready: bool = False
    timeline: int | None = None
    system_identifier: str | None = None
    # Replay lag in bytes, rounded up to 16 MiB, 256 MiB, 4 GiB …, 0 for up to 1 MiB; standbys only
    lag_bytes: int | None = None
    upstream: str | None = None  # pod that a standby streams from
    repmgrd: bool = False
    repmgrd_paused: bool = False  # by a person or a switchover: it takes part in no failover
    postgres_version: str | None = None  # such as "17.11"
    # What commits wait for, as synchronous_standby_names has it (primary only), and how many of the
    # standbys that it wants are missing now
    synchronous: str | None = None
    synchronous_missing: int = 0
    # The primary goes on without the API server, by the word of all other instances
    failsafe: bool = False
    pending_restart: tuple[str, ...] = ()  # parameters that wait for a restart
    # Of these, what standbys must hold at least as high, and what is to become lower (primary only)
    lowering: tuple[str, ...] = ()
    # ClusterConfig.settings, once postgres has loaded them or refused some; None: not told
    settings: str | None = None
    # Parameters that postgres refuses → why; it runs with the former ones
    refused_parameters: dict[str, str] = {}
    # Parameters of the spec that something else overrides → what
    overridden_parameters: dict[str, str] = {}
    restarted: str | None = None  # request of the last restart in place that it was ordered
    start_failed: str | None = None  # why postgres does not start, after several attempts
    progress: str | None = None  # such as "clone: 412 of 2048 MiB"
    # It has its certificates, and serves TLS; never so for an agent of a version without
    tls: bool = False
    promotion: PromotionPhases | None = None
    importing: ImportReport | None = None  # primary only, where the spec wants an import
    handover: HandoverReport | None = None  # the last one that it began or refused
    # Declared users and databases that could not be made: name → reason (primary only)
    failed_objects: dict[str, str] = {}
    # How full its fuller volume is, rounded down to steps of 5
    disk_used_percent: int | None = None
    disk_full: bool = False  # so full that the applications' roles are read-only on it
    # Of a standby: why it cannot go on from where it is and is cloned anew
    lost_wal: str | None = None
    # Of a primary: pods of standbys whose slot was invalidated, until they stream again
    lost_standbys: tuple[str, ...] = ()
    # Of a primary: slot → WAL that it holds back, rounded down to a power of two; only much of it
    retained_wal_bytes: dict[str, int] = {}
    # Pods of the standbys whose WAL sender streams; None: not a primary, or one that cannot tell
    # yet because its standbys are still finding it
    streaming: tuple[str, ...] | None = None
    silent_poolers: tuple[str, ...] = ()  # pods that have not been heard for a while (primary only)
    agent_version: str = ""


class PoolerReport(_Report):
    """One pooler as its agent sees it."""

    pod: str
    ready: bool = False
    paused: bool = False
    reason: str = ""
    primary: str | None = None  # pod that its databases point at
    epoch: int = 0  # of the applied databases section
    applied_hash: str | None = None  # of databases.ini as applied and verified
    settings_hash: str | None = None  # of pgbouncer.ini as applied and verified
    settings_refused: str | None = None  # hash of the pgbouncer.ini that it did not take, and why
    settings_reason: str = ""
    # The last repointing to another primary or epoch, RFC 3339 UTC: PAUSE sent, databases section
    # reloaded and verified, RESUME done, first transaction through this pool after it
    paused_at: str | None = None
    reloaded_at: str | None = None
    resumed_at: str | None = None
    first_transaction_at: str | None = None
    pgbouncer_version: str | None = None
    address: str | None = None  # of its pod, by which servers see its connections
    mute: bool = False  # its agent is refused by a primary that accepts connections
    agent_version: str = ""
