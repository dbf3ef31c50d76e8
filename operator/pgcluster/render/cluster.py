"""All objects of a cluster that are applied again and again, in the order of their making."""

from __future__ import annotations

from dataclasses import dataclass

from pgcluster.api import names
from pgcluster.api.models import PgCluster, to_config
from pgcluster.render.deployment import deployment
from pgcluster.render.disruption import budgets
from pgcluster.render.metadata import Manifest, metadata
from pgcluster.render.pgbouncer import pgbouncer_ini
from pgcluster.render.rbac import rbac
from pgcluster.render.services import services
from pgcluster.render.statefulset import statefulset


@dataclass(frozen=True, slots=True)
class Images:
    """The images that a cluster's pods run."""

    postgres: str
    pgbouncer: str


def manifests(
    cluster: PgCluster, *, images: Images, system_identifier: str | None
) -> list[Manifest]:
    """Everything but the Secrets and the Lease, which are made once, and `databases.ini`."""
    made = [
        *rbac(cluster),
        _config(cluster, system_identifier),
        *services(cluster),
        *budgets(cluster),
        statefulset(cluster, image=images.postgres),
    ]
    pools = cluster.spec.pgbouncer
    # The section of databases is written also where nobody pools: poolers may be added later.
    made.append(
        _config_map(
            cluster,
            names.config_map_pgbouncer(cluster.name),
            {names.PGBOUNCER_INI_KEY: pgbouncer_ini(pools.parameters, pool_mode=pools.pool_mode)},
        )
    )
    made.append(_config_map(cluster, names.config_map_poolers(cluster.name), {}))
    if pools.instances > 0:
        made.append(deployment(cluster, image=images.pgbouncer))
    return made


def _config(cluster: PgCluster, system_identifier: str | None) -> Manifest:
    document = to_config(cluster, system_identifier=system_identifier)
    return _config_map(
        cluster,
        names.config_map(cluster.name),
        {names.CONFIG_KEY: document.model_dump_json(indent=2) + "\n"},
    )


def _config_map(cluster: PgCluster, name: str, data: dict[str, str]) -> Manifest:
    made: Manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(cluster, name),
    }
    return made | ({"data": data} if data else {})
