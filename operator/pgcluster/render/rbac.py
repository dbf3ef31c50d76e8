"""What the agents of a cluster may do in the API: their own cluster's objects, by name. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from pgcluster.api import names
from pgcluster.api.models import PgCluster, import_config, users
from pgcluster.render.metadata import Manifest, metadata

_RBAC = "rbac.authorization.k8s.io"
_READ = ("get", "list", "watch")


def rbac(cluster: PgCluster) -> list[Manifest]:
    """ServiceAccount, Role and RoleBinding of the instances, and of the poolers where there are."""
    made = _account(
        cluster,
        names.service_account_postgres(cluster.name),
        names.COMPONENT_POSTGRES,
        _node_rules(cluster),
    )
    if cluster.spec.pgbouncer.instances > 0:
        made += _account(
            cluster,
            names.pgbouncer(cluster.name),
            names.COMPONENT_PGBOUNCER,
            _pooler_rules(cluster),
        )
    return made


def _node_rules(cluster: PgCluster) -> list[Manifest]:
    name = cluster.name
    # All pods that the cluster could have, so that scaling does not wait for a change of the Role.
    pods = [names.pod(name, ordinal) for ordinal in range(names.MAX_INSTANCES)]
    rules = [
        _rule("", "configmaps", [names.config_map(name)], _READ),
        _rule("", "configmaps", [names.config_map_pgbouncer(name)], (*_READ, "patch")),
        # Who has to be heard.
        _rule("", "configmaps", [names.config_map_poolers(name)], _READ),
        _rule("", "pods", pods, (*_READ, "patch")),
        _rule("coordination.k8s.io", "leases", [names.primary_lease(name)], (*_READ, "update")),
        _rule("events.k8s.io", "events", [], ("create",)),
    ]
    passwords = {user.password_secret.name for user in users(cluster) if user.password_secret}
    if taken_over := import_config(cluster):
        source = taken_over.source
        passwords |= {source.password_secret, *filter(None, (source.ca_secret,))}
    # Whoever reads one of those can make himself an instance, or a pooler.
    passwords -= {names.secret_ca(name), names.secret_pool_ca(name), names.secret_pool_tls(name)}
    if passwords:
        rules.append(_rule("", "secrets", passwords, ("get",)))
    return rules


def _pooler_rules(cluster: PgCluster) -> list[Manifest]:
    name = cluster.name
    return [
        _rule("", "configmaps", [names.config_map_pgbouncer(name)], _READ),
        _rule("", "configmaps", [names.config_map_poolers(name)], ("get", "patch")),
        _rule("coordination.k8s.io", "leases", [names.primary_lease(name)], _READ),
    ]


def _rule(group: str, resource: str, objects: Iterable[str], verbs: Iterable[str]) -> Manifest:
    rule: Manifest = {"apiGroups": [group], "resources": [resource], "verbs": list(verbs)}
    if by_name := sorted(objects):
        rule["resourceNames"] = by_name
    return rule


def _account(
    cluster: PgCluster, name: str, component: str, rules: list[Manifest]
) -> list[Manifest]:
    meta = metadata(cluster, name, component)
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": meta,
            # Pods mount a token where it is needed: in the agent's container.
            "automountServiceAccountToken": False,
        },
        {"apiVersion": f"{_RBAC}/v1", "kind": "Role", "metadata": meta, "rules": rules},
        {
            "apiVersion": f"{_RBAC}/v1",
            "kind": "RoleBinding",
            "metadata": meta,
            "roleRef": {"apiGroup": _RBAC, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": cluster.namespace}],
        },
    ]
