"""Bad input is refused by name, or a condition tells; nothing else is touched."""

from __future__ import annotations

from typing import Any

import pytest

from pgcluster.api import names
from tests.e2e.cluster import Cluster, describe, manifest
from tests.e2e.kubectl import Kubectl, KubectlError
from tests.e2e.waiting import eventually


def small(name: str, **spec: Any) -> dict[str, Any]:
    return manifest(name, **{"instances": 1, "pgbouncer": {"instances": 1}, **spec})


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"instances": 0}, "instances"),
    ({"instances": "three"}, "instances"),
    ({"storage": {}}, "size"),
    ({"storage": {"size": "a lot"}}, "storage.size"),
    ({"postgres": {"version": 9}}, "version"),
    ({"failover": {"onCrash": "panic"}}, "onCrash"),
    ({"failover": {"lease": {"duration": "3s", "renewDeadline": "4s"}}}, "renewDeadline"),
    ({"databases": [{"name": "postgres", "owner": "app"}]}, "databases"),
    ({"users": [{"name": "repmgr"}]}, "users"),
    ({"pgbouncer": {"poolMode": "stmt"}}, "poolMode"),
    ({"postgres": {"initdb": {"encoding": "UTF-8; rm"}}}, "encoding"),
    ({"replication": {"maxSlotWalKeepSize": "much"}}, "maxSlotWalKeepSize"),
    ({"failover": {"lease": {"duration": "soon"}}}, "duration"),
    ({"storage": {"size": "1Gi", "className": "No Such"}}, "className"),
    ({"pgbouncer": {"instances": -1}}, "instances"),
    ({"users": [{"name": "twice"}, {"name": "twice"}]}, "users"),
    ({"nonsense": True}, "nonsense"),
]


@pytest.mark.parametrize(("spec", "named"), WRONG, ids=[named for _, named in WRONG])
def test_a_wrong_field_is_refused_by_name(
    own_namespace: Kubectl, spec: dict[str, Any], named: str
) -> None:
    with pytest.raises(KubectlError) as refusal:
        own_namespace.apply(manifest("wrong", **spec), dry_run=True)
    assert named in refusal.value.stderr


# What only the operator can judge: a patch of the spec, and the words of the condition.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"postgres": {"parameters": {"listen_addresses": "127.0.0.1"}}}, "listen_addresses"),
    ({"postgres": {"parameters": {"archive_mode": "off"}}}, "archive_mode"),
    ({"postgres": {"parameters": {"wal_level": "minimal"}}}, "wal_level"),
    ({"postgres": {"parameters": {"data_directory": "/elsewhere"}}}, "data_directory"),
    ({"postgres": {"parameters": {"primary_conninfo": "host=other"}}}, "primary_conninfo"),
    ({"postgres": {"hba": ["host all all 0.0.0.0/0 trust"]}}, r"hba\[0\]"),
    ({"postgres": {"hba": ["host all all 10.0.0.0/8 password"]}}, "clearTextPasswords"),
    ({"postgres": {"hba": ["hostssl all postgres all cert"]}}, "superuserOverNetwork"),
    ({"pgbouncer": {"parameters": {"auth_type": "any"}}}, "auth_type"),
    ({"users": [{"name": "x", "memberOf": ["nobody_knows"]}]}, "nobody_knows"),
]


def test_what_the_operator_refuses_is_told_by_name_and_the_running_cluster_is_left_alone(
    shop: Cluster,
) -> None:
    shop.settled()
    spec = shop.get()["spec"]
    before = {
        f"{item['kind']}/{item['metadata']['name']}": item["metadata"]["resourceVersion"]
        for item in shop.owned("statefulsets,configmaps,deployments,services,pods")
    }
    for patch, words in REFUSED:
        field = next(iter(patch))
        wrong = {
            **spec,
            field: {**spec.get(field, {}), **patch[field]}
            if isinstance(patch[field], dict)
            else patch[field],
        }
        shop.kubectl.json_patch(
            "pgcluster", "shop", [{"op": "replace", "path": "/spec", "value": wrong}]
        )
        shop.condition_says(words, within=30)
    assert shop.status()["readyInstances"] == 3
    shop.kubectl.json_patch(
        "pgcluster", "shop", [{"op": "replace", "path": "/spec", "value": spec}]
    )
    shop.settled()
    after = {
        f"{item['kind']}/{item['metadata']['name']}": item["metadata"]["resourceVersion"]
        for item in shop.owned("statefulsets,configmaps,deployments,services,pods")
    }
    assert after == before


