"""Signals to the processes of a pod, sent from its node.

A signal from inside of a container never reaches its first process, and `kubectl exec` needs the
API server, which may be the very thing that is away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.e2e import nodes

# Command lines, as extended regular expressions; the first process of a container has none.
FIRST = ""
NODE_AGENT = r"^[^ ]*python[^ ]* [^ ]*pgcluster-node"
POSTMASTER = r"^[^ ]*postgres -D "
BACKEND = r"^postgres: [^ ]+ app app "
REPMGRD = r"^[^ ]*repmgrd "

# $1 container, $2 signal, $3 pattern, $4 how many at most. Prints the processes that were hit.
_SIGNAL = r"""
if [ -z "$3" ]; then
    pids=$(ctr -n k8s.io tasks ls | awk -v id="$1" '$1 == id { print $2 }')
else
    pids=$(for pid in $(ctr -n k8s.io tasks ps "$1" | awk 'NR > 1 { print $1 }'); do
        tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" | grep -qE -- "$3" && echo "$pid"
    done)
fi
for pid in $(echo $pids | cut -d' ' -f"1-$4"); do kill -s "$2" "$pid" && echo "$pid"; done
"""


class NoSuchProcess(Exception):
    """Nothing was there to be hit: it ended just before, or its container did."""


@dataclass(frozen=True, slots=True)
class Container:
    """Where a container runs, and as what."""

    pod: str
    node: str
    name: str
    id: str

    def signal(self, signal: str, program: str = FIRST, *, at_most: int = 1) -> list[int]:
        """Send a signal (`KILL`, `STOP`, …) to `program` in it; the process ids on the node."""
        script = ["sh", "-c", _SIGNAL, "signal", self.id, signal, program, str(at_most)]
        output = nodes.execute(self.node, *script)
        if not output.split():
            raise NoSuchProcess(f"{program or 'the first process'} of {self.pod}/{self.name}")
        return [int(pid) for pid in output.split()]


def containers(pod: Mapping[str, Any]) -> dict[str, Container]:
    """The running containers of a pod by name."""
    status = pod["status"]
    rows = [*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])]
    return {
        row["name"]: Container(
            pod=pod["metadata"]["name"],
            node=pod["spec"]["nodeName"],
            name=row["name"],
            id=row["containerID"].partition("://")[2],
        )
        for row in rows
        if "running" in row["state"]
    }
