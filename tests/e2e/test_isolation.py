"""What each part may do and see, tried from inside the running pods."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from pgcluster.api import names
from tests.e2e import nodes, secrecy
from tests.e2e.cluster import POSTGRES, Cluster, manifest
from tests.e2e.kubectl import Kubectl
from tests.e2e.toolbox import Toolbox
from tests.e2e.waiting import eventually

OVERLAY = Path(__file__).parents[2] / "deploy" / "operator-namespaced"
LABEL = "pod-security.kubernetes.io/enforce"
PYTHON = "/opt/pgcluster/bin/python"
TOKENS = "/var/run/secrets/kubernetes.io/serviceaccount"
# What the kernel says of the process that asks, and whether it can write into its image.
CONFINED = """
import json
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
try:
    open("/tried", "w")
    written = True
except OSError:
    written = False
fields = ("Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")
print(json.dumps({**{field: status[field].split()[0] for field in fields}, "written": written}))
"""
# Requests as the agent that runs beside: method and path by line; prints the status of each.
ASK = f"""
import json, os, ssl, sys, urllib.error, urllib.request
where = "{TOKENS}"
context = ssl.create_default_context(cafile=where + "/ca.crt")
server = "https://%s:%s" % (os.environ["KUBERNETES_SERVICE_HOST"],
                            os.environ["KUBERNETES_SERVICE_PORT"])
answers = {{}}
for line in sys.argv[1:]:
    method, path = line.split(" ", 1)
    body = b"{{}}" if method in ("POST", "PATCH", "PUT") else None
    request = urllib.request.Request(server + path, data=body, method=method, headers={{
        "Authorization": "Bearer " + open(where + "/token").read(),
        "Content-Type": "application/merge-patch+json" if method == "PATCH" else "application/json",
    }})
    try:
        answers[line] = urllib.request.urlopen(request, context=context, timeout=10).status
    except urllib.error.HTTPError as error:
        answers[line] = error.code
