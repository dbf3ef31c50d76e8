"""What each ServiceAccount may do, asked of and tried against a real API server.

Two clusters of one namespace: what the agents of `shop` may do is written down in full, and
whatever is not there must be refused, above all what is of `other`. Who is asked about is
impersonated: the rules decide that a token of that account would meet.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from pgcluster.api import names
from pgcluster.api.models import PgCluster
from pgcluster.render import cluster as render
from pgcluster.render import lease as render_lease
from pgcluster.render import secrets as render_secrets
from tests.e2e.kubectl import Kubectl, KubectlError

OPERATOR = Path(__file__).parents[2] / "deploy" / "operator"
IMAGES = render.Images(postgres="example/postgres:17", pgbouncer="example/pgbouncer:1")
READ = ("get", "list", "watch")
SPEC: dict[str, Any] = {
    "instances": 2,
    "storage": {"size": "1Gi"},
    # An operator that runs beside these tests leaves the objects alone.
    "paused": True,
    "users": [{"name": "reader", "passwordSecret": {"name": "reader-login"}}],
    "networkPolicy": {
        "enabled": True,
        "restrictEgress": True,
        "directClients": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.1/32"]}}],
        "metricsClients": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"a": "b"}}}],
    },
}
Right = tuple[str, str, str]  # resource, name ("" for any), verb


def listed(manifests: list[dict[str, Any]]) -> str:
    """Some objects as one document."""
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests})


@dataclass(frozen=True)
class World:
    """A namespace with two clusters, an operator bound in it alone, and a namespace beside it."""

    kubectl: Kubectl
    beside: Kubectl
    clusters: dict[str, PgCluster]

    def user(self, account: str) -> str:
        return f"system:serviceaccount:{self.kubectl.namespace}:{account}"

    def try_as(self, account: str, *arguments: str, stdin: str | None = None) -> str:
        """What kubectl says to an account; KubectlError where it is refused."""
        return self.kubectl.run(f"--as={self.user(account)}", *arguments, stdin=stdin)

    def refused(self, account: str, *arguments: str, stdin: str | None = None) -> str:
        """What kubectl says to an account that is refused."""
        with pytest.raises(KubectlError, match=r"[Ff]orbidden") as caught:
            self.try_as(account, *arguments, stdin=stdin)
        # What kubectl looks at for itself proves nothing.
        assert "customresourcedefinitions" not in caught.value.stderr
        return caught.value.stderr

    def path(self, rest: str) -> str:
        return f"/api/v1/namespaces/{self.kubectl.namespace}/{rest}"

    def raw(self, rest: str) -> tuple[str, ...]:
        """A POST as it is: kubectl itself would look first whether the pod is there."""
        return ("create", "--raw", self.path(rest), "-f", "/dev/null")

    def manifests(self, cluster: str) -> list[dict[str, Any]]:
        """Everything that the operator makes for a cluster, in its order."""
        read = self.clusters[cluster]
        return [
            *render_secrets.manifests(read),
            render_lease.manifest(read, system_identifier=None, timeline=None, epoch=None),
            *render.manifests(read, images=IMAGES, system_identifier=None),
        ]


@pytest.fixture(scope="module")
def world(restricted: Kubectl) -> Iterator[World]:
    """The shipped ClusterRole under another name, bound in one namespace only."""
    everywhere = Kubectl()
    beside = Kubectl(f"{restricted.namespace}-beside")
    everywhere.run("create", "namespace", beside.namespace)
    role = f"pgcluster-{secrets.token_hex(3)}"
    documents = list(yaml.safe_load_all((OPERATOR / "rbac.yaml").read_text()))
    shipped = next(
        document
        for document in documents
        if (document["kind"], document["metadata"]["name"]) == ("ClusterRole", "pgcluster-operator")
    )
    everywhere.apply({**shipped, "metadata": {"name": role}})
    restricted.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "operator"}},
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "operator"},
            "roleRef": {**_ROLE_REF, "name": role},
            "subjects": [
                {
                    "kind": "ServiceAccount",
                    "name": "operator",
                    "namespace": restricted.namespace,
                }
            ],
        },
    )
    clusters = {}
    for name in ("shop", "other"):
        document = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": name},
            "spec": SPEC,
        }
        restricted.apply(document)
        clusters[name] = PgCluster.parse(restricted.json("get", "pgcluster", name))
    yield World(restricted, beside, clusters)
    everywhere.run("delete", "clusterrole", role)
    everywhere.run("delete", "namespace", beside.namespace, "--wait=false")


_ROLE_REF = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole"}


@pytest.fixture(scope="module")
def made(world: World) -> World:
    """With what both clusters are made of, but for the pods: made by the operator's account."""
    once, again, workloads = [], [], []
    for cluster in world.clusters:
        for manifest in world.manifests(cluster):
            kind = manifest["kind"]
            if kind in ("Secret", "Lease"):
                once.append(manifest)
            else:
                # No workload: an API server with controllers would start pods.
                (workloads if kind in ("StatefulSet", "Deployment") else again).append(manifest)
    world.try_as("operator", "create", "-f", "-", stdin=listed(once))
    apply = ("apply", "--server-side", "-f", "-")
    # Roles before what refers to them, as the operator does.
    world.try_as("operator", *apply, stdin=listed(again))
    # Once more: Kubernetes checks a Role that is there by another way.
    world.try_as("operator", *apply, "--dry-run=server", stdin=listed([*again, *workloads]))
    return world


