"""How each kind of fault is done, and undone."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pgcluster.api import names
from tests.chaos.plan import Fault
from tests.e2e import nodes, processes
from tests.e2e.cluster import Cluster
from tests.e2e.kubectl import KubectlError
from tests.e2e.processes import Container, NoSuchProcess

# The grace period, and a kubelet whose watch waits after an outage of the API server.
GONE_WITHIN_S = 120

Heal = Callable[[], None]


class MissedError(Exception):
    """The fault found nothing to hurt: another fault had been there first."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A fault that is on: whom it hit, and what ends it."""

    target: str
    heal: Heal


@dataclass(slots=True)
class Placement:
    """Which pods there are, where, and who is the primary: as known before the API went away."""

    primary: str = ""
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)

    def containers(self, pod: str) -> dict[str, Container]:
        """The running containers of a pod."""
        return processes.containers(self.pods[pod])

    def node(self, pod: str) -> str:
        """The node of a pod."""
        return str(self.pods[pod]["spec"]["nodeName"])

    def having(self, component: str) -> list[str]:
        """Pods of a component, by name."""
        return sorted(
            name
            for name, pod in self.pods.items()
            if pod["metadata"]["labels"].get(names.LABEL_COMPONENT) == component
            and "deletionTimestamp" not in pod["metadata"]
        )


class Faults:
    """Does faults to one cluster. `before_deletion` is told of each pod that is about to go."""

    def __init__(self, cluster: Cluster, *, before_deletion: Callable[[str], None]) -> None:
        self._cluster = cluster
        self._before_deletion = before_deletion
        self._known = Placement()
        self._busy: set[str] = set()  # nodes on which a fault is on
        self._api_away = False
        self._leaving: list[Container] = []

    def effected(self) -> None:
        """Wait until what was deleted is gone: a kubelet may hear of it late."""
        while self._leaving:
            _until_gone(self._leaving.pop())

    def begin(self, fault: Fault) -> Begun:
        """Do it; MissedError where there is nothing left to do it to."""
        self._look()
        try:
            return self._begin(fault)
        except (NoSuchProcess, nodes.NodeError, KubectlError, KeyError) as error:
            raise MissedError(f"{type(error).__name__}: {error}") from error
        except subprocess.TimeoutExpired as error:
            raise MissedError(f"no answer in time: {error}") from error

    def _begin(self, fault: Fault) -> Begun:
        kind = fault.kind
        if kind.group == "node":
            return self._node(fault)
        if kind.group == "control":
            return self._control(fault)
        pod = self._target(fault)
        if self._known.node(pod) in self._busy:
            raise MissedError(f"the node of {pod} is not to be reached")
        match kind.name:
            case "pod-delete" | "pod-delete-force":
                self._leaving.append(self._known.containers(pod)["postgres"])
                self._before_deletion(pod)
                self._cluster.delete_pod(pod, force=kind.name.endswith("force"))
            case "pooler-kill":
                self._known.containers(pod)["pgbouncer"].signal("KILL")
            case "pooler-agent-kill":
                self._known.containers(pod)["agent"].signal("KILL")
            case "container-kill":
                self._known.containers(pod)["postgres"].signal("KILL")
            case _:
                return self._process(fault, pod)
        return Begun(pod, _nothing)

    def _process(self, fault: Fault, pod: str) -> Begun:
        container = self._known.containers(pod)["postgres"]
        process, _, deed = fault.kind.name.rpartition("-")
        program = {
            "postmaster": processes.POSTMASTER,
            "agent": processes.NODE_AGENT,
            "backend": processes.BACKEND,
            "repmgrd": processes.REPMGRD,
        }[process]
        if deed == "kill":
            container.signal("KILL", program)
            return Begun(pod, _nothing)
        container.signal("STOP", program)

        def go_on() -> None:
            # Nothing to be done where it was killed or replaced meanwhile.
            try:
                container.signal("CONT", program)
            except (NoSuchProcess, nodes.NodeError):
                return

        return Begun(pod, go_on)

    def _node(self, fault: Fault) -> Begun:
        pod = self._target(fault)
        node = self._known.node(pod)
        if node in self._busy:
            raise MissedError(f"a fault is on already on {node}")
        begin, end = {
            "node-off": (nodes.power_off, nodes.power_on),
            "node-cut": (nodes.cut, nodes.heal),
            "node-cut-in": (lambda node: nodes.cut(node, "in"), nodes.heal),
            "node-cut-out": (lambda node: nodes.cut(node, "out"), nodes.heal),
            "node-freeze": (nodes.freeze, nodes.thaw),
        }[fault.kind.name]
        begin(node)
        self._busy.add(node)

        def heal() -> None:
            end(node)
            self._busy.discard(node)

        return Begun(f"{pod} on {node}", heal)

    def _control(self, fault: Fault) -> Begun:
        match fault.kind.name:
            case "api-stop":
                nodes.stop_api_server()
                return self._without_api(nodes.start_api_server)
            case "api-freeze":
                nodes.freeze_api_server()
                return self._without_api(nodes.thaw_api_server)
            case "operator-away":
                return Begun("the operator", nodes.operator_away())
            case "dns-gone":
                return Begun("CoreDNS", nodes.dns_away())
        workers = sorted({self._known.node(pod) for pod in self._known.having("postgres")})
        workers = [node for node in workers if node not in self._busy]
        node = _chosen(workers, fault.pick)
        # Ends by itself, also where the node is switched off meanwhile.
        burn = f"for i in 1 2; do timeout {fault.lasts_s} sh -c 'while :; do :; done' & done"
        nodes.execute(node, "sh", "-c", f"({burn}) >/dev/null 2>&1")
        return Begun(node, _nothing)

    def _without_api(self, back: Callable[[], None]) -> Begun:
        self._api_away = True

        def heal() -> None:
            back()
            self._api_away = False

        return Begun("the API server", heal)

    def _target(self, fault: Fault) -> str:
        known = self._known
        match fault.kind.role:
            case "primary":
                return known.primary
            case "standby":
                pods = known.having(names.COMPONENT_POSTGRES)
                others = [pod for pod in pods if pod != known.primary]
                # A second node fault shall find a node of its own.
                free = [pod for pod in others if known.node(pod) not in self._busy]
                return _chosen(free or others, fault.pick)
        return _chosen(known.having(names.COMPONENT_PGBOUNCER), fault.pick)

    def _look(self) -> None:
        """Who is where, as far as the API is there to tell."""
        if self._api_away:
            return
        try:
            lease = self._cluster.kubectl.json(
                "get", "lease", names.primary_lease(self._cluster.name)
            )
            pods = {pod["metadata"]["name"]: pod for pod in self._cluster.owned("pods")}
        except (KubectlError, subprocess.TimeoutExpired):
            return
        self._known.pods = pods
        self._known.primary = lease["spec"].get("holderIdentity") or self._known.primary


def _chosen(candidates: list[str], pick: float) -> str:
    if not candidates:
        raise MissedError("nobody plays that role")
    return candidates[int(pick * len(candidates))]


def _nothing() -> None:
    """It is over by itself."""


def _until_gone(container: Container) -> None:
    for _ in range(GONE_WITHIN_S):
        try:
            container.signal("0")
        except (NoSuchProcess, nodes.NodeError, subprocess.TimeoutExpired):
            return
        time.sleep(1)
