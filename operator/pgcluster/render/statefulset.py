"""The StatefulSet of the instances."""

from __future__ import annotations

import hashlib
import json

from pgcluster.api import names
from pgcluster.api.models import PgCluster
from pgcluster.render import pods
from pgcluster.render.metadata import Manifest, metadata, selector, template_metadata

# Time for a checkpoint, a fast shutdown, and until a successor is primary.
_GRACE_S = 120


def statefulset(cluster: PgCluster, *, image: str) -> Manifest:
    """All instances start at once, and only the operator replaces a pod.

    The start table decides who is primary, so no order is needed; a rolling update by ordinal
    would take the primary in the middle.
    """
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": metadata(cluster, names.statefulset(cluster.name), names.COMPONENT_POSTGRES),
        "spec": {
            "persistentVolumeClaimRetentionPolicy": {
                "whenDeleted": "Retain",
                "whenScaled": "Retain",
            },
            "podManagementPolicy": "Parallel",
            "replicas": cluster.spec.instances,
            "revisionHistoryLimit": 3,
            "selector": {"matchLabels": selector(cluster, names.COMPONENT_POSTGRES)},
            "serviceName": names.service_nodes(cluster.name),
            "template": {
                "metadata": _template_metadata(cluster, image),
                "spec": _pod(cluster, image),
            },
            "updateStrategy": {"type": "OnDelete"},
            "volumeClaimTemplates": _claims(cluster),
        },
    }


def _template_metadata(cluster: PgCluster, image: str) -> Manifest:
    restart = {names.ANNOTATION_RESTART: cluster.restart} if cluster.restart else {}
    own = {names.ANNOTATION_INPUTS: inputs(cluster, image), **restart}
    return template_metadata(cluster, names.COMPONENT_POSTGRES, own)


def inputs(cluster: PgCluster, image: str) -> str:
    """Hash of what the user, and nobody else, has decided of the pods.

    A template changes by an upgrade of the operator too, and that must not restart anybody: pods
    are replaced where this differs (controller/rollout.py). So nothing may be in it that the
    operator adds by itself, such as a default.
    """
    spec = cluster.spec
    inherited = spec.inherited_metadata
    said = {
        "annotations": inherited.annotations,
        "image": image,
        "labels": inherited.labels,
        "resources": spec.postgres.resources or {},
        "restart": cluster.restart,
        "scheduling": spec.scheduling.model_dump(mode="json", exclude_defaults=True),
        "walVolume": spec.storage.wal_size is not None,
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


def _pod(cluster: PgCluster, image: str) -> Manifest:
    return {
        "automountServiceAccountToken": False,
        "containers": [_container(cluster, image)],
        # A namespace with many Services would put hundreds of variables into each process.
        "enableServiceLinks": False,
        "securityContext": pods.pod_security(names.UID_POSTGRES),
        "serviceAccountName": names.service_account_postgres(cluster.name),
        "terminationGracePeriodSeconds": _GRACE_S,
        "volumes": [
            pods.memory_volume("run", "64Mi"),
            # Parallel queries keep their memory there; the runtime's own is 64 MiB.
            pods.memory_volume("shm"),
            {"name": "tmp", "emptyDir": {}},
            {"name": "config", "configMap": {"name": names.config_map(cluster.name)}},
            pods.secret_volume("repmgr", names.secret_repmgr(cluster.name)),
            pods.secret_volume("pooler", names.secret_pooler(cluster.name)),
            pods.secret_volume("peers", names.secret_peers(cluster.name)),
            pods.secret_volume("server", names.secret_server(cluster.name)),
            pods.secret_volume("client", names.secret_replication(cluster.name)),
            pods.token_volume(),
        ],
        **pods.scheduling(cluster, names.COMPONENT_POSTGRES),
        **pods.pull_secrets(cluster),
    }


def _container(cluster: PgCluster, image: str) -> Manifest:
    mounts: list[Manifest] = [
        {"name": "data", "mountPath": names.VOLUME},
        {"name": "run", "mountPath": names.RUN},
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 # a volume of this pod
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 # a volume of this pod
        {"name": "config", "mountPath": names.CONFIG_DIR, "readOnly": True},
        pods.secret_mount("repmgr"),
        pods.secret_mount("pooler"),
        pods.secret_mount("peers"),
        pods.secret_mount("server"),
        pods.secret_mount("client"),
        pods.token_mount(),
    ]
    if cluster.spec.storage.wal_size is not None:
        mounts.append({"name": "wal", "mountPath": names.WAL_VOLUME})
    made: Manifest = {
        "name": "postgres",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "env": [
            *pods.environment(cluster),
            # So that postgres, repmgr and a person's shell find the other instances without DNS,
            # their passwords, and the socket; and are known there, as what a person types is too.
            {"name": "LD_PRELOAD", "value": "libnss_wrapper.so"},
            {"name": "NSS_WRAPPER_HOSTS", "value": names.HOSTS_FILE},
            {"name": "PGHOST", "value": names.PG_SOCKET_DIR},
            {"name": "PGPASSFILE", "value": names.PASSFILE},
            *({"name": name, "value": names.CLIENT_PEM} for name in names.ENV_CLIENT_CERTIFICATE),
        ],
        "ports": [
            {"name": "postgres", "containerPort": names.PORT_POSTGRES},
            {"name": "agent", "containerPort": names.PORT_AGENT},
            {"name": "peers", "containerPort": names.PORT_PEER},
        ],
        # Only that the agent's loop turns: a database that recovers or clones for hours is alive.
        "livenessProbe": pods.probe(
            "/livez", port=names.PORT_AGENT, period_s=10, timeout_s=5, failures=6
        ),
        # In its role: a primary that holds the Lease, or a standby that streams within its lag.
        "readinessProbe": pods.probe(
            "/readyz", port=names.PORT_AGENT, period_s=2, timeout_s=2, failures=2
        ),
        "securityContext": pods.CONTAINER_SECURITY,
        "volumeMounts": mounts,
    }
    if cluster.spec.postgres.resources:
        made["resources"] = cluster.spec.postgres.resources
    return made


def _claims(cluster: PgCluster) -> list[Manifest]:
    storage = cluster.spec.storage
    sizes = {"data": storage.size} | ({"wal": storage.wal_size} if storage.wal_size else {})
    claims = []
    for name, size in sizes.items():
        spec: Manifest = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": size}},
        }
        if storage.class_name is not None:
            spec["storageClassName"] = storage.class_name
        # No owner: data outlives the cluster until somebody deletes the claim.
        claims.append(
            {
                "metadata": {
                    "name": name,
                    "labels": selector(cluster, names.COMPONENT_POSTGRES),
                },
                "spec": spec,
            }
        )
    return claims