def test_a_name_that_is_too_long_is_refused_with_the_limit(own_namespace: Kubectl) -> None:
    with pytest.raises(KubectlError, match=str(names.MAX_CLUSTER_NAME)):
        own_namespace.apply(small("a" * 63))


def test_an_image_that_does_not_exist_is_told_by_a_condition(own_namespace: Kubectl) -> None:
    cluster = Cluster(own_namespace, "no-image")
    own_namespace.apply(small("no-image", image="pgcluster.dev/postgres:17-never-built"))
    cluster.condition_says("never-built|image", within=90)
    cluster.delete()


def test_a_storage_class_that_does_not_exist_is_told_by_a_condition(
    own_namespace: Kubectl,
) -> None:
    cluster = Cluster(own_namespace, "no-class")
    own_namespace.apply(small("no-class", storage={"size": "1Gi", "className": "none-such"}))
    cluster.condition_says("none-such")
    cluster.delete()


def test_a_missing_secret_of_a_user_is_told_by_a_condition_and_hinders_nothing_else(
    own_namespace: Kubectl,
) -> None:
    cluster = Cluster(own_namespace, "no-secret")
    own_namespace.apply(
        small("no-secret", users=[{"name": "nobody", "passwordSecret": {"name": "forgotten"}}])
    )

    def told() -> bool:
        status = cluster.status()
        assert status.get("readyInstances") == 1, describe(status)
        texts = [c.get("message", "") for c in status["conditions"]]
        assert any("forgotten" in text or "nobody" in text for text in texts), describe(status)
        return True

    eventually(told, within=120)
    cluster.delete()


def test_a_cluster_whose_objects_would_collide_with_anothers_is_refused(
    own_namespace: Kubectl,
) -> None:
    """Service `a-ro` is cluster a's read-only pool, and would be cluster a-ro's pool."""
    first = Cluster(own_namespace, "a")
    first.apply(small("a"))
    before = {
        item["metadata"]["name"]: item["metadata"]["resourceVersion"]
        for item in first.owned("services,statefulsets,deployments,configmaps,secrets")
    }
    second = Cluster(own_namespace, "a-ro")
    own_namespace.apply(small("a-ro"))
    second.condition_says("NameConflict")
    after = {
        item["metadata"]["name"]: item["metadata"]["resourceVersion"]
        for item in first.owned("services,statefulsets,deployments,configmaps,secrets")
    }
    assert after == before
    assert not second.owned("pods")
    second.delete()
    first.delete()


def test_deletion_in_the_middle_of_the_bootstrap_leaves_nothing_but_volumes(
    own_namespace: Kubectl,
) -> None:
    cluster = Cluster(own_namespace, "unwanted")
    own_namespace.apply(manifest("unwanted"))
    eventually(
        lambda: any("podIP" in pod["status"] for pod in cluster.pods()),
        within=90,
        every=0.1,
        what="an instance is on its way",
    )
    cluster.delete()
    kinds = (
        "pods,statefulsets,deployments,services,configmaps,secrets,serviceaccounts,roles,"
        "rolebindings,leases,poddisruptionbudgets,endpointslices"
    )

    def leftovers() -> list[str]:
        return [
            f"{item['kind']}/{item['metadata']['name']}"
            for item in own_namespace.objects(kinds)
            if item["metadata"]["name"].startswith("unwanted")
        ]

    eventually(lambda: not (left := leftovers()) or _fail(left), within=60)
    claims = [item["metadata"]["name"] for item in own_namespace.objects("pvc")]
    assert [name for name in claims if "unwanted" in name], "the data must survive"


def _fail(left: list[str]) -> bool:
    raise AssertionError(f"still there: {left}")
