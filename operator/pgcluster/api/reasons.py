"""What each reason of a condition and of an Event means, and what to do about it.

Reasons are part of the API: alerts, scripts and Argo CD's health checks compare them, so none is
renamed, and none is without a line here. docs/conditions.md is generated from this, and
tests/unit/test_reasons.py finds every reason that the code can give.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pgcluster.api import conditions as c

NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason. `where`: the conditions that may have it, each with its status."""

    where: str
    means: str
    do: str = NOTHING


# Types of conditions: what `True` says, and `False`.
TYPES: Mapping[str, tuple[str, str]] = {
    c.READY: (
        "all that the spec asks for is there and serves",
        "something is missing; the reason says what. It may serve all the same: see `Degraded`",
    ),
    c.PROGRESSING: ("a change is under way", "nothing changes"),
    c.DEGRADED: (
        "it serves, but something is missing or needs a look",
        "nothing of that kind, or it does not serve at all: see `Ready`",
    ),
    c.STALLED: (
        "only a change of the spec or of the world helps",
        "the operator can go on",
    ),
    c.RECONCILING: (
        "as `Progressing`, under the name that kstatus looks for; never together with `Stalled`",
        "it is not there then",
    ),
    c.MAINTENANCE: (
        "instances whose postgres is kept down by `spec.maintenance`",
        "none of those that were asked for is; not there where none is asked for",
    ),
}

_NOT_READY = "Ready=False, Progressing"
_BLOCKED = "Stalled; Ready=False where there is no database yet"

