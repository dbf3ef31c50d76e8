"""The resource PgCluster: the single source of the CRD and of what the operator reads.

Defaults are applied here, when the operator reads, and not stamped into stored objects, where
they could never change again. Field descriptions are the docstrings below: `kubectl explain` and
docs/reference.md show them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from pgcluster.api import config as agents
from pgcluster.api import hba, holes, names
from pgcluster.api.conditions import Condition
from pgcluster.api.holes import Hole
from pgcluster.api.quantities import parse_bytes, parse_seconds
from pgcluster.api.schema import (
    DatabaseName,
    DnsName,
    Duration,
    HostName,
    ImageName,
    Line,
    Model,
    ObjectName,
    Opaque,
    OpaqueItem,
    Quantity,
    Rule,
    SqlName,
    Value,
    atomic_list,
    list_map,
)


# --- spec -------------------------------------------------------------------------------------
class Initdb(Model):
    """How the first data directory is made. Fixed once the cluster exists."""

    encoding: str = Field(default="UTF8", pattern="^[A-Za-z0-9_]+$", max_length=32)
    """Character set of the databases, as `initdb --encoding` takes it. Default: UTF8."""
    locale: str = Field(default="C.UTF-8", pattern="^[A-Za-z0-9_.@-]+$", max_length=64)
    """Locale of the databases, as `initdb --locale` takes it. Default: C.UTF-8."""
    data_checksums: bool = True
    """Whether each page carries a checksum. Default: true."""


class Postgres(Model):
    """PostgreSQL itself."""

    version: int = Field(default=17, ge=13, le=99)
    """Major version. The image comes from the operator's catalog unless `spec.image` names one. Default: 17."""
    parameters: dict[str, Value] = Field(
        default_factory=dict,
        max_length=200,
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "self.all(k, k.matches('^[a-z_][a-z0-9_]*(\\\\.[a-z_][a-z0-9_]*)?$'))",
                    "message": "spec.postgres.parameters: a parameter's name has lower-case letters, digits and underscores",
                }
            ]
        },
    )
    """PostgreSQL parameters, name to value as in postgresql.conf. Those that the operator owns (replication, archive, paths, TLS) are refused with the reason."""
    hba: tuple[Line, ...] = atomic_list(max_items=100)
    """Lines of pg_hba.conf, put behind the operator's own and before the last, which asks everybody for SCRAM. What opens a hole, such as `trust`, is refused unless `allowInsecure` names it."""
    initdb: Initdb = Initdb()
    """How the first data directory is made."""
    resources: Opaque | None = None
    """CPU and memory of an instance, as in a container."""
    allow_insecure: tuple[Hole, ...] = atomic_list(max_items=10)
    """Holes that `hba` and `parameters` may open because somebody means it: `trust`, `ident`, `clearTextPasswords`, `md5`, `superuserOverNetwork`, `secretsInSpec`. Each is refused otherwise, with the reason. Default: none."""


class Storage(Model):
    """The volumes of an instance."""

    rules = (
        Rule(
            "!isQuantity(string(self.size)) || quantity(string(self.size)).isGreaterThan("
            "quantity('0'))",
            "spec.storage.size must be more than 0",
            ".size",
        ),
        Rule(
            "quantity(string(self.size)).compareTo(quantity(string(oldSelf.size))) >= 0",
            "spec.storage.size cannot shrink",
            ".size",
        ),
        Rule(
            "has(self.className) == has(oldSelf.className) && (!has(self.className) ||"
            " self.className == oldSelf.className)",
            "spec.storage.className is fixed once the cluster exists",
            ".className",
        ),
        Rule(
            "has(self.walSize) == has(oldSelf.walSize)",
            "spec.storage.walSize can be set only when the cluster is made",
            ".walSize",
        ),
        Rule(
            "!has(self.walSize) || !has(oldSelf.walSize) ||"
            " quantity(string(self.walSize)).compareTo(quantity(string(oldSelf.walSize))) >= 0",
            "spec.storage.walSize cannot shrink",
            ".walSize",
        ),
    )

    size: Quantity
    """Size of the data volume, such as 10Gi. It can grow, never shrink."""
    class_name: ObjectName | None = None
    """StorageClass of the volumes. Default: the cluster's default class."""
    wal_size: Quantity | None = None
    """Size of a volume of its own for the write-ahead log. Default: WAL lives on the data volume."""
    when_scaled: Literal["Retain", "Delete"] = "Retain"
    """What becomes of the volumes of instances that are removed by a smaller `spec.instances`: `Retain` keeps them, and a later instance of that name goes on with what is there; `Delete` deletes them once their pods are gone, also those that were kept earlier. Default: Retain."""
    when_deleted: Literal["Retain", "Delete"] = "Retain"
    """What becomes of all volumes when the PgCluster is deleted. Default: Retain: a new PgCluster of that name goes on with the data."""


