"""`kubectl pgcluster` on a real cluster: what only looks, and what runs in the pods."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

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