# --- the operator -----------------------------------------------------------------------------


def test_the_operator_makes_all_of_a_cluster_with_the_rights_that_are_shipped(made: World) -> None:
    kinds = {manifest["kind"] for manifest in made.manifests("shop")}
    assert {"Role", "RoleBinding", "NetworkPolicy", "StatefulSet", "Deployment"} <= kinds
    for manifest in made.manifests("shop"):
        if manifest["kind"] in ("Role", "RoleBinding", "NetworkPolicy", "Secret"):
            assert made.kubectl.get(manifest["kind"], manifest["metadata"]["name"]), manifest


def test_the_operator_can_do_nothing_in_a_namespace_that_it_is_not_bound_in(made: World) -> None:
    where = f"--namespace={made.beside.namespace}"
    elsewhere = [
        {**manifest, "metadata": {**manifest["metadata"], "namespace": made.beside.namespace}}
        for manifest in made.manifests("shop")
    ]
    create = ("create", "--dry-run=server", "-f", "-", where)
    told = made.refused("operator", *create, stdin=listed(elsewhere))
    assert told.count("is forbidden") == len(elsewhere), told
    made.refused("operator", "get", "pgclusters", where)
    made.refused("operator", "get", "pgclusters", "--all-namespaces")


def test_the_operator_cannot_grant_what_it_does_not_hold(made: World) -> None:
    def role(*rules: dict[str, Any]) -> str:
        return json.dumps(
            {
                "apiVersion": "rbac.authorization.k8s.io/v1",
                "kind": "Role",
                "metadata": {"name": "more", "namespace": made.kubectl.namespace},
                "rules": list(rules),
            }
        )

    create = ("create", "--dry-run=server", "-f", "-")
    held = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}
    made.try_as("operator", *create, stdin=role(held))
    for wanted in (
        {**held, "verbs": ["list"]},
        {**held, "verbs": ["*"]},
        {**held, "resources": ["pods/exec"], "verbs": ["create"]},
        {"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]},
    ):
        made.refused("operator", *create, stdin=role(wanted))
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "more", "namespace": made.kubectl.namespace},
        "roleRef": {**_ROLE_REF, "name": "cluster-admin"},
        "subjects": [],
    }
    made.refused("operator", *create, stdin=json.dumps(binding))


def test_the_operator_is_refused_what_it_has_no_business_with(made: World) -> None:
    for arguments in (
        ("get", "secrets"),
        ("delete", "secret", "shop-app"),
        made.raw("pods/shop-0/exec?command=true"),
        ("get", "--raw", made.path("pods/shop-0/log")),
        ("create", "token", "shop-postgres"),
        ("delete", "pgcluster", "shop"),
        ("annotate", "pgcluster", "shop", "pgcluster.dev/switchover=any"),
        ("patch", "pgcluster", "shop", "--type=merge", "-p", '{"spec":{"instances":1}}'),
        ("delete", "configmap", "shop-config"),
        ("delete", "lease", "shop-primary"),
        ("run", "more", "--image=more"),
        ("get", "nodes"),
        ("get", "clusterroles"),
        ("get", "namespaces"),
    ):
        made.refused("operator", *arguments)


# --- the agents -------------------------------------------------------------------------------


def rights(resource: str, objects: tuple[str, ...], *verbs: str) -> set[Right]:
    return {(resource, name, verb) for name in objects for verb in verbs}


SHOP_PODS = tuple(names.pod("shop", ordinal) for ordinal in range(names.MAX_INSTANCES))
LEASE = "coordination.k8s.io/leases"
MAY: dict[str, set[Right]] = {
    "shop-postgres": {
        *rights("configmaps", ("shop-config", "shop-poolers"), *READ),
        *rights("configmaps", ("shop-pgbouncer",), *READ, "patch"),
        *rights("pods", SHOP_PODS, *READ, "patch"),
        *rights(LEASE, ("shop-primary",), *READ, "update"),
        *rights("events.k8s.io/events", ("",), "create"),
        *rights("secrets", ("shop-app", "reader-login"), "get"),
    },
    "shop-pgbouncer": {
        *rights("configmaps", ("shop-pgbouncer",), *READ),
        *rights("configmaps", ("shop-poolers",), "get", "patch"),
        *rights(LEASE, ("shop-primary",), *READ),
    },
    # The account of every pod that names none.
    "default": set(),
}
# Of everybody who has logged in: to ask what he may do.
ANYBODY: set[Right] = {
    ("authorization.k8s.io/selfsubjectaccessreviews", "", "create"),
    ("authorization.k8s.io/selfsubjectrulesreviews", "", "create"),
    ("authentication.k8s.io/selfsubjectreviews", "", "create"),
}


