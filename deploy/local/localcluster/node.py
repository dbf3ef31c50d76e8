"""A node as a machine: switched on and off, and programs run on it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from . import cgroups, controlplane, network, pki
from .build import KUBERNETES
from .commands import PATH
from .layout import HERE, Layout
from .nodeconfig import node_config
from .plan import Node, Plan
from .processes import ProcessId, children, identify, record, recorded
from .progress import LocalkubeError, eventually

INIT = HERE / "node_init.py"
CAP_SYS_RESOURCE = 24
NODE_SYSCTLS = {
    "net/ipv4/ip_forward": "1",
    # Pods of one node that talk through a Service: the answer must pass kube-proxy's rules again.
    "net/bridge/bridge-nf-call-iptables": "1",
}


def init_process(layout: Layout, node: Node) -> ProcessId | None:
    """The node's init, if it is running."""
    return recorded(layout.node(node).process)


def power_on(layout: Layout, plan: Plan, node: Node) -> None:
    """Start the node as a machine that boots: empty /run and cgroups, the old /var/lib."""
    if init_process(layout, node) is not None:
        return
    files = layout.node(node)
    power_off(layout, node)
    services = _write_config(layout, plan, node)
    cgroups.create(node.name)
    for folder in (files.var_lib, files.var_log):
        folder.mkdir(parents=True, exist_ok=True)
    booted = files.var_log / "localkube" / "booted"
    booted.unlink(missing_ok=True)
    argv = ["unshare", "--pid", "--fork", "--mount", "--propagation", "private", "--mount-proc"]
    argv += ["--net", "--uts", "--", sys.executable, "-I", "-S", str(INIT)]
    with files.init_log.open("ab") as log:
        launcher = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd="/",
            env={"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8"},
            start_new_session=True,  # the node outlives the shell that ran `up`
        )
    eventually(
        lambda: bool(children(launcher.pid)) or launcher.poll() is not None,
        within_s=10,
        every_s=0.01,
        what=f"the init of {node.name} exists",
        log=files.init_log,
    )
    init = next((identify(pid) for pid in children(launcher.pid)), None)
    if init is None:
        raise LocalkubeError(f"the init of {node.name} ended at once", files.init_log)
    record(init, files.process)
    for pid in (launcher.pid, init.pid):
        cgroups.add_process(node.name, pid)
    network.connect(plan, node, init.pid)
    orders = {
        "hostname": node.name,
        "disk": {"/var/lib": str(files.var_lib), "/var/log": str(files.var_log)},
        "sysctls": NODE_SYSCTLS,
        "services": services,
        "logs": "/var/log/localkube",
    }
    if launcher.stdin is not None:  # it is a pipe, as asked for above
        with suppress(BrokenPipeError), launcher.stdin as stdin:
            stdin.write(json.dumps(orders).encode())
    _launchers.append(launcher)
    eventually(
        lambda: booted.exists() or launcher.poll() is not None,
        within_s=20,
        every_s=0.02,
        what=f"{node.name} has booted",
        log=files.init_log,
    )
    if not booted.exists():
        raise LocalkubeError(f"the init of {node.name} ended", files.init_log)


_launchers: list[subprocess.Popen[bytes]] = []
"""Kept, so that Python does not warn of the processes that are meant to outlive it."""


def power_off(layout: Layout, node: Node) -> None:
    """Kill everything of the node at once, and drop what a machine without power does not keep."""
    # The cable first: the kernel ends a killed process's connections with a FIN or RST, but from a
    # machine without power nobody hears anything.
    network.disconnect(node)
    init = init_process(layout, node)
    if init is not None:
        init.kill()
    cgroups.kill_all(node.name)
    cgroups.remove(node.name)
    layout.node(node).process.unlink(missing_ok=True)


def inside(layout: Layout, node: Node, argv: Sequence[str]) -> list[str]:
    """The command that runs `argv` on the node."""
    init = init_process(layout, node)
    if init is None:
        raise LocalkubeError(f"{node.name} is switched off")
    spaces = ["--mount", "--pid", "--net", "--uts"]
    return ["nsenter", "--target", str(init.pid), *spaces, "--wd=/", "--", *argv]


def service_log(layout: Layout, node: Node, service: str) -> Path:
    return layout.node(node).var_log / "localkube" / f"{service}.log"


def may_lower_oom_score() -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAP_SYS_RESOURCE & 1)
    return False


def _write_config(layout: Layout, plan: Plan, node: Node) -> list[dict[str, object]]:
    """Write the node's configuration to its disk; return its services for its init."""
    binaries = KUBERNETES.folder(layout)
    config = node_config(plan, node, binaries, may_lower_oom_score())
    services = config.services
    keys = {
        "ca.crt": "ca.crt",
        "kubelet-serving.crt": f"kubelet-serving-{node.name}.crt",
        "kubelet-serving.key": f"kubelet-serving-{node.name}.key",
    }
    clients = {"kubelet": f"kubelet-{node.name}", "kube-proxy": "kube-proxy"}
    if node.is_control_plane:
        services = (*controlplane.services(plan, binaries), *services)
        for name in ("apiserver", "apiserver-kubelet-client"):
            keys |= {f"{name}.{kind}": f"{name}.{kind}" for kind in ("crt", "key")}
        for name in ("ca.key", "service-account.key", "service-account.pub"):
            keys[name] = name
        for name in ("kube-controller-manager", "kube-scheduler"):
            clients[name] = name
    folder = layout.node(node).config
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in config.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    for target, source in keys.items():
        shutil.copy(layout.pki / source, folder / target)
    for name, certificate in clients.items():
        file = folder / f"{name}.kubeconfig"
        file.touch(mode=0o600)
        file.write_text(pki.kubeconfig(layout.pki, certificate, plan.api_url))
    os.chmod(folder, 0o700)
    return [asdict(service) for service in services]