class Synchronous(Model):
    """Whether a commit waits until standbys have it on disk."""

    mode: Literal["none", "quorum"] = "none"
    """`none`: a commit waits for the primary's disk only. `quorum`: also for any `standbys` of the standbys, and no failover loses an acknowledged commit. Default: none."""
    standbys: int = Field(default=1, ge=1, le=names.MAX_INSTANCES - 1)
    """How many standbys a commit waits for. Default: 1."""
    when_unavailable: Literal["block", "degrade"] = "block"
    """What happens while fewer standbys stream: `block` lets commits wait, `degrade` lets them go on with as many as there are, even none, and gives up the promise meanwhile. Default: block."""


class Replication(Model):
    """Replication between the instances."""

    rules = (
        Rule(
            "!has(self.cloneMaxRate) || (quantity(string(self.cloneMaxRate)).compareTo("
            "quantity('32Ki')) >= 0 && quantity(string(self.cloneMaxRate)).compareTo("
            "quantity('1Gi')) <= 0)",
            "spec.replication.cloneMaxRate must be between 32Ki and 1Gi, which is what"
            " pg_basebackup takes",
            ".cloneMaxRate",
        ),
    )

    synchronous: Synchronous = Synchronous()
    """Whether a commit waits until standbys have it on disk."""

    max_slot_wal_keep_size: Quantity | None = None
    """How much WAL a standby that is away may hold back on the primary before it has to be cloned anew, which it does by itself. Default: half of `spec.storage.walSize`, or a quarter of `spec.storage.size` where WAL lives on the data volume: an absent standby must not fill the primary's."""
    clone_max_rate: Quantity | None = None
    """How many bytes a second a new standby may take from the primary while it is cloned, such as 50Mi; between 32Ki and 1Gi. Default: no limit."""
    max_clones: int = Field(default=2, ge=1, le=names.MAX_INSTANCES - 1)
    """How many standbys are cloned from the primary at a time; the others wait for their turn. Default: 2."""


class LeaseTiming(Model):
    """Timing of the Lease that is the right to write."""

    rules = (
        Rule(
            "duration(has(self.renewInterval) ? self.renewInterval : '1s') <"
            " duration(has(self.renewDeadline) ? self.renewDeadline : '4s')",
            "spec.failover.lease.renewInterval must be shorter than renewDeadline",
            ".renewInterval",
        ),
        Rule(
            "duration(has(self.renewDeadline) ? self.renewDeadline : '4s') <"
            " duration(has(self.duration) ? self.duration : '6s')",
            "spec.failover.lease.renewDeadline must be shorter than duration: a primary must have"
            " stopped before another may start",
            ".renewDeadline",
        ),
        Rule(
            "duration(has(self.duration) ? self.duration : '6s') >= duration('3s')",
            "spec.failover.lease.duration must be at least 3s",
            ".duration",
        ),
        Rule(
            "!has(self.renewInterval) || duration(self.renewInterval) >= duration('200ms')",
            "spec.failover.lease.renewInterval must be at least 200ms: each renewal is a write to"
            " the API server",
            ".renewInterval",
        ),
    )

    duration: Duration = "6s"
    """How long an unchanged Lease stays its holder's: what the loss of a node costs. Default: 6s."""
    renew_interval: Duration = "1s"
    """How often the primary renews. Default: 1s."""
    renew_deadline: Duration = "4s"
    """A primary that could not renew for this long stops. Default: 4s."""


class ForcePromotion(Model):
    """The wish that an instance be promoted although acknowledged commits may be missing there."""

    instance: ObjectName
    """Pod of the instance."""
    epoch: int = Field(ge=0)
    """`status.epoch` at the time of the wish. It is ignored in any other epoch, so that it can stay in a manifest and does nothing a second time."""


class Failover(Model):
    """When another instance takes over."""

    automatic: bool = True
    """Whether a standby takes over by itself. Default: true."""
    on_crash: Literal["restart", "failover"] | None = None
    """What happens when the primary's postmaster dies and its node is well: `restart` in place, which loses nothing, or `failover` at once. Default: restart, but failover with `replication.synchronous.mode: quorum`, which loses nothing either."""
    maximum_lag: Quantity = "16Mi"
    """How much WAL a standby may lack and still take over. Default: 16Mi."""
    lease: LeaseTiming = LeaseTiming()
    """Timing of the Lease that is the right to write."""
    force_promotion: ForcePromotion | None = None
    """Promotes one instance whatever is missing, where the status says NoPrimary and waiting is worse than losing the last commits. Never while another instance holds the Lease."""


class Database(Model):
    """A database that is to exist."""

    name: DatabaseName
    """Name of the database."""
    owner: SqlName = "app"
    """Role that owns it. Default: app."""
    extensions: tuple[SqlName, ...] = atomic_list(max_items=50)
    """Extensions to create in it; they must be in the image."""


class SecretRef(Model):
    """A Secret in the namespace of the cluster."""

    name: ObjectName
    """Name of the Secret; its key `password` is used."""


class PullSecret(Model):
    """A Secret of type kubernetes.io/dockerconfigjson in the namespace of the cluster."""

    name: ObjectName
    """Name of the Secret."""


class CaSecretRef(Model):
    """A Secret in the namespace of the cluster that holds certificates."""

    name: ObjectName
    """Name of the Secret; its key `ca.crt` is used."""


