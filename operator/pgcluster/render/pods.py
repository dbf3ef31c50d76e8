"""What the pods of instances and poolers have in common."""

from __future__ import annotations

from typing import Any

from pgcluster.api import names
from pgcluster.api.models import PgCluster
from pgcluster.render.metadata import Manifest, selector

_SERVICE_ACCOUNT_DIR = "/var/run/secrets/kubernetes.io/serviceaccount"

# The restricted pod security standard.
CONTAINER_SECURITY: Manifest = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


def pod_security(uid: int) -> Manifest:
    """Security context of a pod that runs as `uid`."""
    return {
        "fsGroup": uid,
        # A large volume would otherwise be walked through at each start.
        "fsGroupChangePolicy": "OnRootMismatch",
        "runAsGroup": uid,
        "runAsNonRoot": True,
        "runAsUser": uid,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def environment(cluster: PgCluster) -> list[Manifest]:
    """What an agent needs to know of its place."""

    def field(name: str, path: str) -> Manifest:
        return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}

    return [
        {"name": "PGCLUSTER_NAME", "value": cluster.name},
        field("PGCLUSTER_NAMESPACE", "metadata.namespace"),
        field("POD_NAME", "metadata.name"),
        field("POD_IP", "status.podIP"),
        field("NODE_NAME", "spec.nodeName"),
    ]


def probe(path: str, *, port: int, period_s: int, timeout_s: int, failures: int) -> Manifest:
    """An HTTP probe."""
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": period_s,
        "timeoutSeconds": timeout_s,
        "failureThreshold": failures,
    }


def scheduling(cluster: PgCluster, component: str) -> Manifest:
    """Where the pods may run: preferably not two of a kind on one node.

    Affinity and spread are of the instances: rules that keep those apart would keep the poolers
    from the same nodes.
    """
    wanted = cluster.spec.scheduling
    term = {
        "labelSelector": {"matchLabels": selector(cluster, component)},
        "topologyKey": "kubernetes.io/hostname",
    }
    spread: dict[str, Any] = {
        "podAntiAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 100, "podAffinityTerm": term}
            ]
        }
    }
    of_instances = component == names.COMPONENT_POSTGRES
    affinity = (wanted.affinity or {}) if of_instances else {}
    made: Manifest = {"affinity": {**spread, **affinity}}
    if wanted.tolerations:
        made["tolerations"] = [dict(item) for item in wanted.tolerations]
    if wanted.topology_spread_constraints and of_instances:
        made["topologySpreadConstraints"] = [
            # Without a selector of its own a constraint would count no pod at all.
            {"labelSelector": term["labelSelector"], **item}
            for item in wanted.topology_spread_constraints
        ]
    if wanted.node_selector:
        made["nodeSelector"] = dict(wanted.node_selector)
    if wanted.priority_class_name:
        made["priorityClassName"] = wanted.priority_class_name
    return made


def pull_secrets(cluster: PgCluster) -> Manifest:
    """With what the images may be pulled."""
    found = [{"name": each.name} for each in cluster.spec.image_pull_secrets]
    return {"imagePullSecrets": found} if found else {}


def token_volume() -> Manifest:
    """The ServiceAccount's token, for the one container that talks to the API."""
    return {
        "name": "api-access",
        "projected": {
            "defaultMode": 0o440,
            "sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 3607}},
                {
                    "configMap": {
                        "name": "kube-root-ca.crt",
                        "items": [{"key": "ca.crt", "path": "ca.crt"}],
                    }
                },
                {
                    "downwardAPI": {
                        "items": [
                            {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}
                        ]
                    }
                },
            ],
        },
    }


def token_mount() -> Manifest:
    """Where clients look for the token."""
    return {"name": "api-access", "mountPath": _SERVICE_ACCOUNT_DIR, "readOnly": True}


def secret_volume(name: str, secret: str) -> Manifest:
    """A Secret that only the pod's user can read."""
    return {"name": name, "secret": {"secretName": secret, "defaultMode": 0o440}}


def secret_mount(name: str) -> Manifest:
    """Where the agents read the Secret of volume `name`."""
    return {"name": name, "mountPath": f"{names.SECRETS_DIR}/{name}", "readOnly": True}


def memory_volume(name: str, size: str | None = None) -> Manifest:
    """A file system in memory."""
    made: Manifest = {"medium": "Memory"}
    return {"name": name, "emptyDir": made | ({"sizeLimit": size} if size else {})}