print(json.dumps(answers))
"""


def containers(shop: Cluster) -> list[tuple[str, str]]:
    """Pod and container of everything that runs of a cluster."""
    return [
        *((pod, POSTGRES) for pod in shop.instances()),
        *((pod, name) for pod in shop.poolers() for name in ("agent", "pgbouncer")),
    ]


def test_the_pods_are_confined_and_their_namespaces_take_no_others(
    shop: Cluster, system: Kubectl
) -> None:
    everywhere = Kubectl()
    for namespace in (shop.kubectl.namespace, system.namespace):
        labels = everywhere.json("get", "namespace", namespace)["metadata"]["labels"]
        assert labels[LABEL] == "restricted", namespace
    operator = system.objects("pods", labels="app.kubernetes.io/name=pgcluster-operator")
    places = [(shop.kubectl, *place) for place in containers(shop)]
    places += [(system, pod["metadata"]["name"], "operator") for pod in operator[:1]]
    for kubectl, pod, container in places:
        seen = json.loads(kubectl.exec(pod, PYTHON, "-c", CONFINED, container=container).stdout)
        assert seen.pop("Uid") != "0", f"{pod}/{container}"
        assert seen == {
            "CapEff": "0" * 16,
            "CapBnd": "0" * 16,
            "NoNewPrivs": "1",
            "Seccomp": "2",
            "written": False,
        }, f"{pod}/{container}"


def test_only_who_talks_to_the_api_has_a_token(shop: Cluster) -> None:
    for pod, container in containers(shop):
        found = shop.kubectl.exec(
            pod, "cat", f"{TOKENS}/token", container=container, check=False
        ).returncode
        assert (found == 0) is (container != "pgbouncer"), f"{pod}/{container}"


def test_an_agents_token_opens_its_own_doors_and_no_other(shop: Cluster) -> None:
    core = f"/api/v1/namespaces/{shop.kubectl.namespace}"
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{shop.kubectl.namespace}/leases"
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{shop.kubectl.namespace}"
    clusters = f"/apis/{names.API_VERSION}/namespaces/{shop.kubectl.namespace}/{names.PLURAL}"
    own = [f"GET {core}/configmaps/shop-pgbouncer", f"GET {leases}/shop-primary"]
    never = [
        f"GET {leases}/other-primary",
        f"PUT {leases}/other-primary",
        f"DELETE {leases}/shop-primary",
        f"GET {core}/secrets",
        f"GET {core}/secrets/other-app",
        f"GET {core}/secrets/shop-ca",
        f"GET {core}/pods",
        f"GET {core}/pods/other-0",
        f"PATCH {core}/pods/other-0",
        f"DELETE {core}/pods/shop-0",
        f"POST {core}/pods",
        f"POST {core}/pods/shop-0/exec?command=true",
        f"POST {core}/serviceaccounts/shop-postgres/token",
        f"PATCH {rbac}/roles/shop-postgres",
        f"POST {rbac}/rolebindings",
        f"PATCH {clusters}/shop",
        "GET /api/v1/nodes",
        "GET /api/v1/namespaces/kube-system/secrets",
        "GET /api/v1/namespaces/pgcluster-system/pods",
    ]
    for pod, container in ((shop.instances()[0], POSTGRES), (shop.poolers()[0], "agent")):
        output = shop.kubectl.exec(
            pod, PYTHON, "-c", ASK, *own, *never, container=container, timeout_s=120
        ).stdout
        answers: dict[str, int] = json.loads(output)
        assert {line: answers[line] for line in own} == dict.fromkeys(own, 200), pod
        assert {line: answers[line] for line in never} == dict.fromkeys(never, 403), pod


@pytest.mark.disturbs
def test_no_secret_shows_after_a_rotation_and_a_change_of_primary(
    shop: Cluster, system: Kubectl, toolbox: Toolbox
) -> None:
    before = shop.settled()
    known = secrecy.secrets_of(shop, "reporting-login")
    assert len(known) >= 6, list(known)
    fresh = secrets.token_urlsafe(24)
    shop.kubectl.patch("secret", "reporting-login", {"stringData": {"password": fresh}})
    shop.delete_pod(before)
    eventually(lambda: shop.holder() not in ("", before), within=60, what="another primary")
    shop.settled()
    uri = f"postgresql://reporting:{quote(fresh)}@shop/reports"
    eventually(
        lambda: toolbox.psql(uri, "SELECT 1").stdout.strip() == "1",
        within=90,
        what="the new password is taken",
    )
    current = secrecy.secrets_of(shop)
    kept = shop.kubectl.run("get", "secrets", "-o", "json")
    for name, secret in current.items():
        # So that the search below would find what there is to find.
        assert "password" not in name or secrecy.shown(kept, secret), name
    known |= current | secrecy.tokens_of(shop) | {"the new password": fresh}
    found = [
        f"{place} shows {name}"
        for place, text in secrecy.public_places(shop, system)
        for name, secret in known.items()
        if secrecy.shown(text, secret)
    ]
    assert found == []


@pytest.mark.disturbs("all")
def test_an_operator_for_one_namespace_works_there_and_sees_no_other(
    own_namespace: Kubectl, namespace: Kubectl
) -> None:
    text = own_namespace.run("kustomize", str(OVERLAY))
    text = text.replace("pgcluster-system", own_namespace.namespace)
    text = text.replace("databases", own_namespace.namespace)
    documents: list[dict[str, Any]] = [
        document
        for document in yaml.safe_load_all(text)
        # What is of no namespace is installed already, and the rest does without it.
        if document["metadata"].get("namespace") == own_namespace.namespace
    ]
    for document in documents:
        if document["kind"] == "Deployment":
            document["spec"]["replicas"] = 1
    # Both RoleBindings have one name, in what are two namespaces elsewhere.
    bindings = [document for document in documents if document["kind"] == "RoleBinding"]
    assert len(bindings) == 2
    bindings[0]["metadata"]["name"] = "in-this-namespace"
    unseen = Cluster(namespace, "unseen")
    single = Cluster(own_namespace, "single")
    with nodes.without_operator():
        own_namespace.apply(*documents)
        namespace.apply(manifest("unseen", instances=1))
        single.apply(
            manifest(
                "single",
                instances=1,
                pgbouncer={"instances": 1},
                networkPolicy={"enabled": True, "restrictEgress": True},
            )
        )
        assert single.owned("networkpolicies")
        assert not unseen.owned("statefulsets,configmaps,services,pods")
        assert not unseen.get().get("status")
        log = own_namespace.run("logs", "deployment/pgcluster-operator")
        assert "nodes may not be watched" in log
        assert "is forbidden" not in log
        unseen.delete()
        single.delete()
        own_namespace.delete("deployment", "pgcluster-operator")