class ImportSource(Model):
    """The server that the data comes from: a PgCluster or any PostgreSQL."""

    rules = (
        Rule(
            "has(self.cluster) != has(self.host)",
            "spec.bootstrap.import.source must name either a cluster or a host",
        ),
        Rule(
            "!has(self.host) || has(self.passwordSecret)",
            "spec.bootstrap.import.source.passwordSecret is needed with a host",
            ".passwordSecret",
        ),
        Rule(
            "!has(self.cluster) || !has(self.port)",
            "spec.bootstrap.import.source.port goes with a host: a cluster's is known",
            ".port",
        ),
        Rule(
            "!has(self.sslMode) || !self.sslMode.startsWith('verify-') || has(self.caSecret)",
            "spec.bootstrap.import.source.caSecret is needed where sslMode verifies the server",
            ".caSecret",
        ),
    )

    cluster: ObjectName | None = None
    """A PgCluster in the same namespace; its primary is read."""
    host: HostName | None = None
    """Host of any other PostgreSQL."""
    port: int = Field(default=5432, ge=1, le=65535)
    """Its port. Default: 5432."""
    user: SqlName | None = None
    """Role to log in as. Default: key `username` of the Secret."""
    password_secret: SecretRef | None = None
    """Secret whose key `password` is that role's password. Default for a cluster: its Secret <cluster>-app."""
    ssl_mode: Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] = (
        "prefer"
    )
    """How the connection is protected, as libpq's sslmode. Default: prefer."""
    ca_secret: CaSecretRef | None = None
    """Secret whose key `ca.crt` holds the certificates that the server is verified by."""


class Import(Model):
    """Data of another server that a new cluster begins with: dumped there, restored here."""

    source: ImportSource
    """The server that the data comes from."""
    databases: tuple[DatabaseName, ...] = atomic_list(max_items=100)
    """Databases to take over. Default: those of `spec.databases`."""
    roles: bool = True
    """Whether the source's roles are made, with their memberships and settings, and with their passwords where the login may read them. No superuser is made: one of the source becomes a role that cannot log in. Default: true."""
    schema_only: bool = False
    """Whether only definitions are taken over and no rows. Default: false."""
    exclude_schemas: tuple[Line, ...] = atomic_list(max_items=100)
    """Schemas to leave out, as patterns of `pg_dump --exclude-schema`."""
    exclude_tables: tuple[Line, ...] = atomic_list(max_items=100)
    """Tables to leave out, as patterns of `pg_dump --exclude-table`."""
    jobs: int = Field(default=2, ge=1, le=32)
    """How many tables are copied at once. Default: 2."""


class Bootstrap(Model):
    """What a new cluster begins with."""

    import_: Import | None = Field(default=None, alias="import")
    """Data of another server, taken over once, before the cluster serves. It can be corrected until that is done, and removed afterwards. Default: the cluster begins empty."""


class User(Model):
    """A role that is to exist and may log in."""

    name: SqlName
    """Name of the role."""
    password_secret: SecretRef | None = None
    """Secret whose key `password` is the role's password. Without it the role has none, but `app` has that of Secret <cluster>-app."""
    member_of: tuple[SqlName, ...] = atomic_list(max_items=50)
    """Roles that it is a member of."""


class Pgbouncer(Model):
    """The pools in front of the cluster."""

    rules = (
        Rule(
            "!has(self.drainTimeout) || duration(self.drainTimeout) <= duration('1h')",
            "spec.pgbouncer.drainTimeout must be at most 1h",
            ".drainTimeout",
        ),
    )

    instances: int = Field(default=2, ge=0, le=20)
    """How many poolers run; 0 for none. Default: 2."""
    image: ImageName | None = None
    """Image of the poolers. Default: the operator's."""
    pool_mode: Literal["transaction", "statement", "session"] = "transaction"
    """When a server connection goes back to the pool. Default: transaction. With `session`, a repointing cuts sessions that hold a connection."""
    read_only_pool: bool = True
    """Whether each database has a twin <database>_ro that reads from the streaming standbys. Default: true."""
    parameters: dict[str, Value] = Field(default_factory=dict, max_length=100)
    """pgbouncer settings, name to value. Only those that cannot break the cluster are allowed; the others are refused with the reason."""
    resources: Opaque | None = None
    """CPU and memory of a pooler, as in a container."""
    drain_timeout: Duration = "60s"
    """How long the clients of a pooler that is replaced, scaled away or evicted may stay. New ones are sent elsewhere at once; those left then are closed between two transactions. Default: 60s, at most 1h."""


class IssuerRef(Model):
    """An issuer of cert-manager."""

    name: ObjectName
    """Name of the issuer."""
    kind: str = Field(default="Issuer", pattern="^[A-Za-z0-9]+$", max_length=63)
    """Kind of the issuer: Issuer, ClusterIssuer, or one that an external issuer brings. Default: Issuer."""
    group: ObjectName = "cert-manager.io"
    """API group of the issuer. Default: cert-manager.io."""


