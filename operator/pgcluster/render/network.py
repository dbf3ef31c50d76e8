"""The NetworkPolicies of a cluster, where the spec asks for them. Pure.

Not by default: policies add up, so one that lets everybody reach the pools would widen what
somebody has closed for the whole namespace. The kubelet's probes always pass, and the operator
connects to no pod: the agents report through the API.
Source: Kubernetes, "Network Policies".
"""

from __future__ import annotations

from collections.abc import Iterable

from pgcluster.api import names
from pgcluster.api.models import NetworkPeer, PgCluster
from pgcluster.render.metadata import Manifest, metadata, selector

_DNS = 53
# The API server's Service has 443, its own machines mostly 6443; a policy sees either, by where the
# network enforces it.
_API_SERVER = (443, 6443)


def network_policies(cluster: PgCluster) -> list[Manifest]:
    """One for the instances, and one for the poolers where there are."""
    if not cluster.spec.network_policy.enabled:
        return []
    made = [
        _policy(
            cluster,
            cluster.name,
            names.COMPONENT_POSTGRES,
            ingress=_into_instances(cluster),
            egress=[
                _to(_own(cluster, names.COMPONENT_POSTGRES), names.PORT_POSTGRES, names.PORT_PEER),
                *_always(),
                *(dict(rule) for rule in cluster.spec.network_policy.egress),
            ],
        )
    ]
    if cluster.spec.pgbouncer.instances > 0:
        made.append(
            _policy(
                cluster,
                names.pgbouncer(cluster.name),
                names.COMPONENT_PGBOUNCER,
                ingress=[
                    _from(_pool_clients(cluster), names.PORT_PGBOUNCER),
                    *_metrics(cluster),
                ],
                egress=[
                    _to(_own(cluster, names.COMPONENT_POSTGRES), names.PORT_POSTGRES),
                    *_always(),
                ],
            )
        )
    return made


def _into_instances(cluster: PgCluster) -> list[Manifest]:
    wanted = cluster.spec.network_policy
    own = [
        _own(cluster, names.COMPONENT_POSTGRES),
        _own(cluster, names.COMPONENT_PGBOUNCER),
        *(_peer(peer) for peer in wanted.direct_clients),
    ]
    rules = [_from(own, names.PORT_POSTGRES)]
    if cluster.spec.pgbouncer.instances == 0:
        # Service <cluster>, which applications know, leads to the primary then.
        rules.append(_from(_pool_clients(cluster), names.PORT_POSTGRES))
    # repmgr's commands and what the agents ask one another: of the instances alone.
    rules.append(_from([_own(cluster, names.COMPONENT_POSTGRES)], names.PORT_PEER))
    return [*rules, *_metrics(cluster)]


def _pool_clients(cluster: PgCluster) -> list[Manifest]:
    """Peers; none means everybody."""
    return [_peer(peer) for peer in cluster.spec.network_policy.pool_clients]


def _metrics(cluster: PgCluster) -> list[Manifest]:
    # An empty list of peers would be everybody: without a reader there is no rule at all.
    readers = [_peer(peer) for peer in cluster.spec.network_policy.metrics_clients]
    return [_from(readers, names.PORT_AGENT)] if readers else []


def _always() -> list[Manifest]:
    """Where every pod has to get, whoever has which address."""
    dns: Manifest = {"ports": [_port(_DNS, "UDP"), _port(_DNS)]}
    return [dns, {"ports": [_port(port) for port in _API_SERVER]}]


def _own(cluster: PgCluster, component: str) -> Manifest:
    return {"podSelector": {"matchLabels": selector(cluster, component)}}


def _peer(peer: NetworkPeer) -> Manifest:
    made: Manifest = {}
    if peer.namespace_selector is not None:
        made["namespaceSelector"] = dict(peer.namespace_selector)
    if peer.pod_selector is not None:
        made["podSelector"] = dict(peer.pod_selector)
    if peer.ip_block is not None:
        made["ipBlock"] = {"cidr": peer.ip_block.cidr}
        if peer.ip_block.except_:
            made["ipBlock"]["except"] = list(peer.ip_block.except_)
    return made


def _from(peers: Iterable[Manifest], port: int) -> Manifest:
    """Peers to one port; without peers, from everywhere."""
    rule: Manifest = {"ports": [_port(port)]}
    return rule | ({"from": known} if (known := list(peers)) else {})


def _to(peer: Manifest, *ports: int) -> Manifest:
    return {"to": [peer], "ports": [_port(port) for port in ports]}


def _port(port: int, protocol: str = "TCP") -> Manifest:
    return {"port": port, "protocol": protocol}


def _policy(
    cluster: PgCluster,
    name: str,
    component: str,
    *,
    ingress: list[Manifest],
    egress: list[Manifest],
) -> Manifest:
    restricted = cluster.spec.network_policy.restrict_egress
    spec: Manifest = {
        "podSelector": {"matchLabels": selector(cluster, component)},
        "policyTypes": ["Ingress", "Egress"] if restricted else ["Ingress"],
        "ingress": ingress,
    }
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(cluster, name, component),
        "spec": spec | ({"egress": egress} if restricted else {}),
    }
