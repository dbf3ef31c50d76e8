"""The Deployment of the poolers."""

from __future__ import annotations

import math

from pgcluster.api import names
from pgcluster.api.models import PgCluster
from pgcluster.api.quantities import parse_seconds
from pgcluster.render import pods
from pgcluster.render.metadata import Manifest, metadata, selector, template_metadata
from pgcluster.render.pgbouncer import restart_settings

# After its clients' time, for transactions that still run and clients that wait for a primary.
_CLOSE_S = 30
# A new pooler takes clients before an old one is told to leave.
_MIN_READY_S = 3
# Whose log `kubectl logs` shows.
_DEFAULT_CONTAINER = "kubectl.kubernetes.io/default-container"
# The agent's share of the pod; requirement and limit of pgbouncer itself are the user's.
_AGENT_RESOURCES: Manifest = {
    "requests": {"cpu": "10m", "memory": "64Mi"},
    "limits": {"memory": "256Mi"},
}


def deployment(cluster: PgCluster, *, image: str) -> Manifest:
    """pgbouncer, and beside it as a native sidecar the agent that starts before and ends after."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(cluster, names.pgbouncer(cluster.name), names.COMPONENT_PGBOUNCER),
        "spec": {
            "minReadySeconds": _MIN_READY_S,
            "replicas": cluster.spec.pgbouncer.instances,
            "revisionHistoryLimit": 3,
            "selector": {"matchLabels": selector(cluster, names.COMPONENT_PGBOUNCER)},
            "strategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "template": {
                "metadata": _template_metadata(cluster),
                "spec": {
                    "automountServiceAccountToken": False,
                    "initContainers": [_agent(cluster, image)],
                    "containers": [_pgbouncer(cluster, image)],
                    "enableServiceLinks": False,
                    "securityContext": pods.pod_security(names.UID_PGBOUNCER),
                    "serviceAccountName": names.pgbouncer(cluster.name),
                    "terminationGracePeriodSeconds": math.ceil(_drain_s(cluster)) + _CLOSE_S,
                    "volumes": [
                        pods.memory_volume("run", "16Mi"),
                        pods.secret_volume("pooler", names.secret_pooler(cluster.name)),
                        pods.secret_volume("tls", names.secret_pool_tls(cluster.name)),
                        pods.token_volume(),
                    ],
                    **pods.scheduling(cluster, names.COMPONENT_PGBOUNCER),
                    **pods.pull_secrets(cluster),
                },
            },
        },
    }


def _template_metadata(cluster: PgCluster) -> Manifest:
    """With the label by which a Service finds a pod: one that starts while the operator is away
    serves too. It is not in the Deployment's own selector, so that a pod may lose it.

    The only settings in it are those that take a new process: the others are taken by the running.
    """
    own = {_DEFAULT_CONTAINER: "pgbouncer"}
    if at_start := restart_settings(cluster.spec.pgbouncer.parameters):
        own[names.ANNOTATION_RESTART_SETTINGS] = at_start
    made = template_metadata(cluster, names.COMPONENT_PGBOUNCER, own)
    return {**made, "labels": {**made["labels"], names.LABEL_SERVING: names.SERVING}}


def _drain_s(cluster: PgCluster) -> float:
    return parse_seconds(cluster.spec.pgbouncer.drain_timeout)


def _agent(cluster: PgCluster, image: str) -> Manifest:
    return {
        "name": "agent",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["pgcluster-pooler"],
        "restartPolicy": "Always",
        "env": [
            *pods.environment(cluster),
            {"name": "PGCLUSTER_DRAIN_S", "value": f"{_drain_s(cluster):g}"},
        ],
        "ports": [{"name": "agent", "containerPort": names.PORT_AGENT}],
        # pgbouncer must not start before its files are there.
        "startupProbe": pods.probe(
            "/livez", port=names.PORT_AGENT, period_s=1, timeout_s=2, failures=300
        ),
        "livenessProbe": pods.probe(
            "/livez", port=names.PORT_AGENT, period_s=10, timeout_s=5, failures=6
        ),
        # The current primary's databases section is applied: a Service sends clients only there.
        "readinessProbe": pods.probe(
            "/readyz", port=names.PORT_AGENT, period_s=2, timeout_s=2, failures=2
        ),
        "resources": _AGENT_RESOURCES,
        "securityContext": pods.CONTAINER_SECURITY,
        "volumeMounts": [
            {"name": "run", "mountPath": names.PGBOUNCER_DIR},
            pods.secret_mount("pooler"),
            pods.secret_mount("tls"),
            pods.token_mount(),
        ],
    }


def _pgbouncer(cluster: PgCluster, image: str) -> Manifest:
    # The listener only: a dead primary must never restart a pooler.
    listener = {"tcpSocket": {"port": names.PORT_PGBOUNCER}}
    made: Manifest = {
        "name": "pgbouncer",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["pgbouncer", names.PGBOUNCER_INI],
        "ports": [{"name": "pgbouncer", "containerPort": names.PORT_PGBOUNCER}],
        "livenessProbe": {
            **listener,
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
        },
        "readinessProbe": {**listener, "periodSeconds": 2, "timeoutSeconds": 2},
        # Blocks as long as the agent lets the clients go on.
        "lifecycle": {"preStop": {"exec": {"command": ["cat", names.PGBOUNCER_DOOR]}}},
        "securityContext": pods.CONTAINER_SECURITY,
        "volumeMounts": [{"name": "run", "mountPath": names.PGBOUNCER_DIR}],
    }
    if cluster.spec.pgbouncer.resources:
        made["resources"] = cluster.spec.pgbouncer.resources
    return made
