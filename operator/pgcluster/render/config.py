"""The ConfigMaps of a cluster: what the agents read, and where they write. Pure."""

from __future__ import annotations

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig
from pgcluster.api.models import PgCluster
from pgcluster.render.metadata import Manifest, manifest
from pgcluster.render.pgbouncer import pgbouncer_ini


def config_maps(cluster: PgCluster, config: ClusterConfig) -> list[Manifest]:
    """The three ConfigMaps.

    Only the keys that are the operator's own: `databases.ini` belongs to whoever holds the Lease,
    and the poolers' reports to the poolers. Applying without a key leaves it as it is.
    """
    pgbouncer = cluster.spec.pgbouncer
    return [
        _config_map(
            cluster,
            names.config_map(cluster.name),
            names.COMPONENT_POSTGRES,
            {names.CONFIG_KEY: config.model_dump_json()},
        ),
        _config_map(
            cluster,
            names.config_map_pgbouncer(cluster.name),
            names.COMPONENT_PGBOUNCER,
            {
                names.PGBOUNCER_INI_KEY: pgbouncer_ini(
                    pgbouncer.parameters, pool_mode=pgbouncer.pool_mode
                )
            },
        ),
        _config_map(
            cluster, names.config_map_poolers(cluster.name), names.COMPONENT_PGBOUNCER, None
        ),
    ]


def _config_map(
    cluster: PgCluster, name: str, component: str, data: dict[str, str] | None
) -> Manifest:
    rest = {} if data is None else {"data": data}
    return manifest(
        cluster, api_version="v1", kind="ConfigMap", name=name, component=component, **rest
    )
