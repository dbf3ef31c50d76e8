"""What was set up by hand for repmgr and pgbouncer is there, and right: S3 to S8 and S13 to S18."""

from __future__ import annotations

import re

import pytest

from pgcluster.api import names
from tests.e2e.cluster import Cluster
from tests.e2e.kubectl import Kubectl
from tests.e2e.toolbox import Toolbox
from tests.e2e.waiting import eventually


def settings(shop: Cluster, pod: str) -> dict[str, str]:
    return {row[0]: row[1] for row in shop.psql(pod, "SELECT name, setting FROM pg_settings")}


def test_replication_is_configured_for_the_number_of_instances(shop: Cluster) -> None:
    for pod in shop.instances():
        found = settings(shop, pod)
        assert found["wal_level"] == "replica"
        assert found["hot_standby"] == "on"
        assert found["archive_mode"] == "on"
        assert found["archive_command"] == "/bin/true"
        assert int(found["max_wal_senders"]) >= 2 * 3
        assert int(found["max_replication_slots"]) >= 2 * 3
        assert int(found["wal_keep_size"]) > 0
        assert found["wal_log_hints"] == "on"
        assert "repmgr" in found["shared_preload_libraries"]


def test_the_parameters_of_the_spec_are_merged(shop: Cluster) -> None:
    for pod in shop.instances():
        found = settings(shop, pod)
        assert found["max_connections"] == "150"
        assert found["work_mem"] == "8192"


def test_nobody_is_trusted_over_the_network(shop: Cluster, toolbox: Toolbox) -> None:
    rules = shop.psql(
        shop.instances()[0],
        "SELECT type, database, user_name, auth_method, error FROM pg_hba_file_rules",
    )
    assert rules
    assert not [rule for rule in rules if rule[4]], rules
    assert not [rule for rule in rules if rule[3] == "trust"], rules
    assert {rule[3] for rule in rules if rule[0] == "host"} == {"reject"}
    assert {rule[3] for rule in rules if rule[0] == "hostssl"} == {"scram-sha-256", "cert"}
    assert [rule for rule in rules if "reporting" in rule[2]], "the spec's own line is missing"
    host = f"{names.service_primary('shop')}"
    for user in ("postgres", names.ROLE_REPMGR, "app"):
        refused = toolbox.psql(
            f"postgresql://{user}:wrong@{host}/postgres", "SELECT 1", check=False
        )
        assert refused.returncode != 0


def test_passwords_are_kept_as_scram_verifiers(shop: Cluster) -> None:
    rows = shop.psql(
        shop.primary(), "SELECT rolname, left(rolpassword, 14) FROM pg_authid WHERE rolcanlogin"
    )
    for role, password in rows:
        assert password in ("SCRAM-SHA-256$", ""), role


def test_repmgr_has_its_role_its_database_and_a_file_with_a_stable_id(shop: Cluster) -> None:
    for pod in shop.instances():
        file = shop.exec(pod, "cat", "/etc/repmgr.conf").stdout
        found = dict(re.findall(r"^(\w+)\s*=\s*'(.*)'$", file, re.MULTILINE))
        assert found["node_id"] == str(names.node_id(pod))
        assert found["node_name"] == pod
        assert found["failover"] == "automatic"
        assert names.pod_host(pod, "shop", shop.kubectl.namespace) in found["conninfo"]
        assert "password=" not in found["conninfo"]
    assert (
        shop.value(
            shop.primary(),
            "SELECT extname FROM pg_extension WHERE extname = 'repmgr'",
            names.DB_REPMGR,
        )
        == "repmgr"
    )


def test_every_instance_is_registered_in_its_role(shop: Cluster) -> None:
    primary = shop.settled()
    rows = shop.psql(
        primary,
        "SELECT node_name, type, active, upstream_node_id FROM repmgr.nodes ORDER BY node_id",
        names.DB_REPMGR,
    )
    upstream = str(names.node_id(primary))
    assert rows == [
        [pod, "primary", "t", ""] if pod == primary else [pod, "standby", "t", upstream]
        for pod in shop.instances()
    ]


