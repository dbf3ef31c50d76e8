"""How much of a cluster a drain may take away at once. Pure."""

from __future__ import annotations

from pgcluster.api import names
from pgcluster.api.models import PgCluster
from pgcluster.render.metadata import Manifest, manifest, selector


def budgets(cluster: PgCluster) -> list[Manifest]:
    """PodDisruptionBudgets; none for a lone pod, whose node could then never be drained."""
    components = (
        (cluster.name, names.COMPONENT_POSTGRES, cluster.spec.instances),
        (names.pgbouncer(cluster.name), names.COMPONENT_PGBOUNCER, cluster.spec.pgbouncer.instances),
    )
    return [
        manifest(
            cluster,
            api_version="policy/v1",
            kind="PodDisruptionBudget",
            name=name,
            component=component,
            spec={
                "maxUnavailable": 1,
                "selector": {"matchLabels": selector(cluster.name, component)},
            },
        )
        for name, component, pods in components
        if pods > 1
    ]
