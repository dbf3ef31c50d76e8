"""One cgroup subtree for each node, so that all its processes can be frozen, found and killed.

    /localkube/NODE/system     the node's init, containerd, kubelet and so on
    /localkube/NODE/kubepods   made by the kubelet (its cgroupRoot is /localkube/NODE)

On a cgroup v1 machine the same tree is in each controller's hierarchy, and in the v2 "unified" one.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from .progress import LocalkubeError, eventually

MOUNT = Path("/sys/fs/cgroup")
ROOT = "localkube"


def is_v2() -> bool:
    return (MOUNT / "cgroup.controllers").exists()


def hierarchies() -> list[Path]:
    if is_v2():
        return [MOUNT]
    # cpu,cpuacct is one hierarchy with a symlink for each controller's name on some machines.
    found = {entry.resolve() for entry in MOUNT.iterdir() if (entry / "cgroup.procs").exists()}
    return sorted(found)


def cgroup_root(node: str) -> str:
    """What the kubelet is told."""
    return f"/{ROOT}/{node}"


def create(node: str) -> None:
    for hierarchy in hierarchies():
        group = hierarchy
        for part in (ROOT, node, "system"):
            _delegate(group)
            group /= part
            group.mkdir(exist_ok=True)
            _inherit_cpuset(group)


def _delegate(group: Path) -> None:
    """cgroup v2: children get a controller only when the parent passes it on."""
    if not is_v2():
        return
    for controller in (group / "cgroup.controllers").read_text().split():
        with suppress(OSError):  # a controller that is bound elsewhere; kubelet says if it needs it
            (group / "cgroup.subtree_control").write_text(f"+{controller}")


def _inherit_cpuset(group: Path) -> None:
    """cgroup v1: a cpuset that is still empty lets no process in."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        file = group / name
        if not is_v2() and file.exists() and not file.read_text().strip():
            file.write_text((group.parent / name).read_text())


def add_process(node: str, pid: int) -> None:
    for hierarchy in hierarchies():
        (hierarchy / ROOT / node / "system" / "cgroup.procs").write_text(str(pid))


def set_frozen(node: str, frozen: bool) -> None:
    """Stop or resume every process of the node at once, as a hung or paused machine would."""
    if is_v2():
        (MOUNT / ROOT / node / "cgroup.freeze").write_text("1" if frozen else "0")
        wanted = f"frozen {int(frozen)}"
        events = MOUNT / ROOT / node / "cgroup.events"
        eventually(
            lambda: wanted in events.read_text(),
            within_s=20,
            every_s=0.02,
            what=f"{node} is {'frozen' if frozen else 'thawed'}",
        )
        return
    wanted = "FROZEN" if frozen else "THAWED"
    state = MOUNT / "freezer" / ROOT / node / "freezer.state"
    state.write_text(wanted)
    eventually(
        lambda: state.read_text().strip() == wanted,
        within_s=20,
        every_s=0.02,
        what=f"{node} is {wanted.lower()}",
    )


def is_frozen(node: str) -> bool:
    if is_v2():
        file, wanted = MOUNT / ROOT / node / "cgroup.freeze", "1"
    else:
        file, wanted = MOUNT / "freezer" / ROOT / node / "freezer.state", "FROZEN"
    return file.exists() and file.read_text().strip() == wanted


def kill_all(node: str | None = None) -> None:
    """Kill every process of a node, or of all nodes, and wait until none is left."""
    deadline = time.monotonic() + 30
    while pids := processes(node):
        if time.monotonic() > deadline:
            raise LocalkubeError(f"processes {sorted(pids)} do not die (uninterruptible I/O?)")
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # A frozen v1 cgroup delivers the signal when it thaws; each then dies on its first step.
        for frozen in nodes() if node is None else [node]:
            if is_frozen(frozen):
                set_frozen(frozen, False)
        time.sleep(0.05)


def processes(node: str | None = None) -> set[int]:
    """Every process of a node (or of all nodes), in whichever hierarchy it is found."""
    found: set[int] = set()
    for group in _groups(node):
        with suppress(OSError):
            found.update(int(pid) for pid in (group / "cgroup.procs").read_text().split())
    return found - {0}


def nodes() -> list[str]:
    """The nodes that have a cgroup, whatever the state folder says."""
    names: set[str] = set()
    for hierarchy in hierarchies():
        root = hierarchy / ROOT
        if root.is_dir():
            names.update(entry.name for entry in root.iterdir() if entry.is_dir())
    return sorted(names)


def remove(node: str | None = None) -> None:
    """Remove the (empty) cgroups of a node, or of all nodes with the root of them."""
    eventually(
        lambda: _try_remove(node),
        within_s=20,
        every_s=0.05,
        what=f"the cgroups of {node or 'all nodes'} are empty and removed",
    )


def _try_remove(node: str | None) -> bool:
    left = False
    for group in _groups(node):
        try:
            group.rmdir()
        except FileNotFoundError:
            continue
        except OSError:  # busy for a moment after its last process died
            left = True
    return not left


def _groups(node: str | None) -> Iterator[Path]:
    """All cgroups of the subtree in all hierarchies, the deepest first."""
    for hierarchy in hierarchies():
        top = hierarchy / ROOT / node if node else hierarchy / ROOT
        for folder, _, _ in os.walk(top, topdown=False):
            yield Path(folder)