def test_each_standby_was_cloned_and_streams(shop: Cluster) -> None:
    primary = shop.primary()
    events = shop.psql(
        primary, "SELECT node_id, event FROM repmgr.events WHERE successful", names.DB_REPMGR
    )
    for pod in shop.instances():
        node = str(names.node_id(pod))
        kinds = {event for node_id, event in events if node_id == node}
        assert "primary_register" in kinds or {"standby_clone", "standby_register"} <= kinds, pod
    streaming = shop.psql(
        primary, "SELECT application_name, state FROM pg_stat_replication ORDER BY 1"
    )
    assert streaming == [[pod, "streaming"] for pod in shop.instances() if pod != primary]


@pytest.mark.parametrize(
    "command",
    [
        ("cluster", "show"),
        ("cluster", "event"),
        ("node", "status"),
        ("node", "check"),
        ("service", "status"),
    ],
    ids=" ".join,
)
def test_repmgr_commands_run_unchanged_in_every_pod(
    shop: Cluster, command: tuple[str, ...]
) -> None:
    shop.settled()
    for pod in shop.instances():
        result = shop.repmgr(pod, *command)
        assert result.returncode == 0, f"{pod}:\n{result.stdout}{result.stderr}"


def test_service_status_says_that_repmgrd_runs_everywhere_and_is_not_paused(shop: Cluster) -> None:
    # Node ID, name, type, preferred upstream, upstream, repmgrd running, pid, paused, …
    for pod in shop.instances():
        output = shop.repmgr(pod, "service", "status").stdout
        rows = [
            [cell.strip() for cell in line.split("|")]
            for line in output.splitlines()
            if re.match(r"\s*\d+\s*\|", line)
        ]
        assert len(rows) == 3, output
        for row in rows:
            assert "running" in row, output
            assert "not running" not in row, output
            assert "no" in row, output


def test_the_lines_of_repmgrd_reach_kubectl_logs(shop: Cluster) -> None:
    primary = shop.primary()
    for pod in shop.instances():
        expected = "monitoring cluster primary" if pod == primary else "monitoring connection to"
        eventually(
            lambda pod=pod, expected=expected: expected in shop.logs(pod),  # type: ignore[misc]
            within=20,
            what=f"repmgrd's line {expected!r} in the log of {pod}",
        )


def test_repmgr_events_are_kept_and_become_events_of_kubernetes(shop: Cluster) -> None:
    primary = shop.primary()
    kept = {
        row[0] for row in shop.psql(primary, "SELECT event FROM repmgr.events", names.DB_REPMGR)
    }
    assert {"primary_register", "standby_clone", "standby_register", "repmgrd_start"} <= kept

    def told() -> bool:
        texts = "\n".join(f"{event['reason']} {event['message']}" for event in shop.events())
        missing = [
            event for event in ("primary_register", "standby_register") if event not in texts
        ]
        assert not missing, f"{missing} not among the Events:\n{texts}"
        return True

    eventually(told, within=20)


def test_replication_slots_are_the_standbys(shop: Cluster) -> None:
    primary = shop.settled()
    slots = shop.psql(primary, "SELECT slot_name, active FROM pg_replication_slots ORDER BY 1")
    assert slots == [[names.slot(pod), "t"] for pod in shop.instances() if pod != primary]
    for pod in shop.instances():
        if pod != primary:
            assert shop.psql(pod, "SELECT slot_name FROM pg_replication_slots") == []


def test_status_and_metrics_tell_the_lag_of_each_standby(shop: Cluster) -> None:
    primary = shop.settled()
    rows = {row["pod"]: row for row in shop.status()["members"]}
    assert sorted(rows) == shop.instances()
    for pod, row in rows.items():
        assert row["timeline"] == shop.status()["timeline"]
        assert row["repmgrd"] is True
        metrics = shop.kubectl.http(pod, names.PORT_AGENT, "/metrics")
        if pod == primary:
            assert row["role"] == "primary"
        else:
            assert row["role"] == "standby"
            assert row["lagBytes"] <= 16 << 20
            assert re.search(r"^pgcluster_\w*lag_bytes(\{[^}]*\})? \d", metrics, re.MULTILINE), (
                metrics
            )


