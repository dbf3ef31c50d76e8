"""The charts as Helm sees them: sound, strict, and the same as deploy/ and crds/."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from pgcluster.api.charts import described
from pgcluster.api.models import PgCluster
from tests.charts.helm import CHARTS, CLUSTER, CRDS, OPERATOR, ROOT, HelmError, helm, render

CRD = "pgclusters.pgcluster.dev"
NAME = "pgcluster-operator"


def operator(**values: Any) -> dict[tuple[str, str], dict[str, Any]]:
    return render(OPERATOR, values, release=NAME, namespace="pgcluster-system")


def deployed() -> dict[tuple[str, str], dict[str, Any]]:
    """What deploy/operator has."""
    found = {}
    for path in (ROOT / "deploy/operator").glob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            if document["kind"] != "Kustomization":
                found[document["kind"], document["metadata"]["name"]] = document
    return found


def pod(manifests: Mapping[tuple[str, str], Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = manifests["Deployment", NAME]["spec"]["template"]["spec"]
    return found


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.name)
def test_helm_finds_nothing_to_say(chart: Path) -> None:
    assert "0 chart(s) failed" in helm("lint", "--strict", chart)


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.name)
def test_every_value_is_described(chart: Path) -> None:
    values = yaml.safe_load((chart / "values.yaml").read_text())
    schema = json.loads((chart / "values.schema.json").read_text())
    told = {path: text for path, _, text in described(schema, depth=3)}
    assert [path for path, text in told.items() if not text] == []
    unknown = [path for path in leaves(values, told) if path not in told]
    assert unknown == []


def leaves(values: Mapping[str, Any], known: Mapping[str, str], path: str = "") -> Iterator[str]:
    for name, each in values.items():
        here = f"{path}.{name}" if path else name
        if isinstance(each, Mapping) and here not in known:
            yield from leaves(each, known, here)
        else:
            yield here


# --- the operator ---------------------------------------------------------------------------------
def test_the_operator_is_that_of_deploy() -> None:
    chart, plain = operator(), deployed()
    wanted = plain["Deployment", NAME]
    made = chart["Deployment", NAME]
    affinity = pod(chart).pop("affinity"), pod(plain).pop("affinity")
    assert [next(iter(each)) for each in affinity] == ["podAntiAffinity"] * 2
    # The one is JSON as Helm writes it.
    images = [_images(pod(each)) for each in (chart, plain)]
    assert images[0] == images[1]
    assert pod(chart) == pod(plain)
    assert made["spec"]["replicas"] == wanted["spec"]["replicas"]
    for kind, name, path in (
        ("Service", f"{NAME}-metrics", "ports"),
        ("PodDisruptionBudget", NAME, "maxUnavailable"),
        ("NetworkPolicy", NAME, "ingress"),
    ):
        assert chart[kind, name]["spec"][path] == plain[kind, name]["spec"][path]


def _images(spec: Mapping[str, Any]) -> object:
    for row in spec["containers"][0]["env"]:
        if row["name"] == "PGCLUSTER_POSTGRES_IMAGES":
            return json.loads(row.pop("value"))
    return None


def test_its_rights_are_those_of_deploy() -> None:
    for kind in ("ClusterRole", "Role"):
        chart, plain = (
            sorted(
                json.dumps(rule, sort_keys=True)
                for (its_kind, _), each in manifests.items()
                if its_kind == kind
                for rule in each["rules"]
            )
            for manifests in (operator(), deployed())
        )
        assert chart == plain


def test_in_single_namespaces_it_has_rights_in_those_alone() -> None:
    made = operator(watchNamespaces=["sales", "shop"])
    bindings = {name for kind, name in made if kind == "RoleBinding"}
    assert {f"sales/{NAME}", f"shop/{NAME}"} <= bindings
    assert {name for kind, name in made if kind == "ClusterRoleBinding"} == {f"{NAME}-nodes"}
    (env,) = [row for row in pod(made)["containers"][0]["env"] if row["name"].endswith("SPACES")]
    assert env["value"] == "sales,shop"
    less = operator(watchNamespaces=["sales"], rbac={"create": True, "clusterScoped": False})
    assert not [name for kind, name in less if kind == "ClusterRoleBinding"]


def test_what_may_be_asked_for_is_there() -> None:
    made = operator(
        networkPolicy={"enabled": True, "metricsFrom": [{"podSelector": {}}]},
        serviceMonitor={"enabled": True, "interval": "10s", "labels": {"release": "prometheus"}},
        podMonitor={"enabled": True, "interval": "10s", "labels": {}},
        image={"repository": "r.example/operator", "digest": f"sha256:{'a' * 64}"},
        priorityClassName="system-cluster-critical",
    )
    assert {kind for kind, _ in made} >= {"NetworkPolicy", "ServiceMonitor", "PodMonitor"}
    (rule,) = made["NetworkPolicy", NAME]["spec"]["ingress"]
    assert rule["from"] == [{"podSelector": {}}]
    assert pod(made)["containers"][0]["image"] == f"r.example/operator@sha256:{'a' * 64}"
    assert pod(made)["priorityClassName"] == "system-cluster-critical"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"replicas": 0}, "replicas"),
        ({"watchNamespaces": ["Sales"]}, "watchNamespaces"),
        ({"instanceImages": {"postgres": {"seventeen": "x"}, "pgbouncer": "y"}}, "postgres"),
        ({"replica": 3}, "replica"),
        ({"image": {"repository": "x", "digest": "latest"}}, "digest"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(HelmError, match=named):
        operator(**values)


# --- the CRD --------------------------------------------------------------------------------------
def test_the_crd_is_that_of_crds_and_is_kept() -> None:
    (made,) = render(CRDS, release="crds").values()
    wanted = yaml.safe_load((ROOT / "crds" / f"{CRD}.yaml").read_text())
    metadata = made.pop("metadata"), wanted.pop("metadata")
    assert metadata[0]["name"] == metadata[1]["name"] == CRD
    assert metadata[0]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert made == wanted


# --- a cluster ------------------------------------------------------------------------------------
def test_a_cluster_is_named_as_its_release_and_its_spec_is_what_is_given() -> None:
    made = render(CLUSTER, {"spec.postgres": {"parameters": {"work_mem": "8MB"}}}, release="shop")
    manifest = made["PgCluster", "shop"]
    cluster = PgCluster.model_validate(manifest)
    assert cluster.spec.instances == 3
    assert cluster.spec.postgres.parameters == {"work_mem": "8MB"}
    kept = render(CLUSTER, {"keep": True}, release="shop")["PgCluster", "shop"]
    assert kept["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


@pytest.mark.parametrize(
    "sample", sorted((ROOT / "deploy/samples").glob("*.yaml")), ids=lambda path: path.name
)
def test_each_sample_can_be_a_release(sample: Path) -> None:
    for document in yaml.safe_load_all(sample.read_text()):
        if document["kind"] == "PgCluster":
            made = render(CLUSTER, {"spec": document["spec"]}, release="any")
            spec = made["PgCluster", "any"]["spec"]
            assert {key: spec[key] for key in document["spec"]} == document["spec"]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"spec": {"instances": 3, "instanzes": 2}}, "instanzes"),
        ({"spec": {"instances": 99}}, "instances"),
        ({"spec": {"postgres": {"parameters": {"work_mem": {"a": 1}}}}}, "work_mem"),
        ({"nmae": "shop"}, "nmae"),
    ],
)
def test_a_wrong_spec_is_refused_before_anything_is_sent(
    values: dict[str, Any], named: str
) -> None:
    with pytest.raises(HelmError, match=named):
        render(CLUSTER, values, release="shop")
