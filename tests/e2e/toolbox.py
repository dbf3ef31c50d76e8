"""A pod of the application's side: psql and Python, with no rights and no secret of its own."""

from __future__ import annotations

import subprocess

from pgcluster import __version__
from pgcluster.api import names
from tests.e2e.kubectl import Kubectl
from tests.e2e.observing import CONTROL_PLANE, restricted

POSTGRES_MAJOR = 17
_IMAGE = f"pgcluster.dev/postgres:{POSTGRES_MAJOR}-{__version__}"


class Toolbox:
    """Runs commands where an application would run."""

    def __init__(self, kubectl: Kubectl, name: str = "toolbox") -> None:
        self._kubectl = kubectl
        self._name = name
        container = {
            "name": "toolbox",
            "image": _IMAGE,
            "command": ["sleep", "infinity"],
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
            "securityContext": {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": True,
            },
        }
        kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name},
                "spec": {
                    "automountServiceAccountToken": False,
                    "terminationGracePeriodSeconds": 1,
                    "nodeSelector": {CONTROL_PLANE: ""},
                    "tolerations": [{"key": CONTROL_PLANE, "operator": "Exists"}],
                    "securityContext": restricted(names.UID_POSTGRES),
                    "containers": [container],
                    "volumes": [{"name": "tmp", "emptyDir": {}}],
                },
            }
        )
        kubectl.run("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=90s", timeout_s=100)

    def shell(
        self, script: str, *, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """A shell script; PATH has psql."""
        return self._kubectl.exec(self._name, "sh", "-ec", script, stdin=stdin, check=check)

    def python(self, script: str, *arguments: str) -> str:
        """A Python script with psycopg."""
        command = ["/opt/pgcluster/bin/python", "-", *arguments]
        return self._kubectl.exec(self._name, *command, stdin=script).stdout

    def psql(self, uri: str, sql: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A query at a URI, as unaligned text."""
        command = ["psql", "-X", "-At", "-v", "ON_ERROR_STOP=1", uri, "-c", sql]
        return self._kubectl.exec(self._name, *command, check=check)
