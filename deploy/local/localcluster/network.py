"""The cables: a bridge on the host, one veth pair for each node, and the routes between pod ranges.

Nothing for the node, pod and Service ranges ever leaves the machine. The bridge has no uplink; the
host routes each pod range to its node and answers `unreachable` for the rest of the range; a node
has no default route at all.
"""

import json
from ipaddress import IPv4Network
from pathlib import Path

from .commands import run, try_run
from .plan import BRIDGE, NODE_RANGE, ROUTE_PROTOCOL, Node, Plan
from .progress import LocalkubeError

BRIDGE_MAC = "02:6c:6b:00:ff:ff"
POD_BRIDGE = "cni0"
UNREACHABLE_METRIC = 4096
FORWARD_RULE = ["FORWARD", "-i", BRIDGE, "-o", BRIDGE, "-m", "comment", "--comment", "localkube"]


def create_host_side(plan: Plan) -> None:
    _refuse_taken_ranges(plan)
    # In every namespace the kernel has these only once the host has loaded them.
    for module in ("br_netfilter", "overlay"):
        try_run(["modprobe", module])
    if not exists(BRIDGE):
        run(["ip", "link", "add", BRIDGE, "address", BRIDGE_MAC, "type", "bridge"])
    run(["ip", "address", "replace", f"{plan.host_address}/{NODE_RANGE.prefixlen}", "dev", BRIDGE])
    run(["ip", "link", "set", BRIDGE, "up"])
    for network in (plan.pod_range, plan.service_range):
        _host_route(["unreachable", str(network), "metric", str(UNREACHABLE_METRIC)])
    for node in plan.nodes:
        _host_route([str(node.pod_range), "via", str(node.address), "dev", BRIDGE])
    via = str(plan.control_plane.address)  # its kube-proxy serves the host as well
    _host_route([str(plan.service_range), "via", via, "dev", BRIDGE])
    _let_the_bridge_through()


def connect(plan: Plan, node: Node, init_pid: int) -> None:
    """Plug a new node's network namespace into the bridge."""
    disconnect(node)
    peer = ["peer", "name", "eth0", "address", node.mac, "netns", str(init_pid)]
    run(["ip", "link", "add", node.host_link, "type", "veth", *peer])
    run(["ip", "link", "set", node.host_link, "master", BRIDGE, "up"])
    lines = [
        "link set lo up",
        f"address add {node.address}/{NODE_RANGE.prefixlen} dev eth0",
        "link set eth0 up",
        f"route add unreachable {plan.pod_range} metric {UNREACHABLE_METRIC}",
        # A ClusterIP needs some route, so that packets get as far as kube-proxy's rules. Those that
        # no rule rewrites end here, in a bridge without ports: not every kernel has dummies.
        "link add services type bridge",
        "link set services arp off up",
        f"route add {plan.service_range} dev services src {node.address}",
        # A pod is told at once: else CoreDNS, started before kube-proxy's first rules, waits 30 s.
        f"rule add iif {POD_BRIDGE} to {plan.service_range} unreachable",
    ]
    for other in plan.nodes:
        if other != node:
            lines.append(f"route add {other.pod_range} via {other.address} dev eth0")
    argv = ["nsenter", "--target", str(init_pid), "--net", "ip", "-batch", "-"]
    run(argv, stdin="\n".join(lines) + "\n")


def disconnect(node: Node) -> None:
    if exists(node.host_link):
        run(["ip", "link", "delete", node.host_link])


def set_link(node: Node, up: bool) -> None:
    run(["ip", "link", "set", node.host_link, "up" if up else "down"])


def is_link_up(node: Node) -> bool:
    return "UP" in json.loads(run(["ip", "-json", "link", "show", node.host_link]))[0]["flags"]


def exists(link: str) -> bool:
    return Path("/sys/class/net", link).exists()


def remove_host_side() -> None:
    run(["ip", "route", "flush", "proto", str(ROUTE_PROTOCOL)])
    for link in json.loads(run(["ip", "-json", "link", "show"]) or "[]"):
        if link["ifname"].startswith("lkveth"):
            # The kernel removes them with the dead nodes' namespaces, a moment later than we like.
            try_run(["ip", "link", "delete", link["ifname"]])
    if exists(BRIDGE):
        run(["ip", "link", "delete", BRIDGE])
    if _has_forward_rule():
        run(["iptables", "-D", *FORWARD_RULE, "-j", "ACCEPT"])


def _host_route(words: list[str]) -> None:
    run(["ip", "route", "replace", *words, "proto", str(ROUTE_PROTOCOL)])


def _refuse_taken_ranges(plan: Plan) -> None:
    """Fail rather than take an address range away from something else on this machine."""
    for route in json.loads(run(["ip", "-json", "route", "show"]) or "[]"):
        ours = route.get("dev") == BRIDGE or route.get("protocol") == str(ROUTE_PROTOCOL)
        if ours or route["dst"] == "default":
            continue
        taken = IPv4Network(route["dst"])
        for network in (NODE_RANGE, plan.pod_range, plan.service_range):
            if taken.overlaps(network):
                raise LocalkubeError(
                    f"this machine already has a route for {taken} ({route.get('dev', '')}), "
                    f"which overlaps {network}; change the subnets in kind-config.yaml"
                )


def _let_the_bridge_through() -> None:
    """Where Docker runs, the host drops what it forwards, and bridged packets count as that."""
    rules = try_run(["iptables", "-S", "FORWARD"]).stdout
    if "-P FORWARD DROP" in rules and not _has_forward_rule():
        run(["iptables", "-I", *FORWARD_RULE, "-j", "ACCEPT"])


def _has_forward_rule() -> bool:
    return f"-i {BRIDGE} -o {BRIDGE}" in try_run(["iptables", "-S", "FORWARD"]).stdout
