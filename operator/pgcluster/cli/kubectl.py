"""`kubectl pgcluster`: what people ask of a running cluster.

Exit status: 0 done; 1 refused or failed; 2 the command line makes no sense; 3 still under way when
the time was over; 4 the API server does not answer, or refuses.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from pgcluster.api import names
from pgcluster.api.models import FailoverRecord, PgCluster, PgClusterStatus, SwitchoverRecord
from pgcluster.api.quantities import parse_seconds
from pgcluster.controller import switchover
from pgcluster.controller.observe import InstancePod, Key, Observed
from pgcluster.kube import credentials
from pgcluster.kube.client import KubeClient, Manifest
from pgcluster.kube.errors import ApiError
from pgcluster.kube.resources import LEASES, PGCLUSTERS, PODS
from pgcluster.topology.pods import report_of

DONE, REFUSED, TIMED_OUT, NO_API = 0, 1, 3, 4
_LOOK_EVERY_S = 0.3
_REHEARSAL_S = 60
# When the pools of a switchover had which phase is told a moment after its end.
_PHASES_WITHIN_S = 3.0

Command = Callable[[KubeClient, Key, argparse.Namespace], Awaitable[int]]


class Refused(Exception):
    """What is told in one sentence, with status 1."""


def main() -> None:
    """Entry point: `kubectl-pgcluster`, which kubectl finds as its plugin `pgcluster`."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line; returns the exit status."""
    options = parser().parse_args(arguments)
    try:
        return asyncio.run(_run(options))
    except Refused as error:
        return _fail(str(error), REFUSED)
    except ApiError as error:
        return _fail(str(error), NO_API)
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line; kubectl's own flags work before and after the command."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("-n", "--namespace", help="namespace of the cluster")
    common.add_argument("--context", help="context of the kubeconfig")
    common.add_argument("--kubeconfig", help="path of the kubeconfig")
    made = argparse.ArgumentParser(prog="kubectl pgcluster", description=__doc__, parents=[common])
    commands = made.add_subparsers(dest="name", required=True, metavar="COMMAND")
    planned = commands.add_parser(
        "switchover",
        parents=[common],
        help="hand over to another instance, without an error for the clients of the pools",
    )
    planned.set_defaults(command=_switchover)
    planned.add_argument("cluster", help="name of the PgCluster")
    planned.add_argument("--to", default=switchover.ANY, help="pod that is to take over")
    planned.add_argument("--dry-run", action="store_true", help="only say whether it can be done")
    planned.add_argument("--no-wait", action="store_true", help="ask for it and do not wait")
    planned.add_argument("--timeout", type=_seconds, default=180.0, help="such as 3m; default 3m")
    return made


def _seconds(text: str) -> float:
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


async def _run(options: argparse.Namespace) -> int:
    config, context = getattr(options, "kubeconfig", None), getattr(options, "context", None)
    identity = await credentials.of_kubeconfig(config, context)
    client = KubeClient(identity, request_timeout_s=15)
    namespace = getattr(options, "namespace", None) or credentials.namespace(config, context)
    command: Command = options.command
    try:
        return await command(client, Key(namespace, options.cluster), options)
    finally:
        await client.close()


# --- switchover -------------------------------------------------------------------------------
async def _switchover(client: KubeClient, key: Key, options: argparse.Namespace) -> int:
    request = f"{options.to}:{secrets.token_hex(4)}"
    record = await _rehearse(client, key, request)
    if record.state == "Refused":
        raise Refused(record.reason)
    if record.state == "Succeeded":
        _say(record.reason)
        return DONE
    _say(f"{record.from_} hands over to {record.to}")
    if options.dry_run:
        return await _ask_repmgr(key, record.to or "", options)
    annotation = {"metadata": {"annotations": {names.ANNOTATION_SWITCHOVER: request}}}
    await client.merge_patch(
        PGCLUSTERS, key.name, key.namespace, annotation, manager="kubectl-pgcluster"
    )
    if options.no_wait:
        _say(f"asked for: annotation {names.ANNOTATION_SWITCHOVER} is {request}")
        return DONE
    return await _concluded(client, key, request, timeout_s=options.timeout)


