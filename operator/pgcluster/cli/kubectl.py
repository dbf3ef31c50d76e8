"""`kubectl pgcluster`: what people ask of a running cluster.

Exit status: 0 done; 1 refused or failed; 2 the command line makes no sense; 3 still under way when
the time was over; 4 the API server does not answer, or refuses. `psql` and `repmgr` end as what
they run does.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from typing import Protocol

from pgcluster.api import names
from pgcluster.api.quantities import parse_seconds
from pgcluster.cli import asking, following, reaching, showing, switching
from pgcluster.cli.terms import NO_API, REFUSED, Command, Ending, Refused, fail
from pgcluster.controller import switchover
from pgcluster.controller.observe import Key
from pgcluster.kube import credentials
from pgcluster.kube.client import KubeClient
from pgcluster.kube.errors import ApiError

_REQUEST_S = 15


def main() -> None:
    """Entry point: `kubectl-pgcluster`, which kubectl finds as its plugin `pgcluster`."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Carry out one command line; returns the exit status."""
    options = parse(arguments)
    try:
        ending = asyncio.run(_run(options))
    except Refused as error:
        return fail(str(error), REFUSED)
    except ApiError as error:
        return fail(str(error), NO_API)
    except BrokenPipeError:
        # Whoever read the output has seen enough; Python would complain at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        return 130
    if isinstance(ending, tuple):
        sys.stdout.flush()
        os.execv(ending[0], ending)  # noqa: S606 # a list, and no shell
    return ending


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; what stands behind `--` is for the program that the command runs."""
    own, rest = list(arguments), []
    if "--" in own:
        own, rest = own[: own.index("--")], own[own.index("--") + 1 :]
    made = parser()
    options = made.parse_args(own)
    if rest and not options.passes_on:
        made.error(f"{options.name} takes nothing behind --")
    options.rest = rest
    return options


def parser() -> argparse.ArgumentParser:
    """All commands; kubectl's own flags work before and after the command."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("-n", "--namespace", help="namespace of the cluster")
    common.add_argument("--context", help="context of the kubeconfig")
    common.add_argument("--kubeconfig", help="path of the kubeconfig")
    made = argparse.ArgumentParser(
        prog="kubectl pgcluster",
        description=__doc__,
        parents=[common],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(dest="name", required=True, metavar="COMMAND")

    def command(
        name: str, does: Command, told: str, *, cluster: bool = True, passes_on: bool = False
    ) -> argparse.ArgumentParser:
        one = commands.add_parser(name, parents=[common], help=told, description=told)
        one.set_defaults(command=does, passes_on=passes_on)
        if cluster:
            one.add_argument("cluster", help="name of the PgCluster")
        return one

    _looking(command)
    _asking(command)
    _reaching(command)
    return made


class _Add(Protocol):
    """Adds one command to the parser."""

    def __call__(
        self, name: str, does: Command, told: str, *, cluster: bool = True, passes_on: bool = False
    ) -> argparse.ArgumentParser: ...


def _looking(add: _Add) -> None:
    one = add("status", showing.status, "one cluster on one screen")
    one.add_argument("-w", "--watch", action="store_true", help="anew at each change")
    one.add_argument("-o", "--output", choices=("json", "yaml"), help="the whole object instead")
    one = add("list", showing.list_, "all clusters", cluster=False)
    one.add_argument("-A", "--all-namespaces", action="store_true", help="of all namespaces")
    one = add("events", showing.events, "what happened to a cluster and its parts")
    one.add_argument("-w", "--watch", action="store_true", help="and what happens from now on")
    one = add("logs", following.run, "the logs of all parts of a cluster, merged by time")
    one.add_argument("-f", "--follow", action="store_true", help="and what is logged from now on")
    one.add_argument("--since", help="only what is younger, such as 10m")
    one.add_argument("--tail", type=int, help="only so many lines of each container")
    one.add_argument("-p", "--previous", action="store_true", help="of the containers before these")
    one.add_argument(
        "--component",
        choices=(names.COMPONENT_POSTGRES, names.COMPONENT_PGBOUNCER),
        help="only the instances, or only the poolers",
    )
    one.add_argument("--operator", metavar="NAMESPACE", help="what the operator there says of it")
    one.add_argument("--raw", action="store_true", help="the lines as they are")
    one = add("version", showing.version, "of this plugin and of the operator", cluster=False)
    one.add_argument("--client", action="store_true", help="only of this plugin")


def _asking(add: _Add) -> None:
    one = add(
        "switchover",
        switching.run,
        "hand over to another instance, without an error for the clients of the pools",
    )
    one.add_argument("--to", default=switchover.ANY, help="pod that is to take over")
    one.add_argument("--dry-run", action="store_true", help="only say whether it can be done")
    _waiting(one, default="3m")
    one = add("restart", asking.restart, "restart all instances, one by one, the primary last")
    _waiting(one, default="15m")
    one = add("promote", asking.promote, "promote an instance although commits may be lost")
    one.add_argument("instance", help="pod of the instance")
    one.add_argument("--force", action="store_true", help="yes, although commits may be lost")
    one.add_argument("-y", "--yes", action="store_true", help="do not ask again")
    _waiting(one, default="2m")


def _waiting(one: argparse.ArgumentParser, *, default: str) -> None:
    one.add_argument("--no-wait", action="store_true", help="ask for it and do not wait")
    one.add_argument(
        "--timeout", type=_seconds, default=default, help=f"such as 90s; default {default}"
    )


def _reaching(add: _Add) -> None:
    one = add(
        "psql",
        reaching.psql,
        "psql as the superuser, in the pod of the primary; psql's own arguments behind --",
        passes_on=True,
    )
    one.add_argument("-d", "--database", help="default: the application's")
    one.add_argument("--standby", action="store_true", help="on the standby that is nearest")
    one.add_argument("--pod", help="on this instance")
    one = add(
        "repmgr",
        reaching.repmgr,
        "repmgr in the pod of an instance, its command behind --",
        passes_on=True,
    )
    one.add_argument("--pod", help="in this instance; default: the primary")


def _seconds(text: str) -> float:
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


async def _run(options: argparse.Namespace) -> Ending:
    config, context = getattr(options, "kubeconfig", None), getattr(options, "context", None)
    try:
        identity = await credentials.of_kubeconfig(config, context)
        own = credentials.namespace(config, context)
    except Exception as error:
        # Imported late: it takes half a second.
        if isinstance(error, credentials.unusable()):
            raise Refused(f"the kubeconfig cannot be used: {error}") from error
        raise
    namespace = getattr(options, "namespace", None) or own
    client = KubeClient(identity, request_timeout_s=_REQUEST_S)
    command: Command = options.command
    try:
        return await command(client, Key(namespace, getattr(options, "cluster", "")), options)
    finally:
        await client.close()


if __name__ == "__main__":
    main()
