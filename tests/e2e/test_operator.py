"""The operator in mid-life: it may go and come, and costs little."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pgcluster.api import names
from tests.e2e.cluster import Cluster
from tests.e2e.kubectl import Kubectl
from tests.e2e.report import Report
from tests.e2e.waiting import eventually, measured_over, stays

IMAGES = ("PGCLUSTER_POSTGRES_IMAGES", "PGCLUSTER_PGBOUNCER_IMAGE")
# Owned kinds whose objects nobody has a reason to touch while nothing happens.
KINDS = (
    "statefulsets,deployments,services,configmaps,secrets,serviceaccounts,roles,rolebindings,"
    "poddisruptionbudgets,pods"
)
# Per process: resident KiB, ticks of processor time, command line.
PROCESSES = """
import glob, json, os
found = []
for path in glob.glob("/proc/[0-9]*"):
    try:
        command = open(path + "/cmdline").read().replace(chr(0), " ").strip()
        status = dict(line.split(":", 1) for line in open(path + "/status") if ":" in line)
        fields = open(path + "/stat").read().rpartition(")")[2].split()
    except OSError:
        continue
    ticks = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    kib = int(status.get("VmRSS", "0 kB").split()[0])
    found.append({"command": command, "kib": kib, "cpu_s": ticks})
print(json.dumps(found))
"""


def versions(shop: Cluster) -> dict[str, str]:
    """resourceVersion of the PgCluster and of everything it owns."""
    items = [*shop.owned(KINDS), shop.get()]
    return {
        f"{item['kind']}/{item['metadata']['name']}": item["metadata"]["resourceVersion"]
        for item in items
    }


def process(kubectl: Kubectl, pod: str, container: str, program: str) -> dict[str, Any]:
    """The one process of a container whose command line has `program` in it."""
    command = ("/opt/pgcluster/bin/python", "-c", PROCESSES)
    output = kubectl.exec(pod, *command, container=container).stdout
    found: list[dict[str, Any]] = [
        entry
        for entry in json.loads(output)
        # catatonit stands above the agent and has its command line as arguments.
        if program in entry["command"] and "catatonit" not in entry["command"].split()[0]
    ]
    assert len(found) == 1, f"{pod}: {found}"
    return found[0]


def test_at_rest_nothing_is_written(shop: Cluster) -> None:
    shop.settled()
    eventually(lambda: (before := versions(shop)) and versions(shop) == before, within=30)
    before = versions(shop)
    stays(lambda: versions(shop) == before, for_s=20, every=5)


@pytest.mark.disturbs
def test_an_upgrade_of_the_operator_touches_nothing(shop: Cluster, system: Kubectl) -> None:
    """A34: it restarts with other images for new clusters, and back."""
    shop.settled()
    before, restarts, poolers = _owned(shop), shop.restarts(), shop.poolers()
    secret = shop.secret(names.secret_app("shop"))
    mark = _now(shop, poolers[0])
    deployment = system.json("get", "deployment", "pgcluster-operator")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    environment = {row["name"]: row.get("value") for row in container["env"]}
    newer = {name: str(environment[name]).replace("0.1.0", "0.1.1") for name in IMAGES}
    try:
        _upgraded(system, newer)
        shop.condition_says("RolloutPending .*0.1.1.*restarts nobody", within=30)
        stays(lambda: _different(before, _owned(shop)), for_s=20, every=4)
    finally:
        _upgraded(system, {name: str(environment[name]) for name in IMAGES})
    assert shop.restarts() == restarts
    assert shop.secret(names.secret_app("shop")) == secret
    for pooler in poolers:
        assert "RELOAD" not in shop.logs(pooler, since=mark)
    assert _different(before, _owned(shop))


def _owned(shop: Cluster) -> dict[str, str]:
    """All but the PgCluster, whose status says that there is a newer image."""
    return {key: found for key, found in versions(shop).items() if not key.startswith("PgCluster/")}


def _upgraded(system: Kubectl, environment: dict[str, str]) -> None:
    leader = _leader(system)
    values = [f"{name}={value}" for name, value in environment.items()]
    system.run("set", "env", "deployment/pgcluster-operator", *values)
    system.run(
        "rollout", "status", "deployment/pgcluster-operator", "--timeout=150s", timeout_s=160
    )
    eventually(lambda: _leader(system) not in ("", leader), within=60, what="another leader")


def _different(before: dict[str, str], after: dict[str, str]) -> bool:
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert not changed, f"written: {sorted(changed)}"
    return True


def _leader(system: Kubectl) -> str:
    leases = system.objects("leases")
    holders = [str(lease["spec"].get("holderIdentity") or "") for lease in leases]
    return next((holder for holder in holders if holder), "")


def _now(shop: Cluster, pooler: str) -> str:
    command = "from datetime import *; print(datetime.now(timezone.utc).strftime('%FT%TZ'))"
    return str(
        shop.kubectl.exec(
            pooler, "/opt/pgcluster/bin/python", "-c", command, container="agent"
        ).stdout.strip()
    )


def test_the_operator_is_small(shop: Cluster, system: Kubectl, report: Report) -> None:
    shop.settled()
    pods = [
        pod["metadata"]["name"]
        for pod in system.objects("pods")
        if pod["metadata"]["name"].startswith("pgcluster-operator")
    ]
    assert len(pods) == 2
    for pod in pods:
        mib = process(system, pod, "operator", "pgcluster-operator")["kib"] / 1024
        report.measured("operator: resident memory", mib, "MiB")
        assert mib <= 150


def test_an_agent_is_small_and_idle(shop: Cluster, report: Report) -> None:
    shop.settled()
    agents = [(pod, "postgres", "pgcluster-node") for pod in shop.instances()]
    agents += [(pod, "agent", "pgcluster-pooler") for pod in shop.poolers()]

    def sample() -> dict[str, float]:
        return {pod: process(shop.kubectl, pod, c, p)["cpu_s"] for pod, c, p in agents}

    busy = measured_over(sample, 20)
    for pod, container, program in agents:
        mib = process(shop.kubectl, pod, container, program)["kib"] / 1024
        report.measured(f"{program}: resident memory", mib, "MiB")
        report.measured(f"{program}: of a core, idle", 100 * busy[pod], "%")
        assert mib <= 80, pod
        assert busy[pod] < 0.05, f"{pod} uses {100 * busy[pod]:.1f} % of a core at rest"