class Tls(Model):
    """Encryption, and the certificates that clients see.

    Between the parts of a cluster everything is encrypted and verified, whatever is said here.
    """

    rules = (
        Rule(
            "!has(self.secretName) || !has(self.issuerRef)",
            "spec.tls.secretName and spec.tls.issuerRef exclude one another: name whose certificate"
            " the pools are to show",
            ".secretName",
        ),
    )

    min_version: Literal["1.2", "1.3"] = "1.3"
    """The lowest version of TLS that clients may speak. Default: 1.3."""
    clients: Literal["require", "prefer", "disable"] = "require"
    """What the pools demand of their clients: `require` refuses clear text, `prefer` takes both, `disable` offers no TLS. Past the pools PostgreSQL itself requires it with `require`, and takes both otherwise. Default: require."""
    secret_name: ObjectName | None = None
    """Secret of type kubernetes.io/tls with the certificate that the pools show to clients (`tls.crt`, `tls.key`, and `ca.crt` unless clients know who has signed it); changes of it are followed. Default: the operator makes and renews one."""
    issuer_ref: IssuerRef | None = None
    """Issuer of cert-manager that makes the certificate which the pools show to clients."""
    dns_names: tuple[DnsName, ...] = atomic_list(max_items=50)
    """Further names for the certificates that clients see, such as that of a load balancer. Those of the Services are always in it."""


class Scheduling(Model):
    """Where the pods run, as in a pod's spec."""

    affinity: Opaque | None = None
    """Affinity of the instances. Default: preferably one instance a node."""
    tolerations: tuple[OpaqueItem, ...] = atomic_list(max_items=50)
    """Taints that the pods tolerate."""
    topology_spread_constraints: tuple[OpaqueItem, ...] = atomic_list(max_items=20)
    """How the instances spread over zones or other topologies."""
    node_selector: dict[str, str] = Field(default_factory=dict, max_length=50)
    """Labels that a node must have."""
    priority_class_name: ObjectName | None = None
    """PriorityClass of the pods."""


class InheritedMetadata(Model):
    """What every object of the cluster carries in addition."""

    labels: dict[str, str] = Field(default_factory=dict, max_length=50)
    """Labels for every object of the cluster."""
    annotations: dict[str, str] = Field(default_factory=dict, max_length=50)
    """Annotations for every object of the cluster."""


class Maintenance(Model):
    """One instance that somebody works on."""

    instance: ObjectName
    """Pod of the instance."""
    reason: Line | None = None
    """Why, for whoever reads the status."""


class IpBlock(Model):
    """A range of addresses."""

    cidr: str = Field(max_length=64, pattern="^[0-9A-Fa-f:.]+/[0-9]{1,3}$")
    """The range, such as 10.0.0.0/8."""
    except_: tuple[Annotated[str, Field(max_length=64)], ...] = Field(
        default=(), alias="except", max_length=50
    )
    """Ranges within it that are left out."""


class NetworkPeer(Model):
    """Who is let in, as a peer of a NetworkPolicy."""

    rules = (
        Rule(
            "has(self.ipBlock) != (has(self.namespaceSelector) || has(self.podSelector))",
            "spec.networkPolicy: a peer has namespaceSelector, podSelector or both, or else ipBlock;"
            " one with neither would be everybody",
        ),
    )

    namespace_selector: Opaque | None = None
    """Namespaces by their labels; {} is all of them. Default: the cluster's own."""
    pod_selector: Opaque | None = None
    """Pods by their labels. Default: all of those namespaces."""
    ip_block: IpBlock | None = None
    """Addresses outside of the cluster."""


class NetworkPolicy(Model):
    """Who reaches the pods. Works only where the network of the cluster enforces NetworkPolicies."""

    enabled: bool = False
    """Whether the operator makes NetworkPolicies. Default: false, since one of the operator's would widen those that a namespace may have already."""
    pool_clients: tuple[NetworkPeer, ...] = atomic_list(max_items=50)
    """Who may connect to the pools; without poolers, to what Service <cluster> then leads to. Default: everybody."""
    direct_clients: tuple[NetworkPeer, ...] = atomic_list(max_items=50)
    """Who may connect to the instances past the pools, as by Service <cluster>-primary, beside the cluster's own pods. Default: nobody."""
    metrics_clients: tuple[NetworkPeer, ...] = atomic_list(max_items=50)
    """Who may read the metrics of the agents, on port 8008. Default: nobody; probes of the kubelet always pass."""
    restrict_egress: bool = False
    """Whether the pods may connect to nothing but one another, DNS, the API server (ports 443 and 6443 anywhere, for a policy cannot name it) and what `egress` allows. Default: false."""
    egress: tuple[OpaqueItem, ...] = atomic_list(max_items=50)
    """With `restrictEgress`: what else the instances may connect to, as the egress rules of a NetworkPolicy."""


def _or_default(path: str, default: str) -> tuple[str, str]:
    """A CEL expression for `self.postgres.<path>` or its default, now and before.

    On the spec and not on the part itself: a rule on a part that was absent before is not run.
    """
    return tuple(  # type: ignore[return-value] # two of them
        f"(has({it}.postgres) && has({it}.postgres.{path}) ? {it}.postgres.{path} : {default})"
        for it in ("self", "oldSelf")
    )


def _has_initdb(it: str) -> str:
    return f"(has({it}.postgres) && has({it}.postgres.initdb))"


def _has_import(it: str) -> str:
    # A word that CEL keeps for itself is written with underscores around it.
    return f"(has({it}.bootstrap) && has({it}.bootstrap.__import__))"


