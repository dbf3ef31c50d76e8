"""Where everything is: one state folder that `down` removes, one cache folder that it keeps."""

import os
from dataclasses import dataclass
from pathlib import Path

from .plan import Node

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[2]
GO_MODULES = HERE.parent / "go"

IN_NODE = Path("/var/lib/localkube")
"""A node's own configuration and keys, as the node sees them on its own /var/lib."""


@dataclass(frozen=True)
class NodeFiles:
    """One node's disk, as the host sees it. The node has it on its own /var/lib and /var/log."""

    folder: Path

    @property
    def var_lib(self) -> Path:
        return self.folder / "var-lib"

    @property
    def var_log(self) -> Path:
        return self.folder / "var-log"

    @property
    def config(self) -> Path:
        return self.var_lib / IN_NODE.name

    @property
    def process(self) -> Path:
        """The record of the node's init: pid, start time, boot."""
        return self.folder / "process.json"

    @property
    def init_log(self) -> Path:
        return self.folder / "init.log"


@dataclass(frozen=True)
class Layout:
    state: Path
    cache: Path

    @property
    def kubeconfig(self) -> Path:
        return self.state / "kubeconfig"

    @property
    def pki(self) -> Path:
        return self.state / "pki"

    @property
    def cluster(self) -> Path:
        """What `up` was asked for, so that the other commands need not be told again."""
        return self.state / "cluster.json"

    @property
    def sysctls(self) -> Path:
        return self.state / "sysctls.json"

    @property
    def lock(self) -> Path:
        return self.state / "lock"

    @property
    def logs(self) -> Path:
        return self.state / "log"

    @property
    def images(self) -> Path:
        return self.state / "images"

    def node(self, node: Node) -> NodeFiles:
        return NodeFiles(self.state / "nodes" / node.name)


def layout() -> Layout:
    state = os.environ.get("LOCALKUBE_STATE", "/var/lib/localkube")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Layout(state=Path(state), cache=Path(cache) / "pgcluster")
