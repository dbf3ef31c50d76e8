"""The Services of a cluster. Pure."""

from __future__ import annotations

from typing import Any

from pgcluster.api import names
from pgcluster.api.models import PgCluster
from pgcluster.render.metadata import Manifest, manifest, selector

PORT_NAME_AGENT = "agent"


def has_read_only_pool(cluster: PgCluster) -> bool:
    """Whether there is a pool of the standbys."""
    return cluster.spec.pgbouncer.read_only_pool and cluster.spec.pgbouncer.instances > 0


def services(cluster: PgCluster) -> list[Manifest]:
    """The pool, its read-only twin, the primary itself, and the stable names of the instances."""
    name = cluster.name
    instances = selector(name, names.COMPONENT_POSTGRES)
    primary = {**instances, names.LABEL_ROLE: names.ROLE_PRIMARY}
    poolers = selector(name, names.COMPONENT_PGBOUNCER)
    # Without poolers the address that applications know leads to the primary.
    pooled = cluster.spec.pgbouncer.instances > 0
    found = [
        _service(
            cluster,
            names.service_pool(name),
            names.COMPONENT_PGBOUNCER,
            [_port("postgres", names.PORT_PGBOUNCER if pooled else names.PORT_POSTGRES)],
            selector=poolers if pooled else primary,
        )
    ]
    if has_read_only_pool(cluster):
        found.append(
            _service(
                cluster,
                names.service_read_only(name),
                names.COMPONENT_PGBOUNCER,
                [_port("postgres", names.PORT_PGBOUNCER)],
                selector=poolers,
            )
        )
    return [
        *found,
        _service(
            cluster,
            names.service_primary(name),
            names.COMPONENT_POSTGRES,
            [_port("postgres", names.PORT_POSTGRES)],
            selector=primary,
        ),
        _service(
            cluster,
            names.service_nodes(name),
            names.COMPONENT_POSTGRES,
            [_port("postgres", names.PORT_POSTGRES), _port(PORT_NAME_AGENT, names.PORT_AGENT)],
            selector=instances,
            clusterIP="None",
            # Instances find each other before they are ready: one is not until it follows another.
            publishNotReadyAddresses=True,
        ),
    ]


def _service(
    cluster: PgCluster, name: str, component: str, ports: list[Manifest], **spec: Any
) -> Manifest:
    return manifest(
        cluster,
        api_version="v1",
        kind="Service",
        name=name,
        component=component,
        spec={"type": "ClusterIP", "ports": ports, **spec},
    )


def _port(name: str, number: int) -> Manifest:
    # The protocol is part of the key by which server-side apply tells ports apart.
    return {"name": name, "port": number, "targetPort": number, "protocol": "TCP"}