def _free_role(it: str) -> str:
    reserved = ", ".join(f"'{role}'" for role in names.RESERVED_ROLES)
    return f"!({it} in [{reserved}]) && !{it}.startsWith('pg_')"


class PgClusterSpec(Model):
    """What the user wants."""

    rules = (
        Rule(
            f"{_has_initdb('self')} == {_has_initdb('oldSelf')} && (!{_has_initdb('self')} ||"
            " self.postgres.initdb == oldSelf.postgres.initdb)",
            "spec.postgres.initdb is fixed once the cluster exists: make a new cluster instead",
            ".postgres.initdb",
        ),
        Rule(
            " == ".join(_or_default("version", "17")),
            "spec.postgres.version cannot change in place: make a new cluster of that version that"
            " takes the data over, by spec.bootstrap.import.source.cluster (docs/import.md)",
            ".postgres.version",
        ),
        Rule(
            f"!{_has_import('self')} || {_has_import('oldSelf')}",
            "spec.bootstrap.import can be set only when the cluster is made",
            ".bootstrap",
        ),
        Rule(
            f"!{_has_import('self')} || !has(self.bootstrap.__import__.databases) ||"
            " self.bootstrap.__import__.databases.all(d, !(d in ["
            + ", ".join(f"'{database}'" for database in names.RESERVED_DATABASES)
            + "]) && !d.endsWith('_ro'))",
            "spec.bootstrap.import.databases must not name a database that every cluster has ("
            + ", ".join(names.RESERVED_DATABASES)
            + "), nor end in _ro, which the read-only pool uses",
            ".bootstrap",
        ),
        Rule(
            "!has(self.replication) || !has(self.replication.synchronous) ||"
            " !has(self.replication.synchronous.mode) ||"
            " self.replication.synchronous.mode == 'none' ||"
            " (has(self.replication.synchronous.standbys) ?"
            " self.replication.synchronous.standbys : 1) < self.instances",
            "spec.replication.synchronous.standbys must be less than spec.instances: every commit"
            " would wait for ever",
            ".replication.synchronous.standbys",
        ),
        Rule(
            f"!has(self.users) || self.users.all(u, {_free_role('u.name')})",
            "spec.users must not name a role that the operator needs ("
            + ", ".join(names.RESERVED_ROLES)
            + "), nor one of PostgreSQL's own, which begin with pg_",
            ".users",
        ),
        Rule(
            "!has(self.databases) || self.databases.all(d, !has(d.owner) ||"
            f" {_free_role('d.owner')})",
            "spec.databases must not name as owner a role that the operator needs ("
            + ", ".join(names.RESERVED_ROLES)
            + "), nor one of PostgreSQL's own, which begin with pg_: the owner gets a password",
            ".databases",
        ),
        Rule(
            "!has(self.databases) || self.databases.all(d, !(d.name in ["
            + ", ".join(f"'{database}'" for database in names.RESERVED_DATABASES)
            + "]) && !d.name.endsWith('_ro'))",
            "spec.databases must not name a database that the operator needs ("
            + ", ".join(names.RESERVED_DATABASES)
            + "), nor end in _ro, which the read-only pool uses",
            ".databases",
        ),
    )

    instances: int = Field(ge=1, le=names.MAX_INSTANCES)
    """How many PostgreSQL instances there are: one primary, the others standbys."""
    image: ImageName | None = None
    """Image of the instances. Default: that of the operator's catalog for `postgres.version`, pinned in the status when the cluster is made."""
    image_pull_secrets: tuple[PullSecret, ...] = list_map("name", max_items=10)
    """With what the images of instances and poolers may be pulled."""
    postgres: Postgres = Postgres()
    """PostgreSQL itself."""
    storage: Storage
    """The volumes of an instance."""
    bootstrap: Bootstrap = Bootstrap()
    """What a new cluster begins with. Default: nothing but its databases and users."""
    replication: Replication = Replication()
    """Replication between the instances."""
    failover: Failover = Failover()
    """When another instance takes over."""
    databases: tuple[Database, ...] = list_map("name", max_items=100)
    """Databases that are to exist. Default: one, `app`, owned by role `app`."""
    users: tuple[User, ...] = list_map("name", max_items=100)
    """Roles that are to exist and may log in. Default: one, `app`."""
    pgbouncer: Pgbouncer = Pgbouncer()
    """The pools in front of the cluster."""
    scheduling: Scheduling = Scheduling()
    """Where the pods run."""
    tls: Tls = Tls()
    """Encryption, and the certificates that clients see."""
    inherited_metadata: InheritedMetadata = InheritedMetadata()
    """What every object of the cluster carries in addition."""
    paused: bool = False
    """While true, the operator changes nothing and only reports. Failover goes on by itself, and so does the renewal of certificates. Default: false."""
    hibernated: bool = False
    """While true, no pods run and the volumes are kept. Put to sleep in order, the primary last, and woken with the same primary. Default: false."""
    maintenance: tuple[Maintenance, ...] = list_map("instance", max_items=names.MAX_INSTANCES)
    """Instances that somebody works on: their pods run without postgres, and nobody elects, starts or counts on them. A primary hands over first. Taken out of the list, an instance rejoins by itself."""
    network_policy: NetworkPolicy = NetworkPolicy()
    """Who reaches the pods over the network."""

    @property
    def application(self) -> Database:
        """The database that Secret <cluster>-app is for."""
        return self.databases[0] if self.databases else Database(name="app")


