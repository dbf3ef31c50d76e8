"""How much of a cluster a drain may take away at once. Pure."""

from __future__ import annotations

from pgcluster.api import names
from pgcluster.api.models import PgCluster
from pgcluster.render.metadata import Manifest, metadata, selector


def budgets(cluster: PgCluster) -> list[Manifest]:
    """PodDisruptionBudgets; none for a lone pod, whose node could then never be drained."""
    poolers = cluster.spec.pgbouncer.instances
    components = (
        (cluster.name, names.COMPONENT_POSTGRES, cluster.spec.instances),
        (names.pgbouncer(cluster.name), names.COMPONENT_PGBOUNCER, poolers),
    )
    return [
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": metadata(cluster, name, component),
            "spec": {
                "maxUnavailable": 1,
                "selector": {"matchLabels": selector(cluster, component)},
            },
        }
        for name, component, pods in components
        if pods > 1
    ]
