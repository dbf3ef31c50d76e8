"""What hurts the cluster below everybody: nodes, the API server, DNS, the operator.

Whatever is begun here is remembered, and `restore()` ends all of it: a test that fails in the
middle leaves no node off behind. Needs the local cluster of deploy/local; with CLUSTER=kind only
`execute` works.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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


def cut_path(node: str, address: str) -> None:
    """Drop what passes between a node and one address, both ways; its other paths stay."""
    _begun(f"path {node} {address}", lambda: _path(node, address, "-D"))
    _path(node, address, "-I")


def heal_path(node: str, address: str) -> None:
    """Let it pass again."""
    _ended(f"path {node} {address}")


def cordon(node: str) -> None:
    """No new pod is placed on it."""
    _begun(f"cordoned {node}", lambda: _kubectl("uncordon", node))
    _kubectl("cordon", node)


def uncordon(node: str) -> None:
    """New pods may be placed on it again."""
    _ended(f"cordoned {node}")


def is_ready(node: str, *, within: float = 90.0) -> None:
    """Wait until a node is heard again, and says that it is Ready.

    The condition alone would not do: for its first 40 s the loss of a node does not show in it.
    """
    leases = Kubectl("kube-node-lease")
    before = leases.json("get", "lease", node)["spec"]["renewTime"]

    def ready() -> bool:
        renewed = leases.json("get", "lease", node)["spec"]["renewTime"]
        assert renewed != before, f"the kubelet was last heard {before}"
        conditions = leases.json("get", "node", node)["status"]["conditions"]
        told = next(c for c in conditions if c["type"] == "Ready")
        assert told["status"] == "True", told
        return True

    eventually(ready, within=within, what=f"node {node} is Ready")


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


# --- for as long as a test wants ----------------------------------------------------------------
@contextmanager
def switched_off(*machines: str) -> Iterator[None]:
    """Without power, all at once; at the end they have it again and are Ready."""
    with _for_a_while(machines, power_off, power_on):
        yield


@contextmanager
def cut_off(node: str, direction: str = "both") -> Iterator[None]:
    """Without its cable; at the end it is plugged in and the node is Ready."""
    with _for_a_while([node], lambda it: cut(it, direction), heal):
        yield


@contextmanager
def frozen(node: str) -> Iterator[None]:
    """Standing still; at the end it runs and is Ready."""
    with _for_a_while([node], freeze, thaw):
        yield


@contextmanager
def path_cut(node: str, address: str) -> Iterator[None]:
    """With one path of a node cut."""
    try:
        cut_path(node, address)
        yield
    finally:
        heal_path(node, address)


@contextmanager
def cordoned(node: str) -> Iterator[None]:
    """Without room for new pods on a node."""
    try:
        cordon(node)
        yield
    finally:
        uncordon(node)


@contextmanager
def api_server_stopped() -> Iterator[None]:
    """Every connection to the API server is refused; at the end it answers."""
    try:
        stop_api_server()
        yield
    finally:
        start_api_server()
        api_server_answers()


@contextmanager
def api_server_frozen() -> Iterator[None]:
    """The API server takes connections and answers nothing; at the end it does."""
    try:
        freeze_api_server()
        yield
    finally:
        thaw_api_server()
        api_server_answers()


@contextmanager
def without_operator() -> Iterator[None]:
    """No operator; at the end it is there again."""
    operator_away()
    try:
        _gone(SYSTEM_NAMESPACE, "app.kubernetes.io/name=pgcluster-operator")
        yield
    finally:
        _ended("pgcluster-operator away")


@contextmanager
def without_dns() -> Iterator[None]:
    """No name is resolved in the cluster; at the end names are again."""
    dns_away()
    try:
        _gone("kube-system", "k8s-app=kube-dns")
        yield
    finally:
        _ended("coredns away")


@contextmanager
def _for_a_while(
    machines: Sequence[str], begin: Callable[[str], None], end: Callable[[str], None]
) -> Iterator[None]:
    try:
        for node in machines:
            begin(node)
        yield
    finally:
        for node in machines:
            end(node)
        for node in machines:
            is_ready(node)


def _gone(namespace: str, labels: str) -> None:
    kubectl = Kubectl(namespace)
    eventually(lambda: not kubectl.objects("pods", labels=labels), within=90, what=f"no {labels}")


# --- how ----------------------------------------------------------------------------------------
def _begun(key: str, undo: Undo) -> None:
    _undo[key] = undo


def _ended(key: str) -> None:
    """Undo it, and forget it only then: an undo that fails can be tried again."""
    if undo := _undo.get(key):
        undo()
        del _undo[key]


def _node(action: str, node: str, *more: str) -> None:
    if os.environ.get("CLUSTER") == "kind":
        raise NodeError(f"{action} of {node}: only the local cluster can do that (CLUSTER=local)")
    _run([_LOCALKUBE, "node", action, node, *more], _COMMAND_WITHIN_S)


def _kubectl(*arguments: str) -> None:
    Kubectl().run(*arguments)


def _path(node: str, address: str, action: str) -> None:
    # Before and after all of kube-proxy's rules, as localkube's own one-way cuts.
    for rule in (
        ["-t", "raw", action, "PREROUTING", "-i", "eth0", "-s", address],
        ["-t", "mangle", action, "POSTROUTING", "-o", "eth0", "-d", address],
    ):
        execute(node, "iptables", "--wait", "10", *rule, "-j", "DROP")


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
