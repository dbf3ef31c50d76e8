"""`kubectl pgcluster restart` and `promote`: what a person asks of the operator."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from datetime import UTC, datetime

from pgcluster.api import conditions, names
from pgcluster.cli import outside
from pgcluster.cli.terms import DONE, REFUSED, TIMED_OUT, Refused, fail, say, warn
from pgcluster.controller.observe import InstancePod, Key, Observed
from pgcluster.kube.client import KubeClient
from pgcluster.kube.errors import Conflict

_LOOK_EVERY_S = 0.5


# --- restart ----------------------------------------------------------------------------------
async def restart(client: KubeClient, key: Key, options: argparse.Namespace) -> int:
    """Have all instances restarted one by one, and wait until they are back."""
    cluster = outside.parsed(await outside.body_of(client, key))
    if cluster.spec.paused:
        raise Refused("spec.paused is true: set it to false first")
    if cluster.spec.hibernated:
        raise Refused("spec.hibernated is true: there is nothing to restart")
    value = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    annotation = {"metadata": {"annotations": {names.ANNOTATION_RESTART: value}}}
    await outside.ask(client, key, annotation)
    say(f"asked for: annotation {names.ANNOTATION_RESTART} is {value}")
    if options.no_wait:
        return DONE
    return await _restarted(client, key, value, timeout_s=options.timeout)


async def _restarted(client: KubeClient, key: Key, value: str, *, timeout_s: float) -> int:
    deadline_s = time.monotonic() + timeout_s
    said = ""
    while time.monotonic() < deadline_s:
        body = await outside.body_of(client, key)
        status = outside.status_in(body)
        pods = await outside.instances(client, key)
        ready = next((c for c in status.conditions if c.type == conditions.READY), None)
        done = all_restarted(pods, value, wanted=int(body["spec"]["instances"]))
        if done and ready is not None and ready.status == "True":
            say(f"all {len(pods)} instances have been restarted")
            return DONE
        progressing = next((c for c in status.conditions if c.type == conditions.PROGRESSING), None)
        if progressing is not None:
            if progressing.reason == conditions.ROLLOUT_STOPPED and status.restart == value:
                return fail(progressing.message, REFUSED)
            told = progressing.message if progressing.status == "True" else ""
            if told and told != said:
                say(f"… {told}")
                said = told
        await asyncio.sleep(_LOOK_EVERY_S)
    return fail("it is still under way; `kubectl pgcluster status` shows how it ends", TIMED_OUT)


def all_restarted(pods: tuple[InstancePod, ...], value: str, *, wanted: int) -> bool:
    """Whether each instance's pod was made for this very request, and is ready. Pure.

    The status alone does not say: until the operator has seen the request, all are up to date.
    """
    return len(pods) >= wanted and all(
        pod.ready
        and (pod.manifest["metadata"].get("annotations") or {}).get(names.ANNOTATION_RESTART)
        == value
        for pod in pods
    )


# --- promote ----------------------------------------------------------------------------------
_WARNING = """\
warning: {pod} is promoted whatever is missing there. Commits that only other instances have are
lost for good, acknowledged ones too, and those instances give theirs up when they come back. What
{pod} has: {has}. Bringing a missing instance back costs nothing, and the rest happens by itself."""


async def promote(client: KubeClient, key: Key, options: argparse.Namespace) -> int:
    """Set spec.failover.forcePromotion for this epoch, and wait until it is the primary."""
    observed = await outside.observed(client, key)
    pod = _promotable(observed, options.instance)
    if not options.force:
        raise Refused(
            f"an instance is promoted by itself as soon as that loses nothing; `--force` promotes"
            f" {pod.name} although commits may be lost"
        )
    warn(_WARNING.format(pod=pod.name, has=_has(pod)))
    if not options.yes and not _confirmed(pod.name):
        raise Refused("nothing was changed: repeat it with --yes, or type the instance's name")
    epoch = observed.epoch
    wish = {"spec": {"failover": {"forcePromotion": {"instance": pod.name, "epoch": epoch}}}}
    try:
        await outside.ask(client, key, wish, read=observed.cluster)
    except Conflict as error:
        raise Refused("the PgCluster has changed meanwhile: look again") from error
    say(f"asked for: spec.failover.forcePromotion is {{instance: {pod.name}, epoch: {epoch}}}")
    if options.no_wait:
        return DONE
    return await _promoted(client, key, pod.name, epoch, timeout_s=options.timeout)


def _promotable(observed: Observed, name: str) -> InstancePod:
    primary = observed.primary
    if primary is not None:
        if primary.name == name:
            raise Refused(f"{name} is the primary already")
        raise Refused(
            f"{primary.name} is the primary, so that nothing has to be lost: use"
            f" `kubectl pgcluster switchover {observed.key.name} --to {name}`"
        )
    if observed.lease is None:
        raise Refused("the cluster does not exist yet: see its condition Ready")
    found = next((pod for pod in observed.pods if pod.name == name), None)
    if found is None:
        known = ", ".join(pod.name for pod in observed.pods) or "none"
        raise Refused(f"there is no instance {name}; the instances are: {known}")
    return found


def _has(pod: InstancePod) -> str:
    report = pod.report
    if report is None or report.timeline is None:
        return "not known"
    return f"timeline {report.timeline}, state {report.state}" + (
        f" ({report.reason})" if report.reason else ""
    )


def _confirmed(name: str) -> bool:
    if not sys.stdin.isatty():
        return False
    sys.stderr.write(f"Type {name} to go on: ")
    sys.stderr.flush()
    return sys.stdin.readline().strip() == name


async def _promoted(
    client: KubeClient, key: Key, name: str, epoch: int, *, timeout_s: float
) -> int:
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        observed = await outside.observed(client, key)
        primary = observed.primary
        if primary is not None and observed.epoch > epoch:
            if primary.name == name:
                say(f"{name} is the primary; the field may stay, it means nothing any more")
                return DONE
            return fail(f"{primary.name} became the primary instead", REFUSED)
        await asyncio.sleep(_LOOK_EVERY_S)
    status = await outside.status_of(client, key)
    ready = next((c for c in status.conditions if c.type == conditions.READY), None)
    why = ready.message if ready is not None else "the operator has told nothing yet"
    return fail(f"{name} is not the primary yet: {why}", TIMED_OUT)