# --- status -----------------------------------------------------------------------------------
class Member(Model):
    """One instance."""

    pod: str
    """Pod of the instance."""
    node: str | None = None
    """Node that it runs on."""
    role: str | None = None
    """`primary` or `standby`."""
    state: str = "unknown"
    """What it is doing: waiting, bootstrapping, cloning, rewinding, starting, running, promoting, stopping, fenced, maintenance, refused, or unknown."""
    reason: str | None = None
    """Why, in a sentence."""
    ready: bool = False
    """Whether it is in its role: a primary that holds the Lease, or a standby that streams."""
    timeline: int | None = None
    """Its timeline."""
    lag_bytes: int | None = None
    """How many bytes of WAL it has still to replay, rounded up to 16 MiB, 256 MiB, 4 GiB; 0 is up to 1 MiB. The exact value is in its metrics."""
    upstream: str | None = None
    """Pod that it streams from."""
    repmgrd: bool = False
    """Whether repmgrd runs."""
    repmgrd_paused: bool = False
    """Whether repmgrd is paused (`repmgr service pause`), so that it takes part in no failover."""
    disk_used_percent: int | None = None
    """How full its fuller volume is, rounded down to steps of 5. The exact values are in its metrics."""
    postgres_version: str | None = None
    """Version of its PostgreSQL."""
    pending_restart: tuple[str, ...] = atomic_list(max_items=400)
    """Parameters that wait for a restart."""
    up_to_date: bool | None = None
    """Whether it runs as the spec asks for; false for one that a rolling change has yet to come to."""
    progress: str | None = None
    """How far a clone or an import has come."""


class Pooler(Model):
    """One pooler."""

    pod: str
    """Pod of the pooler."""
    ready: bool = False
    """Whether it points at the current primary and takes clients."""
    paused: bool = False
    """Whether its clients wait."""
    reason: str | None = None
    """Why, in a sentence."""
    primary: str | None = None
    """Instance that its databases point at."""
    epoch: int | None = None
    """Epoch of the databases section that it has applied."""
    applied_hash: str | None = None
    """Hash of the databases section that it has applied and verified."""
    settings_hash: str | None = None
    """Hash of the settings that it has applied and verified."""


class FailoverRecord(Model):
    """One change of primary; durations count from when the loss was detected, or the successor was
    told to take over."""

    from_: str | None = Field(default=None, alias="from")
    """The primary before."""
    to: str
    """The primary after."""
    cause: str
    """`failover` or `switchover`."""
    timeline: int
    """Timeline of the new primary."""
    epoch: int
    """How often the Lease has changed hands."""
    detected_at: str | None = None
    """When the loss was detected."""
    gate_ms: int | None = None
    """Milliseconds until the new primary held the Lease."""
    promoted_ms: int | None = None
    """Milliseconds until it accepted writes."""
    config_ms: int | None = None
    """Milliseconds until the pools' databases section named it."""
    reloaded_ms: int | None = None
    """Milliseconds until the last pool had applied and verified that."""
    resumed_ms: int | None = None
    """Milliseconds until the last pool let its clients go on."""
    first_transaction_ms: int | None = None
    """Milliseconds until the first transaction through a pool."""


class SwitchoverRecord(Model):
    """One planned change of primary, asked for by a person or by the operator itself."""

    request: str = Field(max_length=512)
    """What identifies it: the annotation's value, or a name that the operator gave it."""
    cause: str = "request"
    """Who asked: `request` (annotation pgcluster.dev/switchover), `rollout`, `scale`, `node`, `maintenance`."""
    asked_by: str | None = None
    """Field manager that wrote the annotation."""
    from_: str | None = Field(default=None, alias="from")
    """The primary before."""
    to: str | None = None
    """The instance that is to take over."""
    state: str = "Running"
    """`Running`; or how it ended: `Succeeded`, `Refused` (nothing was begun), `Failed` (everything was put back, or another instance became the primary)."""
    reason: str = ""
    """Why, in a sentence."""
    epoch: int | None = None
    """`status.epoch` when it was asked for; it means nothing in any other."""
    failures: int = 0
    """How many attempts of the operator's own have come to nothing since the primary last changed on purpose; the next one waits the longer."""
    started_at: str | None = None
    """When it was begun."""
    ended_at: str | None = None
    """When it ended."""


class ForcedPromotionRecord(Model):
    """One wish of `spec.failover.forcePromotion`, and what came of it."""

    instance: str
    """The instance that it names."""
    epoch: int
    """The epoch that it is meant in."""
    asked_by: str | None = None
    """Field manager that wrote the wish."""
    state: str = "Waiting"
    """`Waiting`; or how it ended: `Succeeded`, `Superseded` (another instance became the primary first), `Ignored` (it is of another epoch), `Withdrawn`."""
    reason: str = ""
    """Why, in a sentence."""
    seen_at: str | None = None
    """When the operator first saw it."""
    ended_at: str | None = None
    """When it ended."""