def test_pgbouncer_ini_has_the_shape_that_dbas_know(shop: Cluster) -> None:
    data = shop.kubectl.json("get", "configmap", names.config_map_pgbouncer("shop"))["data"]
    ini = data[names.PGBOUNCER_TLS_INI_KEY]
    assert re.search(r"^%include .*databases\.ini$", ini, re.MULTILINE)
    assert re.search(r"^pool_mode = transaction$", ini, re.MULTILINE)
    assert re.search(r"^auth_type = scram-sha-256$", ini, re.MULTILINE)
    assert re.search(r"^admin_users = ", ini, re.MULTILINE)
    assert re.search(r"^stats_users = ", ini, re.MULTILINE)
    assert re.search(r"^default_pool_size = 25$", ini, re.MULTILINE)
    assert re.search(r"^app\s*=\s*host=", data[names.DATABASES_KEY], re.MULTILINE)


def test_the_admin_and_the_stats_user_of_pgbouncer_may_do_what_they_may(
    shop: Cluster, toolbox: Toolbox
) -> None:
    passwords = shop.secret(names.secret_pooler("shop"))
    host = names.service_pool("shop")
    admin = f"postgresql://{names.PGBOUNCER_ADMIN}:{passwords['admin-password']}@{host}/pgbouncer"
    stats = f"postgresql://{names.PGBOUNCER_STATS}:{passwords['stats-password']}@{host}/pgbouncer"
    databases = toolbox.psql(admin, "SHOW DATABASES").stdout
    assert re.search(r"^app\|", databases, re.MULTILINE)
    assert toolbox.psql(stats, "SHOW STATS").stdout
    refused = toolbox.psql(stats, "PAUSE app", check=False)
    assert refused.returncode != 0
    assert "admin access" in refused.stderr


def test_declared_users_and_databases_can_be_used_through_the_pool(
    shop: Cluster, toolbox: Toolbox
) -> None:
    uri = "postgresql://reporting@shop/reports"
    password = shop.secret("reporting-login")["password"]
    answer = toolbox.shell(
        f"IFS= read -r PGPASSWORD; export PGPASSWORD; psql -X -At '{uri}' -c "
        "\"SELECT current_user, digest('x', 'sha256') IS NOT NULL\"",
        stdin=password + "\n",
    )
    assert answer.stdout.strip() == "reporting|t"
    owner = shop.value(
        shop.primary(),
        "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'reports'",
    )
    assert owner == "reporting"


def test_a_role_made_by_sql_logs_in_through_the_pool(shop: Cluster, toolbox: Toolbox) -> None:
    shop.psql(shop.primary(), "CREATE ROLE typed_by_hand LOGIN PASSWORD 'a word'")
    answer = toolbox.psql("postgresql://typed_by_hand:a%20word@shop/app", "SELECT current_user")
    assert answer.stdout.strip() == "typed_by_hand"
    wrong = toolbox.psql("postgresql://typed_by_hand:other@shop/app", "SELECT 1", check=False)
    assert wrong.returncode != 0
    shop.psql(shop.primary(), "DROP ROLE typed_by_hand")


def test_a_database_made_by_sql_is_reached_through_the_pool(
    shop: Cluster, toolbox: Toolbox
) -> None:
    shop.psql(shop.primary(), "CREATE DATABASE made_by_hand OWNER app")
    password = shop.secret(names.secret_app("shop"))["password"]
    uri = f"postgresql://app:{password}@shop/made_by_hand"
    assert toolbox.psql(uri, "SELECT current_database()").stdout.strip() == "made_by_hand"


def test_one_instance_runs_on_each_worker(shop: Cluster, system: Kubectl) -> None:
    workers = [
        node
        for node in system.objects("nodes")
        if "node-role.kubernetes.io/control-plane" not in node["metadata"]["labels"]
    ]
    used = {pod["spec"]["nodeName"] for pod in shop.pods()}
    assert len(used) == min(3, len(workers))
