"""Who reaches whom under the rendered NetworkPolicies.

No network enforces them here: the rules of Kubernetes ("Network Policies") are written down once in
`allows`, and the rendered policies are held against them. What the rules say, and no more, is what
is proven.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from pgcluster.api import names
from pgcluster.api.models import PgCluster
from pgcluster.api.validation import check
from pgcluster.render.metadata import Manifest
from pgcluster.render.network import network_policies

NAMESPACES: Mapping[str, Mapping[str, str]] = {
    "prod": {"name": "prod"},
    "web": {"name": "web", "team": "shop"},
    "monitoring": {"name": "monitoring"},
    "kube-system": {"name": "kube-system"},
}


@dataclass(frozen=True)
class End:
    """One end of a connection: a pod, or an address outside where `namespace` is empty."""

    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = "10.1.0.1"


def part(component: str, cluster: str = "shop", namespace: str = "prod") -> End:
    labels = {names.LABEL_CLUSTER: cluster, names.LABEL_COMPONENT: component}
    return End(namespace, {**labels, names.LABEL_ROLE: names.ROLE_PRIMARY, "team": "dba"})


INSTANCE, POOLER = part(names.COMPONENT_POSTGRES), part(names.COMPONENT_PGBOUNCER)
OTHER_INSTANCE = part(names.COMPONENT_POSTGRES, cluster="other")
NAMESAKE = part(names.COMPONENT_POSTGRES, namespace="web")
WEB = End("web", {"app": "web"})
NEIGHBOUR = End("prod", {"app": "web"})
MIGRATION = End("prod", {"app": "migrations"})
MIGRATION_ELSEWHERE = End("web", {"app": "migrations"})
PROMETHEUS = End("monitoring", {"app": "prometheus"})
GRAFANA = End("monitoring", {"app": "grafana"})
DNS = End("kube-system", {"k8s-app": "kube-dns"})
OUTSIDE = End(address="203.0.113.9")
ARCHIVE = End(address="198.51.100.7")


# --- the rules of Kubernetes ------------------------------------------------------------------


def allows(policies: Iterable[Manifest], source: End, target: End, port: int) -> bool:
    """Whether a connection is let out of its source and into its target; TCP, but 53 by UDP."""
    known = list(policies)
    return _one_way(known, "egress", source, target, port) and _one_way(
        known, "ingress", target, source, port
    )


def _one_way(policies: list[Manifest], way: str, pod: End, other: End, port: int) -> bool:
    """A pod that no policy selects is open; else it takes one rule of any that selects it."""
    kind = way.capitalize()
    selecting = [
        policy["spec"]
        for policy in policies
        if policy["metadata"]["namespace"] == pod.namespace
        and selects(policy["spec"]["podSelector"], pod.labels)
        and kind in policy["spec"]["policyTypes"]
    ]
    if not selecting:
        return True
    return any(
        _rule_fits(rule, "from" if way == "ingress" else "to", pod.namespace, other, port)
        for spec in selecting
        for rule in spec.get(way) or ()
    )


def _rule_fits(rule: Manifest, key: str, namespace: str, other: End, port: int) -> bool:
    protocol = "UDP" if port == 53 else "TCP"
    ports = rule.get("ports") or [{}]
    if not any(
        entry.get("port", port) == port and entry.get("protocol", "TCP") == protocol
        for entry in ports
    ):
        return False
    peers = rule.get(key)
    # An empty list of peers is everybody, just like none.
    return not peers or any(_is_peer(peer, namespace, other) for peer in peers)


def _is_peer(peer: Manifest, namespace: str, other: End) -> bool:
    if block := peer.get("ipBlock"):
        address = ip_address(other.address)
        excepted = any(address in ip_network(cidr) for cidr in block.get("except") or ())
        return not other.namespace and address in ip_network(block["cidr"]) and not excepted
    if not other.namespace:
        return False
    if "namespaceSelector" in peer:
        if not selects(peer["namespaceSelector"], NAMESPACES[other.namespace]):
            return False
    elif other.namespace != namespace:
        return False
    return selects(peer.get("podSelector") or {}, other.labels)


def selects(selector: Manifest, labels: Mapping[str, str]) -> bool:
    """A label selector; an empty one selects everything."""
    if not dict(selector.get("matchLabels") or {}).items() <= dict(labels).items():
        return False
    for expression in selector.get("matchExpressions") or ():
        value, values = labels.get(expression["key"]), expression.get("values") or ()
        met = {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[expression["operator"]]
        if not met:
            return False
    return True


# --- the cluster's policies under them --------------------------------------------------------


def cluster(policy: Manifest, **spec: Any) -> PgCluster:
    document = {"instances": 3, "storage": {"size": "1Gi"}, "networkPolicy": policy, **spec}
    metadata = {"name": "shop", "namespace": "prod", "uid": "u"}
    return PgCluster.parse({"metadata": metadata, "spec": document})


def policies(policy: Manifest, **spec: Any) -> list[Manifest]:
    asked = cluster(policy, **spec)
    assert check(asked.spec) == []
    return network_policies(asked)


ON: Manifest = {"enabled": True}
NAMED: Manifest = {
    "enabled": True,
    "poolClients": [
        {"namespaceSelector": {"matchLabels": {"team": "shop"}}, "podSelector": {}},
        {"podSelector": {"matchExpressions": [{"key": "app", "operator": "In", "values": ["x"]}]}},
    ],
    "directClients": [{"podSelector": {"matchLabels": {"app": "migrations"}}}],
    "metricsClients": [
        {
            "namespaceSelector": {"matchLabels": {"name": "monitoring"}},
            "podSelector": {"matchLabels": {"app": "prometheus"}},
        }
    ],
}
POSTGRES, AGENT, PEER = names.PORT_POSTGRES, names.PORT_AGENT, names.PORT_PEER


def test_without_being_asked_for_there_is_none() -> None:
    assert policies({}) == []
    assert allows(policies({}), OUTSIDE, INSTANCE, PEER)


@pytest.mark.parametrize(
    ("source", "target", "port", "expected"),
    [
        (WEB, POOLER, POSTGRES, True),
        (OUTSIDE, POOLER, POSTGRES, True),
        (OTHER_INSTANCE, POOLER, POSTGRES, True),
        (POOLER, INSTANCE, POSTGRES, True),
        (INSTANCE, INSTANCE, POSTGRES, True),
        (INSTANCE, INSTANCE, PEER, True),
        (POOLER, INSTANCE, PEER, False),
        (OTHER_INSTANCE, INSTANCE, PEER, False),
        (OTHER_INSTANCE, INSTANCE, POSTGRES, False),
        (NAMESAKE, INSTANCE, POSTGRES, False),
        (NAMESAKE, INSTANCE, PEER, False),
        (NEIGHBOUR, INSTANCE, POSTGRES, False),
        (WEB, INSTANCE, POSTGRES, False),
        (OUTSIDE, INSTANCE, POSTGRES, False),
        (PROMETHEUS, INSTANCE, AGENT, False),
        (PROMETHEUS, POOLER, AGENT, False),
        (INSTANCE, POOLER, AGENT, False),
        (NEIGHBOUR, INSTANCE, 22, False),
        (INSTANCE, OUTSIDE, 443, True),
        (POOLER, OUTSIDE, 25, True),
    ],
)
def test_by_default_the_pools_are_open_and_the_instances_are_not(
    source: End, target: End, port: int, expected: bool
) -> None:
    assert allows(policies(ON), source, target, port) is expected


@pytest.mark.parametrize(
    ("source", "target", "port", "expected"),
    [
        (WEB, POOLER, POSTGRES, True),
        (NEIGHBOUR, POOLER, POSTGRES, False),
        (End("prod", {"app": "x"}), POOLER, POSTGRES, True),
        (End("web", {"app": "x"}), POOLER, POSTGRES, True),
        (End("monitoring", {"app": "x"}), POOLER, POSTGRES, False),
        (OUTSIDE, POOLER, POSTGRES, False),
        (MIGRATION, POOLER, POSTGRES, False),
        (MIGRATION, INSTANCE, POSTGRES, True),
        (MIGRATION, INSTANCE, PEER, False),
        (MIGRATION, INSTANCE, AGENT, False),
        (MIGRATION_ELSEWHERE, INSTANCE, POSTGRES, False),
        (WEB, INSTANCE, POSTGRES, False),
        (POOLER, INSTANCE, POSTGRES, True),
        (INSTANCE, INSTANCE, PEER, True),
        (PROMETHEUS, INSTANCE, AGENT, True),
        (PROMETHEUS, POOLER, AGENT, True),
        (PROMETHEUS, INSTANCE, POSTGRES, False),
        (PROMETHEUS, POOLER, POSTGRES, False),
        (GRAFANA, INSTANCE, AGENT, False),
        (End("prod", {"app": "prometheus"}), INSTANCE, AGENT, False),
    ],
)
def test_who_is_named_gets_to_what_it_is_named_for(
    source: End, target: End, port: int, expected: bool
) -> None:
    assert allows(policies(NAMED), source, target, port) is expected


@pytest.mark.parametrize(
    ("source", "target", "port", "expected"),
    [
        (INSTANCE, INSTANCE, POSTGRES, True),
        (INSTANCE, INSTANCE, PEER, True),
        (INSTANCE, DNS, 53, True),
        (INSTANCE, OUTSIDE, 6443, True),
        (INSTANCE, ARCHIVE, 9000, True),
        (INSTANCE, OUTSIDE, 9000, False),
        (INSTANCE, WEB, 80, False),
        (INSTANCE, OTHER_INSTANCE, POSTGRES, False),
        (POOLER, INSTANCE, POSTGRES, True),
        (POOLER, INSTANCE, PEER, False),
        (POOLER, DNS, 53, True),
        (POOLER, OUTSIDE, 443, True),
        (POOLER, ARCHIVE, 9000, False),
        (POOLER, OTHER_INSTANCE, POSTGRES, False),
        (WEB, POOLER, POSTGRES, True),
    ],
)
def test_with_restricted_egress_the_pods_get_to_what_they_need(
    source: End, target: End, port: int, expected: bool
) -> None:
    rule = {"to": [{"ipBlock": {"cidr": "198.51.100.7/32"}}], "ports": [{"port": 9000}]}
    made = policies({"enabled": True, "restrictEgress": True, "egress": [rule]})
    assert allows(made, source, target, port) is expected


def test_without_poolers_their_clients_get_to_the_instances() -> None:
    """Service <cluster>, which applications know, leads to the primary then."""
    lone: Manifest = {"pgbouncer": {"instances": 0}}
    assert len(policies(ON, **lone)) == 1
    assert allows(policies(ON, **lone), WEB, INSTANCE, POSTGRES)
    assert not allows(policies(ON, **lone), WEB, INSTANCE, PEER)
    assert allows(policies(NAMED, **lone), WEB, INSTANCE, POSTGRES)
    assert not allows(policies(NAMED, **lone), NEIGHBOUR, INSTANCE, POSTGRES)


def test_a_range_of_addresses_is_let_in_without_what_is_excepted() -> None:
    block = {"cidr": "203.0.113.0/24", "except": ["203.0.113.9/32"]}
    made = policies({"enabled": True, "directClients": [{"ipBlock": block}]})
    assert allows(made, End(address="203.0.113.8"), INSTANCE, POSTGRES)
    assert not allows(made, OUTSIDE, INSTANCE, POSTGRES)


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ({"poolClients": [{"podSelector": {"app": "web"}}]}, "poolClients[0].podSelector"),
        (
            {"directClients": [{"podSelector": {}, "namespaceSelector": {"matchLabel": {}}}]},
            "directClients[0].namespaceSelector",
        ),
        ({"metricsClients": [{"ipBlock": {"cidr": "10.0.0.0/99"}}]}, "metricsClients[0].ipBlock"),
        (
            {"poolClients": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["ten"]}}]},
            "poolClients[0].ipBlock",
        ),
        ({"egress": [{}]}, "egress"),
    ],
)
def test_what_would_select_everybody_by_mistake_is_refused(policy: Manifest, field: str) -> None:
    (problem,) = check(cluster({"enabled": True, **policy}).spec)
    assert problem.field == f"spec.networkPolicy.{field}"
