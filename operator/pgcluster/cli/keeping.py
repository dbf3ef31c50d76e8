"""`kubectl pgcluster pause`, `resume`, `hibernate`, `wake` and `maintenance`: fields of the spec,
and waiting for what they bring about."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable

from pgcluster.api import conditions as c
from pgcluster.api.conditions import Condition
from pgcluster.api.models import PgClusterStatus
from pgcluster.cli import outside
from pgcluster.cli.terms import DONE, REFUSED, TIMED_OUT, Refused, fail, say
from pgcluster.controller.observe import Key
from pgcluster.kube.client import KubeClient, Manifest
from pgcluster.kube.errors import Conflict

_LOOK_EVERY_S = 0.5
# Conditions that say that what was asked for is not begun, and why.
_REFUSALS = (c.HIBERNATE_REFUSED, c.MAINTENANCE_REFUSED)


# --- pause ------------------------------------------------------------------------------------
async def pause(client: KubeClient, key: Key, options: argparse.Namespace) -> int:
    """Take the operator's hands off."""
    body = await outside.body_of(client, key)
    await _set(client, key, body, "paused", value=True)
    say("the operator changes nothing any more; failover and the pools' repointing go on")
    return DONE


async def resume(client: KubeClient, key: Key, options: argparse.Namespace) -> int:
    """Let the operator go on."""
    body = await outside.body_of(client, key)
    await _set(client, key, body, "paused", value=False)
    say("the operator goes on; what was changed meanwhile takes effect now")
    return DONE


# --- sleep ------------------------------------------------------------------------------------
async def hibernate(client: KubeClient, key: Key, options: argparse.Namespace) -> int:
    """Put a cluster to sleep, and wait until its last pod is gone."""
    body = await outside.body_of(client, key)
    _not_paused(body)
    changed = await _set(client, key, body, "hibernated", value=True)
    if options.no_wait:
        return DONE
    return await _until(client, key, changed, asleep, timeout_s=options.timeout)


async def wake(client: KubeClient, key: Key, options: argparse.Namespace) -> int:
    """Wake a cluster, and wait until it serves."""
    body = await outside.body_of(client, key)
    _not_paused(body)
    changed = await _set(client, key, body, "hibernated", value=False)
    if options.no_wait:
        return DONE
    return await _until(client, key, changed, awake, timeout_s=options.timeout)


def asleep(status: PgClusterStatus) -> str | None:
    """That it sleeps, as a sentence; None where it does not yet. Pure."""
    ready = _find(status, c.READY)
    if ready is None or ready.status != "True" or ready.reason != c.HIBERNATED:
        return None
    return f"it sleeps: {ready.message}"


def awake(status: PgClusterStatus) -> str | None:
    """That it serves; None where it does not yet. Pure."""
    ready = _find(status, c.READY)
    if ready is None or ready.status != "True" or ready.reason == c.HIBERNATED:
        return None
    return ready.message


# --- maintenance ------------------------------------------------------------------------------
async def maintenance(client: KubeClient, key: Key, options: argparse.Namespace) -> int:
    """Leave one instance to somebody's work, or take it back."""
    body = await outside.body_of(client, key)
    _not_paused(body)
    pods = [pod.name for pod in await outside.instances(client, key)]
    if options.instance not in pods and not options.end:
        known = ", ".join(pods) or "none"
        raise Refused(f"there is no instance {options.instance}; the instances are: {known}")
    wanted = entries(body, options.instance, reason=options.reason, end=options.end)
    changed = await _set(client, key, body, "maintenance", value=wanted)
    if options.no_wait:
        return DONE
    name = options.instance
    done = back(name) if options.end else left_alone(name)
    return await _until(client, key, changed, done, timeout_s=options.timeout)


def entries(body: Manifest, instance: str, *, reason: str | None, end: bool) -> list[Manifest]:
    """spec.maintenance with an instance in it, or without; others stay as they are. Pure."""
    known = (body.get("spec") or {}).get("maintenance") or []
    others = [entry for entry in known if entry.get("instance") != instance]
    if end:
        if len(others) == len(known):
            raise Refused(f"spec.maintenance does not name {instance}")
        return others
    return [*others, {"instance": instance, **({"reason": reason} if reason else {})}]


def left_alone(instance: str) -> Callable[[PgClusterStatus], str | None]:
    """Whether postgres of an instance is kept down."""

    def found(status: PgClusterStatus) -> str | None:
        member = next((one for one in status.members if one.pod == instance), None)
        if member is None or member.state != "maintenance":
            return None
        return (
            f"postgres on {instance} is kept down: kubectl exec -it {instance} -c postgres -- bash;"
            " when it is done: --end"
        )

    return found


def back(instance: str) -> Callable[[PgClusterStatus], str | None]:
    """Whether an instance is in its role again."""

    def found(status: PgClusterStatus) -> str | None:
        member = next((one for one in status.members if one.pod == instance), None)
        return f"{instance} is a {member.role} again" if member and member.ready else None

    return found


# --- asking and waiting -----------------------------------------------------------------------
async def _set(
    client: KubeClient, key: Key, body: Manifest, field: str, *, value: object
) -> Manifest:
    """Change one field of the spec, of the object as it was read; returns it as it is then."""
    known = (body.get("spec") or {}).get(field) or False
    if known == (value or False):
        say(f"spec.{field} is {_shown(value)} already")
        return body
    try:
        changed = await outside.ask(client, key, {"spec": {field: value}}, read=body)
    except Conflict as error:
        raise Refused("the PgCluster has changed meanwhile: look again") from error
    say(f"asked for: spec.{field} is {_shown(value)}")
    return changed


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(str(entry["instance"]) for entry in value) or "empty"
    return str(value).lower()


def _not_paused(body: Manifest) -> None:
    if (body.get("spec") or {}).get("paused"):
        raise Refused(
            "spec.paused is true, so that the operator would do nothing: `kubectl pgcluster resume`"
            " first"
        )


async def _until(
    client: KubeClient,
    key: Key,
    changed: Manifest,
    done: Callable[[PgClusterStatus], str | None],
    *,
    timeout_s: float,
) -> int:
    """Wait until the status, of this spec or a later one, says that it is done."""
    generation = int(changed["metadata"].get("generation") or 0)
    deadline_s = time.monotonic() + timeout_s
    said = ""
    while True:
        status = await outside.status_of(client, key)
        seen = (status.observed_generation or 0) >= generation
        if seen and (told := done(status)):
            say(told)
            return DONE
        if seen and (refused := _refusal(status)):
            stands = "what was asked for stands, and is done as soon as it can be"
            return fail(f"{refused}; {stands}", REFUSED)
        progressing = _find(status, c.PROGRESSING)
        if seen and progressing is not None and progressing.status == "True":
            if progressing.message != said:
                say(f"… {progressing.message}")
            said = progressing.message
        if time.monotonic() > deadline_s:
            break
        await asyncio.sleep(_LOOK_EVERY_S)
    if not seen:
        return fail("no operator has taken it up yet: does one run?", TIMED_OUT)
    return fail("it is still under way; `kubectl pgcluster status` shows how it ends", TIMED_OUT)


def _refusal(status: PgClusterStatus) -> str | None:
    stalled = _find(status, c.STALLED)
    if stalled is not None and stalled.status == "True":
        return stalled.message
    return next((x.message for x in status.conditions if x.reason in _REFUSALS), None)


def _find(status: PgClusterStatus, kind: str) -> Condition | None:
    return next((found for found in status.conditions if found.type == kind), None)
