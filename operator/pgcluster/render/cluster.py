"""All objects of a cluster that are applied again and again, in the order of their making."""

from __future__ import annotations

from dataclasses import dataclass

from pgcluster.api.config import NO_ORDERS, Orders
from pgcluster.api.models import PgCluster
from pgcluster.render.config import config_maps
from pgcluster.render.deployment import deployment
from pgcluster.render.disruption import budgets
from pgcluster.render.metadata import Manifest
from pgcluster.render.network import network_policies
from pgcluster.render.rbac import rbac
from pgcluster.render.services import services
from pgcluster.render.statefulset import statefulset


@dataclass(frozen=True, slots=True)
class Images:
    """The images that a cluster's pods run."""

    postgres: str
    pgbouncer: str


def manifests(
    cluster: PgCluster,
    *,
    images: Images,
    system_identifier: str | None,
    orders: Orders = NO_ORDERS,
) -> list[Manifest]:
    """Everything but the Secrets and the Lease, which are made once, and `databases.ini`.

    `orders` are what the agents are told beside the spec.
    """
    made = [
        *rbac(cluster),
        *config_maps(cluster, system_identifier=system_identifier, orders=orders),
        *services(cluster),
        *budgets(cluster),
        # Before the pods that they protect.
        *network_policies(cluster),
        statefulset(cluster, image=images.postgres),
    ]
    if cluster.spec.pgbouncer.instances > 0:
        made.append(deployment(cluster, image=images.pgbouncer))
    return made
