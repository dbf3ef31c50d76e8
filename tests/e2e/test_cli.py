"""`kubectl pgcluster` on a real cluster: what only looks, and what runs in the pods."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from base64 import b64decode
from pathlib import Path

from pgcluster.api import names
from tests.e2e.cluster import Cluster
from tests.e2e.kubectl import find_kubeconfig, find_program
from tests.e2e.report import Report


def plugin(shop: Cluster, name: str, *arguments: str, status: int = 0) -> str:
    path = f"{Path(find_program()).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        (
            *(sys.executable, "-m", "pgcluster.cli.kubectl"),
            *("--namespace", shop.kubectl.namespace, name, *arguments),
        ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "KUBECONFIG": find_kubeconfig(), "PATH": path},
        check=False,
    )
    assert done.returncode == status, done
    return done.stdout + done.stderr


def test_looking_shows_one_cluster_all_of_them_and_what_happened(
    shop: Cluster, report: Report
) -> None:
    primary = shop.settled()
    started_s = time.monotonic()
    told = plugin(shop, "status", shop.name)
    report.measured("kubectl pgcluster status", time.monotonic() - started_s, "s")
    assert f"{shop.kubectl.namespace}/{shop.name}  Ready" in told
    for pod in shop.instances():
        assert pod in told
    document = json.loads(plugin(shop, "status", shop.name, "-o", "json"))
    assert document["status"]["primary"] == primary
    assert shop.name in plugin(shop, "list")
    assert "REASON" in plugin(shop, "events", shop.name)
    assert "operator " in plugin(shop, "version")
    assert "there is no PgCluster nosuch" in plugin(shop, "status", "nosuch", status=1)


def test_psql_repmgr_and_logs_reach_into_the_pods(shop: Cluster) -> None:
    primary = shop.settled()
    question = ("--", "-X", "-At", "-c", "SELECT current_setting('cluster_name')")
    assert plugin(shop, "psql", shop.name, *question).strip() == primary
    assert plugin(shop, "psql", shop.name, "--standby", *question).strip() != primary
    # psql's own status comes through.
    plugin(
        shop, "psql", shop.name, "--", "-X", "-c", "SELECT 1/0", "-v", "ON_ERROR_STOP=1", status=1
    )
    told = plugin(shop, "repmgr", shop.name, "--", "cluster", "show", "--csv")
    assert len(told.strip().splitlines()) == len(shop.instances())
    lines = plugin(shop, "logs", shop.name, "--tail", "20", "--raw").splitlines()
    assert lines == sorted(lines, key=lambda line: line.split()[0])
    assert len({line.split()[1] for line in lines}) > len(shop.instances()), "poolers, too"


def test_a_report_reaches_every_pod_and_has_no_secret(
    shop: Cluster, tmp_path: Path, report: Report
) -> None:
    shop.settled()
    path = tmp_path / "report.tar.gz"
    started_s = time.monotonic()
    told = plugin(shop, "report", shop.name, "--file", str(path), "--tail", "500")
    report.measured("kubectl pgcluster report", time.monotonic() - started_s, "s")
    files: dict[str, str] = {}
    with tarfile.open(path) as archive:
        for entry in archive.getmembers():
            file = archive.extractfile(entry)
            assert file is not None
            files[entry.name.partition("/")[2]] = file.read().decode()
    for pod in shop.instances():
        assert "running" in files[f"instances/{pod}/repmgr-cluster-show.txt"], told
        assert "Latest checkpoint" in files[f"instances/{pod}/pg_controldata.txt"]
        assert "pg_stat_replication" in files[f"instances/{pod}/postgres.txt"]
        assert files[f"logs/{pod}/postgres.log"]
    poolers = [text for name, text in files.items() if name.startswith("poolers/")]
    assert poolers
    assert all("--- SHOW POOLS" in text for text in poolers)
    assert any(name.startswith("nodes/") for name in files)
    assert any(name.endswith("operator.log") for name in files), sorted(files)
    secrets = shop.kubectl.json("get", "secrets", "-l", f"{names.LABEL_CLUSTER}={shop.name}")[
        "items"
    ]
    values = {
        b64decode(value).decode()
        for secret in secrets
        for key, value in secret.get("data", {}).items()
        if "password" in key or key.endswith(".key")
    }
    assert values
    for name, text in files.items():
        assert not any(value in text for value in values), name


def test_a_reload_takes_effect_everywhere_and_the_history_can_be_drawn(shop: Cluster) -> None:
    shop.settled()
    told = plugin(shop, "reload", shop.name)
    for pod in shop.instances():
        assert f"{pod}: reloaded" in told
    assert told.count("reloaded") > len(shop.instances()), "poolers, too"
    assert plugin(shop, "failovers", shop.name, "--svg").startswith("<svg")
    assert shop.name in plugin(shop, "failovers", shop.name)
