"""`up`, `down` and what the other commands need to know of the cluster as a whole."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from . import addons, cgroups, faults, images, network, node, packages, pki, sysctls
from .build import KUBERNETES, build_missing
from .commands import run, tool_environment, try_run
from .layout import REPOSITORY, Layout
from .nodeconfig import CONTROL_PLANE
from .plan import BRIDGE, Node, Plan, read_plan
from .processes import recorded
from .progress import LocalkubeError, eventually, step

KIND_CONFIG = REPOSITORY / "kind-config.yaml"


def kubectl(layout: Layout) -> Path:
    return KUBERNETES.folder(layout) / "kubectl"


def plan_of_cluster(layout: Layout) -> Plan:
    """The plan that `up` was last asked for."""
    try:
        asked = json.loads(layout.cluster.read_text())
    except FileNotFoundError as error:
        raise LocalkubeError("there is no cluster; `localkube up` makes one") from error
    return read_plan(KIND_CONFIG, asked["workers"])


@contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """One `up`, `down` or power switch at a time."""
    layout.state.mkdir(mode=0o755, parents=True, exist_ok=True)
    with layout.lock.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LocalkubeError(f"another localkube is at work: it holds {layout.lock}") from error
        yield


def up(layout: Layout, workers: int | None) -> None:
    """Bring the cluster to the state it should have, from whatever state it is in."""
    if os.geteuid() != 0:
        raise LocalkubeError("namespaces, mounts and cgroups need root")
    with locked(layout):
        plan = _asked_plan(layout, workers)
        if missing := packages.missing_packages():
            with step(f"install {', '.join(missing)}"):
                packages.install_packages(missing, layout.logs / "packages.log")
        build_missing(layout)
        with step("keys, certificates and images of the cluster itself"):
            pki.create(plan, layout.pki)
            _write_kubeconfig(layout, plan)
            own_images = images.own_images(layout)
        with step(f"network: {len(plan.nodes)} nodes on bridge {BRIDGE}"):
            sysctls.prepare(layout.sysctls)
            network.create_host_side(plan)
        with step("start the control plane"):
            _start(layout, plan, plan.control_plane)
            _wait_for_api(layout, plan)
        with step(f"start {plan.workers} workers"):
            for worker in plan.nodes[1:]:
                _start(layout, plan, worker)
        with step("load the cluster's own images into the nodes"):
            _load_own_images(layout, plan, own_images)
        with step("nodes are Ready"):
            _wait_until_ready(layout, plan)
            _label(layout, plan)
        with step("DNS and storage"):
            addons.apply(layout, plan, kubectl(layout))
            _wait_for_addons(layout)


def down(layout: Layout) -> None:
    """Remove everything that any `up`, whole or interrupted, has left on this machine."""
    if not layout.state.exists() and not cgroups.nodes():
        return
    with locked(layout):
        with step("kill the nodes"):
            for file in layout.state.glob("nodes/*/process.json"):
                if init := recorded(file):
                    init.kill()
            cgroups.kill_all()
            cgroups.remove()
        with step("remove links and routes"):
            network.remove_host_side()
        with step(f"remove {layout.state}"):
            sysctls.restore(layout.sysctls)
            _refuse_mounts_below(layout.state)
            shutil.rmtree(layout.state)


def set_power(layout: Layout, plan: Plan, name: str, on: bool) -> None:
    with locked(layout):
        machine = plan.node(name)
        if on:
            node.power_on(layout, plan, machine)
        else:
            node.power_off(layout, machine)


def node_states(layout: Layout, plan: Plan) -> list[tuple[str, str, str, str]]:
    """Of each node: name, address, what its machine does, what the API says of it."""
    ready = _readiness(layout)
    rows = []
    for machine in plan.nodes:
        init = node.init_process(layout, machine)
        if init is None:
            state = "off"
        elif cgroups.is_frozen(machine.name):
            state = "frozen"
        elif not network.is_link_up(machine):
            state = "cut off"
        elif cuts := faults.one_way_cuts(layout, machine):
            state = f"cut {' and '.join(cuts)}"
        else:
            state = f"on (pid {init.pid})"
        said = {True: "Ready", False: "NotReady", None: "unknown"}[ready.get(machine.name)]
        rows.append((machine.name, str(machine.address), state, said))
    return rows


def _asked_plan(layout: Layout, workers: int | None) -> Plan:
    plan = read_plan(KIND_CONFIG, workers)
    if layout.cluster.exists():
        running = plan_of_cluster(layout)
        if workers is None:
            return running
        if plan.workers < running.workers:
            raise LocalkubeError(
                f"the cluster has {running.workers} workers; for fewer, `localkube down` first"
            )
    layout.cluster.write_text(json.dumps({"workers": plan.workers}))
    return plan


def _write_kubeconfig(layout: Layout, plan: Plan) -> None:
    layout.kubeconfig.touch(mode=0o600)
    layout.kubeconfig.write_text(pki.kubeconfig(layout.pki, "admin", plan.api_url))


def _start(layout: Layout, plan: Plan, machine: Node) -> None:
    """Switch the node on, and end what `node freeze` and `node cut` did to it."""
    if node.init_process(layout, machine) is None:
        node.power_on(layout, plan, machine)
        return
    if cgroups.is_frozen(machine.name):
        faults.thaw(machine)
    faults.heal(layout, machine)


def _kubectl(layout: Layout, *words: str) -> list[str]:
    return [str(kubectl(layout)), "--kubeconfig", str(layout.kubeconfig), *words]


def _wait_for_api(layout: Layout, plan: Plan) -> None:
    eventually(
        lambda: try_run(_kubectl(layout, "get", "--raw", "/readyz")).stdout == "ok",
        within_s=120,
        what=f"the API server answers on {plan.api_url}",
        log=node.service_log(layout, plan.control_plane, "kube-apiserver"),
    )


def _load_own_images(layout: Layout, plan: Plan, own: list[images.Image]) -> None:
    for machine in plan.nodes:
        eventually(
            partial(_containerd_answers, layout, machine),
            within_s=60,
            what=f"containerd answers on {machine.name}",
            log=node.service_log(layout, machine, "containerd"),
        )
    for image in own:
        lacking = [m for m in plan.nodes if images.missing_on(layout, m, [image])]
        images.import_image(layout, lacking, image)


def _containerd_answers(layout: Layout, machine: Node) -> bool:
    argv = node.inside(layout, machine, ["ctr", "--namespace", "k8s.io", "images", "list"])
    return try_run(argv).returncode == 0


def _readiness(layout: Layout) -> dict[str, bool]:
    result = try_run(_kubectl(layout, "get", "nodes", "-o", "json", "--request-timeout=5s"))
    if result.returncode != 0:
        return {}
    return {
        item["metadata"]["name"]: any(
            condition["type"] == "Ready" and condition["status"] == "True"
            for condition in item["status"].get("conditions", [])
        )
        for item in json.loads(result.stdout)["items"]
    }


def _wait_until_ready(layout: Layout, plan: Plan) -> None:
    wanted = {machine.name: True for machine in plan.nodes}
    slow = plan.nodes[-1]
    eventually(
        lambda: wanted.items() <= _readiness(layout).items(),
        within_s=180,
        every_s=1,
        what=f"all {len(wanted)} nodes are Ready",
        log=node.service_log(layout, slow, "kubelet"),
    )


def _label(layout: Layout, plan: Plan) -> None:
    """A kubelet may not give itself these (NodeRestriction); kubeadm sets them from outside too."""
    labels = [f"{CONTROL_PLANE}=", "node.kubernetes.io/exclude-from-external-load-balancers="]
    run(_kubectl(layout, "label", "--overwrite", "node", plan.control_plane.name, *labels))


def _wait_for_addons(layout: Layout) -> None:
    for namespace, name in (
        ("kube-system", "coredns"),
        ("local-path-storage", "local-path-provisioner"),
    ):
        words = ["--namespace", namespace, "rollout", "status", "--timeout=120s", f"deploy/{name}"]
        run(_kubectl(layout, *words), timeout_s=130, env=tool_environment())


def _refuse_mounts_below(folder: Path) -> None:
    """Never delete through a mount; there is none unless somebody made it by hand."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    below = [m.split()[4] for m in mounts if m.split()[4].startswith(f"{folder}/")]
    if below:
        raise LocalkubeError(f"something is mounted in {folder}: {', '.join(below)}")