async def _rehearse(client: KubeClient, key: Key, request: str) -> SwitchoverRecord:
    """What the operator would make of the request now."""
    observed = await _observed(client, key)
    cluster = PgCluster.parse(observed.cluster)
    annotations = {names.ANNOTATION_SWITCHOVER: request}
    asking = cluster.model_copy(
        update={"metadata": {**cluster.metadata, "annotations": annotations}}
    )
    known = cluster.status
    if known.last_switchover is not None and known.last_switchover.state == "Running":
        raise Refused(f"a switchover to {known.last_switchover.to} is under way")
    decision = switchover.decide(observed, asking, known, (), now=datetime.now(UTC))
    if decision.waiting is not None:
        raise Refused(decision.waiting)
    if decision.record is None or decision.record.request != request:
        raise Refused("the cluster does not exist yet: see its condition Ready")
    return decision.record


async def _observed(client: KubeClient, key: Key) -> Observed:
    body = await client.get(PGCLUSTERS, key.name, key.namespace)
    if body is None:
        raise Refused(f"there is no PgCluster {key.name} in namespace {key.namespace}")
    lease = await client.get(LEASES, names.primary_lease(key.name), key.namespace)
    selector = (
        f"{names.LABEL_CLUSTER}={key.name},{names.LABEL_COMPONENT}={names.COMPONENT_POSTGRES}"
    )
    pods, _ = await client.list(PODS, key.namespace, labels=selector)
    children: dict[tuple[str, str], Manifest] = {}
    if lease is not None:
        children[LEASES.kind, names.primary_lease(key.name)] = lease
    return Observed(
        cluster=body,
        children=children,
        pods=tuple(InstancePod(pod["metadata"]["name"], pod, report_of(pod)) for pod in pods),
    )


async def _concluded(client: KubeClient, key: Key, request: str, *, timeout_s: float) -> int:
    """Wait for the end of the switchover, and tell of each thing that changes."""
    deadline_s = time.monotonic() + timeout_s
    said = ""
    while time.monotonic() < deadline_s:
        status = await _status(client, key)
        record = status.last_switchover
        if record is not None and record.request == request and record.state != "Running":
            if record.state != "Succeeded":
                return _fail(f"{record.state}: {record.reason}", REFUSED)
            _say(await _told(client, key, record, status))
            return DONE
        condition = next((c for c in status.conditions if c.type == "Progressing"), None)
        told = condition.message if condition and condition.status == "True" else ""
        if told and told != said:
            _say(f"… {told}")
            said = told
        await asyncio.sleep(_LOOK_EVERY_S)
    return _fail("it is still under way; `kubectl get pgc` shows how it ends", TIMED_OUT)


async def _told(
    client: KubeClient, key: Key, record: SwitchoverRecord, status: PgClusterStatus
) -> str:
    """The end in a sentence, with the phases as soon as the pools have told them."""
    deadline_s = time.monotonic() + _PHASES_WITHIN_S
    while True:
        found = _phases(record, status)
        if found or time.monotonic() > deadline_s:
            return record.reason + found
        await asyncio.sleep(_LOOK_EVERY_S)
        status = await _status(client, key)


def _phases(record: SwitchoverRecord, status: PgClusterStatus) -> str:
    last: FailoverRecord | None = status.last_failover
    if last is None or last.to != record.to or last.epoch <= (record.epoch or 0):
        return ""
    told = [
        f"{name} after {ms} ms"
        for name, ms in (("promoted", last.promoted_ms), ("pools went on", last.resumed_ms))
        if ms is not None
    ]
    return f": {', '.join(told)}" if last.resumed_ms is not None else ""


async def _status(client: KubeClient, key: Key) -> PgClusterStatus:
    body: dict[str, Any] | None = await client.get(PGCLUSTERS, key.name, key.namespace)
    if body is None:
        raise Refused(f"PgCluster {key.name} was deleted meanwhile")
    return PgClusterStatus.model_validate(body.get("status") or {})


async def _ask_repmgr(key: Key, target: str, options: argparse.Namespace) -> int:
    """repmgr's own rehearsal on the target, where kubectl is there to reach it."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        _say("repmgr's own checks were not made: there is no kubectl on the PATH")
        return DONE
    flags = [
        f"--{flag}={value}"
        for flag in ("kubeconfig", "context")
        if (value := getattr(options, flag, None))
    ]
    process = await asyncio.create_subprocess_exec(
        kubectl,
        *flags,
        f"--namespace={key.namespace}",
        *("exec", target, "--", "repmgr", "standby", "switchover"),
        *("--siblings-follow", "--dry-run"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(_REHEARSAL_S):
        output, _ = await process.communicate()
    sys.stdout.write(output.decode(errors="replace"))
    return DONE if process.returncode == 0 else REFUSED


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _fail(text: str, status: int) -> int:
    sys.stderr.write(f"error: {text}\n")
    return status


if __name__ == "__main__":
    main()
