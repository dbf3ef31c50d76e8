"""What the agents of a cluster may do in the API: their own cluster's objects, by name. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig
from pgcluster.api.models import PgCluster
from pgcluster.render.metadata import Manifest, manifest

_RBAC = "rbac.authorization.k8s.io"
_READ = ("get", "list", "watch")


def node_agents(cluster: PgCluster, config: ClusterConfig) -> list[Manifest]:
    """ServiceAccount, Role and RoleBinding of the instances."""
    # All pods that the cluster could have: with those that it has, an instance that was just added
    # or is about to go would depend on the Role being written before or after it.
    pods = (names.pod(cluster.name, ordinal) for ordinal in range(names.MAX_INSTANCES))
    rules = [
        _rule("", "configmaps", [names.config_map(cluster.name)], _READ),
        _rule("", "configmaps", [names.config_map_pgbouncer(cluster.name)], (*_READ, "patch")),
        _rule("", "pods", pods, (*_READ, "patch")),
        _rule(
            "coordination.k8s.io",
            "leases",
            [names.primary_lease(cluster.name)],
            (*_READ, "update"),
        ),
        _rule("events.k8s.io", "events", [], ("create",)),
    ]
    passwords = {user.password_secret for user in config.users if user.password_secret}
    if passwords:
        rules.append(_rule("", "secrets", passwords, ("get",)))
    name = names.service_account_postgres(cluster.name)
    return _account(cluster, name, names.COMPONENT_POSTGRES, rules)


def pooler_agents(cluster: PgCluster) -> list[Manifest]:
    """ServiceAccount, Role and RoleBinding of the poolers."""
    rules = [
        _rule("", "configmaps", [names.config_map_pgbouncer(cluster.name)], _READ),
        _rule("", "configmaps", [names.config_map_poolers(cluster.name)], ("get", "patch")),
        _rule("coordination.k8s.io", "leases", [names.primary_lease(cluster.name)], _READ),
    ]
    return _account(cluster, names.pgbouncer(cluster.name), names.COMPONENT_PGBOUNCER, rules)


def _rule(group: str, resource: str, objects: Iterable[str], verbs: Iterable[str]) -> Manifest:
    rule: Manifest = {"apiGroups": [group], "resources": [resource], "verbs": list(verbs)}
    if by_name := sorted(objects):
        rule["resourceNames"] = by_name
    return rule


def _account(
    cluster: PgCluster, name: str, component: str, rules: list[Manifest]
) -> list[Manifest]:
    return [
        manifest(
            cluster,
            api_version="v1",
            kind="ServiceAccount",
            name=name,
            component=component,
            # Pods mount a token where it is needed: in the agent's container.
            automountServiceAccountToken=False,
        ),
        manifest(
            cluster,
            api_version=f"{_RBAC}/v1",
            kind="Role",
            name=name,
            component=component,
            rules=rules,
        ),
        manifest(
            cluster,
            api_version=f"{_RBAC}/v1",
            kind="RoleBinding",
            name=name,
            component=component,
            roleRef={"apiGroup": _RBAC, "kind": "Role", "name": name},
            subjects=[{"kind": "ServiceAccount", "name": name, "namespace": cluster.namespace}],
        ),
    ]
