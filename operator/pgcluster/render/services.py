"""The Services of a cluster. Pure."""

from __future__ import annotations

from typing import Any

from pgcluster.api import names
from pgcluster.api.models import PgCluster
from pgcluster.render.metadata import Manifest, metadata, selector


def has_read_only_pool(cluster: PgCluster) -> bool:
    """Whether there is a pool of the standbys."""
    return cluster.spec.pgbouncer.read_only_pool and cluster.spec.pgbouncer.instances > 0


def services(cluster: PgCluster) -> list[Manifest]:
    """The pool, its read-only twin, the primary itself, and the stable names of the instances."""
    name = cluster.name
    instances = selector(cluster, names.COMPONENT_POSTGRES)
    primary = {**instances, names.LABEL_ROLE: names.ROLE_PRIMARY}
    poolers = selector(cluster, names.COMPONENT_PGBOUNCER)
    serving = {**poolers, names.LABEL_SERVING: names.SERVING}
    # Without poolers the address that applications know leads to the primary.
    pool = serving if cluster.spec.pgbouncer.instances > 0 else primary
    made = [_service(cluster, names.service_pool(name), names.COMPONENT_PGBOUNCER, selector=pool)]
    if has_read_only_pool(cluster):
        made.append(
            _service(
                cluster,
                names.service_read_only(name),
                names.COMPONENT_PGBOUNCER,
                selector=serving,
            )
        )
    return [
        *made,
        _service(cluster, names.service_primary(name), names.COMPONENT_POSTGRES, selector=primary),
        _service(
            cluster,
            names.service_nodes(name),
            names.COMPONENT_POSTGRES,
            selector=instances,
            clusterIP="None",
            # Instances find each other before they are ready: one is not until it follows another.
            publishNotReadyAddresses=True,
        ),
    ]


def _service(cluster: PgCluster, name: str, component: str, **spec: Any) -> Manifest:
    # The protocol is part of the key by which server-side apply tells ports apart.
    port = {
        "name": "postgres",
        "port": names.PORT_POSTGRES,
        "targetPort": names.PORT_POSTGRES,
        "protocol": "TCP",
    }
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(cluster, name, component),
        "spec": {"type": "ClusterIP", "ports": [port], **spec},
    }
