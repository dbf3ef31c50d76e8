"""What every cluster has beside Kubernetes itself: names (CoreDNS) and volumes (local-path)."""

import json
from pathlib import Path

from .commands import run
from .images import BUSYBOX_IMAGE, coredns_image, local_path_image
from .layout import Layout
from .nodeconfig import CONTROL_PLANE, DOMAIN
from .plan import Plan

Manifest = dict[str, object]
VOLUMES_ON_NODE = "/var/lib/local-path-provisioner"
ON_CONTROL_PLANE_TOO = {"key": CONTROL_PLANE, "effect": "NoSchedule"}


def apply(layout: Layout, plan: Plan, kubectl: Path) -> None:
    items = [*dns(plan), *storage()]
    manifest = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    options = ["--server-side", "--force-conflicts", "--field-manager=localkube", "-f", "-"]
    run([kubectl, f"--kubeconfig={layout.kubeconfig}", "apply", *options], stdin=manifest)


def dns(plan: Plan) -> list[Manifest]:
    """kubeadm's CoreDNS, except that it forwards nothing: a name it does not know is NXDOMAIN."""
    namespace, name = "kube-system", "coredns"
    labels = {"k8s-app": "kube-dns"}
    corefile = f"""{DOMAIN}:53 in-addr.arpa:53 ip6.arpa:53 {{
    errors
    health {{
       lameduck 5s
    }}
    ready
    kubernetes {DOMAIN} in-addr.arpa ip6.arpa {{
       pods insecure
       ttl 30
    }}
    prometheus :9153
    cache 30 {{
       disable success {DOMAIN}
       disable denial {DOMAIN}
    }}
    reload
    loadbalance
}}
.:53 {{
    errors
    template ANY ANY {{
       rcode NXDOMAIN
    }}
}}
"""
    container: Manifest = {
        "name": "coredns",
        "image": coredns_image(),
        "imagePullPolicy": "Never",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "resources": {"requests": {"cpu": "20m", "memory": "70Mi"}, "limits": {"memory": "170Mi"}},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/coredns", "readOnly": True}],
        "ports": [
            {"containerPort": 53, "name": "dns", "protocol": "UDP"},
            {"containerPort": 53, "name": "dns-tcp", "protocol": "TCP"},
            {"containerPort": 9153, "name": "metrics", "protocol": "TCP"},
        ],
        "livenessProbe": {
            "httpGet": {"path": "/health", "port": 8080},
            "initialDelaySeconds": 60,
            "timeoutSeconds": 5,
        },
        "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181}, "periodSeconds": 2},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
    }
    pod_spec: Manifest = {
        "serviceAccountName": name,
        "priorityClassName": "system-cluster-critical",
        "dnsPolicy": "Default",
        "tolerations": [ON_CONTROL_PLANE_TOO],
        "affinity": {
            "podAntiAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "weight": 100,
                        "podAffinityTerm": {
                            "labelSelector": {"matchLabels": labels},
                            "topologyKey": "kubernetes.io/hostname",
                        },
                    }
                ]
            }
        },
        "containers": [container],
        "volumes": [{"name": "config", "configMap": {"name": name}}],
    }
    rules: list[Manifest] = [
        _rule("", ["endpoints", "services", "pods", "namespaces"], ["list", "watch"]),
        _rule("discovery.k8s.io", ["endpointslices"], ["list", "watch"]),
    ]
    return [
        *_account(namespace, name, "system:coredns", rules),
        _object("v1", "ConfigMap", name, namespace, data={"Corefile": corefile}),
        _deployment(name, namespace, labels, pod_spec, replicas=2),
        _object(
            "v1",
            "Service",
            "kube-dns",
            namespace,
            spec={
                "selector": labels,
                "clusterIP": str(plan.dns_address),
                "ports": [
                    {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                    {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
                    {"name": "metrics", "port": 9153, "protocol": "TCP", "targetPort": 9153},
                ],
            },
        ),
    ]


def storage() -> list[Manifest]:
    """The provisioner that kind has, with kind's StorageClass: a folder on the pod's node."""
    namespace, name = "local-path-storage", "local-path-provisioner"
    paths = [{"node": "DEFAULT_PATH_FOR_NON_LISTED_NODES", "paths": [VOLUMES_ON_NODE]}]
    helper_pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "helper-pod"},
        "spec": {
            "priorityClassName": "system-node-critical",
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{"operator": "Exists"}],
            "containers": [
                {"name": "helper-pod", "image": BUSYBOX_IMAGE, "imagePullPolicy": "Never"}
            ],
        },
    }
    config = {
        "config.json": json.dumps({"nodePathMap": paths}),
        "helperPod.yaml": json.dumps(helper_pod),
        "setup": '#!/bin/sh\nset -eu\nmkdir -m 0777 -p "$VOL_DIR"\n',
        "teardown": '#!/bin/sh\nset -eu\nrm -rf "$VOL_DIR"\n',
    }
    pod_spec: Manifest = {
        "serviceAccountName": name,
        "priorityClassName": "system-cluster-critical",
        # On the control plane: a test that switches workers off must not take this with it.
        "nodeSelector": {CONTROL_PLANE: ""},
        "tolerations": [ON_CONTROL_PLANE_TOO],
        "containers": [
            {
                "name": name,
                "image": local_path_image(),
                "imagePullPolicy": "Never",
                "args": [
                    "start",
                    "--config=/etc/config/config.json",
                    f"--configmap-name={name}",
                    f"--service-account-name={name}",
                ],
                "env": [
                    {
                        "name": "POD_NAMESPACE",
                        "valueFrom": {"fieldRef": {"fieldPath": "metadata.namespace"}},
                    },
                    {"name": "CONFIG_MOUNT_PATH", "value": "/etc/config/"},
                ],
                "volumeMounts": [{"name": "config", "mountPath": "/etc/config/"}],
            }
        ],
        "volumes": [{"name": "config", "configMap": {"name": name}}],
    }
    read, write = ["get", "list", "watch"], ["create", "patch", "update", "delete"]
    claims = ["nodes", "persistentvolumeclaims", "configmaps", "pods", "pods/log"]
    rules = [
        _rule("", claims, read),
        _rule("", ["persistentvolumes"], read + write),
        _rule("", ["pods"], write),
        _rule("", ["events"], ["create", "patch"]),
        _rule("storage.k8s.io", ["storageclasses"], read),
    ]
    return [
        _object("v1", "Namespace", namespace),
        *_account(namespace, name, name, rules),
        _object("v1", "ConfigMap", name, namespace, data=config),
        _deployment(name, namespace, {"app": name}, pod_spec, replicas=1),
        {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": "standard",
                "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
            },
            "provisioner": "rancher.io/local-path",
            "volumeBindingMode": "WaitForFirstConsumer",
            "reclaimPolicy": "Delete",
        },
    ]


def _object(
    api: str, kind: str, name: str, namespace: str | None = None, **fields: object
) -> Manifest:
    metadata = {"name": name} if namespace is None else {"name": name, "namespace": namespace}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **fields}


def _rule(group: str, resources: list[str], verbs: list[str]) -> Manifest:
    return {"apiGroups": [group], "resources": resources, "verbs": verbs}


def _account(namespace: str, name: str, role: str, rules: list[Manifest]) -> list[Manifest]:
    api = "rbac.authorization.k8s.io"
    return [
        _object("v1", "ServiceAccount", name, namespace),
        _object(f"{api}/v1", "ClusterRole", role, rules=rules),
        _object(
            f"{api}/v1",
            "ClusterRoleBinding",
            role,
            roleRef={"apiGroup": api, "kind": "ClusterRole", "name": role},
            subjects=[{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
        ),
    ]


def _deployment(
    name: str, namespace: str, labels: dict[str, str], pod_spec: Manifest, replicas: int
) -> Manifest:
    template = {"metadata": {"labels": labels}, "spec": pod_spec}
    spec = {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template}
    return _object("apps/v1", "Deployment", name, namespace, spec=spec)
