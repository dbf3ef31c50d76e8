"""The control plane's own services: etcd, API server, controller manager, scheduler.

They run as plain processes of the control-plane node, inside its namespaces, because the API server
must reach Services and pods (webhooks) and the kubelets (exec, logs) by the node's routes.
"""

from collections.abc import Mapping
from pathlib import Path

from .layout import IN_NODE
from .nodeconfig import DOMAIN, VOLUME_PLUGINS, Service
from .plan import Plan

ETCD_CLIENT = "http://127.0.0.1:2379"
ETCD_PEER = "http://127.0.0.1:2380"


def services(plan: Plan, binaries: Path) -> tuple[Service, ...]:
    return (
        Service("etcd", ["etcd", *_flags(_etcd(plan))]),
        Service("kube-apiserver", [f"{binaries}/kube-apiserver", *_flags(_apiserver(plan))]),
        Service(
            "kube-controller-manager",
            [f"{binaries}/kube-controller-manager", *_flags(_controller_manager())],
        ),
        Service("kube-scheduler", [f"{binaries}/kube-scheduler", *_flags(_scheduler())]),
    )


def _etcd(plan: Plan) -> dict[str, str]:
    return {
        "name": plan.control_plane.name,
        "data-dir": "/var/lib/etcd",
        "listen-client-urls": ETCD_CLIENT,
        "advertise-client-urls": ETCD_CLIENT,
        "listen-peer-urls": ETCD_PEER,
        "initial-advertise-peer-urls": ETCD_PEER,
        "initial-cluster": f"{plan.control_plane.name}={ETCD_PEER}",
        "auto-compaction-mode": "periodic",
        "auto-compaction-retention": "10m",
        # A test cluster: losing it in a power cut of the real machine is fine, slow writes are not.
        "unsafe-no-fsync": "true",
    }


def _apiserver(plan: Plan) -> dict[str, str]:
    return {
        "advertise-address": str(plan.control_plane.address),
        "secure-port": "6443",
        "etcd-servers": ETCD_CLIENT,
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "allow-privileged": "true",
        "client-ca-file": f"{IN_NODE}/ca.crt",
        "tls-cert-file": f"{IN_NODE}/apiserver.crt",
        "tls-private-key-file": f"{IN_NODE}/apiserver.key",
        "kubelet-certificate-authority": f"{IN_NODE}/ca.crt",
        "kubelet-client-certificate": f"{IN_NODE}/apiserver-kubelet-client.crt",
        "kubelet-client-key": f"{IN_NODE}/apiserver-kubelet-client.key",
        # A node's name has no address here: only kubectl and the kubelets know it.
        "kubelet-preferred-address-types": "InternalIP",
        "service-account-issuer": f"https://kubernetes.default.svc.{DOMAIN}",
        "service-account-key-file": f"{IN_NODE}/service-account.pub",
        "service-account-signing-key-file": f"{IN_NODE}/service-account.key",
        "service-cluster-ip-range": str(plan.service_range),
    }


def _controller_manager() -> dict[str, str]:
    kubeconfig = f"{IN_NODE}/kube-controller-manager.kubeconfig"
    return {
        "kubeconfig": kubeconfig,
        "authentication-kubeconfig": kubeconfig,
        "authorization-kubeconfig": kubeconfig,
        "bind-address": "127.0.0.1",
        "cluster-signing-cert-file": f"{IN_NODE}/ca.crt",
        "cluster-signing-key-file": f"{IN_NODE}/ca.key",
        "flex-volume-plugin-dir": VOLUME_PLUGINS,
        "leader-elect": "false",
        "root-ca-file": f"{IN_NODE}/ca.crt",
        "service-account-private-key-file": f"{IN_NODE}/service-account.key",
        "use-service-account-credentials": "true",
    }


def _scheduler() -> dict[str, str]:
    kubeconfig = f"{IN_NODE}/kube-scheduler.kubeconfig"
    return {
        "kubeconfig": kubeconfig,
        "authentication-kubeconfig": kubeconfig,
        "authorization-kubeconfig": kubeconfig,
        "bind-address": "127.0.0.1",
        "leader-elect": "false",
    }


def _flags(values: Mapping[str, str]) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]
