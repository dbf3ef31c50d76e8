"""The Kubernetes objects of a cluster.

The golden files are reviewed like code; `GOLDEN=write pytest tests/unit/test_render_manifests.py`
writes them anew.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_plus, urlsplit

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig
from pgcluster.api.models import PgCluster
from pgcluster.render import cluster as render
from pgcluster.render import disruption, lease, secrets
from pgcluster.render.metadata import Manifest

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
IMAGES = render.Images(postgres="example/postgres:17", pgbouncer="example/pgbouncer:1")
MINIMAL: Manifest = {"instances": 3, "storage": {"size": "10Gi"}}
EVERYTHING: Manifest = {
    "instances": 2,
    "postgres": {
        "parameters": {"work_mem": "8MB", "max_connections": "200"},
        "hba": ["hostssl all all 10.0.0.0/8 scram-sha-256"],
        "initdb": {"encoding": "UTF8", "locale": "C.UTF-8", "dataChecksums": False},
        "resources": {"requests": {"cpu": 1, "memory": "2Gi"}, "limits": {"memory": "2Gi"}},
    },
    "storage": {"size": "10Gi", "className": "fast", "walSize": "5Gi"},
    "replication": {"maxSlotWalKeepSize": "4Gi"},
    "failover": {"automatic": False, "onCrash": "failover", "maximumLag": "1Mi"},
    "databases": [
        {"name": "sales", "owner": "seller", "extensions": ["pgcrypto"]},
        {"name": "reports", "owner": "reader"},
    ],
    "users": [{"name": "reader", "passwordSecret": {"name": "reader-login"}, "memberOf": []}],
    "pgbouncer": {
        "instances": 3,
        "poolMode": "session",
        "parameters": {"default_pool_size": "7"},
        "resources": {"limits": {"memory": "128Mi"}},
    },
    "imagePullSecrets": [{"name": "registry"}],
    "scheduling": {
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [
                        {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}
                    ]
                }
            }
        },
        "tolerations": [{"key": "database", "operator": "Exists"}],
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "ScheduleAnyway",
            }
        ],
        "nodeSelector": {"disk": "ssd"},
        "priorityClassName": "important",
    },
    "tls": {"clients": "prefer", "minVersion": "1.2", "dnsNames": ["db.example.com"]},
    "inheritedMetadata": {
        "labels": {"team": "shop", names.LABEL_ROLE: names.ROLE_PRIMARY},
        "annotations": {"contact": "dba@example.com", names.ANNOTATION_INSTANCE: "{}"},
    },
    "networkPolicy": {
        "enabled": True,
        "poolClients": [{"namespaceSelector": {"matchLabels": {"team": "shop"}}}],
        "directClients": [{"podSelector": {"matchLabels": {"app": "migrations"}}}],
        "metricsClients": [
            {
                "namespaceSelector": {"matchLabels": {"name": "monitoring"}},
                "podSelector": {"matchLabels": {"app": "prometheus"}},
            },
            {"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.1/32"]}},
        ],
        "restrictEgress": True,
        "egress": [{"to": [{"ipBlock": {"cidr": "198.51.100.7/32"}}], "ports": [{"port": 9000}]}],
    },
}
_READS = {"get", "list", "watch"}
LONE: Manifest = {
    "instances": 1,
    "storage": {"size": "1Gi"},
    "pgbouncer": {"instances": 0},
}


def pgcluster(spec: Mapping[str, Any], *, name: str = "shop") -> PgCluster:
    metadata = {"name": name, "namespace": "prod", "uid": "the-uid", "generation": 1}
    return PgCluster.parse({"metadata": metadata, "spec": spec})


def manifests(spec: Mapping[str, Any]) -> list[Manifest]:
    return render.manifests(pgcluster(spec), images=IMAGES, system_identifier=None)


def everything(spec: Mapping[str, Any]) -> list[Manifest]:
    cluster = pgcluster(spec)
    counter = itertools.count(1)
    return [
        *secrets.manifests(cluster, token=lambda: f"token-{next(counter)}"),
        lease.manifest(cluster, system_identifier="7400", timeline=3, epoch=5),
        *manifests(spec),
    ]


def the(found: Iterable[Manifest], kind: str, name: str = "shop") -> Manifest:
    matching = [m for m in found if (m["kind"], m["metadata"]["name"]) == (kind, name)]
    assert len(matching) == 1, f"{len(matching)} of {kind} {name}"
    return matching[0]


def kinds(found: Iterable[Manifest], kind: str) -> dict[str, Manifest]:
    return {m["metadata"]["name"]: m for m in found if m["kind"] == kind}


def pod_templates(found: Iterable[Manifest]) -> list[Manifest]:
    return [m["spec"]["template"] for m in found if m["kind"] in ("StatefulSet", "Deployment")]


def containers(template: Manifest) -> list[Manifest]:
    spec = template["spec"]
    return [*spec.get("initContainers", ()), *spec["containers"]]


def as_yaml(found: list[Manifest]) -> str:
    plain = json.loads(json.dumps(found))  # no aliases where two objects share a part
    return str(yaml.safe_dump_all(plain, sort_keys=True, width=100))


@pytest.mark.parametrize(
    ("name", "spec"), [("minimal", MINIMAL), ("everything", EVERYTHING), ("lone", LONE)]
)
def test_the_objects_are_those_of_the_golden_file(name: str, spec: Manifest) -> None:
    path = GOLDEN / f"{name}.yaml"
    rendered = as_yaml(everything(spec))
    if os.environ.get("GOLDEN") == "write":
        path.write_text(rendered)
    assert rendered == path.read_text()


@pytest.mark.parametrize("spec", [MINIMAL, EVERYTHING, LONE])
def test_rendering_twice_gives_the_same_bytes(spec: Manifest) -> None:
    assert json.dumps(everything(spec)) == json.dumps(everything(spec))


@pytest.mark.parametrize("spec", [MINIMAL, EVERYTHING, LONE])
def test_every_object_belongs_to_the_cluster_and_goes_with_it(spec: Manifest) -> None:
    for manifest in everything(spec):
        metadata = manifest["metadata"]
        assert metadata["namespace"] == "prod"
        assert metadata["labels"][names.LABEL_CLUSTER] == "shop"
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == names.MANAGED_BY
        assert "app.kubernetes.io/instance" not in metadata["labels"]
        (owner,) = metadata["ownerReferences"]
        assert (owner["kind"], owner["uid"], owner["controller"]) == (
            names.KIND,
            "the-uid",
            True,
        )


def test_accounts_and_configuration_come_before_the_pods_that_need_them() -> None:
    order = [manifest["kind"] for manifest in manifests(MINIMAL)]
    first_pods = order.index("StatefulSet")
    assert set(order[first_pods:]) == {"StatefulSet", "Deployment"}


# --- pods -------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [MINIMAL, EVERYTHING, LONE])
def test_every_pod_meets_the_restricted_standard(spec: Manifest) -> None:
    for template in pod_templates(manifests(spec)):
        context = template["spec"]["securityContext"]
        assert context["runAsNonRoot"]
        assert context["runAsUser"] not in (0, None)
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert template["spec"]["enableServiceLinks"] is False
        for container in containers(template):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            }


def test_only_an_agents_container_has_the_token_of_the_api() -> None:
    for template in pod_templates(manifests(MINIMAL)):
        assert template["spec"]["automountServiceAccountToken"] is False
    pooler = the(manifests(MINIMAL), "Deployment", "shop-pgbouncer")["spec"]["template"]
    mounts = {
        container["name"]: {mount["name"] for mount in container["volumeMounts"]}
        for container in containers(pooler)
    }
    assert "api-access" in mounts["agent"]
    assert "api-access" not in mounts["pgbouncer"]
    assert "pooler" not in mounts["pgbouncer"], "pgbouncer has its passwords from the user list"


def test_every_mount_has_its_volume() -> None:
    for manifest in [*manifests(MINIMAL), *manifests(EVERYTHING)]:
        if manifest["kind"] not in ("StatefulSet", "Deployment"):
            continue
        template = manifest["spec"]["template"]
        volumes = {volume["name"] for volume in template["spec"]["volumes"]}
        claims = {
            claim["metadata"]["name"] for claim in manifest["spec"].get("volumeClaimTemplates", ())
        }
        mounted = {
            mount["name"]
            for container in containers(template)
            for mount in container.get("volumeMounts", ())
        }
        assert mounted == volumes | claims


def test_no_password_is_in_a_pods_environment_or_in_a_config_map() -> None:
    told = [m for m in everything(EVERYTHING) if m["kind"] != "Secret"]
    assert "token-" not in json.dumps(told)
    for template in pod_templates(told):
        for container in containers(template):
            assert not any("secretKeyRef" in json.dumps(env) for env in container.get("env", ()))


def changes_of_settings() -> Iterator[tuple[str, Manifest]]:
    for field, value in {
        "postgres": {"parameters": {"work_mem": "64MB"}, "hba": ["host all all all reject"]},
        "databases": [{"name": "other", "owner": "other"}],
        "users": [{"name": "other", "passwordSecret": {"name": "other"}}],
        "failover": {"maximumLag": "1Gi", "lease": {"duration": "20s"}},
        "pgbouncer": {"parameters": {"default_pool_size": "50"}, "poolMode": "session"},
        "paused": True,
        "instances": 5,
    }.items():
        yield field, {**MINIMAL, field: value}


@pytest.mark.parametrize(
    "spec", [pytest.param(spec, id=field) for field, spec in changes_of_settings()]
)
def test_a_change_of_settings_replaces_no_pod(spec: Manifest) -> None:
    assert pod_templates(manifests(spec)) == pod_templates(manifests(MINIMAL))


def test_the_role_is_the_agents_word_and_never_the_templates() -> None:
    template = the(manifests(EVERYTHING), "StatefulSet")["spec"]["template"]["metadata"]
    assert names.LABEL_ROLE not in template["labels"]
    assert names.ANNOTATION_INSTANCE not in template["annotations"]
    assert template["labels"]["team"] == "shop"
    assert template["annotations"]["contact"] == "dba@example.com"


def test_inherited_labels_do_not_get_into_what_can_never_change() -> None:
    stateful_set = the(manifests(EVERYTHING), "StatefulSet")["spec"]
    fixed = {names.LABEL_CLUSTER: "shop", names.LABEL_COMPONENT: "postgres"}
    assert stateful_set["selector"] == {"matchLabels": fixed}
    for claim in stateful_set["volumeClaimTemplates"]:
        assert "team" not in claim["metadata"].get("labels", {})


def test_inherited_labels_do_not_replace_ours() -> None:
    spec = {**MINIMAL, "inheritedMetadata": {"labels": {"app.kubernetes.io/managed-by": "helm"}}}
    for manifest in manifests(spec):
        assert manifest["metadata"]["labels"]["app.kubernetes.io/managed-by"] == names.MANAGED_BY


def test_the_wal_has_a_volume_of_its_own_only_where_asked_for() -> None:
    def claims(spec: Manifest) -> list[str]:
        stateful_set = the(manifests(spec), "StatefulSet")["spec"]
        return [claim["metadata"]["name"] for claim in stateful_set["volumeClaimTemplates"]]

    assert claims(MINIMAL) == ["data"]
    assert claims(EVERYTHING) == ["data", "wal"]


def test_data_survives_the_cluster() -> None:
    stateful_set = the(manifests(MINIMAL), "StatefulSet")["spec"]
    assert set(stateful_set["persistentVolumeClaimRetentionPolicy"].values()) == {"Retain"}
    for claim in stateful_set["volumeClaimTemplates"]:
        assert "ownerReferences" not in claim["metadata"]


def test_pods_of_a_kind_prefer_different_nodes_also_beside_an_affinity_of_the_users() -> None:
    for template in pod_templates(manifests(EVERYTHING)):
        (rule,) = template["spec"]["affinity"]["podAntiAffinity"][
            "preferredDuringSchedulingIgnoredDuringExecution"
        ]
        component = template["metadata"]["labels"][names.LABEL_COMPONENT]
        assert rule["podAffinityTerm"]["labelSelector"]["matchLabels"] == {
            names.LABEL_CLUSTER: "shop",
            names.LABEL_COMPONENT: component,
        }


def test_affinity_and_spread_are_of_the_instances_and_the_rest_is_of_all_pods() -> None:
    found = manifests(EVERYTHING)
    instance = the(found, "StatefulSet")["spec"]["template"]["spec"]
    pooler = the(found, "Deployment", "shop-pgbouncer")["spec"]["template"]["spec"]
    assert "nodeAffinity" in instance["affinity"]
    assert "nodeAffinity" not in pooler["affinity"]
    (constraint,) = instance["topologySpreadConstraints"]
    assert constraint["labelSelector"]["matchLabels"][names.LABEL_COMPONENT] == "postgres"
    assert "topologySpreadConstraints" not in pooler
    for pod in (instance, pooler):
        assert pod["tolerations"] == [{"key": "database", "operator": "Exists"}]
        assert pod["nodeSelector"] == {"disk": "ssd"}
        assert pod["priorityClassName"] == "important"


def test_an_anti_affinity_of_the_users_replaces_ours() -> None:
    wanted: Manifest = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []}}
    spec = {**MINIMAL, "scheduling": {"affinity": wanted}}
    assert the(manifests(spec), "StatefulSet")["spec"]["template"]["spec"]["affinity"] == wanted


@pytest.mark.parametrize("instances", range(1, 6))
def test_a_drain_can_go_on_and_never_takes_a_majority(instances: int) -> None:
    spec = {"instances": instances, "storage": {"size": "1Gi"}}
    cluster = PgCluster.model_validate(
        {"metadata": {"name": "shop", "namespace": "prod", "uid": "u"}, "spec": spec}
    )
    found = [b for b in disruption.budgets(cluster) if b["metadata"]["name"] == "shop"]
    allowed = [budget["spec"]["maxUnavailable"] for budget in found]
    # One at a time is always allowed, or a node could never be drained; a lone one has no budget.
    assert allowed == ([1] if instances > 1 else [])
    assert instances < 3 or (instances - 1) * 2 > instances


def pooler_template(**pools: Any) -> Manifest:
    found = manifests({**MINIMAL, "pgbouncer": pools})
    template: Manifest = the(found, "Deployment", "shop-pgbouncer")["spec"]["template"]
    return template


def test_only_settings_that_take_a_new_process_replace_the_poolers() -> None:
    plain = pooler_template()
    assert pooler_template(parameters={"default_pool_size": "50"}) == plain
    anew = pooler_template(parameters={"pkt_buf": "8192", "default_pool_size": "50"})
    assert anew != plain
    assert anew == pooler_template(parameters={"pkt_buf": "8192"})
    assert anew != pooler_template(parameters={"pkt_buf": "16384"})


def test_the_clients_of_a_pooler_that_leaves_have_their_time_and_its_end_some_more() -> None:
    for timeout, grace_s in (("1500ms", 32), ("2m", 150)):
        pod = pooler_template(drainTimeout=timeout)["spec"]
        assert pod["terminationGracePeriodSeconds"] == grace_s
        environment = {env["name"]: env.get("value") for env in pod["initContainers"][0]["env"]}
        assert float(environment["PGCLUSTER_DRAIN_S"]) == grace_s - 30 - (timeout == "1500ms") / 2
    (container,) = pod["containers"]
    assert container["lifecycle"]["preStop"] == {"exec": {"command": ["cat", names.PGBOUNCER_DOOR]}}


# --- Services, budgets, ConfigMaps ------------------------------------------------------------


def test_without_poolers_the_same_address_leads_to_the_primary() -> None:
    found = manifests(LONE)
    pool, primary = the(found, "Service"), the(found, "Service", "shop-primary")
    assert pool["spec"]["selector"] == primary["spec"]["selector"]
    assert not kinds(found, "Deployment")
    assert "shop-ro" not in kinds(found, "Service")
    assert "shop-pgbouncer" not in kinds(found, "ServiceAccount")


def test_there_is_a_read_only_service_only_with_a_read_only_pool() -> None:
    without = {**MINIMAL, "pgbouncer": {"readOnlyPool": False}}
    assert "shop-ro" in kinds(manifests(MINIMAL), "Service")
    assert "shop-ro" not in kinds(manifests(without), "Service")


def test_only_the_service_of_the_primary_asks_for_a_role() -> None:
    by_role = {
        name: manifest["spec"]["selector"].get(names.LABEL_ROLE)
        for name, manifest in kinds(manifests(MINIMAL), "Service").items()
    }
    assert by_role == {"shop": None, "shop-ro": None, "shop-nodes": None, "shop-primary": "primary"}


def test_instances_have_their_names_before_they_are_ready() -> None:
    nodes = the(manifests(MINIMAL), "Service", "shop-nodes")["spec"]
    assert nodes["clusterIP"] == "None"
    assert nodes["publishNotReadyAddresses"]


def test_a_lone_pod_has_no_budget_that_would_block_a_drain_for_ever() -> None:
    assert set(kinds(manifests(MINIMAL), "PodDisruptionBudget")) == {"shop", "shop-pgbouncer"}
    assert not kinds(manifests(LONE), "PodDisruptionBudget")


def test_the_agents_configuration_can_be_read_back() -> None:
    text = the(manifests(EVERYTHING), "ConfigMap", "shop-config")["data"][names.CONFIG_KEY]
    config = ClusterConfig.model_validate_json(text)
    assert config.name == "shop"
    assert config.wal_volume
    assert [database.name for database in config.databases] == ["sales", "reports"]


def test_what_others_write_into_a_config_map_is_not_ours() -> None:
    found = manifests(MINIMAL)
    assert list(the(found, "ConfigMap", "shop-pgbouncer")["data"]) == [
        names.PGBOUNCER_INI_KEY,
        names.PGBOUNCER_TLS_INI_KEY,
    ]
    assert "data" not in the(found, "ConfigMap", "shop-poolers")


# --- rights -----------------------------------------------------------------------------------


def permissions(rules: Iterable[Manifest]) -> set[tuple[str, str, str, str]]:
    """(group, resource, name or *, verb) of each thing that is allowed."""
    return {
        (group, resource, name, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames") or ["*"]
        for verb in rule["verbs"]
    }


def shipped(name: str) -> list[Manifest]:
    """The documents of one file of deploy/operator."""
    return list(yaml.safe_load_all((ROOT / "deploy/operator" / name).read_text()))


def operators_rules() -> list[Manifest]:
    """What the operator may do in the namespaces that it looks after."""
    rules: list[Manifest] = the(shipped("rbac.yaml"), "ClusterRole", "pgcluster-operator")["rules"]
    return rules


@pytest.mark.parametrize("spec", [MINIMAL, EVERYTHING, LONE])
def test_the_operator_holds_every_right_that_it_grants(spec: Manifest) -> None:
    """Kubernetes refuses a Role that grants more than its writer holds."""
    held = permissions(operators_rules())
    for name, role in kinds(manifests(spec), "Role").items():
        missing = {
            right
            for right in permissions(role["rules"])
            if right not in held and (right[0], right[1], "*", right[3]) not in held
        }
        assert not missing, f"Role {name} grants what the operator does not hold: {missing}"


def test_no_agent_may_read_the_authority_whatever_the_spec_names() -> None:
    spec = {**MINIMAL, "users": [{"name": "app", "passwordSecret": {"name": "shop-ca"}}]}
    for document in (spec, EVERYTHING):
        for role in kinds(manifests(document), "Role").values():
            assert "shop-ca" not in json.dumps(role)


def test_no_right_is_a_wildcard() -> None:
    rules = [
        *(rule for role in shipped("rbac.yaml") for rule in role.get("rules", ())),
        *(rule for role in kinds(manifests(EVERYTHING), "Role").values() for rule in role["rules"]),
    ]
    for rule in rules:
        assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]


def test_the_operator_can_make_every_kind_that_it_renders() -> None:
    plurals = {
        "Secret": "secrets",
        "Lease": "leases",
        "ServiceAccount": "serviceaccounts",
        "Role": "roles",
        "RoleBinding": "rolebindings",
        "ConfigMap": "configmaps",
        "Service": "services",
        "PodDisruptionBudget": "poddisruptionbudgets",
        "NetworkPolicy": "networkpolicies",
        "StatefulSet": "statefulsets",
        "Deployment": "deployments",
    }
    held = permissions(operators_rules())
    for manifest in everything(EVERYTHING):
        group = manifest["apiVersion"].rpartition("/")[0]
        kind = manifest["kind"]
        once = kind in ("Secret", "Lease")
        for verb in ("get", "create") if once else ("get", "list", "create", "patch"):
            assert (group, plurals[kind], "*", verb) in held, f"{verb} {plurals[kind]}"


def test_agents_may_touch_only_what_is_named_after_their_cluster() -> None:
    for role in kinds(manifests(EVERYTHING), "Role").values():
        for group, resource, name, verb in permissions(role["rules"]):
            if (group, resource, verb) == ("events.k8s.io", "events", "create"):
                continue  # an object that does not exist yet has no name to check
            own = name.startswith("shop-") or (resource, name) == ("secrets", "reader-login")
            assert own, f"{verb} {resource} {name}"


def test_outside_of_namespaces_the_operator_only_reads() -> None:
    bound = [
        document["roleRef"]["name"]
        for document in shipped("rbac.yaml")
        if document["kind"] == "ClusterRoleBinding"
    ]
    assert sorted(bound) == ["pgcluster-operator", "pgcluster-operator-nodes"]
    rules = the(shipped("rbac.yaml"), "ClusterRole", "pgcluster-operator-nodes")["rules"]
    assert {verb for _, _, _, verb in permissions(rules)} <= _READS


def test_the_operator_grants_nothing_by_its_word_alone() -> None:
    """With `escalate` or `bind` it could make itself, or anybody, an administrator."""
    verbs = {verb for _, _, _, verb in permissions(operators_rules())}
    assert verbs <= {*_READS, "create", "update", "patch", "delete"}
    assert ("", "secrets", "*", "list") not in permissions(operators_rules())
    assert ("", "secrets", "*", "watch") not in permissions(operators_rules())


def test_the_operators_own_pod_meets_the_restricted_standard_and_says_that_it_has_a_token() -> None:
    (deployment,) = shipped("deployment.yaml")
    pod = deployment["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is True
    assert (
        the(shipped("rbac.yaml"), "ServiceAccount", "pgcluster-operator")[
            "automountServiceAccountToken"
        ]
        is False
    )
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }
    assert all("secretKeyRef" not in json.dumps(variable) for variable in container["env"])


def test_poolers_cannot_write_what_they_obey() -> None:
    role = the(manifests(MINIMAL), "Role", "shop-pgbouncer")
    writes = {right for right in permissions(role["rules"]) if right[3] not in _READS}
    assert writes == {("", "configmaps", "shop-poolers", "patch")}


# --- the Secret of the application ------------------------------------------------------------

# Everything that a name or a password may have that means something in a URI or in pgpass.
NASTY = st.text(st.characters(codec="ascii", exclude_characters="\0\r\n"), min_size=1, max_size=30)


@given(password=NASTY)
def test_every_form_of_the_credentials_means_the_same(password: str) -> None:
    made = secrets.application(pgcluster(MINIMAL), password)
    uri = urlsplit(made["uri"])
    assert (uri.hostname, str(uri.port)) == (made["host"], made["port"])
    assert unquote(uri.username or "") == made["username"] == "app"
    assert unquote(uri.password or "") == password
    assert uri.path == "/app"
    query = dict(pair.split("=") for pair in made["jdbc-uri"].partition("?")[2].split("&"))
    assert {key: unquote_plus(value) for key, value in query.items()} == {
        "user": "app",
        "password": password,
        "sslmode": "require",
    }
    assert uri.query == "sslmode=require"
    escaped = made["pgpass"].removesuffix("\n").removeprefix("shop.prod.svc:5432:*:app:")
    assert re.sub(r"\\(.)", r"\1", escaped) == password
    assert not re.search(r"(?<!\\)(\\\\)*:", escaped), "a bare colon would end the field"


def test_the_credentials_lead_through_the_pools() -> None:
    made = secrets.application(pgcluster(MINIMAL), "pw")
    assert made["host"] == "shop.prod.svc"
    assert made["uri"] == "postgresql://app:pw@shop.prod.svc:5432/app?sslmode=require"
    assert made["ro-uri"] == "postgresql://app:pw@shop-ro.prod.svc:5432/app_ro?sslmode=require"
    assert made["ro-dbname"] == "app_ro"


def test_the_credentials_are_of_the_first_database_and_its_owner() -> None:
    made = secrets.application(pgcluster(EVERYTHING), "pw")
    assert (made["username"], made["dbname"]) == ("seller", "sales")


def test_a_password_from_another_secret_is_not_told_wrongly() -> None:
    spec = {**MINIMAL, "users": [{"name": "app", "passwordSecret": {"name": "mine"}}]}
    made = secrets.application(pgcluster(spec), "not-this")
    assert "not-this" not in json.dumps(made)
    assert "password" not in made
    assert made["uri"] == "postgresql://app@shop.prod.svc:5432/app?sslmode=require"


def test_the_application_is_told_whom_to_believe_and_its_own_changes_stay() -> None:
    cluster = pgcluster(MINIMAL)
    made = secrets.application(cluster, "pw", "an authority")
    assert made["ca.crt"] == "an authority"
    assert secrets.published(made, cluster, "an authority") == made
    assert secrets.published(made, cluster, "two")["ca.crt"] == "two"
    theirs = {
        "uri": "postgresql://other:pw@elsewhere/x?application_name=a&sslmode=verify-full",
        "ro-uri": "postgresql://app:pw@shop-ro/app_ro",
        "my-uri": "https://example.com/",
        "password": "mine",
    }
    told = secrets.published(theirs, cluster, "two")
    assert told == {
        **theirs,
        "ro-uri": "postgresql://app:pw@shop-ro/app_ro?sslmode=require",
        "ca.crt": "two",
    }


@pytest.mark.parametrize("clients", ["require", "prefer", "disable"])
def test_the_uris_demand_what_the_pools_demand(clients: str) -> None:
    cluster = pgcluster({**MINIMAL, "tls": {"clients": clients}})
    before = secrets.application(pgcluster(MINIMAL), "pw")
    for told in (secrets.application(cluster, "pw"), secrets.published(before, cluster, "")):
        assert told["uri"].endswith(f"/app?sslmode={clients}")
        assert told["jdbc-uri"].endswith(f"&sslmode={clients}")


def test_without_a_read_only_pool_nothing_is_said_of_one() -> None:
    made = secrets.application(pgcluster(LONE), "pw")
    assert made["host"] == "shop.prod.svc"
    assert not [key for key in made if key.startswith("ro-")]


def test_passwords_are_long_and_all_different() -> None:
    passwords = [
        value
        for manifest in secrets.manifests(pgcluster(MINIMAL))
        for key, value in manifest["stringData"].items()
        if key.endswith("password")
    ]
    assert len(set(passwords)) == len(passwords) == 5
    assert min(map(len, passwords)) >= 32


# --- the Lease --------------------------------------------------------------------------------


def test_a_first_lease_is_held_by_nobody_and_remembers_nothing() -> None:
    made = lease.manifest(pgcluster(MINIMAL), system_identifier=None, timeline=None, epoch=None)
    assert not made["spec"].get("holderIdentity")
    assert "annotations" not in made["metadata"]


def test_a_lease_that_was_deleted_comes_back_with_its_mark() -> None:
    made = lease.manifest(pgcluster(MINIMAL), system_identifier="7400", timeline=3, epoch=5)
    assert not made["spec"].get("holderIdentity")
    assert made["spec"]["leaseTransitions"] == 5
    assert made["metadata"]["annotations"][names.ANNOTATION_SYSTEM_ID] == "7400"
    assert made["metadata"]["annotations"][names.ANNOTATION_TIMELINE] == "3"


# --- what is shipped --------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "deploy/samples").glob("*.yaml")), ids=str)
def test_every_sample_renders(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        if document["kind"] == names.KIND:
            assert the(manifests(document["spec"]), "StatefulSet")["spec"]["replicas"] > 0
