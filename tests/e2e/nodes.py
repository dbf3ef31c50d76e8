"""What hurts the cluster below everybody: nodes, the API server, DNS, the operator.

Whatever is begun here is remembered, and `restore()` ends all of it: a test that fails in the
middle leaves no node off behind. Needs the local cluster of deploy/local; with CLUSTER=kind only
`execute` works.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.e2e.diagnostics import SYSTEM_NAMESPACE
from tests.e2e.kubectl import Kubectl, KubectlError
from tests.e2e.waiting import eventually

CONTROL_PLANE = "pgcluster-control-plane"
_LOCALKUBE = str(Path(__file__).parents[2] / "deploy" / "local" / "localkube")
_API_SERVER = "kube-apiserver"
# Refused and not dropped, as by a machine whose API server has ended.
_REFUSED = ["-p", "tcp", "--dport", "6443", "-j", "REJECT", "--reject-with", "tcp-reset"]
_COMMAND_WITHIN_S = 60.0

Undo = Callable[[], None]
_undo: dict[str, Undo] = {}


class NodeError(Exception):
    """A node or its command did not do as it was told."""


def restore() -> None:
    """End everything that was begun and not ended, the last first; NodeError for what stays."""
    failed = []
    for key in reversed(list(_undo)):
        try:
            _ended(key)
        except (NodeError, KubectlError, subprocess.TimeoutExpired) as error:
            failed.append(f"{key}: {error}")
    if failed:
        raise NodeError("; ".join(failed))


def execute(node: str, *command: str, within_s: float = 20.0) -> str:
    """Standard output of a command in the node's namespaces."""
    if os.environ.get("CLUSTER") == "kind":
        return _run(["docker", "exec", node, *command], within_s)
    return _run([_LOCALKUBE, "exec", node, "--", *command], within_s)


# --- machines -----------------------------------------------------------------------------------
def power_off(node: str) -> None:
    """Dead at once, and nobody hears of it."""
    _begun(f"off {node}", lambda: _node("power-on", node))
    _node("power-off", node)


def power_on(node: str) -> None:
    """Boot it again, with its disk."""
    _ended(f"off {node}")


def cut(node: str, direction: str = "both") -> None:
    """Pull its cable; `in`: nothing reaches it, `out`: nothing leaves it."""
    _begun(f"cut {node}", lambda: _node("heal", node))
    _node("cut", node, "--direction", direction)


def heal(node: str) -> None:
    """End every cut."""
    _ended(f"cut {node}")


def freeze(node: str) -> None:
    """Stop all its processes where they stand; its kernel still answers."""
    _begun(f"frozen {node}", lambda: _node("thaw", node))
    _node("freeze", node)


def thaw(node: str) -> None:
    """Let them go on."""
    _ended(f"frozen {node}")


# --- the API server -----------------------------------------------------------------------------
def stop_api_server() -> None:
    """End it, and refuse every connection to the one that starts in its place."""
    _begun("API server stopped", lambda: _packets_to_api("-D"))
    _packets_to_api("-I")
    _signal_api_server("KILL")


def start_api_server() -> None:
    """Take connections again."""
    _ended("API server stopped")


def freeze_api_server() -> None:
    """Stop it where it stands: connections are taken and nothing is answered."""
    _begun("API server frozen", lambda: _signal_api_server("CONT"))
    _signal_api_server("STOP")


def thaw_api_server() -> None:
    """Let it go on."""
    _ended("API server frozen")


def api_server_answers(*, within: float = 60.0) -> None:
    """Wait until it is back."""
    kubectl = Kubectl()
    eventually(lambda: kubectl.run("get", "--raw", "/readyz") == "ok", within=within)


# --- what runs on the cluster -------------------------------------------------------------------
def operator_away() -> Undo:
    """The operator at 0 replicas; what brings it back."""
    return _scaled_to_zero(SYSTEM_NAMESPACE, "pgcluster-operator")


def dns_away() -> Undo:
    """CoreDNS at 0 replicas; what brings it back."""
    return _scaled_to_zero("kube-system", "coredns")


def _scaled_to_zero(namespace: str, deployment: str) -> Undo:
    kubectl = Kubectl(namespace)
    before = int(kubectl.json("get", "deployment", deployment)["spec"]["replicas"])
    key = f"{deployment} away"

    def back() -> None:
        kubectl.run("scale", f"deployment/{deployment}", f"--replicas={before}")
        kubectl.run(
            *("rollout", "status", f"deployment/{deployment}", "--timeout=120s"), timeout_s=130
        )

    _begun(key, back)
    kubectl.run("scale", f"deployment/{deployment}", "--replicas=0")
    return lambda: _ended(key)


# --- how ----------------------------------------------------------------------------------------
def _begun(key: str, undo: Undo) -> None:
    _undo[key] = undo


def _ended(key: str) -> None:
    """Undo it, and forget it only then: an undo that fails can be tried again."""
    if undo := _undo.get(key):
        undo()
        del _undo[key]


def _node(action: str, node: str, *more: str) -> None:
    _run([_LOCALKUBE, "node", action, node, *more], _COMMAND_WITHIN_S)


def _packets_to_api(action: str) -> None:
    execute(CONTROL_PLANE, "iptables", "--wait", "10", action, "INPUT", *_REFUSED)


def _signal_api_server(signal: str) -> None:
    # pgrep sees the processes of the node alone, for it runs in the node's PID namespace.
    script = f"kill -s {signal} $(pgrep -x {_API_SERVER})"
    execute(CONTROL_PLANE, "sh", "-c", script)


def _run(command: Sequence[str], within_s: float) -> str:
    try:
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=within_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise NodeError(f"{' '.join(command)}: nothing within {within_s} s") from error
    if result.returncode != 0:
        raise NodeError(f"{' '.join(command)}: {result.stderr or result.stdout}")
    return result.stdout
