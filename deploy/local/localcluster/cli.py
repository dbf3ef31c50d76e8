"""The command line."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from . import cluster, faults, images, node
from .layout import layout
from .progress import LocalkubeError, tail


def main(argv: Sequence[str] | None = None) -> int:
    # So that an `up` that is told to stop unwinds and says what it was doing.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("localkube: told to stop"))
    arguments = _parser().parse_args(argv)
    try:
        return _dispatch(arguments)
    except LocalkubeError as error:
        print(f"localkube: {error}", file=sys.stderr)
        if error.log is not None:
            print(f"\nThe end of {error.log}:\n{tail(error.log)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nlocalkube: interrupted; `up` goes on, `down` removes it", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="localkube", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="start or repair the cluster")
    up.add_argument("--workers", type=int, help="instead of the number in kind-config.yaml")
    commands.add_parser("down", help="remove the cluster and every trace of it")
    commands.add_parser("status", help="the nodes, as machines and as the API sees them")
    load = commands.add_parser("load", help="load images into every node")
    load.add_argument("images", nargs="+", metavar="IMAGE", help="a name in buildah, or an archive")
    kubeconfig = commands.add_parser("kubeconfig", help="print the administrator's kubeconfig")
    kubeconfig.add_argument("--path", action="store_true", help="print only where it is")
    # No prefix character: kubectl's own options are not ours to read.
    kubectl = commands.add_parser(
        "kubectl", help="run kubectl against the cluster", add_help=False, prefix_chars="\0"
    )
    kubectl.add_argument("arguments", nargs=argparse.REMAINDER)
    execute = commands.add_parser("exec", help="run a command on a node: exec NODE -- COMMAND …")
    execute.add_argument("node")
    execute.add_argument("arguments", nargs=argparse.REMAINDER)
    machines = commands.add_parser("node", help="switch off, cut off or freeze a node")
    actions = machines.add_subparsers(dest="action", required=True)
    for action, text in NODE_ACTIONS.items():
        one = actions.add_parser(action, help=text)
        one.add_argument("node", help="its name, with or without the cluster's name before it")
        if action == "cut":
            one.add_argument("--direction", choices=["both", "in", "out"], default="both")
    return parser


NODE_ACTIONS = {
    "power-off": "kill everything on it at once",
    "power-on": "boot it again, with the disk it had",
    "cut": "pull its network cable",
    "heal": "plug the cable in again",
    "freeze": "stop all its processes",
    "thaw": "let them go on",
}


def _dispatch(arguments: argparse.Namespace) -> int:
    files = layout()
    if arguments.command == "up":
        cluster.up(files, arguments.workers)
        print(f"\nexport KUBECONFIG={files.kubeconfig}")
        return 0
    if arguments.command == "down":
        cluster.down(files)
        return 0
    plan = cluster.plan_of_cluster(files)
    match arguments.command:
        case "status":
            rows = cluster.node_states(files, plan)
            for row in rows:
                print("{:<28} {:<14} {:<18} {}".format(*row))
            return 0 if all(row[3] == "Ready" for row in rows) else 1
        case "load":
            for line in images.load(files, plan, arguments.images):
                print(line)
        case "kubeconfig":
            print(files.kubeconfig if arguments.path else files.kubeconfig.read_text())
        case "kubectl":
            os.environ["KUBECONFIG"] = str(files.kubeconfig)
            program = str(cluster.kubectl(files))
            words = _after_dashes(arguments.arguments)
            os.execv(program, [program, *words])  # noqa: S606  # a list of words and no shell
        case "exec":
            words = _after_dashes(arguments.arguments) or ["bash"]
            inside = node.inside(files, plan.node(arguments.node), words)
            os.execvp(inside[0], inside)  # noqa: S606  # a list of words and no shell, as meant
        case "node":
            _node_action(arguments)
    return 0


def _node_action(arguments: argparse.Namespace) -> None:
    files = layout()
    plan = cluster.plan_of_cluster(files)
    machine = plan.node(arguments.node)
    if arguments.action in ("power-on", "power-off"):
        cluster.set_power(files, plan, machine.name, on=arguments.action == "power-on")
        return
    if node.init_process(files, machine) is None:
        raise LocalkubeError(f"{machine.name} is switched off")
    match arguments.action:
        case "cut":
            faults.cut(files, machine, arguments.direction)
        case "heal":
            faults.heal(files, machine)
        case "freeze":
            faults.freeze(machine)
        case "thaw":
            faults.thaw(machine)


def _after_dashes(words: list[str]) -> list[str]:
    return words[1:] if words[:1] == ["--"] else words