class PgClusterStatus(Model):
    """What there is."""

    observed_generation: int | None = None
    """Generation of the spec that this status is about; -1 before an operator has looked."""
    conditions: tuple[Condition, ...] = list_map("type", max_items=20)
    """Ready, Progressing, Degraded, Stalled; Reconciling and Maintenance while there is any: each with a reason and a message."""
    summary: str | None = None
    """One word: what kubectl get shows."""
    primary: str | None = None
    """Pod of the primary."""
    timeline: int | None = None
    """Timeline of the primary."""
    synchronous: str | None = None
    """What commits wait for now, as in synchronous_standby_names; empty where for no standby."""
    system_identifier: str | None = None
    """Identity of the database cluster."""
    epoch: int | None = None
    """How often the Lease has changed hands."""
    instances: int | None = None
    """How many instances exist."""
    ready_instances: int | None = None
    """How many of them are ready."""
    selector: str | None = None
    """Label selector of the instances, for the scale subresource."""
    image: str | None = None
    """Image of the instances where the spec names none: pinned when the cluster was made, chosen anew by annotation pgcluster.dev/restart."""
    pgbouncer_image: str | None = None
    """Image of the poolers where the spec names none, pinned likewise."""
    restart: str | None = None
    """Value of annotation pgcluster.dev/restart for which the images were last chosen."""
    members: tuple[Member, ...] = list_map("pod", max_items=50)
    """The instances."""
    poolers: tuple[Pooler, ...] = list_map("pod", max_items=100)
    """The poolers."""
    last_failover: FailoverRecord | None = None
    """The last change of primary and its phases."""
    last_switchover: SwitchoverRecord | None = None
    """The last switchover: what was asked for, and what came of it."""
    switchover_request: str | None = None
    """Value of annotation pgcluster.dev/switchover that was last dealt with: each is done once."""
    failovers: tuple[FailoverRecord, ...] = atomic_list(max_items=10)
    """The last ten changes of primary, newest first."""
    forced_promotion: ForcedPromotionRecord | None = None
    """The last wish of `spec.failover.forcePromotion`, who wrote it, and what came of it."""
    imported_at: str | None = None
    """When the import of `spec.bootstrap.import` was complete."""


_IMPORTED = "(has(self.status) && has(self.status.importedAt))"


class PgCluster(Model):
    """A PostgreSQL cluster: one primary and its standbys under repmgr, behind pgbouncer pools."""

    rules = (
        Rule(
            f"self.metadata.name.size() <= {names.MAX_CLUSTER_NAME}",
            f"metadata.name must have at most {names.MAX_CLUSTER_NAME} characters: pods and"
            " Services derive their names from it",
        ),
        Rule(
            "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
            "metadata.name must start with a letter and have only lower-case letters, digits and"
            " hyphens: Services are named after it",
        ),
        Rule(
            f"!{_has_import('oldSelf.spec')} || ({_IMPORTED} ?"
            f" !{_has_import('self.spec')} ||"
            " self.spec.bootstrap.__import__ == oldSelf.spec.bootstrap.__import__ :"
            f" {_has_import('self.spec')})",
            "spec.bootstrap.import is fixed once the import is complete, and can be removed only"
            " then",
        ),
        Rule(
            f"!{_has_import('self.spec')} || !has(self.spec.bootstrap.__import__.source.cluster) ||"
            " self.spec.bootstrap.__import__.source.cluster != self.metadata.name",
            "spec.bootstrap.import.source.cluster must be another cluster",
        ),
    )

    spec: PgClusterSpec
    """What the user wants."""
    status: PgClusterStatus = PgClusterStatus()
    """What there is."""
    metadata: Opaque = Field(default_factory=dict, exclude=True)
    """Standard object's metadata."""

    @classmethod
    def parse(cls, body: Mapping[str, Any]) -> Self:
        """Read a manifest; pydantic.ValidationError where it cannot be understood."""
        return cls.model_validate(dict(body))

    @property
    def name(self) -> str:
        """Name of the cluster."""
        return str(self.metadata["name"])

    @property
    def namespace(self) -> str:
        """Namespace of the cluster and of all its objects."""
        return str(self.metadata["namespace"])

    @property
    def uid(self) -> str:
        """Identity of this very object."""
        return str(self.metadata.get("uid", ""))

    @property
    def generation(self) -> int:
        """Generation of the spec."""
        return int(self.metadata.get("generation", 0))

    @property
    def restart(self) -> str | None:
        """What annotation pgcluster.dev/restart last said: a new value restarts the instances.

        One that is taken away restarts nobody.
        """
        value = (self.metadata.get("annotations") or {}).get(names.ANNOTATION_RESTART)
        return str(value) if value else self.status.restart


