"""kubectl, as a person would type it: the tests see the cluster through the same door."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

LOCAL_KUBECONFIG = Path("/var/lib/localkube/kubeconfig")

Manifest = Mapping[str, Any]


class KubectlError(Exception):
    """kubectl ended with an error; `stderr` is what it said."""

    def __init__(self, arguments: Iterable[str], status: int, stdout: str, stderr: str) -> None:
        super().__init__(f"kubectl {' '.join(arguments)}: exit {status}: {stderr or stdout}")
        self.status = status
        self.stdout = stdout
        self.stderr = stderr


def find_program() -> str:
    """kubectl from the PATH, else the one that the local cluster was built with."""
    if found := shutil.which("kubectl"):
        return found
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "pgcluster"
    built = sorted(cache.glob("kubernetes-v*/kubectl"))
    if not built:
        raise FileNotFoundError("no kubectl on the PATH and none built: run `make cluster`")
    return str(built[-1])


def find_kubeconfig() -> str:
    """$KUBECONFIG, else the local cluster's, else kubectl's own default."""
    if configured := os.environ.get("KUBECONFIG"):
        return configured
    if LOCAL_KUBECONFIG.exists():
        return str(LOCAL_KUBECONFIG)
    return str(Path.home() / ".kube" / "config")


class Kubectl:
    """Runs kubectl in one namespace; every call has a deadline."""

    def __init__(self, namespace: str = "default") -> None:
        self.namespace = namespace
        self._program = find_program()
        self._environment = {**os.environ, "KUBECONFIG": find_kubeconfig()}

    def within(self, namespace: str) -> Kubectl:
        """The same cluster, another namespace."""
        return Kubectl(namespace)

    def run(
        self, *arguments: str, stdin: str | None = None, timeout_s: float = 60.0, check: bool = True
    ) -> str:
        """Standard output of `kubectl ARGUMENTS`; KubectlError where it fails."""
        result = self.completed(*arguments, stdin=stdin, timeout_s=timeout_s)
        if check and result.returncode != 0:
            raise KubectlError(arguments, result.returncode, result.stdout, result.stderr)
        return result.stdout

    def completed(
        self, *arguments: str, stdin: str | None = None, timeout_s: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """`kubectl ARGUMENTS` with its exit status and both outputs."""
        return subprocess.run(
            [self._program, "-n", self.namespace, *arguments],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=self._environment,
            check=False,
        )

    def started(self, *arguments: str, stdout: IO[str]) -> subprocess.Popen[str]:
        """`kubectl ARGUMENTS` left running, such as `logs -f`; the caller ends it."""
        return subprocess.Popen(
            [self._program, "-n", self.namespace, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.DEVNULL,
            text=True,
            env=self._environment,
        )

    def json(self, *arguments: str) -> dict[str, Any]:
        """The object that `kubectl ARGUMENTS -o json` prints."""
        answer: dict[str, Any] = json.loads(self.run(*arguments, "-o", "json"))
        return answer

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        """One object, or None where there is none."""
        text = self.run("get", kind, name, "-o", "json", "--ignore-not-found")
        if not text.strip():
            return None
        answer: dict[str, Any] = json.loads(text)
        return answer

    def objects(self, kind: str, labels: str = "", fields: str = "") -> list[dict[str, Any]]:
        """All objects of a kind in the namespace."""
        selectors = [*(("-l", labels) if labels else ())]
        if fields:
            selectors += ["--field-selector", fields]
        items: list[dict[str, Any]] = self.json("get", kind, *selectors)["items"]
        return items

    def apply(self, *manifests: Manifest, dry_run: bool = False) -> str:
        """`kubectl apply -f -` of some objects."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)})
        return self.apply_text(text, dry_run=dry_run)

    def apply_text(self, text: str, *, dry_run: bool = False) -> str:
        """`kubectl apply -f -` of YAML."""
        return self.run("apply", *(["--dry-run=server"] if dry_run else []), "-f", "-", stdin=text)

    def patch(self, kind: str, name: str, patch: Mapping[str, Any]) -> None:
        """A merge patch."""
        self.run("patch", kind, name, "--type=merge", "-p", json.dumps(patch))

    def json_patch(self, kind: str, name: str, operations: list[dict[str, Any]]) -> None:
        """A JSON patch (RFC 6902)."""
        self.run("patch", kind, name, "--type=json", "-p", json.dumps(operations))

    def delete(self, kind: str, name: str, *more: str, timeout_s: float = 120.0) -> None:
        """Delete one object and wait for its end; one that is not there is fine."""
        self.run("delete", kind, name, "--ignore-not-found", *more, timeout_s=timeout_s)

    def exec(
        self,
        pod: str,
        *command: str,
        container: str | None = None,
        stdin: str | None = None,
        timeout_s: float = 60.0,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """A command in a pod; its output, and its exit status as kubectl hands it on."""
        where = [pod, *(["-c", container] if container else [])]
        arguments = ["exec", *(["-i"] if stdin is not None else []), *where, "--", *command]
        result = self.completed(*arguments, stdin=stdin, timeout_s=timeout_s)
        if check and result.returncode != 0:
            raise KubectlError(arguments, result.returncode, result.stdout, result.stderr)
        return result

    def http(self, pod: str, port: int, path: str, *, timeout_s: float = 60.0) -> str:
        """GET from a pod's port, through the API server."""
        base = f"/api/v1/namespaces/{self.namespace}/pods/{pod}:{port}/proxy"
        return self.run("get", "--raw", base + path, timeout_s=timeout_s)
