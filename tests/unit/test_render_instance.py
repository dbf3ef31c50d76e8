"""postgresql.conf, pg_hba.conf, repmgr.conf of an instance."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig, TlsConfig
from pgcluster.render import postgres, repmgr

CONFIG = ClusterConfig(name="shop", namespace="prod", uid="u", instances=3)


def with_tls(**more: Any) -> ClusterConfig:
    """The same with certificates mounted."""
    return CONFIG.model_copy(update={"tls": TlsConfig(**more)})


ENCRYPTED = with_tls()


def settings(text: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z_]+) ?= ?'(.*)'$", text, re.MULTILINE))


def test_rendering_is_deterministic_and_sorted() -> None:
    text = postgres.postgresql_conf(CONFIG, instance="shop-0")
    assert text == postgres.postgresql_conf(CONFIG, instance="shop-0")
    assert text.splitlines() == sorted(text.splitlines())


def test_scaling_needs_no_restart_for_replication() -> None:
    many = CONFIG.model_copy(update={"instances": 9})
    for config in (many, CONFIG):
        rendered = settings(postgres.postgresql_conf(config, instance="shop-0"))
        assert rendered["max_wal_senders"] == "22"


def test_a_standby_holds_what_the_wal_demands_and_no_more() -> None:
    config = CONFIG.model_copy(update={"parameters": {"max_connections": "50"}})
    demanded = {"max_connections": 80, "max_worker_processes": 8, "max_prepared_transactions": 3}
    rendered = settings(postgres.postgresql_conf(config, instance="shop-1", floor=demanded))
    assert rendered["max_connections"] == "80"
    assert rendered["max_prepared_transactions"] == "3"
    assert "max_worker_processes" not in rendered
    lower = {**demanded, "max_connections": 20}
    rendered = settings(postgres.postgresql_conf(config, instance="shop-1", floor=lower))
    assert rendered["max_connections"] == "50"


def test_a_value_that_is_no_number_is_left_for_postgres_to_refuse() -> None:
    floor = {"max_connections": 80}
    assert postgres.raised({"max_connections": "many"}, floor) == {"max_connections": "many"}


def test_what_is_to_become_lower_is_told() -> None:
    running = {"max_connections": 80, "max_worker_processes": 8, "max_prepared_transactions": 0}
    assert postgres.lowering({"max_connections": "50"}, running) == ("max_connections",)
    assert postgres.lowering({"max_connections": "80"}, running) == ()
    # Taken away from the spec: PostgreSQL's own is what is left.
    assert postgres.lowering({}, {"max_worker_processes": 12}) == ("max_worker_processes",)


def test_the_users_parameters_win_over_defaults_but_not_over_what_the_operator_owns() -> None:
    config = CONFIG.model_copy(
        update={"parameters": {"max_connections": "222", "port": "1", "archive_mode": "off"}}
    )
    rendered = settings(postgres.postgresql_conf(config, instance="shop-1"))
    assert rendered["max_connections"] == "222"
    assert rendered["port"] == "5432"
    assert rendered["archive_mode"] == "on"
    assert rendered["cluster_name"] == "shop-1"


def test_repmgr_is_preloaded_before_the_users_libraries() -> None:
    config = CONFIG.model_copy(
        update={"parameters": {"shared_preload_libraries": "pg_stat_statements, repmgr"}}
    )
    assert postgres.preload_libraries(config) == "repmgr,pgcluster_fence,pg_stat_statements"
    assert postgres.preload_libraries(CONFIG) == "repmgr,pgcluster_fence"


@given(st.text(st.characters(exclude_characters="\n\r\0", codec="utf-8")))
def test_no_value_escapes_its_quotes(value: str) -> None:
    quoted = postgres.quote(value)
    inner = quoted[1:-1]
    assert quoted[0] == quoted[-1] == "'"
    assert inner.replace("''", "").count("'") == 0
    assert inner.replace("\\\\", "").count("\\") == 0
    assert inner.replace("''", "'").replace("\\\\", "\\") == value


def test_a_line_break_in_a_value_is_refused() -> None:
    with pytest.raises(ValueError, match="line break"):
        postgres.quote("on\nlisten_addresses = '*'")


def test_nobody_is_trusted_and_the_superuser_does_not_come_by_network() -> None:
    lines = postgres.pg_hba_conf(CONFIG).splitlines()
    assert not [line for line in lines if "trust" in line]
    hosts = [line.split() for line in lines if line.startswith("host")]
    assert hosts[0] == ["host", "all", "postgres", "all", "reject"]
    assert {words[-1] for words in hosts} <= {"scram-sha-256", "reject"}


def test_the_network_takes_tls_alone_and_instances_by_certificate_alone() -> None:
    lines = postgres.pg_hba_conf(ENCRYPTED).splitlines()
    plain = [line for line in lines if line.startswith("host ")]
    assert plain
    assert all(line.endswith(" reject") for line in plain)
    of_repmgr = [line for line in lines if f" {names.ROLE_REPMGR} " in line]
    assert {line.split()[-1] for line in of_repmgr if "hostssl" in line} == {"cert"}
    # The first that fits decides: what comes in clear text or elsewhere falls through to this.
    assert of_repmgr[-1] == f"host all {names.ROLE_REPMGR} all reject"
    assert lines[-1] == "hostssl all all all scram-sha-256"


@pytest.mark.parametrize(
    ("config", "last"),
    [
        (with_tls(enforced=False), "host"),
        (with_tls(clients="prefer"), "host"),
        (with_tls(clients="disable"), "host"),
        (with_tls(), "hostssl"),
    ],
)
def test_who_is_refused_in_clear_text(config: ClusterConfig, last: str) -> None:
    assert postgres.pg_hba_conf(config).splitlines()[-1] == f"{last} all all all scram-sha-256"


def test_an_agent_of_before_is_let_in_as_before_while_there_is_one() -> None:
    lines = postgres.pg_hba_conf(with_tls(enforced=False))
    assert lines == postgres.pg_hba_conf(CONFIG)


def test_tls_is_on_from_its_own_files_and_the_user_cannot_switch_it_off() -> None:
    config = ENCRYPTED.model_copy(update={"parameters": {"ssl": "off", "ssl_cert_file": "/x"}})
    rendered = settings(postgres.postgresql_conf(config, instance="shop-0"))
    assert rendered["ssl"] == "on"
    assert rendered["ssl_cert_file"] == rendered["ssl_key_file"] == names.SERVER_PEM
    assert rendered["ssl_ca_file"] == names.CA_PEM
    assert rendered["ssl_min_protocol_version"] == "TLSv1.3"
    lower = with_tls(min_version="1.2")
    rendered = settings(postgres.postgresql_conf(lower, instance="shop-0"))
    assert rendered["ssl_min_protocol_version"] == "TLSv1.2"


def test_the_users_lines_stand_behind_ours_and_before_the_last() -> None:
    config = CONFIG.model_copy(update={"hba": ("host sales all 10.0.0.0/8 scram-sha-256",)})
    lines = postgres.pg_hba_conf(config).splitlines()
    assert lines[-2] == "host sales all 10.0.0.0/8 scram-sha-256"
    assert lines.index(f"host all {names.ROLE_REPMGR} all reject") < len(lines) - 2


def test_the_superuser_comes_by_network_only_where_a_line_says_that_it_is_meant() -> None:
    line = "hostssl all postgres 10.0.0.1/32 cert"
    config = CONFIG.model_copy(update={"hba_superuser": (line,)})
    lines = postgres.pg_hba_conf(config).splitlines()
    assert lines.index(line) == lines.index("host all postgres all reject") - 1


def test_conninfo_carries_timeouts_and_no_password() -> None:
    text = repmgr.conninfo("shop-0.shop-nodes.prod.svc", CONFIG)
    assert "connect_timeout=2" in text
    assert "tcp_user_timeout=3000" in text
    assert "password" not in text


def test_an_instance_is_verified_by_its_name_and_asked_at_its_address() -> None:
    text = repmgr.conninfo("shop-0.shop-nodes.prod.svc", ENCRYPTED, address="10.0.0.7")
    parts = dict(part.split("=") for part in text.split())
    assert parts["sslmode"] == "verify-full"
    assert (parts["host"], parts["hostaddr"]) == ("shop-0.shop-nodes.prod.svc", "10.0.0.7")
    assert parts["sslcert"] == parts["sslkey"] == names.CLIENT_PEM
    assert parts["sslrootcert"] == names.CA_PEM


def test_nobody_is_verified_while_an_instance_has_no_certificate() -> None:
    assert "ssl" not in repmgr.conninfo("shop-0", with_tls(enforced=False))
    assert "ssl" not in repmgr.conninfo("shop-0", CONFIG)


def test_every_promotion_of_repmgr_goes_through_the_gate() -> None:
    rendered = settings(repmgr.repmgr_conf(CONFIG, instance="shop-2"))
    assert rendered["node_id"] == "3"
    assert rendered["node_name"] == "shop-2"
    assert rendered["failover_validation_command"] == f"{names.AGENT_CLIENT} gate"
    assert rendered["service_promote_command"] == f"{names.AGENT_CLIENT} promote"
    assert rendered["promote_command"].endswith("standby promote")
    # the event's details reach a shell unquoted: they are not passed on
    assert "%d" not in rendered["event_notification_command"]


def test_failover_can_be_switched_off() -> None:
    config = CONFIG.model_copy(
        update={"failover": CONFIG.failover.model_copy(update={"automatic": False})}
    )
    assert settings(repmgr.repmgr_conf(config, instance="shop-0"))["failover"] == "manual"


def test_the_hosts_file_names_each_instance_both_ways() -> None:
    text = repmgr.hosts_file({"10.0.0.2": ("shop-1.shop-nodes.prod.svc", "shop-1")})
    assert text == "10.0.0.2 shop-1.shop-nodes.prod.svc shop-1\n"


def test_the_password_file_escapes_what_libpq_would_split() -> None:
    assert repmgr.passfile("a:b\\c") == "*:*:*:repmgr:a\\:b\\\\c\n"


@pytest.mark.parametrize(
    ("room_gib", "own_volume", "expected"),
    [
        (None, False, ("1024MB", "512MB", None)),
        (1, False, ("256MB", "102MB", "256MB")),
        (100, False, ("1024MB", "512MB", "25600MB")),
        (100, True, ("1024MB", "512MB", "51200MB")),
    ],
)
def test_wal_is_bounded_by_the_volume_that_it_lives_on(
    room_gib: int | None, own_volume: bool, expected: tuple[str, str, str | None]
) -> None:
    config = CONFIG.model_copy(
        update={
            "wal_room_bytes": None if room_gib is None else room_gib << 30,
            "wal_volume": own_volume,
        }
    )
    rendered = settings(postgres.postgresql_conf(config, instance="shop-0"))
    assert (
        rendered["max_wal_size"],
        rendered["wal_keep_size"],
        rendered.get("max_slot_wal_keep_size"),
    ) == expected


def test_what_the_user_says_of_slots_wins() -> None:
    config = CONFIG.model_copy(
        update={"wal_room_bytes": 1 << 40, "max_slot_wal_keep_size_bytes": 64 << 20}
    )
    rendered = settings(postgres.postgresql_conf(config, instance="shop-0"))
    assert rendered["max_slot_wal_keep_size"] == "64MB"


def test_a_full_volume_wins_over_the_users_default_transaction_read_only() -> None:
    config = CONFIG.model_copy(update={"parameters": {"default_transaction_read_only": "off"}})
    lines = postgres.postgresql_conf(config, instance="shop-0").splitlines()
    included = next(n for n, line in enumerate(lines) if line.startswith("include_if_exists"))
    assert included > lines.index("default_transaction_read_only = 'off'")
