"""The observers, as pods: applications that count their errors, a watcher for two primaries.

They run on the control plane's node, where no fault of the suite reaches them, but for a client
that is to be lost with a node.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pgcluster.api import names
from tests.e2e.cluster import Cluster
from tests.e2e.waiting import eventually

_SCRIPTS = Path(__file__).parent / "observers"
_PORT = 8000
_PYTHON = "/opt/pgcluster/bin/python"
_OBSERVER_UID = 65532
HOSTNAME = "kubernetes.io/hostname"
CONTROL_PLANE = "node-role.kubernetes.io/control-plane"


class Observer:
    """A script of observers/ in a pod of its own, asked over HTTP."""

    kind: str

    def __init__(
        self, cluster: Cluster, image: str, environment: dict[str, str], *, node: str | None = None
    ) -> None:
        self.cluster = cluster
        self.kubectl = cluster.kubectl
        self.node = node
        self.pod = f"{self.kind}-{node or cluster.name}"
        self.kubectl.apply(*self._manifests(image, environment))
        eventually(self._ready, within=60, what=f"observer {self.pod} is at work")

    def mark(self) -> str:
        """Remember this moment; the name to ask `since` it."""
        name = secrets.token_hex(4)
        self.ask(f"/mark?name={name}")
        return name

    def stats(self, since: str | None = None) -> dict[str, Any]:
        """What was seen since the mark."""
        return self.ask("/stats" + (f"?since={quote(since)}" if since else ""))

    def ask(self, path: str, *, timeout_s: float = 60.0) -> dict[str, Any]:
        """GET from the observer."""
        text = self.kubectl.http(self.pod, _PORT, path, timeout_s=timeout_s)
        answer: dict[str, Any] = json.loads(text)
        return answer

    def stop(self) -> None:
        """Take the pod away."""
        self.kubectl.delete("pod", self.pod, "--grace-period=1")

    def _ready(self) -> bool:
        pod = self.kubectl.get("pod", self.pod)
        assert pod is not None
        conditions = pod["status"].get("conditions", [])
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
        assert ready, self.kubectl.run("logs", self.pod, "--tail=3", check=False)
        return True

    def _manifests(self, image: str, environment: dict[str, str]) -> list[dict[str, Any]]:
        script = _SCRIPTS / f"{self.kind}.py"
        app = names.secret_app(self.cluster.name)
        variables: list[dict[str, Any]] = [
            {"name": name, "value": value} for name, value in environment.items()
        ]
        variables += [
            {"name": name, "valueFrom": {"secretKeyRef": {"name": app, "key": key}}}
            for name, key in (
                ("PGUSER", "username"),
                ("PGPASSWORD", "password"),
                ("PGDATABASE", "dbname"),
            )
        ]
        config = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": self.pod},
            "data": {script.name: script.read_text()},
        }
        container = {
            "name": self.kind,
            "image": image,
            "command": [_PYTHON, "-u", f"/observer/{script.name}"],
            "env": variables,
            "ports": [{"containerPort": _PORT}],
            "readinessProbe": {
                "httpGet": {"path": "/healthz", "port": _PORT},
                "periodSeconds": 1,
            },
            "volumeMounts": [{"name": "script", "mountPath": "/observer"}],
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            },
        }
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.pod, "labels": {"e2e": "observer"}},
            "spec": {
                "restartPolicy": "Never",
                "serviceAccountName": self.service_account,
                "nodeSelector": {HOSTNAME: self.node} if self.node else {CONTROL_PLANE: ""},
                "tolerations": [{"operator": "Exists"}],
                "terminationGracePeriodSeconds": 1,
                "securityContext": restricted(_OBSERVER_UID),
                "containers": [container],
                "volumes": [{"name": "script", "configMap": {"name": self.pod}}],
            },
        }
        return [config, *self._rights(), pod]

    service_account = "default"

    def _rights(self) -> list[dict[str, Any]]:
        return []


class Client(Observer):
    """Eight writers through the pool, or straight to the server `host`; on `node` if it is told."""

    kind = "client"

    def __init__(
        self,
        cluster: Cluster,
        image: str,
        *,
        writers: int = 8,
        rate_per_writer: float = 50,
        host: str | None = None,
        node: str | None = None,
        lifetime_s: float = 0.0,
    ) -> None:
        namespace = cluster.kubectl.namespace
        # Rows that earlier faults may have cost, where replication is asynchronous.
        self.lost_before = 0
        super().__init__(
            cluster,
            image,
            {
                "POOL_HOST": host or f"{names.service_pool(cluster.name)}.{namespace}.svc",
                "PRIMARY_HOST": f"{names.service_primary(cluster.name)}.{namespace}.svc",
                "WRITERS": str(writers),
                "RATE_PER_WRITER": str(rate_per_writer),
                # How long a connection is used; 0: as long as it works.
                "LIFETIME_S": str(lifetime_s),
            },
            node=node,
        )

    def verified(self) -> dict[str, Any]:
        """How many acknowledged rows the primary has, and which it lacks."""
        # After an outage of the API server the Service that it asks by is itself late.
        return self.ask("/verify", timeout_s=200)

    def assert_nothing_lost(self) -> dict[str, Any]:
        """Every acknowledged row is on the primary, once."""
        found = self.verified()
        assert found["acknowledged"] > 0, found
        assert found["lost"] == 0, f"acknowledged rows are missing: {found}"
        assert found["doubled"] == 0, f"rows are there twice: {found}"
        return found

    def writes_again(self, mark: str, *, within: float) -> dict[str, Any]:
        """Wait until every writer is through the fault: all of them wrote in the last second."""

        def flowing() -> dict[str, Any]:
            since = self.mark()
            eventually(
                lambda: self.stats(since)["acknowledged"] >= 8,
                within=within,
                every=0.2,
                what="the application writes",
            )
            now = self.stats(since)
            assert now["errors"] == 0, now["errors_by_text"]
            return self.stats(mark)

        return eventually(flowing, within=within, what="the application writes without errors")


class Reader(Observer):
    """Two readers through the read-only pool."""

    kind = "reader"

    def __init__(self, cluster: Cluster, image: str) -> None:
        service = names.service_read_only(cluster.name)
        host = f"{service}.{cluster.kubectl.namespace}.svc"
        super().__init__(cluster, image, {"POOL_HOST": host})


class Watcher(Observer):
    """Looks for two primaries."""

    kind = "watcher"

    def __init__(self, cluster: Cluster, image: str) -> None:
        selector = (
            f"{names.LABEL_CLUSTER}={cluster.name},"
            f"{names.LABEL_COMPONENT}={names.COMPONENT_POSTGRES}"
        )
        super().__init__(
            cluster,
            image,
            {"POD_NAMESPACE": cluster.kubectl.namespace, "POD_SELECTOR": selector},
        )

    def assert_one_primary(self) -> dict[str, Any]:
        """Never, since it watches, did two instances accept a write."""
        seen = self.stats()
        assert not seen["two_primaries"], "two primaries:\n" + json.dumps(seen, indent=1)
        return seen

    def first_write(self, since: str, pod: str) -> str:
        """The time of day of the first write that an instance accepted since the mark."""
        reigns = self.stats(since)["reigns"]
        return str(next(reign["from"] for reign in reigns if reign["instance"] == pod))[:12]

    service_account = "e2e-watcher"

    def _rights(self) -> list[dict[str, Any]]:
        rbac = "rbac.authorization.k8s.io"
        name = {"name": self.service_account}
        namespace = self.kubectl.namespace
        return [
            {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": name},
            {
                "apiVersion": f"{rbac}/v1",
                "kind": "Role",
                "metadata": name,
                "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}],
            },
            {
                "apiVersion": f"{rbac}/v1",
                "kind": "RoleBinding",
                "metadata": name,
                "roleRef": {"apiGroup": rbac, "kind": "Role", "name": self.service_account},
                "subjects": [{"kind": "ServiceAccount", "namespace": namespace, **name}],
            },
        ]


def restricted(uid: int) -> dict[str, Any]:
    """Security context of a pod that the restricted pod security standard accepts."""
    return {
        "runAsNonRoot": True,
        "runAsUser": uid,
        "runAsGroup": uid,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
