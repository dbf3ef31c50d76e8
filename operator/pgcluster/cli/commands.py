"""The command line of the plugin: every command, argument and flag, and nothing else.

Completion reads it, too. So it is quick to import: what a command does is imported when it is
carried out.
"""

from __future__ import annotations

import argparse
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from pgcluster.api import names
from pgcluster.api.quantities import parse_seconds

if TYPE_CHECKING:
    from pgcluster.cli.terms import Ending
    from pgcluster.controller.observe import Key
    from pgcluster.kube.client import KubeClient

# What an argument may be, for completion: it is the `metavar` of such an argument.
CLUSTER, INSTANCE, POD = "CLUSTER", "INSTANCE", "POD"
SHELLS = ("bash", "zsh", "fish")


@dataclass(frozen=True, slots=True)
class Lazy:
    """A function of a module of this package that is imported when it is called."""

    module: str
    function: str

    async def __call__(
        self, client: KubeClient | None, key: Key | None, options: argparse.Namespace
    ) -> Ending:
        """Carry the command out; without a client where it needs no API server."""
        module = importlib.import_module(f"pgcluster.cli.{self.module}")
        ending: Ending = await getattr(module, self.function)(client, key, options)
        return ending


def parser(description: str) -> argparse.ArgumentParser:
    """All commands; kubectl's own flags work before and after the command."""
    common = _kubectls_own()
    made = argparse.ArgumentParser(
        prog="kubectl pgcluster",
        description=description,
        parents=[common],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = made.add_subparsers(dest="name", required=True, metavar="COMMAND")

    def command(
        name: str,
        does: Lazy,
        told: str,
        *,
        cluster: bool = True,
        passes_on: bool = False,
        offline: bool = False,
    ) -> argparse.ArgumentParser:
        one = commands.add_parser(name, parents=[common], help=told, description=told)
        one.set_defaults(command=does, passes_on=passes_on, offline=offline)
        if cluster:
            one.add_argument("cluster", metavar=CLUSTER, help="name of the PgCluster")
        return one

    _looking(command)
    _asking(command)
    _keeping(command)
    _reaching(command)
    _about_itself(command)
    return made


def _kubectls_own() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    own = common.add_argument_group("as in kubectl")
    own.add_argument("-n", "--namespace", metavar="NAMESPACE", help="namespace of the cluster")
    own.add_argument("--context", metavar="CONTEXT", help="context of the kubeconfig")
    own.add_argument("--kubeconfig", metavar="FILE", help="path of the kubeconfig")
    own.add_argument("--as", metavar="USER", dest="as_", help="do it as this user")
    own.add_argument(
        "--as-group", metavar="GROUP", action="append", help="… of this group; may be repeated"
    )
    own.add_argument(
        "--request-timeout",
        metavar="TIME",
        type=_seconds,
        help="how long one request may take; default 15s",
    )
    return common


class _Add(Protocol):
    """Adds one command to the parser."""

    def __call__(
        self,
        name: str,
        does: Lazy,
        told: str,
        *,
        cluster: bool = True,
        passes_on: bool = False,
        offline: bool = False,
    ) -> argparse.ArgumentParser: ...


def _output(one: argparse.ArgumentParser, what: str) -> None:
    one.add_argument("-o", "--output", choices=("json", "yaml"), help=what)


def _looking(add: _Add) -> None:
    one = add("status", Lazy("showing", "status"), "one cluster on one screen")
    one.add_argument("-w", "--watch", action="store_true", help="anew at each change")
    _output(one, "the whole object instead")
    one = add("list", Lazy("showing", "list_"), "all clusters", cluster=False)
    one.add_argument("-A", "--all-namespaces", action="store_true", help="of all namespaces")
    _output(one, "the whole objects instead")
    one = add(
        "failovers",
        Lazy("history", "failovers"),
        "the last changes of primary, and how long each phase of them took",
    )
    _output(one, "the records instead")
    one.add_argument("--svg", action="store_true", help="as a picture, on standard output")
    one = add("events", Lazy("showing", "events"), "what happened to a cluster and its parts")
    one.add_argument("-w", "--watch", action="store_true", help="and what happens from now on")
    one = add("logs", Lazy("following", "run"), "the logs of all parts, merged by time")
    one.add_argument("-f", "--follow", action="store_true", help="and what is logged from now on")
    one.add_argument("--since", metavar="TIME", help="only what is younger, such as 10m")
    one.add_argument("--tail", type=int, help="only so many lines of each container")
    one.add_argument("-p", "--previous", action="store_true", help="of the containers before these")
    one.add_argument(
        "--component",
        choices=(names.COMPONENT_POSTGRES, names.COMPONENT_PGBOUNCER),
        help="only the instances, or only the poolers",
    )
    one.add_argument("--operator", metavar="NAMESPACE", help="what the operator there says of it")
    one.add_argument("--raw", action="store_true", help="the lines as they are")
    one = add(
        "report",
        Lazy("reporting", "report"),
        "all that helps to find a fault as one archive, without secrets",
    )
    one.add_argument("-f", "--file", metavar="FILE", help="where to; default: named by the time")
    one.add_argument("--since", metavar="TIME", default="24h", help="how old logs may be; 24h")
    one.add_argument(
        "--tail", type=int, default=10_000, help="so many lines of each container; 10000"
    )
    one.add_argument(
        "--timeout", metavar="TIME", type=_seconds, default="2m", help="then it ends as it is; 2m"
    )


def _asking(add: _Add) -> None:
    one = add(
        "switchover",
        Lazy("switching", "run"),
        "hand over to another instance, without an error for the clients of the pools",
    )
    one.add_argument("--to", metavar=INSTANCE, default=names.ANY, help="pod that is to take over")
    one.add_argument("--dry-run", action="store_true", help="only say whether it can be done")
    _waiting(one, default="3m")
    one = add(
        "restart",
        Lazy("asking", "restart"),
        "restart all instances, one by one, the primary last",
    )
    _waiting(one, default="15m")
    one = add(
        "promote",
        Lazy("asking", "promote"),
        "promote an instance although commits may be lost",
    )
    one.add_argument("instance", metavar=INSTANCE, help="pod of the instance")
    one.add_argument("--force", action="store_true", help="yes, although commits may be lost")
    one.add_argument("-y", "--yes", action="store_true", help="do not ask again")
    _waiting(one, default="2m")


def _keeping(add: _Add) -> None:
    add("pause", Lazy("keeping", "pause"), "have the operator change nothing; failover goes on")
    add("resume", Lazy("keeping", "resume"), "let the operator go on")
    one = add("hibernate", Lazy("keeping", "hibernate"), "stop all pods and keep the volumes")
    _waiting(one, default="10m")
    one = add("wake", Lazy("keeping", "wake"), "start what sleeps, with the same primary")
    _waiting(one, default="10m")
    one = add(
        "maintenance",
        Lazy("keeping", "maintenance"),
        "keep postgres of one instance down, so that somebody can work on it; a primary hands over",
    )
    one.add_argument("instance", metavar=INSTANCE, help="pod of the instance")
    one.add_argument("--reason", metavar="TEXT", help="for whoever reads the status")
    one.add_argument("--end", action="store_true", help="the work is done: let it rejoin")
    _waiting(one, default="5m")


def _waiting(one: argparse.ArgumentParser, *, default: str) -> None:
    one.add_argument("--no-wait", action="store_true", help="ask for it and do not wait")
    one.add_argument(
        "--timeout",
        metavar="TIME",
        type=_seconds,
        default=default,
        help=f"such as 90s; default {default}",
    )


def _reaching(add: _Add) -> None:
    one = add(
        "psql",
        Lazy("reaching", "psql"),
        "psql as the superuser, in the pod of the primary; psql's own arguments behind --",
        passes_on=True,
    )
    one.add_argument("-d", "--database", help="default: the application's")
    one.add_argument("--standby", action="store_true", help="on the standby that is nearest")
    one.add_argument("--pod", metavar=INSTANCE, help="on this instance")
    one = add(
        "repmgr",
        Lazy("reaching", "repmgr"),
        "repmgr in the pod of an instance, its command behind --",
        passes_on=True,
    )
    one.add_argument("--pod", metavar=INSTANCE, help="in this instance; default: the primary")
    one = add(
        "reload",
        Lazy("reloading", "run"),
        "have postgres and pgbouncer read their files again, and say what did not take effect",
    )
    one.add_argument("--pod", metavar=POD, help="only in this pod")


def _about_itself(add: _Add) -> None:
    one = add(
        "version", Lazy("versions", "version"), "of this plugin and of the operator", cluster=False
    )
    one.add_argument("--client", action="store_true", help="only of this plugin")
    one = add(
        "completion",
        Lazy("completing", "script"),
        "the script by which a shell completes command lines",
        cluster=False,
        offline=True,
    )
    one.add_argument("shell", choices=SHELLS)


def _seconds(text: str) -> float:
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
