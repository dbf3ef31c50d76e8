"""The files and services of one node: containerd, kubelet, kube-proxy, pod network."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .cgroups import cgroup_root
from .layout import IN_NODE
from .network import POD_BRIDGE
from .plan import Node, Plan

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
PAUSE_IMAGE = "docker.io/localkube/pause:1"
CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
DOMAIN = "cluster.local"
VOLUME_PLUGINS = "/var/lib/kubelet/volume-plugins"
"""The default is below /usr, which the node shares with the host."""


@dataclass(frozen=True)
class Condition:
    """Holds once this command prints this."""

    argv: list[str]
    expect: str


@dataclass(frozen=True)
class Service:
    """A process that the node's init keeps running."""

    name: str
    argv: list[str]
    after: Condition | None = None


@dataclass(frozen=True)
class NodeConfig:
    files: Mapping[str, str] = field(default_factory=dict)
    """File name in the node's configuration folder: content."""
    services: tuple[Service, ...] = ()


def node_config(plan: Plan, node: Node, binaries: Path, may_lower_oom_score: bool) -> NodeConfig:
    kubelet = _kubelet(plan, node, may_lower_oom_score)
    kube_proxy = _kube_proxy(plan, node, may_lower_oom_score)
    return NodeConfig(
        files={
            "containerd.toml": _containerd(may_lower_oom_score),
            "cni/10-localkube.conflist": json.dumps(_pod_network(node), indent=1),
            "kubelet.json": json.dumps(kubelet, indent=1),
            "kube-proxy.json": json.dumps(kube_proxy, indent=1),
            # No name server: CoreDNS answers for the cluster's names, and nothing asks outside.
            "resolv.conf": "",
        },
        services=(
            Service("containerd", ["containerd", "--config", f"{IN_NODE}/containerd.toml"]),
            Service(
                "kubelet",
                [
                    f"{binaries}/kubelet",
                    f"--config={IN_NODE}/kubelet.json",
                    f"--kubeconfig={IN_NODE}/kubelet.kubeconfig",
                    f"--hostname-override={node.name}",
                    f"--node-ip={node.address}",
                ],
                # A kubelet that finds the socket before the CRI plugin is ready gives up.
                after=Condition(
                    ["ctr", "--address", CONTAINERD_SOCKET, "plugins", "list", "id==cri"], " ok"
                ),
            ),
            Service(
                "kube-proxy", [f"{binaries}/kube-proxy", f"--config={IN_NODE}/kube-proxy.json"]
            ),
        ),
    )


def _containerd(may_lower_oom_score: bool) -> str:
    restrict = "false" if may_lower_oom_score else "true"
    return f"""version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs",
  "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs",
]

[grpc]
address = "{CONTAINERD_SOCKET}"

[plugins."io.containerd.internal.v1.opt"]
path = "/var/lib/containerd/opt"

[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE_IMAGE}"
restrict_oom_score_adj = {restrict}

[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{IN_NODE}/cni"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
"""


def _pod_network(node: Node) -> dict[str, object]:
    return {
        "cniVersion": "0.4.0",
        "name": "localkube",
        "plugins": [
            {
                "type": "bridge",
                "bridge": POD_BRIDGE,
                "isGateway": True,
                "hairpinMode": True,
                "ipam": {
                    "type": "host-local",
                    # As kindnet: gone after a reboot, so no address stays taken by a lost pod.
                    "dataDir": "/run/cni-ipam-state",
                    "ranges": [[{"subnet": str(node.pod_range)}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    }


def _kubelet(plan: Plan, node: Node, may_lower_oom_score: bool) -> dict[str, object]:
    config: dict[str, object] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": cgroup_root(node.name),
        "failCgroupV1": False,
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "clusterDNS": [str(plan.dns_address)],
        "clusterDomain": DOMAIN,
        "resolvConf": f"{IN_NODE}/resolv.conf",
        "tlsCertFile": f"{IN_NODE}/kubelet-serving.crt",
        "tlsPrivateKeyFile": f"{IN_NODE}/kubelet-serving.key",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{IN_NODE}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "volumePluginDir": VOLUME_PLUGINS,
        # As in kind: the disk is the host's, and an evicted image could not be pulled again.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {
            "imagefs.available": "0%",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
        },
        "registerWithTaints": [],
    }
    if node.is_control_plane:
        config["registerWithTaints"] = [{"key": CONTROL_PLANE, "effect": "NoSchedule"}]
    if not may_lower_oom_score:
        config["oomScoreAdj"] = 0
    return config


def _kube_proxy(plan: Plan, node: Node, may_lower_oom_score: bool) -> dict[str, object]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clusterCIDR": str(plan.pod_range),
        "hostnameOverride": node.name,
        "clientConnection": {"kubeconfig": f"{IN_NODE}/kube-proxy.kubeconfig"},
        # nf_conntrack_max belongs to the whole machine; kube-proxy must leave it as it is.
        "conntrack": {"maxPerCore": 0},
        "oomScoreAdj": -999 if may_lower_oom_score else 0,
    }
