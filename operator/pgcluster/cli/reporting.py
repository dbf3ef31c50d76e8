"""`kubectl pgcluster report`: all that helps to find a fault, as one archive, without secrets.

What the API has comes from the API; what only a pod knows, by kubectl. Each part stands alone: one
that does not answer, or may not be read, is named in the archive, and costs no other.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pgcluster
from pgcluster.api import names
from pgcluster.cli import executing, inside, outside, screen
from pgcluster.cli.bundle import LARGEST_PART, Bundle
from pgcluster.cli.redacting import Redactor
from pgcluster.cli.terms import DONE, Refused, say, warn
from pgcluster.controller.observe import Key
from pgcluster.kube.client import KubeClient, Manifest
from pgcluster.kube.errors import ApiError, Forbidden
from pgcluster.kube.resources import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    EVENTS,
    LEASES,
    NODES,
    PDBS,
    PODS,
    PVCS,
    ROLE_BINDINGS,
    ROLES,
    SECRETS,
    SERVICE_ACCOUNTS,
    SERVICES,
    STATEFUL_SETS,
    STORAGE_CLASSES,
    Resource,
)

_ASKS_WITHIN_S = 20.0
_TELLS_EVERY_S = 3.0
_OF_THE_CLUSTER = (
    CONFIG_MAPS,
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    LEASES,
    PDBS,
    PODS,
    PVCS,
    ROLES,
    ROLE_BINDINGS,
    SERVICES,
    SERVICE_ACCOUNTS,
    STATEFUL_SETS,
)
# Keys of Secrets that are none: they would be taken out of everything else.
_PUBLIC = ("username", "user", "host", "port", "dbname", "database", "ca.crt", "tls.crt")
_OF_A_NODE = ("conditions", "allocatable", "capacity", "nodeInfo", "addresses")
_IN_INSTANCE = {
    "repmgr-cluster-show": ("repmgr", "cluster", "show"),
    "repmgr-service-status": ("repmgr", "service", "status"),
    "repmgr-node-check": ("repmgr", "node", "check"),
    "repmgr-events": ("repmgr", "cluster", "event", "--limit=200"),
    "pg_controldata": ("pg_controldata", "--pgdata", names.PGDATA),
    "volumes": ("df", "--portability", names.VOLUME, names.RUN),
    # Not the arguments: somebody may have put a password there.
    "processes": ("ps", "-eo", "pid,ppid,stat,etime,rss,nlwp,comm"),
}
_CONSOLE = (
    "SHOW VERSION",
    "SHOW STATE",
    "SHOW DATABASES",
    "SHOW POOLS",
    "SHOW LISTS",
    "SHOW STATS",
    "SHOW CONFIG",
    "SHOW MEM",
    "SHOW SERVERS",
    "SHOW CLIENTS",
)
# No text of a query: there may be anything in it.
_SQL = """\
SET statement_timeout = '5s';
\\pset pager off
\\echo --- about
SELECT version(), pg_is_in_recovery(), pg_postmaster_start_time(), pg_conf_load_time(), now();
\\echo --- pg_stat_replication
SELECT * FROM pg_stat_replication \\gx
\\echo --- pg_stat_wal_receiver
SELECT * FROM pg_stat_wal_receiver \\gx
\\echo --- pg_replication_slots
SELECT * FROM pg_replication_slots \\gx
\\echo --- positions
SELECT pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn(), pg_last_xact_replay_timestamp();
\\echo --- settings that are not the default
SELECT name, setting, unit, source, sourcefile, pending_restart
  FROM pg_settings WHERE source NOT IN ('default', 'override') ORDER BY name;
\\echo --- errors in files
SELECT * FROM pg_file_settings WHERE error IS NOT NULL;
SELECT * FROM pg_hba_file_rules WHERE error IS NOT NULL;
\\echo --- databases
SELECT datname, pg_database_size(oid) AS bytes, age(datfrozenxid) FROM pg_database ORDER BY datname;
\\echo --- sessions
SELECT pid, backend_type, datname, usename, application_name, client_addr, state, wait_event_type,
       wait_event, now() - xact_start AS transaction_age, now() - state_change AS state_age
  FROM pg_stat_activity ORDER BY backend_start;