CONDITIONS: Mapping[str, Reason] = {
    c.ALL_READY: Reason("Ready", "all instances and poolers are there"),
    c.API_REFUSED: Reason(
        _BLOCKED,
        "the API server refuses an object that the cluster needs, for its content or for a right"
        " that the operator lacks",
        "correct the field that the message names, or give the operator the right",
    ),
    c.APPLYING: Reason(
        "Progressing, Reconciling",
        "a change of the spec was written, and its effect has not shown yet",
    ),
    c.BOOTSTRAPPING: Reason(_NOT_READY, "the first instance is being made"),
    c.CRASH_LOOP: Reason(
        "Degraded; Ready=False and Stalled where it keeps a container from being created",
        "a container cannot be created, or ends again and again",
        "read the log that the message names",
    ),
    c.CREATING: Reason(_NOT_READY, "a new cluster has its primary, and not yet all the rest"),
    c.DISK_FULL: Reason(
        "Ready=False and Stalled where it is the primary's, else Degraded",
        "a volume is full; applications can only read",
        "grow `spec.storage.size` or `walSize`, or free space: [Health](health.md)",
    ),
    c.DISK_NEARLY_FULL: Reason(
        "Degraded", "85 % of a volume are in use", "grow it before it is full"
    ),
    c.FAILING_OVER: Reason(
        _NOT_READY, "an instance is becoming the primary; clients of the pools wait"
    ),
    c.FAILSAFE: Reason(
        "Degraded",
        "the primary cannot reach the API server, and goes on by the word of all other instances;"
        " no failover is possible meanwhile",
        "mend the way to the API server",
    ),
    c.FOREIGN_DATA: Reason(
        "Stalled",
        "a volume holds data of another database cluster; nothing of it is touched",
        "see what it is; delete that claim where nobody needs it, and the instance is cloned",
    ),
    c.HIBERNATED: Reason("Ready", "it sleeps, as `spec.hibernated` asks; the volumes are kept"),
    c.HIBERNATE_REFUSED: Reason(
        "Progressing, Reconciling",
        "it cannot sleep yet: no primary could stop in order",
        "see why there is none: [Scaling](scaling.md#sleep)",
    ),
    c.HIBERNATING: Reason(_NOT_READY, "it is being put to sleep"),
    c.IMAGE_PULL: Reason(
        "Stalled, Degraded; Ready=False where there is no database yet",
        "a pod cannot get its image",
        "correct the image's name, or make it available to the node",
    ),
    c.IMPORTING: Reason(
        _NOT_READY,
        "a new cluster takes over the data of another server",
        "nothing: `members[].progress` says how far it is: [Import](import.md)",
    ),
    c.CERTIFICATE_INVALID: Reason(
        "Degraded",
        "the certificate that `spec.tls` names cannot be used; the pools go on with what they have",
        "correct the Secret as the message says: [TLS](tls.md)",
    ),
    c.CERTIFICATE_MISSING: Reason(
        "Degraded",
        "the Secret that `spec.tls` names is not there, or lacks a key",
        "make it, or correct `spec.tls.secretName` or `spec.tls.issuerRef`",
    ),
    c.CERT_MANAGER_MISSING: Reason(
        "Degraded",
        "`spec.tls.issuerRef` is set, and the API server knows no cert-manager",
        "install cert-manager, or remove the field",
    ),
    c.IMPORT_FAILED: Reason(
        "Ready=False, Stalled",
        "that came to nothing; it is tried again by itself",
        "correct the Secret, the source or `spec.bootstrap.import`, as the message says",
    ),
    c.INSTANCES_NOT_READY: Reason(
        "Ready=False, Degraded, Progressing",
        "an instance is missing, or not in its role",
        "mostly nothing: it comes back by itself. The message says what each is doing",
    ),
    c.INVALID_SPEC: Reason(_BLOCKED, "the spec makes no sense", "correct the field that is named"),
    c.IN_MAINTENANCE: Reason(
        "Maintenance, Progressing", "instances are left to somebody's work, or about to be"
    ),
    c.MAINTENANCE_REFUSED: Reason(
        "Maintenance, Progressing",
        "an instance is not, or not yet, left to somebody's work",
        "the message says why: [Scaling](scaling.md#maintenance-of-one-instance)",
    ),
    c.NAME_CONFLICT: Reason(
        _BLOCKED,
        "an object of a name that is needed belongs to something else",
        "choose another name for the PgCluster, or remove that object",
    ),
    c.NO_PRIMARY: Reason(
        "Ready=False, Progressing, Degraded=False",
        "no instance is the primary; clients of the pools wait",
        "bring the missing instances back; else [Failover](failover.md#no-primary)",
    ),
    c.OBJECTS_FAILED: Reason(
        "Degraded",
        "a role, database or extension of the spec could not be made in PostgreSQL",
        "correct what the message names",
    ),
    c.PARAMETERS_OVERRIDDEN: Reason(
        "Degraded",
        "a parameter of the spec has no effect, because something else has the last word",
        "`ALTER SYSTEM RESET` it on the instances that are named",
    ),
    c.PARAMETERS_REFUSED: Reason(
        "Degraded",
        "PostgreSQL does not take a parameter; it runs with the former ones",
        "correct `spec.postgres.parameters`",
    ),
    c.PAUSED: Reason(
        "Progressing=False",
        "`spec.paused`: the operator changes nothing; failover goes on",
        "`kubectl pgcluster resume`, when whoever paused it agrees",
    ),
    c.POOLERS_NOT_READY: Reason(
        "Ready=False, Degraded, Progressing",
        "a pooler is missing, or does not point at the primary yet",
        "mostly nothing: the message says what each is doing",
    ),
    c.POOLERS_ROLLING: Reason(
        "Progressing, Reconciling",
        "the poolers are replaced one by one",
        "where it does not end, the new pooler's pod says why",
    ),
    c.POOL_SETTINGS: Reason(
        "Progressing, Reconciling", "the poolers take changed settings one after the other"
    ),
    c.POOL_SETTINGS_REFUSED: Reason(
        "Degraded",
        "a pooler did not take what `spec.pgbouncer` says; it and all after it keep what they had",
        "correct or remove the setting that is named",
    ),
    c.REPMGRD_DOWN: Reason("Degraded", "repmgrd ends again and again", "its log says why"),
    c.REPMGRD_PAUSED: Reason(
        "Degraded",
        "somebody paused repmgrd; a failover is left to the agents, which are a little slower",
        "`repmgr service unpause`, when whoever paused it agrees",
    ),
    c.ROLLING_OUT: Reason("Progressing, Reconciling", "a rolling change comes to each instance"),
    c.ROLLOUT_PENDING: Reason(
        "Progressing=False",
        "the operator offers a newer image or template, and restarts nobody by itself",
        "`kubectl pgcluster restart`, when it suits: [Rolling changes](rolling-changes.md)",
    ),
    c.ROLLOUT_STOPPED: Reason(
        "Stalled, Progressing=False",
        "a rolling change goes no further, because an instance that has it is not well",
        "the message says which instance, and why",
    ),
    c.SCALE_REFUSED: Reason(
        "Progressing, Reconciling",
        "fewer instances are wanted, and those that would stay cannot do without the others yet",
        "bring the instance back that is named: [Scaling](scaling.md#fewer-instances)",
    ),
    c.SCALING: Reason("Progressing, Reconciling", "instances are about to be removed"),
    c.SETTLED: Reason("Progressing=False, Degraded=False, Stalled=False", "there is no news"),
    c.STANDBY_LOST_WAL: Reason(
        "Degraded",
        "a standby was away for longer than WAL is kept, and is cloned anew",
        "where that happens often, raise `spec.replication.maxSlotWalKeepSize`",
    ),
    c.STORAGE_CLASS_MISSING: Reason(
        _BLOCKED,
        "the StorageClass does not exist, or none is the default",
        "correct `spec.storage.className`, or make the class",
    ),
    c.SWITCHING_OVER: Reason(
        "Progressing, Reconciling", "a [switchover](switchover.md) is under way, or waits"
    ),
    c.SWITCHOVER_FAILED: Reason(
        "Progressing=False",
        "the last switchover was begun, and everything was put back",
        "the message says why; ask again, by a new value",
    ),
    c.SWITCHOVER_REFUSED: Reason(
        "Progressing=False",
        "the last switchover was not begun",
        "the message says why; ask again, by a new value",
    ),
    c.SYNCHRONOUS_MISSING: Reason(
        "Degraded",
        "fewer standbys stream than commits should wait for",
        "bring standbys back: [Failover](failover.md)",
    ),
    c.UNSCHEDULABLE: Reason(
        "Stalled, Degraded; Ready=False where there is no database yet",
        "no node fits a pod",
        "free or add capacity, or change `spec.scheduling` or the resources",
    ),
    c.VOLUME_GROWTH_REFUSED: Reason(
        "Stalled",
        "a larger size is wanted, and the StorageClass cannot expand",
        "[Storage](storage.md)",
    ),
    c.VOLUME_RESIZING: Reason(
        "Progressing, Reconciling",
        "a volume is on its way to its new size",
        "nothing, unless the message asks for a new start of the pod",
    ),
    c.WAKING: Reason(_NOT_READY, "it is being woken; its former primary is waited for"),
    c.WAL_RETAINED: Reason(
        "Degraded",
        "a slot holds back more than half of what it may",
        "bring that standby back; drop a slot of your own that nobody reads",
    ),
}

