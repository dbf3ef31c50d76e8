"""One PgCluster under test: apply it, wait for it, look into it, hurt it."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pgcluster.api import names
from tests.e2e import processes
from tests.e2e.kubectl import Kubectl
from tests.e2e.waiting import eventually

# Generous: what is asserted is that it happens, what it took is reported.
READY_WITHIN_S = 180.0
POSTGRES = "postgres"


def manifest(name: str, **spec: Any) -> dict[str, Any]:
    """A PgCluster; without more it is the smallest one."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": names.KIND,
        "metadata": {"name": name},
        "spec": {"instances": 3, "storage": {"size": "1Gi"}, **spec},
    }


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One row of `repmgr cluster show --csv`: node id, reachable, in recovery."""

    node_id: int
    reachable: bool
    standby: bool


class Cluster:
    """The PgCluster `name` in the namespace of `kubectl`."""

    def __init__(self, kubectl: Kubectl, name: str) -> None:
        self.kubectl = kubectl
        self.name = name

    # --- life ---------------------------------------------------------------------------------
    def apply(self, document: Mapping[str, Any] | None = None) -> float:
        """Apply the manifest and wait until Ready; how long that took, in seconds."""
        started_s = time.monotonic()
        self.kubectl.apply(document or manifest(self.name))
        self.wait_ready()
        return time.monotonic() - started_s

    def wait_ready(self, *, within: float = READY_WITHIN_S) -> dict[str, Any]:
        """Wait until the status says Ready for the present generation; returns the status."""

        def ready() -> dict[str, Any]:
            document = self.get()
            status: dict[str, Any] = document.get("status", {})
            condition = self.condition("Ready", status)
            assert condition.get("status") == "True", describe(status)
            seen = condition.get("observedGeneration", status.get("observedGeneration"))
            assert seen == document["metadata"]["generation"], f"status is of generation {seen}"
            assert status.get("readyInstances") == status.get("instances"), describe(status)
            assert all(row["ready"] for row in status.get("poolers", [])), describe(status)
            return status

        return eventually(ready, within=within, what=f"PgCluster {self.name} is Ready")

    def condition_says(self, words: str, *, within: float = 60) -> float:
        """Wait until a condition of the present generation has these words (a pattern).

        Returns how long that took, in seconds.
        """
        started_s = time.monotonic()

        def told() -> bool:
            document = self.get()
            status = document.get("status", {})
            texts = [
                f"{c.get('reason', '')} {c.get('message', '')}"
                for c in status.get("conditions", [])
                if c.get("observedGeneration") == document["metadata"]["generation"]
            ]
            assert any(re.search(words, text) for text in texts), describe(status)
            return True

        eventually(told, within=within, what=f"a condition of {self.name} says {words!r}")
        return time.monotonic() - started_s

    def delete(self) -> None:
        """Delete the PgCluster and wait until everything it owned is gone."""
        self.kubectl.delete("pgcluster", self.name)
        eventually(lambda: not self.owned("pods"), within=150, what=f"pods of {self.name} are gone")

    # --- what Kubernetes says -----------------------------------------------------------------
    def get(self) -> dict[str, Any]:
        """The PgCluster itself."""
        return self.kubectl.json("get", "pgcluster", self.name)

    def status(self) -> dict[str, Any]:
        """Its status."""
        status: dict[str, Any] = self.get().get("status", {})
        return status

    def condition(self, kind: str, status: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """One condition of the status; empty where there is none."""
        conditions = (self.status() if status is None else status).get("conditions", [])
        found: list[dict[str, Any]] = [c for c in conditions if c["type"] == kind]
        return found[0] if found else {}

    def owned(self, kind: str) -> list[dict[str, Any]]:
        """Objects of a kind that carry this cluster's label."""
        return self.kubectl.objects(kind, labels=f"{names.LABEL_CLUSTER}={self.name}")

    def pods(self, component: str = names.COMPONENT_POSTGRES) -> list[dict[str, Any]]:
        """Its postgres pods, or its pgbouncer pods, by name."""
        selector = f"{names.LABEL_CLUSTER}={self.name},{names.LABEL_COMPONENT}={component}"
        found = self.kubectl.objects("pods", labels=selector)
        return sorted(found, key=lambda pod: str(pod["metadata"]["name"]))

    def instances(self) -> list[str]:
        """Names of its postgres pods."""
        return [pod["metadata"]["name"] for pod in self.pods()]

    def poolers(self) -> list[str]:
        """Names of its pgbouncer pods that are not on their way out."""
        return [
            pod["metadata"]["name"]
            for pod in self.pods(names.COMPONENT_PGBOUNCER)
            if "deletionTimestamp" not in pod["metadata"]
        ]

    def restarts(self) -> dict[str, int]:
        """Container restarts of all its pods."""
        return {
            f"{pod['metadata']['name']}/{container['name']}": container["restartCount"]
            for component in (names.COMPONENT_POSTGRES, names.COMPONENT_PGBOUNCER)
            for pod in self.pods(component)
            for container in [
                *pod["status"].get("initContainerStatuses", []),
                *pod["status"].get("containerStatuses", []),
            ]
        }

    def pod(self, name: str) -> dict[str, Any]:
        """One pod."""
        return self.kubectl.json("get", "pod", name)

    def node_of(self, pod: str) -> str:
        """The node that a pod runs on."""
        return str(self.pod(pod)["spec"]["nodeName"])

    def address_of(self, pod: str) -> str:
        """A pod's address."""
        return str(self.pod(pod)["status"]["podIP"])

    def holder(self) -> str:
        """Who holds the Lease, by its name in it; empty where it was released."""
        lease = self.kubectl.json("get", "lease", names.primary_lease(self.name))
        return str(lease["spec"].get("holderIdentity") or "")

    def secret(self, name: str) -> dict[str, str]:
        """A Secret's values as text."""
        data = self.kubectl.json("get", "secret", name)["data"]
        return {key: base64.b64decode(value).decode() for key, value in data.items()}

    def logs(self, pod: str, *, container: str | None = None, since: str | None = None) -> str:
        """Log of a pod's containers; `since` is an RFC 3339 time."""
        arguments = ["logs", pod, *(["-c", container] if container else ["--all-containers"])]
        if since:
            arguments.append(f"--since-time={since}")
        return self.kubectl.run(*arguments)

    def events(self) -> list[dict[str, Any]]:
        """Kubernetes Events about the PgCluster."""
        return [
            event
            for event in self.kubectl.objects("events")
            if event["involvedObject"]["kind"] == names.KIND
            and event["involvedObject"]["name"] == self.name
        ]

    # --- what PostgreSQL says -----------------------------------------------------------------
    def psql(self, pod: str, sql: str, database: str = "postgres") -> list[list[str]]:
        """Rows of a query, as the superuser over the pod's own socket."""
        command = ["psql", "-X", "-q", "-h", names.PG_SOCKET_DIR, "-U", "postgres"]
        command += ["-v", "ON_ERROR_STOP=1", "--csv", "-t", "-d", database, "-c", sql]
        output = self.exec(pod, *command).stdout
        return list(csv.reader(io.StringIO(output)))

    def value(self, pod: str, sql: str, database: str = "postgres") -> str:
        """The single value of a query."""
        return self.psql(pod, sql, database)[0][0]

    def exec(self, pod: str, *command: str, check: bool = True, timeout_s: float = 60.0) -> Any:
        """A command in a pod's postgres container."""
        return self.kubectl.exec(
            pod, *command, container=POSTGRES, check=check, timeout_s=timeout_s
        )

    def repmgr(self, pod: str, *arguments: str) -> Any:
        """A repmgr command, typed as in a shell of the pod; with its exit status."""
        return self.exec(pod, "repmgr", *arguments, check=False)

    def cluster_show(self, pod: str) -> list[NodeRow]:
        """What `repmgr cluster show` says in one pod."""
        result = self.repmgr(pod, "cluster", "show", "--csv", "--terse")
        assert result.returncode == 0, f"{pod}: {result.stdout}{result.stderr}"
        return [
            NodeRow(int(row[0]), row[1] == "0", row[2] == "1")
            for row in csv.reader(io.StringIO(result.stdout))
        ]

    def serves_as_primary(self, pod: str) -> bool:
        """Whether an instance accepts writes, by its own word; asks no other instance."""
        return self.value(pod, "SELECT pg_is_in_recovery()") == "f"

    def primary(self) -> str:
        """The instance that is a primary by its own word; fails unless it is exactly one."""
        answers = {
            pod: self.exec(
                pod,
                *("psql", "-X", "-At", "-h", names.PG_SOCKET_DIR, "-U", "postgres"),
                *("-c", "SELECT pg_is_in_recovery()"),
                check=False,
            ).stdout.strip()
            for pod in self.instances()
        }
        primaries = [pod for pod, answer in answers.items() if answer == "f"]
        assert len(primaries) == 1, f"primaries: {primaries}, answers: {answers}"
        return primaries[0]

    # --- what is always true ------------------------------------------------------------------
    def settled(self, *, within: float = READY_WITHIN_S) -> str:
        """Wait until Ready, and repmgr says the same, and right, in every pod; the primary."""
        self.wait_ready(within=within)

        def told() -> str:
            primary = self._same_everywhere()
            status = self.status()
            assert status["primary"] == primary, describe(status)
            return primary

        return eventually(told, within=within, what="repmgr and status agree")

    def agreed(self, *, within: float = READY_WITHIN_S) -> str:
        """As `settled`, without the status, which nobody keeps while the operator is away."""
        return eventually(self._same_everywhere, within=within, what="repmgr and Lease agree")

    def _same_everywhere(self) -> str:
        primary = self.primary()
        pods = self.instances()
        right = {
            NodeRow(names.node_id(pod), reachable=True, standby=pod != primary) for pod in pods
        }
        for pod in pods:
            seen = self.cluster_show(pod)
            assert set(seen) == right, f"repmgr in {pod}: {seen}, expected {right}"
        assert self.holder() == primary
        return primary

    # --- what a test does to it ---------------------------------------------------------------
    def change(self, spec: Mapping[str, Any]) -> None:
        """Merge something into the spec and wait until it is seen to and all is Ready."""
        self.kubectl.patch("pgcluster", self.name, {"spec": spec})
        self.wait_ready()

    def kill_postmaster(self, pod: str) -> None:
        """kill -9 of the postmaster, as the kernel would when memory runs out."""
        self.exec(pod, "sh", "-c", f"kill -9 $(head -n 1 {names.PGDATA}/postmaster.pid)")

    def kill_container(self, pod: str, container: str = POSTGRES) -> None:
        """kill -9 of a container's first process, from its node: all of it is gone at once."""
        processes.containers(self.pod(pod))[container].signal("KILL")

    def delete_pod(self, pod: str, *, force: bool = False) -> None:
        """Delete a pod, with its grace or with none, and do not wait for its end."""
        more = ["--grace-period=0", "--force"] if force else []
        self.kubectl.run("delete", "pod", pod, "--wait=false", *more)


def describe(status: Mapping[str, Any]) -> str:
    """A status in a few lines, for a failure's history."""
    conditions = [
        f"{c['type']}={c['status']} {c.get('reason', '')}: {c.get('message', '')}"
        for c in status.get("conditions", [])
    ]
    rows = [
        " ".join(
            str(row.get(key))
            for key in ("pod", "role", "state", "ready", "timeline", "lagBytes", "reason")
        )
        for row in status.get("members", [])
    ]
    poolers = [json.dumps(row) for row in status.get("poolers", [])]
    return " | ".join([str(status.get("summary")), *conditions, *rows, *poolers])
