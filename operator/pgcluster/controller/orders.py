"""What the agents were last told beside the spec, as it stands in the cluster's ConfigMap. Pure."""

from __future__ import annotations

from pgcluster.api import names
from pgcluster.api.config import NO_ORDERS, ClusterConfig, Orders
from pgcluster.controller.observe import Observed
from pgcluster.kube.resources import CONFIG_MAPS


def told(observed: Observed) -> Orders:
    """The present orders; none where there are none, or nobody can read them."""
    live = observed.child(CONFIG_MAPS, names.config_map(observed.key.name))
    text = ((live or {}).get("data") or {}).get(names.CONFIG_KEY)
    if not text:
        return NO_ORDERS
    try:
        config = ClusterConfig.model_validate_json(text)
    except ValueError:
        return NO_ORDERS
    return Orders(config.remaining, config.maintenance, config.hibernation)