# Of the operator and the agents; besides, each reason of Stalled=True and Degraded=True is the
# reason of a Warning when the condition begins to have it.
EVENTS: Mapping[str, Reason] = {
    "Bootstrapped": Reason("operator", "the database cluster was made"),
    "Failover": Reason("operator", "another instance is the primary: from which, how fast, why"),
    "ForcedPromotionIgnored": Reason(
        "operator",
        "`spec.failover.forcePromotion` names another epoch than today's",
        "write today's `status.epoch` if it is still meant",
    ),
    "ForcedPromotionRequested": Reason(
        "operator, Warning",
        "who asked by `spec.failover.forcePromotion`; commits that the instance lacks will be lost",
    ),
    "ForcedPromotionSucceeded": Reason("operator, Warning", "the instance is the primary"),
    "ForcedPromotionSuperseded": Reason(
        "operator, Warning", "another instance became the primary first", "remove the field"
    ),
    "ForcedPromotionWithdrawn": Reason("operator, Warning", "the field was removed before"),
    "InstanceRestarted": Reason("operator", "a rolling change has come through an instance"),
    "PrimaryLost": Reason(
        "operator, Warning",
        "no instance serves as the primary; clients of the pools wait",
        "nothing for the first minute; then see condition `Ready`",
    ),
    "Ready": Reason("operator", "condition `Ready` has become `True`"),
    "RolloutDone": Reason("operator", "a rolling change has come to its end"),
    "RolloutStarted": Reason("operator", "a rolling change has begun"),
    "SwitchoverFailed": Reason(
        "operator, Warning", "it was begun, and everything was put back", "see the note"
    ),
    "SwitchoverRefused": Reason("operator, Warning", "it was not begun", "see the note"),
    "SwitchoverRequested": Reason("operator", "who asked for a switchover, and to whom"),
    "SwitchoverSucceeded": Reason("operator", "the instance that was asked for is the primary"),
    "TooManyEvents": Reason(
        "operator and agents, Warning",
        "so much happens that some Events are not posted for a while",
        "see what flaps: the note names it, and the log has each",
    ),
    "Fenced": Reason(
        "agent, Warning",
        "a primary could not renew its Lease in time and was stopped",
        "see what keeps its node from the API server",
    ),
    "ImportFailed": Reason(
        "agent, Warning", "data of another server could not be taken over", "see the note"
    ),
    "ImportIncomplete": Reason(
        "agent, Warning",
        "it was taken over but for what the note names",
        "see to that by hand: [Import](import.md)",
    ),
    "Imported": Reason("agent", "data of another server was taken over"),
    "PostgresHangs": Reason(
        "agent, Warning", "postgres does not answer and is stopped", "see its log and its volume"
    ),
    "RejoinFailed": Reason(
        "agent, Warning", "an old primary could not be rewound, and is cloned instead"
    ),
    "RepmgrdHung": Reason("agent, Warning", "repmgrd stood still and was started anew"),
    "RepmgrEvent": Reason("agent", "an event of repmgr that this version does not know by name"),
}

