"""`kubectl pgcluster status`, `list` and `events`: nothing is changed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

from pgcluster.cli import outside, screen
from pgcluster.cli.documents import document
from pgcluster.cli.terms import DONE, Refused, coloured, say
from pgcluster.controller.observe import Key
from pgcluster.kube.client import KubeClient, Manifest
from pgcluster.kube.resources import EVENTS, PGCLUSTERS

_CLEAR = "\x1b[H\x1b[2J"


# --- status -----------------------------------------------------------------------------------
async def status(client: KubeClient, key: Key, options: argparse.Namespace) -> int:
    """One cluster on one screen; with `--watch` anew at each change."""
    if options.watch:
        return await _watched(client, key, options.output)
    _show(await outside.body_of(client, key), options.output)
    return DONE


async def _watched(client: KubeClient, key: Key, output: str | None) -> int:
    shown = ""
    async for event in client.watch(PGCLUSTERS, key.namespace, name=key.name):
        if event.type == "DELETED" or (event.type == "SYNC" and not event.items):
            raise Refused(f"there is no PgCluster {key.name} in namespace {key.namespace}")
        bodies: Sequence[Manifest] = event.items if event.type == "SYNC" else ()
        if event.type in ("ADDED", "MODIFIED"):
            bodies = (event.object,)
        for body in bodies:
            # A watch that begins anew tells once more what is known.
            if (version := body["metadata"]["resourceVersion"]) == shown:
                continue
            if output is None and sys.stdout.isatty():
                sys.stdout.write(_CLEAR)
            elif shown and output != "json":
                say("---")
            _show(body, output)
            shown = version
    return DONE


def _show(body: Manifest, output: str | None) -> None:
    if output is None:
        now, known = datetime.now(UTC), outside.status_in(body)
        for line in screen.status(body, known, now=now, colours=coloured()):
            say(line)
        return
    say(document(_whole(body), output))


def _whole(body: Manifest) -> Manifest:
    """An object as it is stored, without who manages which of its fields."""
    return {
        "apiVersion": PGCLUSTERS.api_version,
        "kind": PGCLUSTERS.kind,
        **body,
        "metadata": {k: v for k, v in body["metadata"].items() if k != "managedFields"},
    }


# --- list -------------------------------------------------------------------------------------
async def list_(client: KubeClient, key: Key, options: argparse.Namespace) -> int:
    """All clusters of a namespace, or of all."""
    everywhere = options.all_namespaces
    found, _ = await client.list(PGCLUSTERS, None if everywhere else key.namespace)
    found.sort(key=lambda body: (body["metadata"]["namespace"], body["metadata"]["name"]))
    if options.output:
        whole = {"apiVersion": "v1", "kind": "List", "items": [_whole(body) for body in found]}
        say(document(whole, options.output))
        return DONE
    if not found:
        where = "any namespace" if everywhere else f"namespace {key.namespace}"
        say(f"there is no PgCluster in {where}")
        return DONE
    now = datetime.now(UTC)
    for line in screen.clusters(found, namespaces=everywhere, now=now, colours=coloured()):
        say(line)
    return DONE


# --- events -----------------------------------------------------------------------------------
async def events(client: KubeClient, key: Key, options: argparse.Namespace) -> int:
    """What happened to a cluster and all that was made for it; with `--watch` also what comes."""
    if not options.watch:
        # So that a name with a slip in it is not taken for a cluster at rest.
        await outside.body_of(client, key)
        found, _ = await client.list(EVENTS, key.namespace)
        _list_events(found, key, head=True)
        return DONE
    shown: set[tuple[str, str]] = set()
    async for event in client.watch(EVENTS, key.namespace):
        told = event.items if event.type == "SYNC" else []
        if event.type in ("ADDED", "MODIFIED"):
            told = [event.object]
        fresh = [one for one in told if _identity(one) not in shown]
        shown |= {_identity(one) for one in fresh}
        _list_events(fresh, key, head=event.type == "SYNC" and fresh == told)
    return DONE


def _identity(event: Manifest) -> tuple[str, str]:
    return event["metadata"]["name"], event["metadata"]["resourceVersion"]


def _list_events(found: Sequence[Manifest], key: Key, *, head: bool) -> None:
    mine = [event for event in found if screen.concerns(event, key.name)]
    for line in screen.events(mine, now=datetime.now(UTC), colours=coloured(), head=head):
        say(line)
