"""What is taken over from another server, and with which statements."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pgcluster.api.models import PgCluster, import_config, to_config
from pgcluster.controller import pools
from pgcluster.node import importing
from pgcluster.node.importing import what_hindered
from pgcluster.postgres import scram
from pgcluster.postgres.source import (
    Database,
    Facts,
    Grant,
    Membership,
    Role,
    Setting,
    Source,
    database_statements,
    membership_statements,
    refusal,
    role_statements,
    setting_statements,
    split_names,
    taken_roles,
)
from pgcluster.render.rbac import rbac
from tests.unit.test_controller_status import instance, observed

VERIFIER = scram.verifier("a password")
FACTS = Facts(15, reads_passwords=True, databases=(Database("app", "app"),))


def cluster(**spec: Any) -> PgCluster:
    return PgCluster.parse(
        {
            "metadata": {"name": "shop", "namespace": "prod", "uid": "u"},
            "spec": {"instances": 1, "storage": {"size": "1Gi"}, **spec},
        }
    )


def importing_from(source: dict[str, Any], **more: Any) -> PgCluster:
    return cluster(bootstrap={"import": {"source": source, **more}})


def texts(statements: list[Any]) -> list[str]:
    return [statement.as_string(None) for statement in statements]


# --- configuration ----------------------------------------------------------------------------
def test_a_cluster_as_a_source_is_read_by_its_own_service_and_secret() -> None:
    wanted = import_config(importing_from({"cluster": "old"}))
    assert wanted
    assert wanted.source.host == "old-primary.prod.svc"
    assert (wanted.source.password_secret, wanted.source.user) == ("old-app", None)
    assert wanted.databases == ("app",)
    assert to_config(importing_from({"cluster": "old"}), system_identifier=None).bootstrap_import


def test_another_server_is_read_as_the_spec_says() -> None:
    made = importing_from(
        {
            "host": "db.example.com",
            "port": 6432,
            "user": "dba",
            "passwordSecret": {"name": "legacy"},
            "sslMode": "verify-full",
            "caSecret": {"name": "legacy-ca"},
        },
        databases=["one", "two"],
    )
    wanted = import_config(made)
    assert wanted
    source = wanted.source
    assert (source.host, source.port, source.user) == ("db.example.com", 6432, "dba")
    assert wanted.databases == ("one", "two")
    role = next(m for m in rbac(made) if m["kind"] == "Role")
    (secrets,) = [rule for rule in role["rules"] if rule["resources"] == ["secrets"]]
    assert secrets["resourceNames"] == ["legacy", "legacy-ca", "shop-app"]
    assert secrets["verbs"] == ["get"]


def test_without_an_import_nothing_is_told_to_the_agents() -> None:
    assert import_config(cluster()) is None


# --- refusals ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("facts", "used", "says"),
    [
        (FACTS, {"app": frozenset({"plpgsql"})}, None),
        (replace(FACTS, version=17), {}, None),
        (replace(FACTS, version=18), {}, "the source runs PostgreSQL 18 and this cluster 17"),
        (replace(FACTS, databases=()), {}, "the source has no database app"),
        (
            FACTS,
            {"app": frozenset({"plpgsql", "postgis", "h3"})},
            "database app needs h3, postgis; name an image",
        ),
    ],
)
def test_what_cannot_be_taken_over_is_said_before_anything_is_made(
    facts: Facts, used: dict[str, frozenset[str]], says: str | None
) -> None:
    told = refusal(facts, ["app"], used, frozenset({"plpgsql", "pgcrypto"}), major=17)
    assert told is None if says is None else says in (told or "")


# --- statements -------------------------------------------------------------------------------
def test_reserved_roles_stay_there_and_no_superuser_arrives() -> None:
    roles = [
        Role("postgres", superuser=True, login=True),
        Role("repmgr", superuser=True),
        Role("pg_monitor"),
        Role("boss", superuser=True, login=True, replication=True, password=VERIFIER),
        Role("app", login=True, password=VERIFIER),
        Role("old", login=True, password="md5" + "0" * 32),
    ]
    assert taken_roles(roles) == (
        Role("boss"),
        Role("app", login=True, password=VERIFIER),
        Role("old", login=True),
    )


def test_a_role_arrives_with_its_verifier_and_never_as_a_superuser() -> None:
    role = Role(
        'o"dd',
        login=True,
        create_database=True,
        connection_limit=3,
        valid_until="infinity",
        password=VERIFIER,
        comment="it's",
    )
    made, comment = texts(role_statements(role, exists=False))
    assert made.startswith(
        'CREATE ROLE "o""dd" WITH NOSUPERUSER LOGIN INHERIT NOCREATEROLE CREATEDB'
    )
    assert f"CONNECTION LIMIT 3 VALID UNTIL 'infinity' PASSWORD '{VERIFIER}'" in made
    assert comment == "COMMENT ON ROLE \"o\"\"dd\" IS 'it''s'"
    (again,) = texts(role_statements(Role("x"), exists=True))
    assert again.startswith('ALTER ROLE "x" WITH NOSUPERUSER NOLOGIN')
    assert "PASSWORD" not in again


@pytest.mark.parametrize(
    ("membership", "major", "statement"),
    [
        (Membership("g", "u"), 15, 'GRANT "g" TO "u"'),
        (Membership("g", "u", admin=True), 15, 'GRANT "g" TO "u" WITH ADMIN OPTION'),
        (Membership("pg_monitor", "u"), 17, 'GRANT "pg_monitor" TO "u" WITH ADMIN FALSE'),
        (
            Membership("g", "u", inherit=False, set=True),
            17,
            'GRANT "g" TO "u" WITH ADMIN FALSE, INHERIT FALSE, SET TRUE',
        ),
        (Membership("repmgr", "u"), 17, None),
        (Membership("g", "stranger"), 17, None),
    ],
)
def test_memberships_keep_their_options(
    membership: Membership, major: int, statement: str | None
) -> None:
    made = membership_statements([membership], frozenset({"g", "u"}), major=major)
    assert texts(made) == ([statement] if statement else [])


def test_settings_follow_their_role_and_database_but_read_only_does_not() -> None:
    settings = [
        Setting("u", None, 'search_path="$user", "Odd, one", public'),
        Setting("u", None, "app.mode=a=b"),
        Setting(None, "app", "work_mem=8MB"),
        Setting("u", "app", "search_path="),
        Setting(None, "app", "default_transaction_read_only=on"),
        Setting("stranger", None, "work_mem=1MB"),
        Setting(None, "other", "work_mem=1MB"),
    ]
    assert texts(setting_statements(settings, frozenset({"u"}), {"app": "t"})) == [
        "ALTER ROLE \"u\" SET \"search_path\" = '$user', 'Odd, one', 'public'",
        'ALTER ROLE "u" SET "app.mode" = \'a=b\'',
        'ALTER DATABASE "t" SET "work_mem" = \'8MB\'',
        'ALTER ROLE "u" IN DATABASE "t" SET "search_path" = \'\'',
    ]


@pytest.mark.parametrize(
    ("text", "parts"),
    [("", []), ("a", ["a"]), ('"a""b" , c', ['a"b', "c"]), ('"", x', ["", "x"])],
)
def test_a_list_of_names_is_taken_apart(text: str, parts: list[str]) -> None:
    assert split_names(text) == parts


def test_privileges_of_a_database_are_taken_over_where_they_are_not_the_default() -> None:
    assert texts(database_statements(Database("app", "app"), "t")) == []
    grants = (Grant(None, "CONNECT"), Grant("u", "CREATE", grantable=True), Grant("u", "evil; --"))
    assert texts(database_statements(Database("app", "app", grants=grants), "t")) == [
        'REVOKE ALL ON DATABASE "t" FROM PUBLIC',
        'GRANT CONNECT ON DATABASE "t" TO PUBLIC',
        'GRANT CREATE ON DATABASE "t" TO "u" WITH GRANT OPTION',
    ]


# --- the pools --------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("state", "pointed"), [("running", False), ("failed", False), ("done", True)]
)
def test_the_pools_are_pointed_at_a_primary_that_has_everything(state: str, pointed: bool) -> None:
    primary = instance(0, "primary", ready=pointed, importing={"state": state})
    assert (pools.target(observed(primary), staying=1) is not None) is pointed


# --- programs ---------------------------------------------------------------------------------
def test_the_password_is_in_no_argument_and_no_text() -> None:
    source = Source("db", 5432, "dba", r"secret: of \all", "verify-full", "/run/ca.crt")
    wanted = import_config(importing_from({"cluster": "old"}, schemaOnly=True, jobs=4))
    assert wanted
    step = importing.dump("/bin", source.conninfo("app"), Path("/d"), wanted)
    role = Role("app", password="SCRAM-SHA-256$verifier")
    assert "secret" not in " ".join(step.arguments) + repr(source)
    assert "verifier" not in repr(role)
    assert source.passfile() == "*:*:*:*:secret\\: of \\\\all\n"
    assert {"--schema-only", "--jobs=4", "--no-password"} <= set(step.arguments)
    assert "sslrootcert=/run/ca.crt" in source.conninfo("app")


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("", "no reason given"),
        ("killed\n", "killed"),
        (
            "pg_restore: while PROCESSING TOC:\npg_restore: from TOC entry 215\n"
            'pg_restore: error: could not execute query: ERROR:  role "x" does not exist\n'
            "Command was: ALTER TABLE t OWNER TO x;\n"
            "pg_restore: error: a worker process died unexpectedly\n",
            'could not execute query: ERROR:  role "x" does not exist',
        ),
    ],
)
def test_the_first_error_of_a_program_is_what_hindered_it(output: str, told: str) -> None:
    assert what_hindered(output) == told