# repmgr's own events, which the agents post under their names in Kubernetes' spelling; a failed one
# is a Warning. Source: repmgr documentation, "Event Notifications".
REPMGR: Sequence[str] = (
    "cluster_created",
    "primary_register",
    "primary_unregister",
    "standby_register",
    "standby_register_sync",
    "standby_unregister",
    "standby_clone",
    "standby_promote",
    "standby_follow",
    "standby_disconnect_manual",
    "standby_failure",
    "standby_recovery",
    "standby_switchover",
    "node_rejoin",
    "witness_register",
    "witness_unregister",
    "cluster_cleanup",
    "child_node_disconnect",
    "child_node_new_connect",
    "child_node_reconnect",
    "child_nodes_disconnect_command",
    "repmgrd_start",
    "repmgrd_shutdown",
    "repmgrd_reload",
    "repmgrd_config_reload",
    "repmgrd_failover_promote",
    "repmgrd_failover_follow",
    "repmgrd_failover_abort",
    "repmgrd_failover_aborted",
    "repmgrd_promote_error",
    "repmgrd_standby_reconnect",
    "repmgrd_upstream_disconnect",
    "repmgrd_upstream_reconnect",
    "repmgrd_local_disconnect",
    "repmgrd_local_reconnect",
)


def of_repmgr(event: str) -> str:
    """The reason of an Event for one of repmgr's; a bounded set, whatever repmgr sends."""
    if event not in REPMGR:
        return "RepmgrEvent"
    return "".join(part.capitalize() for part in event.split("_"))


def markdown() -> str:
    """The reference of conditions and Events as a page."""
    lines = [_HEAD, "## Conditions", "", "| condition | True | False |", "|---|---|---|"]
    lines += [f"| `{name}` | {yes} | {no} |" for name, (yes, no) in TYPES.items()]
    lines += ["", "## Reasons of conditions", "", *_table("condition", CONDITIONS), "", _EVENTS]
    lines += _table("from", EVENTS)
    lines += ["", _REPMGR, "", ", ".join(f"`{of_repmgr(event)}`" for event in REPMGR), ""]
    return "\n".join(lines)


def _table(where: str, reasons: Mapping[str, Reason]) -> list[str]:
    rows = [f"| `{name}` | {x.where} | {x.means} | {x.do} |" for name, x in sorted(reasons.items())]
    return [f"| reason | {where} | what it means | what to do |", "|---|---|---|---|", *rows]


_HEAD = """\
# Conditions and Events

What a PgCluster says of itself, for people and for what waits by it. This page is generated from
`operator/pgcluster/api/reasons.py` by `make generate`. Reasons are stable: none is renamed, none is
used that is not here. Messages are sentences for people, name the instance or the field and what to
do, and may change. [Health](health.md) tells more of the commonest.

```sh
kubectl wait --for=condition=Ready pgcluster/shop --timeout=5m
kubectl describe pgcluster shop      # each condition with its reason and message
kubectl pgcluster events shop        # what happened to it and its parts
```

## Waiting for it

`status.observedGeneration`, and that of each condition, is the generation of the spec that it is
about; -1 is what the API server gives an object that no operator has looked at. `kubectl wait` takes
no condition of an older generation. kstatus, by which `helm install --wait` (Helm 4), Flux and
`kpt` wait, finds:

| it finds | where |
|---|---|
| `InProgress` | the generation is not observed, or `Reconciling` is there, or `Ready` is not `True` |
| `Failed` | `Stalled` is `True` |
| `Current` | `Ready` is `True`, and neither of both |
| `Terminating` | the PgCluster is being deleted |

So a rolling change, during which `Ready` may well stay `True`, is waited for by kstatus, and not by
`kubectl wait --for=condition=Ready`; `kubectl wait --for=condition=Progressing=False` waits for its
end. A cluster that sleeps, or is paused, is `Current`.
"""

_EVENTS = """\
## Reasons of Events

Events are about the PgCluster, and `kubectl pgcluster events` shows them with those of its parts.
Each reason of `Stalled` and `Degraded` is also that of a Warning, posted when the condition begins to
have it.

Of each reason at most 10 Events are posted in 10 minutes, and 50 in all, by the operator and by each
agent; equal ones of an agent once a minute. One `TooManyEvents` says that others will be missing, and
the next that is posted how many of its reason were. The logs have every one.
"""

_REPMGR = """\
## Events of repmgr

Each event that repmgr or repmgrd writes into its own table is an Event of the agent, too, under the
same name in Kubernetes' spelling; a failed one is a Warning. The repmgr documentation, "Event
Notifications", says what each means."""
