"""What the agents were last told beside the spec, as it stands in the cluster's ConfigMap. Pure."""

from __future__ import annotations

from pgcluster.api import names
from pgcluster.api.config import NO_ORDERS, ClusterConfig, Orders, SwitchoverConfig
from pgcluster.controller.observe import Observed
from pgcluster.kube.resources import CONFIG_MAPS


def told(observed: Observed) -> Orders:
    """The orders that stay until they are taken back; none where nobody can read them."""
    config = _config(observed)
    if config is None:
        return NO_ORDERS
    return Orders(config.remaining, config.maintenance, config.hibernation)


def switchover(observed: Observed) -> SwitchoverConfig | None:
    """The switchover that the agents were last told of, done or not."""
    config = _config(observed)
    return None if config is None else config.switchover


def _config(observed: Observed) -> ClusterConfig | None:
    live = observed.child(CONFIG_MAPS, names.config_map(observed.key.name))
    text = ((live or {}).get("data") or {}).get(names.CONFIG_KEY)
    if not text:
        return None
    try:
        return ClusterConfig.model_validate_json(text)
    except ValueError:
        return None
