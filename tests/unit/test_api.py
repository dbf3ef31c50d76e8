"""The resource's models: schema, defaults, what is refused and why."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgcluster.api import conditions, names
from pgcluster.api.crd import crd, schema, structural
from pgcluster.api.holes import REASONS, Hole
from pgcluster.api.models import PgCluster, to_config, users
from pgcluster.api.quantities import parse_bytes, parse_seconds
from pgcluster.api.validation import REFUSED_PARAMETERS, check

MINIMAL = {"instances": 3, "storage": {"size": "10Gi"}}


def cluster(**spec: Any) -> PgCluster:
    metadata = {"name": "shop", "namespace": "prod", "uid": "u-1", "generation": 4}
    return PgCluster.parse({"metadata": metadata, "spec": {**MINIMAL, **spec}})


def nodes(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, node
    for name, child in node.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    if "items" in node:
        yield from nodes(node["items"], f"{path}[]")
    if isinstance(node.get("additionalProperties"), dict):
        yield from nodes(node["additionalProperties"], f"{path}{{}}")


def test_instances_and_storage_size_alone_make_a_good_cluster() -> None:
    config = to_config(cluster(), system_identifier=None)
    assert [database.name for database in config.databases] == ["app"]
    assert [(user.name, user.password_secret) for user in config.users] == [("app", "shop-app")]
    assert config.failover.automatic
    assert config.failover.on_crash == "restart"
    assert config.failover.maximum_lag_bytes == 16 << 20
    assert config.failover.lease.renew_deadline_s < config.failover.lease.duration_s
    assert check(cluster().spec) == []


def test_an_old_operator_survives_a_newer_crd() -> None:
    read = cluster(somethingNew={"a": 1}, storage={"size": "1Gi", "snapshots": True})
    assert read.spec.storage.size == "1Gi"


def test_the_owner_of_a_database_becomes_a_role_and_the_first_gets_the_secret() -> None:
    read = cluster(databases=[{"name": "a", "owner": "alice"}, {"name": "b", "owner": "bob"}])
    found = {user.name: user.password_secret for user in users(read)}
    assert found["alice"] is not None
    assert found["alice"].name == "shop-app"
    assert found["bob"] is None


def test_every_node_of_the_schema_has_a_type_and_every_field_a_description() -> None:
    for path, node in nodes(schema()):
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        assert not {"$ref", "title", "prefixItems"} & node.keys(), path
        assert "default" not in node or path == ".status", path
        if path.rpartition(".")[2] not in ("", "metadata") and not path.endswith(("[]", "{}")):
            assert node.get("description", "").endswith("."), path


def test_every_text_and_list_has_a_bound() -> None:
    for path, node in nodes(schema()["properties"]["spec"]):
        if node.get("type") == "string" and "enum" not in node and not path.endswith("{}"):
            assert "maxLength" in node, path
        if node.get("type") == "array":
            assert "maxItems" in node, path


def test_rules_name_the_field_and_what_to_do() -> None:
    rules = [
        rule for _, node in nodes(schema()) for rule in node.get("x-kubernetes-validations", [])
    ]
    assert len(rules) >= 12
    for rule in rules:
        assert rule["message"]
        assert "spec." in rule["message"] or "metadata.name" in rule["message"], rule


def test_the_crd_has_columns_short_name_and_subresources() -> None:
    version = crd()["spec"]["versions"][0]
    columns = [column["name"] for column in version["additionalPrinterColumns"]]
    assert columns == ["Instances", "Ready", "Primary", "Status", "Age"]
    assert crd()["spec"]["names"]["shortNames"] == ["pgc"]
    assert version["subresources"].keys() == {"status", "scale"}


def test_unions_and_tuples_have_no_structural_form() -> None:
    for node in ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, {"prefixItems": []}):
        with pytest.raises(ValueError, match="no structural form"):
            structural(node, {})


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"postgres": {"parameters": {"port": "1"}}}, "spec.postgres.parameters.port"),
        ({"postgres": {"parameters": {"Work Mem": "1"}}}, "spec.postgres.parameters.Work Mem"),
        ({"postgres": {"parameters": {"wal_level": "minimal"}}}, "spec.postgres.parameters.wal_le"),
        ({"postgres": {"parameters": {"work_mem": "1\nport=1"}}}, "spec.postgres.parameters.work"),
        ({"postgres": {"hba": ["host all all all trust"]}}, "spec.postgres.hba[0]"),
        ({"postgres": {"hba": ["host a a a reject", "nonsense"]}}, "spec.postgres.hba[1]"),
        ({"postgres": {"hba": ["host all all"]}}, "spec.postgres.hba[0]"),
        ({"postgres": {"hba": ['host all all all "trust"']}}, "spec.postgres.hba[0]"),
        ({"postgres": {"hba": ["host all all all md5 \\"]}}, "spec.postgres.hba[0]"),
        ({"postgres": {"hba": ["host all all all sha"]}}, "spec.postgres.hba[0]"),
        ({"postgres": {"hba": ["host all all 10.0.0.0/33 reject"]}}, "spec.postgres.hba[0]"),
        ({"postgres": {"hba": ["host all all 10.0.0.1 reject"]}}, "spec.postgres.hba[0]"),
        ({"postgres": {"hba": ["host all all all peer"]}}, "spec.postgres.hba[0]"),
        (
            {"postgres": {"parameters": {"max_wal_senders": "0"}}},
            "spec.postgres.parameters.max_wal",
        ),
        (
            {"postgres": {"parameters": {"max_replication_slots": "9"}}},
            "spec.postgres.parameters.max_replication_slots",
        ),
        ({"databases": [{"name": "a", "owner": "repmgr"}]}, "spec.databases[0].owner"),
        ({"databases": [{"name": "a", "owner": "pg_monitor"}]}, "spec.databases[0].owner"),
        ({"users": [{"name": "pgcluster_pooler"}]}, "spec.users[0].name"),
        ({"users": [{"name": "public"}]}, "spec.users[0].name"),
        (
            {"pgbouncer": {"parameters": {"query_wait_timeout": "0"}}},
            "spec.pgbouncer.parameters.query_wait_timeout",
        ),
        (
            {"pgbouncer": {"parameters": {"query_wait_timeout": "for ever"}}},
            "spec.pgbouncer.parameters.query_wait_timeout",
        ),
        (
            {"pgbouncer": {"parameters": {"auth_type": "any"}}},
            "spec.pgbouncer.parameters.auth_type",
        ),
        ({"storage": {"size": "many"}}, "spec.storage.size"),
        ({"failover": {"maximumLag": "far"}}, "spec.failover.maximumLag"),
        ({"failover": {"lease": {"duration": "6"}}}, "spec.failover.lease.duration"),
        ({"pgbouncer": {"drainTimeout": "60"}}, "spec.pgbouncer.drainTimeout"),
        ({"users": [{"name": "u", "memberOf": ["nobody"]}]}, "spec.users[0].memberOf"),
    ],
)
def test_what_the_schema_lets_through_is_found(spec: dict[str, Any], field: str) -> None:
    problems = check(cluster(**spec).spec)
    assert len(problems) == 1
    assert problems[0].field.startswith(field)
    assert problems[0].message


@pytest.mark.parametrize(
    "line",
    [
        "hostssl all all 10.0.0.0/8 scram-sha-256",
        "host all all 10.0.0.1 255.255.255.255 scram-sha-256",
        "host shop, books alice,+staff ::1/128 scram-sha-256 # a comment",
        'hostssl "my db" all .example.com ldap ldapserver=ldap ldapprefix="uid="',
        "hostssl all all samenet cert map=m",
        "local all app peer",
        "local all app ident",
        "local all app password",
        "host all postgres all reject",
    ],
)
def test_a_line_that_postgresql_understands_is_let_through(line: str) -> None:
    assert check(cluster(postgres={"hba": [line]}).spec) == []


HOLES: list[tuple[Hole, dict[str, Any]]] = [
    ("trust", {"hba": ["host all all 0.0.0.0/0 trust"]}),
    ("trust", {"hba": ["local all all trust"]}),
    ("trust", {"hba": ['hostssl all all all "tr"ust']}),
    ("ident", {"hba": ["host all all 10.0.0.0/8 ident"]}),
    ("clearTextPasswords", {"hba": ["host all all 10.0.0.0/8 password"]}),
    ("clearTextPasswords", {"hba": ["hostnossl all all all ldap ldapserver=ldap"]}),
    ("md5", {"hba": ["hostssl all all all md5"]}),
    ("md5", {"parameters": {"password_encryption": "md5"}}),
    ("superuserOverNetwork", {"hba": ["hostssl all postgres 10.0.0.1/32 scram-sha-256"]}),
    ("superuserOverNetwork", {"hba": ['hostssl all "postgres",dba all cert']}),
    ("secretsInSpec", {"hba": ["hostssl all all all ldap ldapbindpasswd=hunter2"]}),
    ("secretsInSpec", {"hba": ['hostssl all all all radius radiussecrets="a b"']}),
]


@pytest.mark.parametrize(("hole", "postgres"), HOLES, ids=lambda value: str(value))
def test_a_hole_is_refused_by_name_unless_the_spec_says_that_it_is_meant(
    hole: Hole, postgres: dict[str, Any]
) -> None:
    (problem,) = check(cluster(postgres=postgres).spec)
    assert problem.field.startswith("spec.postgres.")
    assert REASONS[hole] in problem.message
    assert f"say so by {hole} in spec.postgres.allowInsecure" in problem.message
    others = [other for other in REASONS if other != hole]
    assert check(cluster(postgres={**postgres, "allowInsecure": others}).spec) == [problem]
    assert check(cluster(postgres={**postgres, "allowInsecure": [hole]}).spec) == []


def test_a_line_with_several_holes_wants_each_to_be_meant() -> None:
    line = "host all postgres all trust"
    assert len(check(cluster(postgres={"hba": [line]}).spec)) == 2
    meant = ["trust", "superuserOverNetwork"]
    assert check(cluster(postgres={"hba": [line], "allowInsecure": meant}).spec) == []


@pytest.mark.parametrize(
    "line",
    [
        "host all repmgr all scram-sha-256",
        "host postgres pgcluster_pooler all reject",
        "local all postgres trust",
        "local replication repmgr peer",
    ],
)
def test_a_line_that_the_operators_own_make_void_is_refused(line: str) -> None:
    meant = list(REASONS)
    (problem,) = check(cluster(postgres={"hba": [line], "allowInsecure": meant}).spec)
    assert "has no effect" in problem.message


def test_the_secret_of_a_refused_line_is_not_repeated() -> None:
    """The message stands in a condition, in an Event and in the log."""
    line = "hostssl all all all ldap ldapbindpasswd=hunter2"
    (problem,) = check(cluster(postgres={"hba": [line]}).spec)
    assert "hunter2" not in problem.message


def test_the_superusers_lines_reach_the_agents_apart_from_the_others() -> None:
    ours, others = "hostssl all postgres all cert", "hostssl all all all cert"
    config = to_config(cluster(postgres={"hba": [others, ours]}), system_identifier=None)
    assert config.hba == (others,)
    assert config.hba_superuser == (ours,)


def test_enough_walsenders_are_let_through() -> None:
    assert check(cluster(postgres={"parameters": {"max_wal_senders": "10"}}).spec) == []


def test_every_refusal_of_a_parameter_has_a_reason() -> None:
    for name, why in REFUSED_PARAMETERS.items():
        problem = check(cluster(postgres={"parameters": {name: "x"}}).spec)[0]
        assert why in problem.message


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("16Mi", 16 << 20), ("1.5Gi", 3 << 29), ("2G", 2 * 10**9), ("1e3", 1000), ("1m", 1)],
)
def test_quantities(text: str, value: int) -> None:
    assert parse_bytes(text) == value


@pytest.mark.parametrize(("text", "value"), [("500ms", 0.5), ("6s", 6), ("2m", 120), ("1.5s", 1.5)])
def test_durations(text: str, value: float) -> None:
    assert parse_seconds(text) == value


@given(st.text())
def test_no_text_crashes_the_parsers(text: str) -> None:
    for parse in (parse_bytes, parse_seconds):
        with contextlib.suppress(ValueError):
            assert parse(text) >= 0


def test_a_conditions_time_moves_only_with_its_status() -> None:
    first = conditions.merge([], [("Ready", False, "Creating", "x")], generation=1, now="t1")
    second = conditions.merge(first, [("Ready", False, "NoPrimary", "y")], generation=2, now="t2")
    third = conditions.merge(second, [("Ready", True, "AllReady", "z")], generation=2, now="t3")
    assert [c.last_transition_time for c in (*first, *second, *third)] == ["t1", "t1", "t3"]
    assert second[0].reason == "NoPrimary"


def test_names_that_derive_from_a_cluster_fit_into_kubernetes() -> None:
    longest = "a" * names.MAX_CLUSTER_NAME
    for derived in (
        names.pod(longest, 8),
        names.service_primary(longest),
        names.pgbouncer(longest) + "-0123456789",
        names.statefulset(longest) + "-0123456789",
    ):
        assert len(derived) <= 63
