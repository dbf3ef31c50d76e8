"""The ConfigMaps of a cluster: what the agents read, and where they write. Pure."""

from __future__ import annotations

from pgcluster.api import names
from pgcluster.api.config import NO_ORDERS, Orders
from pgcluster.api.models import PgCluster, to_config
from pgcluster.render.metadata import Manifest, metadata
from pgcluster.render.pgbouncer import pgbouncer_ini


def config_maps(
    cluster: PgCluster, *, system_identifier: str | None, orders: Orders = NO_ORDERS
) -> list[Manifest]:
    """The three ConfigMaps, also where nobody pools: poolers may be added later.

    Only the keys that are the operator's own: `databases.ini` belongs to whoever holds the Lease,
    and the reports to the poolers. Applying without a key leaves it as it is.
    """
    pools = cluster.spec.pgbouncer
    document = to_config(cluster, system_identifier=system_identifier, orders=orders)
    ini = pgbouncer_ini(pools.parameters, pool_mode=pools.pool_mode)
    encrypted = pgbouncer_ini(pools.parameters, pool_mode=pools.pool_mode, tls=document.tls)
    return [
        _config_map(
            cluster,
            names.config_map(cluster.name),
            names.COMPONENT_POSTGRES,
            {names.CONFIG_KEY: document.model_dump_json(indent=2) + "\n"},
        ),
        _config_map(
            cluster,
            names.config_map_pgbouncer(cluster.name),
            names.COMPONENT_PGBOUNCER,
            {names.PGBOUNCER_INI_KEY: ini, names.PGBOUNCER_TLS_INI_KEY: encrypted},
        ),
        _config_map(cluster, names.config_map_poolers(cluster.name), names.COMPONENT_PGBOUNCER, {}),
    ]


def _config_map(cluster: PgCluster, name: str, component: str, data: dict[str, str]) -> Manifest:
    made: Manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(cluster, name, component),
    }
    return made | ({"data": data} if data else {})
