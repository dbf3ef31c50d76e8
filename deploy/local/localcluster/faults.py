"""What can happen to a machine's cable and clock: cut, healed, frozen, thawed."""

from . import cgroups, network
from .commands import run, try_run
from .layout import Layout
from .node import inside
from .plan import Node

# One-way cuts are rules on the node itself, before and after all of kube-proxy's.
ONE_WAY = {
    "in": ["raw", "PREROUTING", "-i", "eth0"],
    "out": ["mangle", "POSTROUTING", "-o", "eth0"],
}
MARK = ["-m", "comment", "--comment", "localkube cut", "-j", "DROP"]


def cut(layout: Layout, node: Node, direction: str) -> None:
    """Pull the node's cable, or let packets through in one direction only.

    `in`: nothing reaches the node; `out`: nothing leaves it; `both`: the link is down.
    """
    if direction == "both":
        network.set_link(node, up=False)
        return
    table, chain, *match = ONE_WAY[direction]
    if try_run(_iptables(layout, node, table, "-C", chain, match)).returncode != 0:
        run(_iptables(layout, node, table, "-I", chain, match))


def heal(layout: Layout, node: Node) -> None:
    for table, chain, *match in ONE_WAY.values():
        while try_run(_iptables(layout, node, table, "-D", chain, match)).returncode == 0:
            pass
    network.set_link(node, up=True)


def one_way_cuts(layout: Layout, node: Node) -> list[str]:
    return [
        direction
        for direction, (table, chain, *match) in ONE_WAY.items()
        if try_run(_iptables(layout, node, table, "-C", chain, match)).returncode == 0
    ]


def freeze(node: Node) -> None:
    """Stop every process of the node where it stands; its kernel still answers pings."""
    cgroups.set_frozen(node.name, True)


def thaw(node: Node) -> None:
    cgroups.set_frozen(node.name, False)


def _iptables(
    layout: Layout, node: Node, table: str, action: str, chain: str, match: list[str]
) -> list[str]:
    words = ["iptables", "--wait", "10", "-t", table, action, chain, *match, *MARK]
    return inside(layout, node, words)
