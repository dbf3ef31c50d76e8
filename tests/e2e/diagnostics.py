"""What a failed test leaves behind: everything a person would ask the cluster for."""

from __future__ import annotations

import contextlib
import re
import subprocess
from pathlib import Path

from tests.e2e.kubectl import Kubectl, KubectlError
from tests.e2e.report import BUILD

SYSTEM_NAMESPACE = "pgcluster-system"
_TAIL_LINES = 120


def collect(kubectl: Kubectl, test: str) -> str:
    """Write the state of the namespace to build/e2e/TEST/ and return its gist."""
    folder = BUILD / re.sub(r"[^\w.-]+", "_", test) / kubectl.namespace
    folder.mkdir(parents=True, exist_ok=True)
    system = kubectl.within(SYSTEM_NAMESPACE)
    gist = [f"kept in {folder}"]
    for name, arguments in {
        "all": ["get", "pgcluster,all,lease,pvc,cm,secret,pdb,endpointslice", "-o", "wide"],
        "pgclusters": ["get", "pgcluster", "-o", "yaml"],
        "pods": ["get", "pods", "-o", "yaml"],
        "configmaps": ["get", "configmaps,leases", "-o", "yaml"],
        "events": ["get", "events", "--sort-by=.metadata.creationTimestamp"],
    }.items():
        text = _output(kubectl, *arguments)
        (folder / f"{name}.txt").write_text(text)
        if name in ("all", "events"):
            gist.append("\n".join(text.splitlines()[-60:]))
    (folder / "operator.txt").write_text(_output(system, "get", "all,lease", "-o", "wide"))
    lines = merged_logs(kubectl)
    (folder / "logs.txt").write_text("\n".join(lines) + "\n")
    _write_previous_logs(kubectl, folder)
    operator = merged_logs(system)
    (folder / "operator-logs.txt").write_text("\n".join(operator) + "\n")
    gist.append(
        f"logs of all pods, the last {_TAIL_LINES} lines:\n" + "\n".join(lines[-_TAIL_LINES:])
    )
    return "\n\n".join(gist)


def merged_logs(kubectl: Kubectl) -> list[str]:
    """Lines of all containers of all pods of a namespace, in the order of time."""
    lines: list[tuple[str, str]] = []
    for pod in _output(kubectl, "get", "pods", "-o", "name").split():
        text = _output(
            kubectl, "logs", pod, "--all-containers", "--prefix", "--timestamps", "--tail=4000"
        )
        for line in text.splitlines():
            # [pod/shop-0/postgres] 2026-01-31T12:00:00.123456789Z text
            prefix, _, rest = line.partition(" ")
            stamp, _, message = rest.partition(" ")
            lines.append((stamp, f"{stamp} {prefix} {message}"))
    return [line for _, line in sorted(lines, key=lambda entry: entry[0])]


def _write_previous_logs(kubectl: Kubectl, folder: Path) -> None:
    for pod in _output(kubectl, "get", "pods", "-o", "name").split():
        text = _output(kubectl, "logs", pod, "--all-containers", "--previous", "--timestamps")
        if text.strip() and "not found" not in text:
            (folder / f"previous-{pod.partition('/')[2]}.txt").write_text(text)


def _output(kubectl: Kubectl, *arguments: str) -> str:
    with contextlib.suppress(KubectlError, subprocess.TimeoutExpired):
        result = kubectl.completed(*arguments)
        return result.stdout + result.stderr
    return ""
