"""What the operator tells the agents: the document `cluster.json` of ConfigMap `<cluster>-config`.

Operator and agents of neighbouring versions must understand each other, so unknown fields are
ignored and every field added later needs a default that means what its absence meant.
Durations are seconds, sizes are bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class InitdbConfig(_Document):
    """How the first data directory is made."""

    encoding: str = "UTF8"
    locale: str = "C.UTF-8"
    data_checksums: bool = True


class LeaseConfig(_Document):
    """Timing of the write authority: renew_deadline_s < duration_s."""

    duration_s: float = 6.0
    renew_interval_s: float = 1.0
    renew_deadline_s: float = 4.0


class ForcePromotionConfig(_Document):
    """A person's wish that an instance be promoted whatever is missing, in one epoch only."""

    instance: str
    epoch: int


class FailoverConfig(_Document):
    """When another instance may take over."""

    automatic: bool = True
    on_crash: Literal["restart", "failover"] = "restart"
    maximum_lag_bytes: int = 16 * 1024 * 1024
    lease: LeaseConfig = LeaseConfig()
    force_promotion: ForcePromotionConfig | None = None

    @property
    def forced(self) -> tuple[str, int] | None:
        """The wish as the pure decisions take it."""
        wish = self.force_promotion
        return None if wish is None else (wish.instance, wish.epoch)


class SynchronousConfig(_Document):
    """Whether commits wait for standbys; `degrade`: only for as many as there are."""

    mode: Literal["none", "quorum"] = "none"
    standbys: int = 1
    degrade: bool = False


class DatabaseConfig(_Document):
    """A declared database."""

    name: str
    owner: str
    extensions: tuple[str, ...] = ()


class UserConfig(_Document):
    """A declared role; its password is key `password` of `password_secret`, or it has none."""

    name: str
    password_secret: str | None = None
    member_of: tuple[str, ...] = ()


class ImportSourceConfig(_Document):
    """A server to take data over from; `user` None: as key `username` of the Secret says."""

    host: str
    port: int = 5432
    user: str | None = None
    password_secret: str
    ssl_mode: str = "prefer"
    ca_secret: str | None = None


class ImportConfig(_Document):
    """What a new cluster takes over before anybody uses it."""

    source: ImportSourceConfig
    databases: tuple[str, ...]
    roles: bool = True
    schema_only: bool = False
    exclude_schemas: tuple[str, ...] = ()
    exclude_tables: tuple[str, ...] = ()
    jobs: int = 2


class SwitchoverConfig(_Document):
    """A planned hand-over to one instance, in one epoch only: afterwards it means nothing.

    `request` identifies it: an agent that refused it does not try the same one again.
    """

    request: str
    target: str
    epoch: int


class RestartConfig(_Document):
    """Leave for one instance to restart postgres in place, where parameters wait for that."""

    instance: str
    request: str


class TlsConfig(_Document):
    """TLS of the instances, which have their certificates mounted.

    `enforced`: connections from elsewhere are refused in clear text, and instances know one another
    by certificate. Not while an instance runs an agent that has none: it would be shut out.
    """

    min_version: str = "1.3"
    clients: Literal["require", "prefer", "disable"] = "require"
    enforced: bool = True


@dataclass(frozen=True, slots=True)
class Orders:
    """What the operator decides from what it sees, and the agents are told beside the spec.

    The fields are those of ClusterConfig.
    """

    remaining: int | None = None
    maintenance: tuple[str, ...] = ()
    hibernation: str | None = None
    switchover: SwitchoverConfig | None = None
    restart: RestartConfig | None = None
    tls_enforced: bool = True


NO_ORDERS = Orders()


class ClusterConfig(_Document):
    """Everything of a PgCluster that an agent needs, without one API call."""

    name: str
    namespace: str
    uid: str
    instances: int
    postgres_major: int = 17
    # Already merged and checked by the operator: parameter name → value as in postgresql.conf.
    parameters: dict[str, str] = {}
    hba: tuple[str, ...] = ()
    # Lines by which the superuser is let in over the network, as somebody said that he means.
    hba_superuser: tuple[str, ...] = ()
    initdb: InitdbConfig = InitdbConfig()
    wal_volume: bool = False
    # Size of the volume that WAL lives on; None: not told, nothing is derived from it.
    wal_room_bytes: int | None = None
    # As the user says; None: derived from wal_room_bytes.
    max_slot_wal_keep_size_bytes: int | None = None
    synchronous: SynchronousConfig = SynchronousConfig()
    failover: FailoverConfig = FailoverConfig()
    databases: tuple[DatabaseConfig, ...] = ()
    users: tuple[UserConfig, ...] = ()
    read_only_pool: bool = True
    # Data of another server that a new cluster begins with; None: it begins empty.
    bootstrap_import: ImportConfig | None = None
    paused: bool = False
    switchover: SwitchoverConfig | None = None
    restart: RestartConfig | None = None
    # Identity of `parameters`, which an instance repeats in its report when it has loaded them.
    settings: str = ""
    # How many instances will be left when those of higher ordinals have been removed; these are
    # there until no commit waits for them and nobody reads from them. None: all stay.
    remaining: int | None = None
    # Pods of instances that somebody works on: postgres stays down there.
    maintenance: tuple[str, ...] = ()
    # Pod of the primary with which the cluster is put to sleep or woken: the others stay down.
    hibernation: str | None = None
    # pg_basebackup's --max-rate for a clone, and how many clones a primary serves at a time.
    clone_max_rate_bytes: int | None = None
    max_clones: int = 2
    # None: an operator that makes no certificates; everything is as before there were any.
    tls: TlsConfig | None = None
    # Known to the operator from status: protects a cluster whose Lease object was deleted.
    system_identifier: str | None = None

    @property
    def tls_enforced(self) -> bool:
        """Whether nothing goes over the network in clear text."""
        return self.tls is not None and self.tls.enforced

    @property
    def tls_required(self) -> bool:
        """Whether applications are refused in clear text too."""
        return self.tls_enforced and self.tls is not None and self.tls.clients == "require"

    @property
    def staying(self) -> int:
        """How many instances are not about to be removed."""
        return self.instances if self.remaining is None else min(self.remaining, self.instances)

    def held(self, pod: str) -> str | None:
        """Why an instance that is not the primary keeps postgres down; None where it does not."""
        if pod in self.maintenance:
            return "spec.maintenance names this instance: postgres stays down"
        if self.hibernation not in (None, pod):
            return f"postgres stays down until {self.hibernation}, the primary, is there"
        return None
