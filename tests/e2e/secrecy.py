"""Where a secret could show that is none of the places for it, and looking for it there."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from urllib.parse import quote

from pgcluster.api import names
from tests.e2e.cluster import Cluster
from tests.e2e.kubectl import Kubectl

# Everything of a namespace that may be read without the right to read Secrets.
_OBJECTS = (
    "pgclusters,configmaps,events,pods,statefulsets,deployments,replicasets,controllerrevisions,"
    "services,endpointslices,leases,serviceaccounts,roles,rolebindings,poddisruptionbudgets,"
    "networkpolicies,persistentvolumeclaims"
)
_PYTHON = "/opt/pgcluster/bin/python"
# Environment and arguments of every process of a container.
_PROCESSES = """
import glob
for path in sorted(glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline")):
    try:
        text = open(path, "rb").read().decode(errors="replace")
    except OSError:
        continue
    print(path, text.replace(chr(0), chr(10)))
"""
_FILES = (
    names.POSTGRESQL_CONF,
    names.PG_HBA_CONF,
    names.REPMGR_CONF,
    f"{names.PGDATA}/postgresql.auto.conf",
)
_KEY_BODY = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\s+(\S+)")


def secrets_of(cluster: Cluster, *others: str) -> dict[str, str]:
    """Every password and private key of a cluster, and of the Secrets `others`, by where it is."""
    found = {}
    owned = [
        item["metadata"]["name"]
        for item in cluster.kubectl.objects("secrets")
        if any(
            owner["name"] == cluster.name for owner in item["metadata"].get("ownerReferences", ())
        )
    ]
    for secret in (*owned, *others):
        for key, value in cluster.secret(secret).items():
            if "password" in key:
                found[f"{secret}/{key}"] = value
            elif matched := _KEY_BODY.search(value):
                found[f"{secret}/{key}"] = matched[1]
    return found


def shown(text: str, secret: str) -> bool:
    """Whether a text has a secret in it, in any of the forms that it takes on its way."""
    forms = {
        secret,
        json.dumps(secret)[1:-1],
        json.dumps(json.dumps(secret)[1:-1])[1:-1],
        quote(secret, safe=""),
        base64.b64encode(secret.encode()).decode(),
        secret.replace("'", "''"),
    }
    return any(form in text for form in forms)


def public_places(cluster: Cluster, system: Kubectl) -> Iterator[tuple[str, str]]:
    """What anybody may read who may read no Secret, by where it is."""
    yield "objects", cluster.kubectl.run("get", _OBJECTS, "-o", "json", timeout_s=120)
    pods = [*cluster.pods(), *cluster.pods(names.COMPONENT_PGBOUNCER)]
    yield from _of_pods(cluster.kubectl, [pod["metadata"]["name"] for pod in pods])
    operator = system.objects("pods", labels="app.kubernetes.io/name=pgcluster-operator")
    yield from _of_pods(system, [pod["metadata"]["name"] for pod in operator])
    for pod in cluster.instances():
        for path in _FILES:
            yield f"{pod}:{path}", str(cluster.exec(pod, "cat", path, check=False).stdout)
    primary = cluster.primary()
    nodes = cluster.psql(primary, "SELECT conninfo FROM repmgr.nodes", names.DB_REPMGR)
    yield f"{primary}: repmgr.nodes", json.dumps(nodes)
    activity = cluster.psql(primary, "SELECT query FROM pg_stat_activity")
    yield f"{primary}: pg_stat_activity", json.dumps(activity)


def _of_pods(kubectl: Kubectl, pods: list[str]) -> Iterator[tuple[str, str]]:
    for name in pods:
        pod = kubectl.json("get", "pod", name)
        spec, status = pod["spec"], pod["status"]
        restarts = {
            row["name"]: row["restartCount"]
            for field in ("initContainerStatuses", "containerStatuses")
            for row in status.get(field, ())
        }
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            where = f"{name}/{container['name']}"
            log = ("logs", name, "-c", container["name"])
            yield f"log of {where}", kubectl.run(*log, timeout_s=120)
            if restarts.get(container["name"]):
                yield f"former log of {where}", kubectl.run(*log, "--previous", check=False)
            processes = kubectl.exec(
                name, _PYTHON, "-c", _PROCESSES, container=container["name"]
            ).stdout
            assert "/cmdline" in processes, f"no process of {where} can be seen"
            yield f"processes of {where}", processes


def tokens_of(cluster: Cluster) -> dict[str, str]:
    """The tokens by which the agents are known to the API server."""
    path = "/var/run/secrets/kubernetes.io/serviceaccount/token"
    found = {
        f"token of {pod}": cluster.exec(pod, "cat", path).stdout for pod in cluster.instances()
    }
    for pod in cluster.poolers():
        answer = cluster.kubectl.exec(pod, "cat", path, container="agent")
        found[f"token of {pod}"] = answer.stdout
    return found
