"""`kubectl pgcluster switchover`: asks for it, and tells how it goes."""

from __future__ import annotations

import argparse
import asyncio
import secrets
import sys
import time
from datetime import UTC, datetime

from pgcluster.api import names
from pgcluster.api.models import FailoverRecord, PgClusterStatus, SwitchoverRecord
from pgcluster.api.validation import check
from pgcluster.cli import outside
from pgcluster.cli.terms import DONE, REFUSED, TIMED_OUT, Refused, fail, say
from pgcluster.controller import switchover
from pgcluster.controller.observe import Key
from pgcluster.kube.client import KubeClient

_LOOK_EVERY_S = 0.3
_REHEARSAL_S = 60
# When the pools of a switchover had which phase is told a moment after its end.
_PHASES_WITHIN_S = 3.0


async def run(client: KubeClient, key: Key, options: argparse.Namespace) -> int:
    """Ask for a switchover that can be done, and wait for its end."""
    request = f"{options.to}:{secrets.token_hex(4)}"
    record = await _rehearse(client, key, request)
    if record.state == "Refused":
        raise Refused(record.reason)
    if record.state == "Succeeded":
        say(record.reason)
        return DONE
    say(f"{record.from_} hands over to {record.to}")
    if options.dry_run:
        return await _ask_repmgr(key, record.to or "", options)
    await outside.ask(
        client, key, {"metadata": {"annotations": {names.ANNOTATION_SWITCHOVER: request}}}
    )
    if options.no_wait:
        say(f"asked for: annotation {names.ANNOTATION_SWITCHOVER} is {request}")
        return DONE
    return await _concluded(client, key, request, timeout_s=options.timeout)


async def _rehearse(client: KubeClient, key: Key, request: str) -> SwitchoverRecord:
    """What the operator would make of the request now."""
    observed = await outside.observed(client, key)
    cluster = outside.parsed(observed.cluster)
    if found := check(cluster.spec):
        # Nobody would answer: the operator acts on no spec that it has to refuse.
        raise Refused(f"the spec is refused: {'; '.join(str(problem) for problem in found)}")
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


async def _concluded(client: KubeClient, key: Key, request: str, *, timeout_s: float) -> int:
    """Wait for the end of the switchover, and tell of each thing that changes."""
    deadline_s = time.monotonic() + timeout_s
    said = ""
    taken = False
    while time.monotonic() < deadline_s:
        status = await outside.status_of(client, key)
        record = status.last_switchover
        if record is not None and record.request == request and record.state != "Running":
            if record.state != "Succeeded":
                return fail(f"{record.state}: {record.reason}", REFUSED)
            say(await _told(client, key, record, status))
            return DONE
        taken = taken or (record is not None and record.request == request)
        condition = next((c for c in status.conditions if c.type == "Progressing"), None)
        told = condition.message if condition and condition.status == "True" else ""
        if told and told != said:
            say(f"… {told}")
            said = told
        await asyncio.sleep(_LOOK_EVERY_S)
    if not taken:
        return fail("no operator has taken it up yet: does one run?", TIMED_OUT)
    return fail("it is still under way; `kubectl pgcluster status` shows how it ends", TIMED_OUT)


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
        status = await outside.status_of(client, key)


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


async def _ask_repmgr(key: Key, target: str, options: argparse.Namespace) -> int:
    """repmgr's own rehearsal on the target, where kubectl is there to reach it."""
    try:
        kubectl = outside.kubectl(key, options)
    except Refused as error:
        say(f"repmgr's own checks were not made: {error}")
        return DONE
    process = await asyncio.create_subprocess_exec(
        *kubectl,
        *("exec", target, "--container=postgres", "--", "repmgr", "standby", "switchover"),
        *("--siblings-follow", "--dry-run"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(_REHEARSAL_S):
            output, _ = await process.communicate()
    except TimeoutError as error:
        process.kill()
        raise Refused(f"repmgr on {target} has not answered in {_REHEARSAL_S} s") from error
    sys.stdout.write(output.decode(errors="replace"))
    return DONE if process.returncode == 0 else REFUSED
