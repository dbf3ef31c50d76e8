"""`kubectl pgcluster psql` and `repmgr`: commands in an instance's pod, which this one becomes."""

from __future__ import annotations

import argparse
import sys

from pgcluster.api import names
from pgcluster.cli import outside
from pgcluster.cli.terms import Ending, Refused
from pgcluster.controller.observe import InstancePod, Key, Observed
from pgcluster.kube.client import KubeClient


async def psql(client: KubeClient, key: Key, options: argparse.Namespace) -> Ending:
    """psql as the superuser, by the socket in the pod of the primary or of a standby."""
    observed = await outside.observed(client, key)
    pod = chosen(observed, pod=options.pod, standby=options.standby)
    database = options.database or outside.parsed(observed.cluster).spec.application.name
    command = ("psql", "--host", names.PG_SOCKET_DIR, "--username", "postgres", "--dbname")
    return _inside(key, options, pod, (*command, database, *options.rest))


async def repmgr(client: KubeClient, key: Key, options: argparse.Namespace) -> Ending:
    """repmgr in an instance's pod: the primary's, where there is one."""
    if not options.rest:
        raise Refused("say which command, such as: kubectl pgcluster repmgr shop -- cluster show")
    observed = await outside.observed(client, key)
    pod = chosen(observed, pod=options.pod, standby=False, any_=True)
    return _inside(key, options, pod, ("repmgr", *options.rest))


def chosen(observed: Observed, *, pod: str | None, standby: bool, any_: bool = False) -> str:
    """The pod that is meant; Refused where there is none. Pure.

    `any_`: where there is no primary, another instance that runs will do.
    """
    running = {found.name: found for found in observed.pods if found.running}
    if pod is not None:
        if pod in running:
            return pod
        known = ", ".join(running) or "none"
        raise Refused(f"there is no instance {pod} that runs; those that do: {known}")
    primary = observed.primary
    if standby:
        ready = [found for found in running.values() if found is not primary and found.ready]
        if not ready:
            raise Refused("no standby is ready")
        return min(ready, key=_lag).name
    if primary is not None:
        return primary.name
    if any_ and running:
        return next(iter(running))
    raise Refused("no instance is the primary: name one by --pod, or see condition Ready")


def _lag(pod: InstancePod) -> int:
    return (pod.report.lag_bytes or 0) if pod.report is not None else 0


def _inside(
    key: Key, options: argparse.Namespace, pod: str, command: tuple[str, ...]
) -> tuple[str, ...]:
    kubectl = outside.kubectl(key, options)
    terminal = ("--tty",) if sys.stdin.isatty() and sys.stdout.isatty() else ()
    where = ("exec", pod, "--container=postgres", "--stdin", *terminal, "--")
    return (*kubectl, *where, *command)