\\echo --- locks that are waited for
SELECT pid, locktype, mode, pg_blocking_pids(pid), waitstart FROM pg_locks WHERE NOT granted;
\\echo --- repmgr.nodes
SELECT node_id, upstream_node_id, active, node_name, type, priority FROM repmgr.nodes ORDER BY 1;
"""


async def report(client: KubeClient, key: Key, options: argparse.Namespace) -> int:
    """Collect it, within bounds of time and size, and write the archive."""
    deadline_s = time.monotonic() + options.timeout
    at = datetime.now(UTC)
    name = f"pgcluster-report-{key.namespace}-{key.name}-{at:%Y%m%dT%H%M%SZ}"
    path = Path(options.file or f"{name}.tar.gz").resolve()
    if not os.access(path.parent, os.W_OK):
        raise Refused(f"nothing can be written in {path.parent}")
    body = await outside.body_of(client, key)
    values, unread = await secrets_of(client, key, body)
    bundle = Bundle(name, Redactor(values))
    bundle.missing |= unread
    collector = _Collector(client, key, options, bundle, deadline_s)
    collector.begin(body, at)
    told = asyncio.create_task(_tell(bundle))
    try:
        await bundle.collected(deadline_s=deadline_s)
    finally:
        told.cancel()
    bundle.text("README.txt", _readme(bundle, key, at))
    size = bundle.write(path)
    say(f"wrote {path} ({size / 1024:.0f} KiB, {len(bundle.files)} files)")
    if bundle.missing:
        say(f"{len(bundle.missing)} parts could not be had; README.txt in it says which, and why")
    say(f"{bundle.redactor.count} secrets were taken out; look it through before you hand it on")
    return DONE


async def _tell(bundle: Bundle) -> None:
    """How far it is, for a person who waits."""
    while True:
        await asyncio.sleep(_TELLS_EVERY_S)
        done, of = bundle.progress()
        warn(f"… {done} of {of} parts")


def _readme(bundle: Bundle, key: Key, at: datetime) -> str:
    lines = [
        f"Report on PgCluster {key}, made {at:%Y-%m-%d %H:%M:%S} UTC by kubectl-pgcluster"
        f" {pgcluster.__version__} on Python {sys.version.split()[0]}.",
        "",
        "pgcluster.yaml, status.txt   the resource, and as `kubectl pgcluster status` shows it",
        "events.txt                   Events of it and of all that was made for it",
        "objects/                     what the API has of the cluster",
        "nodes/                       the nodes that its pods run on",
        "logs/                        of all containers; .previous: of the one before",
        "instances/                   what PostgreSQL and repmgr say in each pod",
        "poolers/                     what each pgbouncer's console says",
        "operator/                    the operator's objects and logs, without other clusters'",
        "",
        f"Secrets are not in it; {bundle.redactor.count} places were taken out of the rest.",
    ]
    if bundle.missing:
        lines += ["", "What could not be had:"]
        lines += [f"  {path}: {why}" for path, why in sorted(bundle.missing.items())]
    return "\n".join([*lines, ""])


# --- secrets ----------------------------------------------------------------------------------
async def secrets_of(
    client: KubeClient, key: Key, body: Manifest
) -> tuple[tuple[str, ...], dict[str, str]]:
    """The values that must not get out, as far as they may be read; and what may not, with why.

    They are read for this alone, and held in memory only.
    """
    found: list[Manifest] = []
    unread: dict[str, str] = {}
    try:
        found, _ = await client.list(
            SECRETS, key.namespace, labels=f"{names.LABEL_CLUSTER}={key.name}"
        )
    except ApiError as error:
        unread["(Secrets, to know what to take out)"] = (
            f"{error}; what is secret was found by its name and shape alone"
        )
    for name in sorted({*referenced(body.get("spec"))} - {x["metadata"]["name"] for x in found}):
        try:
            if (secret := await client.get(SECRETS, name, key.namespace)) is not None:
                found.append(secret)
        except ApiError as error:
            unread[f"(Secret {name}, to know what to take out)"] = str(error)
    return tuple(sorted({value for secret in found for value in values_in(secret)})), unread


def referenced(spec: Any, of: str = "") -> Iterator[str]:
    """Names of Secrets that a spec mentions. Pure."""
    if isinstance(spec, Mapping):
        for field, value in spec.items():
            named = field == "name" and "secret" in of.lower()
            if isinstance(value, str) and (named or field.lower() == "secretname"):
                yield value
            else:
                yield from referenced(value, str(field))
    elif isinstance(spec, list | tuple):
        for one in spec:
            yield from referenced(one, of)


def values_in(secret: Mapping[str, Any]) -> Iterator[str]:
    """What of a Secret is secret. Pure."""
    for field, value in (secret.get("data") or {}).items():
        if field in _PUBLIC:
            continue
        text = base64.b64decode(value).decode(errors="replace")
        yield text
        # A password file, a list of users: each line is one, too.
        if "PRIVATE KEY" not in text and "\n" in text:
            yield from text.splitlines()


# --- collecting -------------------------------------------------------------------------------
class _Collector:
    """Adds all parts of one cluster to a bundle."""

    def __init__(
        self,
        client: KubeClient,
        key: Key,
        options: argparse.Namespace,
        bundle: Bundle,
        deadline_s: float,
    ) -> None:
        self._client = client
        self._key = key
        self._options = options
        self._bundle = bundle
        self._deadline_s = deadline_s
        self._nodes: set[str] = set()
        self._kubectl: tuple[str, ...] | None = None

    def begin(self, body: Manifest, at: datetime) -> None:
        """Begin with everything that needs nothing else first."""
        bundle = self._bundle
        bundle.object("pgcluster.yaml", body)
        bundle.part("status.txt", partial(self._status, body, at))
        try:
            self._kubectl = outside.kubectl(self._key, self._options)
        except Refused as error:
            bundle.missing["logs/, instances/, poolers/"] = str(error)
        for resource in _OF_THE_CLUSTER:
            bundle.part(f"objects/{resource.plural}.yaml", partial(self._objects, resource))
        bundle.part("events.txt", partial(self._events, at))
        bundle.part("objects/storageclasses.yaml", partial(self._storage_classes))
        bundle.part("objects/secrets.txt", partial(self._secret_names))
        bundle.part("operator/", partial(self._operators))
        if self._kubectl is not None:
            bundle.part(
                "versions.txt", partial(self._run, "versions.txt", (*self._kubectl, "version"))
            )

    async def _status(self, body: Manifest, at: datetime) -> None:
        lines = screen.status(body, outside.status_in(body), now=at, colours=False)
        self._bundle.text("status.txt", "\n".join(lines) + "\n")

    async def _objects(self, resource: Resource) -> None:
        selector = f"{names.LABEL_CLUSTER}={self._key.name}"
        if resource is ENDPOINT_SLICES:
            # Made by Kubernetes, with the labels of the Service.
            found, _ = await self._client.list(resource, self._key.namespace)
            found = [one for one in found if _belongs(one, self._key.name)]
        else:
            found, _ = await self._client.list(resource, self._key.namespace, labels=selector)
        path = f"objects/{resource.plural}.yaml"
        self._bundle.object(path, {"kind": f"{resource.kind}List", "items": found})
        if resource is PODS:
            for pod in found:
                self._pod(pod)

    async def _events(self, at: datetime) -> None:
        found, _ = await self._client.list(EVENTS, self._key.namespace)
        mine = [event for event in found if screen.concerns(event, self._key.name)]
        lines = screen.events(mine, now=at, colours=False, head=True)
        self._bundle.text("events.txt", "\n".join(lines) + "\n")

    async def _storage_classes(self) -> None:
        found, _ = await self._client.list(STORAGE_CLASSES)
        self._bundle.object("objects/storageclasses.yaml", {"items": found})

    async def _secret_names(self) -> None:
        """Which Secrets there are, and which keys they have: a missing one explains much."""
        found, _ = await self._client.list(
            SECRETS, self._key.namespace, labels=f"{names.LABEL_CLUSTER}={self._key.name}"
        )
        lines = [
            f"{one['metadata']['name']}: {', '.join(sorted(one.get('data') or {}))}"
            for one in found
        ]
        self._bundle.text("objects/secrets.txt", "\n".join([*lines, ""]))

    async def _node(self, name: str) -> None:
        node = await self._client.get(NODES, name)
        if node is None:
            raise Refused("there is no such node any more")
        status = node.get("status") or {}
        spec = node.get("spec") or {}
        shown = {
            "name": name,
            "labels": node["metadata"].get("labels"),
            "unschedulable": spec.get("unschedulable", False),
            "taints": spec.get("taints"),
            **{field: status.get(field) for field in _OF_A_NODE},
        }
        self._bundle.object(f"nodes/{name}.yaml", shown)

    # --- pods ---------------------------------------------------------------------------------
    def _pod(self, pod: Manifest) -> None:
        name = str(pod["metadata"]["name"])
        node = (pod.get("spec") or {}).get("nodeName")
        if node and node not in self._nodes:
            self._nodes.add(node)
            self._bundle.part(f"nodes/{node}.yaml", partial(self._node, node))
        if self._kubectl is None:
            return
        self._logs(pod, self._kubectl, "logs")
        component = (pod["metadata"].get("labels") or {}).get(names.LABEL_COMPONENT)
        if not _runs(pod):
            return
        if component == names.COMPONENT_POSTGRES:
            self._instance(name, self._kubectl)
        elif component == names.COMPONENT_PGBOUNCER:
            path = f"poolers/{name}.txt"
            words = inside.console(self._kubectl, name, *_CONSOLE)
            self._bundle.part(path, partial(self._run, path, words))

    def _instance(self, name: str, kubectl: tuple[str, ...]) -> None:
        for what, command in _IN_INSTANCE.items():
            path = f"instances/{name}/{what}.txt"
            self._bundle.part(path, partial(self._run, path, inside.shell(kubectl, name, *command)))
        path = f"instances/{name}/postgres.txt"
        words = inside.psql(kubectl, name, names.DB_REPMGR, stops=False)
        self._bundle.part(path, partial(self._run, path, words, stdin=_SQL))

    def _logs(
        self, pod: Manifest, kubectl: tuple[str, ...], folder: str, *, about: str | None = None
    ) -> None:
        name = str(pod["metadata"]["name"])
        status = pod.get("status") or {}
        for kind in ("initContainerStatuses", "containerStatuses"):
            for container in status.get(kind) or ():
                which: list[tuple[str, tuple[str, ...]]] = [("", ())]
                if container.get("restartCount"):
                    which.append((".previous", ("--previous",)))
                for suffix, flags in which:
                    path = f"{folder}/{name}/{container['name']}{suffix}.log"
                    words = (
                        *(*kubectl, "logs", name, f"--container={container['name']}"),
                        *("--timestamps", f"--since={self._options.since}"),
                        *(f"--tail={self._options.tail}", *flags),
                    )
                    self._bundle.part(path, partial(self._run, path, words, about=about))

    async def _run(
        self,
        path: str,
        words: Sequence[str],
        *,
        stdin: str | None = None,
        about: str | None = None,
    ) -> None:
        """Add what a program writes; where it fails, also that."""
        left_s = max(0.1, self._deadline_s - time.monotonic())
        done = await executing.run(
            words, stdin=stdin, timeout_s=min(_ASKS_WITHIN_S, left_s), limit=LARGEST_PART
        )
        output = done.output if about is None else _about(done.output, about)
        if output:
            errors = f"\n--- standard error\n{done.error}" if done.error.strip() else ""
            self._bundle.text(path, output + errors, cut=done.cut)
        if done.status != 0:
            why = f"ended with status {done.status}: {done.reason}"
            self._bundle.missing[path] = self._bundle.redactor.text(why)
        elif not output:
            self._bundle.text(path, "")

    # --- the operator -------------------------------------------------------------------------
    async def _operators(self) -> None:
        selector = f"app.kubernetes.io/name={names.MANAGED_BY}"
        namespace: str | None = None
        try:
            found, _ = await self._client.list(DEPLOYMENTS, labels=selector)
        except Forbidden:
            namespace = self._key.namespace
            found, _ = await self._client.list(DEPLOYMENTS, namespace, labels=selector)
        if not found:
            self._bundle.missing["operator/"] = "no Deployment of an operator was found"
        for deployment in found:
            metadata = deployment["metadata"]
            folder = f"operator/{metadata['namespace']}/{metadata['name']}"
            self._bundle.object(f"{folder}/deployment.yaml", deployment)
            self._bundle.part(
                f"{folder}/pods.yaml", partial(self._operator_pods, deployment, folder)
            )

    async def _operator_pods(self, deployment: Manifest, folder: str) -> None:
        namespace = deployment["metadata"]["namespace"]
        selector = f"app.kubernetes.io/name={names.MANAGED_BY}"
        pods, _ = await self._client.list(PODS, namespace, labels=selector)
        self._bundle.object(f"{folder}/pods.yaml", {"items": pods})
        if self._kubectl is None:
            return
        kubectl = outside.kubectl(Key(namespace, self._key.name), self._options)
        for pod in pods:
            self._logs(pod, kubectl, f"{folder}/logs", about=str(self._key))


def _about(text: str, cluster: str) -> str:
    """The lines of an operator's log that are about one cluster, or about none. Pure."""
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if _tells_of(line) in (None, cluster))


def _tells_of(line: str) -> str | None:
    start = line.find("{")
    try:
        found = json.loads(line[start:]) if start >= 0 else {}
    except ValueError:
        return None
    return found.get("cluster") if isinstance(found, dict) else None


def _belongs(manifest: Mapping[str, Any], cluster: str) -> bool:
    labels = manifest["metadata"].get("labels") or {}
    service = labels.get("kubernetes.io/service-name") or ""
    return labels.get(names.LABEL_CLUSTER) == cluster or service == cluster


def _runs(pod: Mapping[str, Any]) -> bool:
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return any("running" in (status.get("state") or {}) for status in statuses)
