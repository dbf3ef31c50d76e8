"""pgbouncer's files, as they are rendered and read back."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig, DatabaseConfig, TlsConfig
from pgcluster.api.errors import RetryError
from pgcluster.controller.certificates import Profile, plan
from pgcluster.pooler.files import Files
from pgcluster.render.pgbouncer import (
    EMPTY_SECTION,
    Header,
    PoolTarget,
    databases_ini,
    parse_header,
    parse_section,
    pgbouncer_ini,
    server_tls,
    settings_of,
    userlist,
)

TARGET = PoolTarget("shop-1", "10.0.0.2", ("10.0.0.3", "10.0.0.1"), epoch=7, timeline=3)


def config(*databases: str, read_only_pool: bool = True) -> ClusterConfig:
    return ClusterConfig(
        name="shop",
        namespace="default",
        uid="u",
        instances=3,
        databases=tuple(DatabaseConfig(name=name, owner="app") for name in databases),
        read_only_pool=read_only_pool,
    )


def test_the_databases_section_of_a_cluster() -> None:
    assert (
        databases_ini(config("app"), TARGET)
        == """\
; pgcluster {"primary": "shop-1", "epoch": 7, "timeline": 3}
[databases]
app = host=10.0.0.2 port=5432
postgres = host=10.0.0.2 port=5432
app_ro = host=10.0.0.1,10.0.0.3 port=5432 dbname=app auth_dbname=postgres_ro
postgres_ro = host=10.0.0.1,10.0.0.3 port=5432 dbname=postgres auth_dbname=postgres_ro
* = host=10.0.0.2 port=5432
"""
    )


def test_it_is_the_same_whatever_the_order_of_what_it_is_made_from() -> None:
    other = PoolTarget("shop-1", "10.0.0.2", ("10.0.0.1", "10.0.0.3"), epoch=7, timeline=3)
    assert databases_ini(config("b", "a"), TARGET) == databases_ini(config("a", "b"), other)


def test_the_primary_is_never_read_from_as_a_standby() -> None:
    target = PoolTarget("shop-1", "10.0.0.2", ("10.0.0.2",), epoch=7, timeline=3)
    entry = parse_section(databases_ini(config("app"), target)).entry("app_ro")
    assert entry is not None
    assert (entry.host, entry.port) == ("127.0.0.1", 1)


def test_no_database_disappears_with_its_servers() -> None:
    with_servers = parse_section(databases_ini(config("app"), TARGET))
    without = parse_section(databases_ini(config("app"), None))
    assert [entry.name for entry in with_servers.entries] == [
        entry.name for entry in without.entries
    ]
    assert without.header is None
    assert without.primary_host is None
    # Port 5432 of the pod would be pgbouncer itself.
    assert {(entry.host, entry.port) for entry in without.entries} == {("127.0.0.1", 1)}


def test_names_that_pgbouncer_cannot_read_are_left_to_the_fallback() -> None:
    """A syntax error, or one name of 64 bytes, and it would load nothing at all."""
    odd = ('a"b', "a b", "a=b", "ünï", "*", "pgbouncer", "n" * 64, "a\nb", "[x]", "%include x", "")
    section = parse_section(databases_ini(config("app", "my-db", "v1.2", *odd), TARGET))
    named = {entry.name for entry in section.entries}
    assert named == {
        *("app", "my-db", "v1.2", "postgres"),
        *("app_ro", "my-db_ro", "v1.2_ro", "postgres_ro", "*"),
    }
    served = section.entry('a"b')
    assert served is not None
    assert served.host == "10.0.0.2"
    long = parse_section(databases_ini(config("n" * 62), TARGET))
    assert "n" * 62 in {entry.name for entry in long.entries}
    assert "n" * 62 + "_ro" not in {entry.name for entry in long.entries}


def test_a_declared_database_comes_before_a_read_only_twin_of_its_name() -> None:
    section = parse_section(databases_ini(config("app", "app_ro"), TARGET))
    entries = [entry for entry in section.entries if entry.name == "app_ro"]
    assert [(entry.host, entry.read_only) for entry in entries] == [("10.0.0.2", False)]


def test_a_cluster_without_a_read_only_pool_has_no_read_only_entries() -> None:
    section = parse_section(databases_ini(config("app", read_only_pool=False), TARGET))
    assert not any(entry.read_only for entry in section.entries)


@given(st.lists(st.text(max_size=80)), st.booleans())
def test_no_name_can_bring_in_an_entry_of_its_own(names: list[str], read_only: bool) -> None:
    text = databases_ini(config(*names, read_only_pool=read_only), TARGET)
    section = parse_section(text)
    assert section.header == Header("shop-1", 7, 3)
    allowed = {"*", "postgres", "postgres_ro", *names, *(name + "_ro" for name in names)}
    assert {entry.name for entry in section.entries} <= allowed
    assert {entry.host for entry in section.entries} <= {"10.0.0.2", "10.0.0.1,10.0.0.3"}
    # Every line is one that pgbouncer's parser reads: a name, and pairs without a quote.
    for line in text.splitlines()[2:]:
        assert re.fullmatch(r"(\*|[A-Za-z0-9_.-]{1,63}) = ( ?\w+=[\w.,:-]+)+", line, re.ASCII)


@given(st.text(alphabet=st.characters(exclude_characters="\n\r\0"), max_size=20))
def test_a_host_cannot_bring_in_a_setting(host: str) -> None:
    target = PoolTarget("shop-1", host or "x", (), epoch=1, timeline=1)
    entry = parse_section(databases_ini(config("app"), target)).entry("app")
    assert entry is not None
    assert entry.host == (host or "x")
    assert entry.dbname == "app"


@given(st.text(max_size=200))
def test_anything_may_be_read_as_a_section_without_harm(text: str) -> None:
    parse_header(text)
    try:
        section = parse_section(text)
    except ValueError:
        return
    assert any(entry.name == "*" for entry in section.entries)


def test_a_section_that_was_cut_off_is_not_read() -> None:
    text = databases_ini(config("app"), TARGET)
    for length in range(len(text)):
        with pytest.raises(ValueError, match=r"section|entry|connection|host|invalid"):
            parse_section(text[:length])


@pytest.mark.parametrize(
    "text",
    ["", "; pgcluster\n", "; pgcluster {}\n", "; pgcluster [1]\n", '; pgcluster {"epoch": 1'],
)
def test_a_header_that_is_not_ours_is_none(text: str) -> None:
    assert parse_header(text) is None


def test_the_section_to_start_with_can_be_read() -> None:
    section = parse_section(EMPTY_SECTION)
    assert section.header is None
    assert section.entry("anything") is not None


def test_the_settings_are_ours_the_users_and_what_the_operator_owns() -> None:
    text = pgbouncer_ini({"default_pool_size": "7", "auth_type": "any"}, pool_mode="session")
    settings = settings_of(text)
    assert settings["default_pool_size"] == "7"
    assert settings["auth_type"] == "scram-sha-256"
    assert settings["pool_mode"] == "session"
    assert settings["server_login_retry"] == "0.2"
    assert settings["tcp_user_timeout"] == "3000"
    assert settings["query_wait_timeout"] == "120"
    assert text.startswith("[pgbouncer]\n")
    assert text.endswith("\n%include /run/pgbouncer/databases.ini\n")
    assert list(settings) == sorted(settings)


def test_clients_must_encrypt_and_servers_must_be_instances() -> None:
    settings = settings_of(pgbouncer_ini({}, tls=TlsConfig()))
    assert settings["client_tls_sslmode"] == "require"
    assert settings["client_tls_protocols"] == "tlsv1.3"
    assert settings["client_tls_key_file"] == settings["client_tls_cert_file"]
    assert settings["server_tls_sslmode"] == "verify-ca"
    assert settings["server_tls_protocols"] == "tlsv1.3"
    assert server_tls(pgbouncer_ini({}, tls=TlsConfig())) == {
        "sslmode": "verify-ca",
        "sslrootcert": "/run/pgbouncer/server-ca.pem",
    }


def test_what_clients_may_do_is_settable_and_what_servers_must_is_not() -> None:
    tls = TlsConfig(min_version="1.2", clients="prefer")
    settings = settings_of(pgbouncer_ini({}, tls=tls))
    assert settings["client_tls_sslmode"] == "prefer"
    assert settings["client_tls_protocols"] == "tlsv1.2,tlsv1.3"
    assert settings["server_tls_protocols"] == "tlsv1.3"
    settings = settings_of(pgbouncer_ini({}, tls=TlsConfig(clients="disable")))
    assert settings["client_tls_sslmode"] == "disable"
    assert "client_tls_key_file" not in settings
    assert settings["server_tls_sslmode"] == "verify-ca"


def test_a_server_without_a_certificate_is_served_while_there_is_one() -> None:
    text = pgbouncer_ini({}, tls=TlsConfig(enforced=False))
    assert settings_of(text)["server_tls_sslmode"] == server_tls(text)["sslmode"] == "prefer"


def test_an_agent_of_before_is_given_settings_without_tls() -> None:
    text = pgbouncer_ini({})
    assert "tls" not in text
    assert server_tls(text) == server_tls(None) == {}


@pytest.mark.parametrize(
    "parameters",
    [
        {"stats_period": "60\n[databases]\nx = host=evil"},
        {"x = 1\nauth_type": "trust"},
        {"%include /etc/passwd": "1"},
        {"": "1"},
    ],
)
def test_no_setting_can_bring_in_a_line(parameters: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="pgbouncer"):
        pgbouncer_ini(parameters)


def test_a_password_may_have_any_character_but_a_line_break() -> None:
    assert userlist({"b": 'x"y', "a": "'; \\"}) == '"a" "\'; \\"\n"b" "x""y"\n'
    with pytest.raises(ValueError, match="line break"):
        userlist({"a": "x\ny"})


def test_certificates_are_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    mounted = tmp_path / "mounted"
    files = Files(tmp_path, tmp_path, mounted)
    assert not files.write_certificates(), "an operator that knows no TLS mounts none"
    mounted.mkdir()
    with pytest.raises(RetryError, match="not mounted"):
        files.write_certificates()
    made = issued()
    for key, text in made.items():
        (mounted / key).write_text(text)
    assert files.write_certificates()
    assert not files.write_certificates()
    pem = tmp_path / "tls.pem"
    assert pem.read_text() == made["tls.key"] + made["tls.crt"]
    assert pem.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "server-ca.pem").read_text() == made[names.SERVER_CA_KEY]
    (mounted / "tls.crt").write_text(issued()["tls.crt"])
    with pytest.raises(RetryError, match="cannot be used"):
        files.write_certificates()
    assert pem.read_text() == made["tls.key"] + made["tls.crt"], "of another key"
    assert not list(tmp_path.glob(".*"))


def issued() -> dict[str, str]:
    """What the poolers mount."""
    profiles = {"tls": Profile("shop", names.pool_hosts("shop", "test"))}
    made = plan({}, {}, profiles, cluster="shop", now=datetime(2026, 5, 1, tzinfo=UTC))
    return {**made.leaves["tls"], names.SERVER_CA_KEY: made.bundle}


def test_files_are_replaced_whole_and_readable_by_their_owner_only(tmp_path) -> None:  # type: ignore[no-untyped-def]
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    files = Files(tmp_path, secrets)
    assert not files.complete()
    assert files.databases() is None
    files.write_settings("x")
    files.write_databases("nonsense")
    assert files.databases() is None
    files.write_databases(databases_ini(config("app"), TARGET))
    read = files.databases()
    assert read is not None
    assert read.section.primary_host == "10.0.0.2"
    for key in ("auth-password", "admin-password", "stats-password"):
        (secrets / key).write_text(key)
    assert files.write_userlist()
    assert not files.write_userlist()
    assert files.complete()
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*.*")} == {0o600}
    assert not list(tmp_path.glob(".*"))
