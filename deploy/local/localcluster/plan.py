"""The address plan: which nodes there are and which address, range and link each one has.

Pure: the same kind-config.yaml gives the same plan in every process, so nothing of it is stored.
"""

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from .progress import LocalkubeError

NODE_RANGE = IPv4Network("10.245.0.0/24")
"""The nodes and the host's bridge. kind has Docker's own range in its place."""

BRIDGE = "lkbr0"
ROUTE_PROTOCOL = 176
"""Marks every route that localkube adds to the host, so that it removes those and no others."""

MAX_WORKERS = 20


@dataclass(frozen=True)
class Node:
    name: str
    index: int
    """0 is the control plane, 1… the workers."""
    address: IPv4Address
    pod_range: IPv4Network

    @property
    def is_control_plane(self) -> bool:
        return self.index == 0

    @property
    def host_link(self) -> str:
        """The end of the node's cable that is plugged into the host's bridge."""
        return f"lkveth{self.index}"

    @property
    def mac(self) -> str:
        """Fixed, as a machine's is: after a reboot the neighbours' ARP entries must still hold."""
        return f"02:6c:6b:00:00:{self.index:02x}"


@dataclass(frozen=True)
class Plan:
    name: str
    workers: int
    pod_range: IPv4Network
    service_range: IPv4Network

    @property
    def host_address(self) -> IPv4Address:
        return NODE_RANGE[1]

    @property
    def api_service_address(self) -> IPv4Address:
        return self.service_range[1]

    @property
    def dns_address(self) -> IPv4Address:
        return self.service_range[10]

    @property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(self._node(index) for index in range(self.workers + 1))

    @property
    def control_plane(self) -> Node:
        return self._node(0)

    @property
    def api_url(self) -> str:
        return f"https://{self.control_plane.address}:6443"

    def node(self, name: str) -> Node:
        for node in self.nodes:
            if name in (node.name, node.name.removeprefix(f"{self.name}-")):
                return node
        known = ", ".join(node.name for node in self.nodes)
        raise LocalkubeError(f"there is no node {name!r}; there are {known}")

    def _node(self, index: int) -> Node:
        # kind's own names: NAME-control-plane, NAME-worker, NAME-worker2, …
        role = "control-plane" if index == 0 else "worker" + (str(index) if index > 1 else "")
        base = int(self.pod_range.network_address) + index * 256
        return Node(
            name=f"{self.name}-{role}",
            index=index,
            address=NODE_RANGE[2 + index],
            pod_range=IPv4Network((base, 24)),
        )


def read_plan(kind_config: Path, workers: int | None = None) -> Plan:
    """The plan that a kind-config.yaml describes; `workers` overrides its number of workers."""
    return parse_plan(kind_config.read_text(), workers)


def parse_plan(text: str, workers: int | None = None) -> Plan:
    # Python has no YAML parser of its own; of a kind config only these few scalars matter here.
    roles = re.findall(r"^\s*(?:-\s+)?role:\s*['\"]?([\w-]+)", text, re.MULTILINE)
    count = roles.count("worker") if workers is None else workers
    if not 0 <= count <= MAX_WORKERS:
        raise LocalkubeError(f"{count} workers: localkube runs 0 to {MAX_WORKERS}")
    if roles.count("control-plane") > 1:
        raise LocalkubeError("kind-config.yaml asks for several control planes: localkube runs one")
    return Plan(
        name=_scalar(text, "name", "kind"),
        workers=count,
        pod_range=IPv4Network(_scalar(text, "podSubnet", "10.244.0.0/16")),
        service_range=IPv4Network(_scalar(text, "serviceSubnet", "10.96.0.0/16")),
    )


def _scalar(text: str, key: str, default: str) -> str:
    match = re.search(rf"^\s*{key}:\s*['\"]?([^\s'\"#]+)", text, re.MULTILINE)
    return match.group(1) if match else default