def settings_of(cluster: PgCluster) -> str:
    """Identity of the parameters of a spec."""
    text = json.dumps(cluster.spec.postgres.parameters, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def users(cluster: PgCluster) -> tuple[User, ...]:
    """The declared users, and the owner of each database where nobody declares it.

    The application's role takes its password from Secret <cluster>-app unless it names another.
    """
    application = cluster.spec.application
    default = SecretRef(name=names.secret_app(cluster.name))
    found = {user.name: user for user in cluster.spec.users}
    for database in cluster.spec.databases or (application,):
        found.setdefault(database.owner, User(name=database.owner))
    owner = found[application.owner]
    if owner.password_secret is None:
        found[owner.name] = owner.model_copy(update={"password_secret": default})
    return tuple(found.values())


def _of_superuser(line: str) -> bool:
    try:
        return holes.names_superuser(hba.parse(line))
    except ValueError:
        return False


def import_config(cluster: PgCluster) -> agents.ImportConfig | None:
    """What to take over and from where, with everything that is left to a default."""
    wanted = cluster.spec.bootstrap.import_
    if wanted is None:
        return None
    source = wanted.source
    host, secret = source.host, source.password_secret
    if source.cluster is not None:
        host = f"{names.service_primary(source.cluster)}.{cluster.namespace}.svc"
        secret = secret or SecretRef(name=names.secret_app(source.cluster))
    if host is None or secret is None:
        return None  # the API server has let nothing of the kind through
    declared = cluster.spec.databases or (cluster.spec.application,)
    return agents.ImportConfig(
        source=agents.ImportSourceConfig(
            host=host,
            port=source.port,
            user=source.user,
            password_secret=secret.name,
            ssl_mode=source.ssl_mode,
            ca_secret=source.ca_secret.name if source.ca_secret else None,
        ),
        databases=wanted.databases or tuple(database.name for database in declared),
        roles=wanted.roles,
        schema_only=wanted.schema_only,
        exclude_schemas=wanted.exclude_schemas,
        exclude_tables=wanted.exclude_tables,
        jobs=wanted.jobs,
    )


def to_config(
    cluster: PgCluster,
    *,
    system_identifier: str | None,
    orders: agents.Orders = agents.NO_ORDERS,
) -> agents.ClusterConfig:
    """What the agents need to know of the cluster."""
    spec = cluster.spec
    rate = spec.replication.clone_max_rate
    keep = spec.replication.max_slot_wal_keep_size
    synchronous = spec.replication.synchronous
    forced = spec.failover.force_promotion
    # With a quorum a failover loses nothing either, and is faster than a recovery.
    on_crash: Literal["restart", "failover"] = (
        "failover" if synchronous.mode == "quorum" else "restart"
    )
    lease = spec.failover.lease
    return agents.ClusterConfig(
        name=cluster.name,
        namespace=cluster.namespace,
        uid=cluster.uid,
        instances=spec.instances,
        postgres_major=spec.postgres.version,
        parameters=dict(sorted(spec.postgres.parameters.items())),
        hba=tuple(line for line in spec.postgres.hba if not _of_superuser(line)),
        hba_superuser=tuple(line for line in spec.postgres.hba if _of_superuser(line)),
        initdb=agents.InitdbConfig(
            encoding=spec.postgres.initdb.encoding,
            locale=spec.postgres.initdb.locale,
            data_checksums=spec.postgres.initdb.data_checksums,
        ),
        wal_volume=spec.storage.wal_size is not None,
        wal_room_bytes=parse_bytes(spec.storage.wal_size or spec.storage.size),
        max_slot_wal_keep_size_bytes=None if keep is None else parse_bytes(keep),
        synchronous=agents.SynchronousConfig(
            mode=synchronous.mode,
            standbys=synchronous.standbys,
            degrade=synchronous.when_unavailable == "degrade",
        ),
        failover=agents.FailoverConfig(
            automatic=spec.failover.automatic,
            on_crash=spec.failover.on_crash or on_crash,
            maximum_lag_bytes=parse_bytes(spec.failover.maximum_lag),
            lease=agents.LeaseConfig(
                duration_s=parse_seconds(lease.duration),
                renew_interval_s=parse_seconds(lease.renew_interval),
                renew_deadline_s=parse_seconds(lease.renew_deadline),
            ),
            force_promotion=None
            if forced is None
            else agents.ForcePromotionConfig(instance=forced.instance, epoch=forced.epoch),
        ),
        databases=tuple(
            agents.DatabaseConfig(
                name=database.name, owner=database.owner, extensions=database.extensions
            )
            for database in spec.databases or (spec.application,)
        ),
        users=tuple(
            agents.UserConfig(
                name=user.name,
                password_secret=user.password_secret.name if user.password_secret else None,
                member_of=user.member_of,
            )
            for user in users(cluster)
        ),
        read_only_pool=spec.pgbouncer.read_only_pool,
        bootstrap_import=import_config(cluster),
        paused=spec.paused,
        switchover=orders.switchover,
        restart=orders.restart,
        settings=settings_of(cluster),
        remaining=orders.remaining,
        maintenance=orders.maintenance,
        hibernation=orders.hibernation,
        clone_max_rate_bytes=None if rate is None else parse_bytes(rate),
        max_clones=spec.replication.max_clones,
        tls=agents.TlsConfig(
            min_version=spec.tls.min_version,
            clients=spec.tls.clients,
            enforced=orders.tls_enforced,
        ),
        system_identifier=system_identifier,
    )