@pytest.mark.parametrize("account", MAY)
def test_an_account_may_do_what_is_listed_and_nothing_else(made: World, account: str) -> None:
    """By the API server's own list of all that an account may do in the namespace."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": made.kubectl.namespace},
    }
    answer = made.try_as(
        account,
        *("create", "-f", "-", "-o", "json", "--validate=false"),
        stdin=json.dumps(review),
    )
    allowed = {
        (f"{group}/{resource}".lstrip("/"), name, verb)
        for rule in json.loads(answer)["status"]["resourceRules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames") or [""]
        for verb in rule["verbs"]
    }
    assert allowed - ANYBODY == MAY[account]


def test_an_agent_gets_to_what_is_its_own(made: World) -> None:
    """So that what is refused below is not refused for another reason."""
    for arguments in (
        ("get", "configmap", "shop-config"),
        ("get", "lease", "shop-primary"),
        ("get", "secret", "shop-app"),
        ("get", "configmaps", "--field-selector=metadata.name=shop-config"),
    ):
        made.try_as("shop-postgres", *arguments)
    lease = made.kubectl.json("get", "lease", "shop-primary")
    lease["spec"]["holderIdentity"] = "shop-0"
    made.try_as("shop-postgres", "replace", "-f", "-", stdin=json.dumps(lease))
    made.try_as("shop-pgbouncer", "get", "lease", "shop-primary")


@pytest.mark.parametrize("account", ["shop-postgres", "shop-pgbouncer"])
def test_an_intruder_with_an_agents_token_is_refused(made: World, account: str) -> None:
    lease = made.kubectl.json("get", "lease", "other-primary")
    lease["spec"]["holderIdentity"] = "shop-0"
    made.refused(account, "replace", "-f", "-", stdin=json.dumps(lease))
    grant = '{"rules":[{"apiGroups":["*"],"resources":["*"],"verbs":["*"]}]}'
    for arguments in (
        ("get", "lease", "other-primary"),
        ("delete", "lease", "shop-primary"),
        ("get", "secret", "other-app"),
        ("get", "secret", "other-repmgr"),
        ("get", "secret", "shop-ca"),
        ("get", "secret", "shop-peers"),
        ("get", "secrets"),
        ("get", "pods"),
        ("get", "pod", "other-0"),
        ("label", "pod", "other-0", "pgcluster.dev/role=primary"),
        ("delete", "pod", "shop-0"),
        made.raw("pods/shop-0/exec?command=true"),
        ("get", "configmap", "other-pgbouncer"),
        ("patch", "configmap", "other-pgbouncer", "--type=merge", "-p", '{"data":{"a":"b"}}'),
        ("patch", "configmap", "shop-config", "--type=merge", "-p", '{"data":{"a":"b"}}'),
        ("patch", "role", account, "--type=merge", "-p", grant),
        ("create", "token", "operator"),
        ("create", "token", account),
        ("patch", "pgcluster", "shop", "--type=merge", "-p", '{"spec":{"paused":false}}'),
        ("run", "more", "--image=more"),
        ("get", "nodes"),
        ("get", "configmap", "shop-config", f"--namespace={made.beside.namespace}"),
    ):
        made.refused(account, *arguments)


# --- how it is installed ----------------------------------------------------------------------


def rendered(overlay: str) -> list[dict[str, Any]]:
    text = Kubectl().run("kustomize", str(OPERATOR.parent / overlay))
    return list(yaml.safe_load_all(text))


def test_for_single_namespaces_the_same_rights_hold_there_only() -> None:
    def of(kind: str, documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [document for document in documents if document["kind"] == kind]

    all_of_them, single = rendered("operator"), rendered("operator-namespaced")
    assert of("ClusterRole", single) == of("ClusterRole", all_of_them)
    assert of("Role", single) == of("Role", all_of_them)
    bound = {binding["metadata"]["name"] for binding in of("ClusterRoleBinding", single)}
    assert bound == {"pgcluster-operator-nodes"}
    bindings = of("RoleBinding", single)
    grants = {b["metadata"]["namespace"] for b in bindings if b["roleRef"]["kind"] != "Role"}
    (deployment,) = of("Deployment", single)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert environment["PGCLUSTER_NAMESPACES"] == ",".join(sorted(grants))
    for binding in [*bindings, *of("ClusterRoleBinding", single)]:
        (subject,) = binding["subjects"]
        assert subject["namespace"] == deployment["metadata"]["namespace"]


@pytest.mark.parametrize("overlay", ["operator", "operator-namespaced"])
def test_the_api_server_takes_what_is_shipped(overlay: str) -> None:
    documents = [
        document
        for document in rendered(overlay)
        # Their namespaces may not be there; what they hold is tried above.
        if "namespace" not in document["metadata"]
    ]
    assert {"Namespace", "ClusterRole", "CustomResourceDefinition"} <= {
        document["kind"] for document in documents
    }
    Kubectl().run(
        *("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-"),
        stdin=yaml.safe_dump_all(documents),
    )
