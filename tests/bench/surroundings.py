"""On what the figures were measured."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from tests.e2e.world import World

ROOT = Path(__file__).parents[2]


def machine() -> dict[str, Any]:
    """Processor, memory and kernel."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    kib = next(
        int(line.split()[1])
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal")
    )
    return {
        "cpus": os.cpu_count(),
        "model": models[0] if models else platform.machine(),
        "memory_gib": round(kib / 2**20),
        "kernel": platform.release(),
    }


def commit() -> str:
    """The commit that is measured, with a mark where files differ from it."""
    head = _git("rev-parse", "HEAD")
    return head + ("-dirty" if head and _git("status", "--porcelain") else "")


def _git(*arguments: str) -> str:
    result = subprocess.run(
        ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return result.stdout.strip()


def versions(world: World, primary: str) -> dict[str, str]:
    """Of everything that takes part."""
    cluster = world.cluster
    pooler = cluster.poolers()[0]
    bouncer = cluster.kubectl.exec(pooler, "pgbouncer", "--version", container="pgbouncer").stdout
    server = cluster.kubectl.json("version")["serverVersion"]["gitVersion"]
    return {
        "PostgreSQL": cluster.value(primary, "SHOW server_version").split()[0],
        "repmgr": cluster.exec(primary, "repmgr", "--version").stdout.split()[1],
        "pgbouncer": bouncer.split()[1],
        "Kubernetes": server.removeprefix("v"),
    }


def images(world: World, primary: str) -> dict[str, str]:
    """Identity of the images that run: the commit is only where they should come from."""
    pods = {"postgres": primary, "pgbouncer": world.cluster.poolers()[0]}
    return {
        name: world.cluster.kubectl.json("get", "pod", pod)["status"]["containerStatuses"][0][
            "imageID"
        ].rpartition("sha256:")[2][:12]
        for name, pod in pods.items()
    }


def load() -> list[float]:
    """Load average of the machine over 1, 5 and 15 minutes."""
    return [round(value, 2) for value in os.getloadavg()]
