"""`make demo` above the cluster: the script that a newcomer runs first does what it says."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.e2e.kubectl import Kubectl, find_kubeconfig
from tests.e2e.report import Report

DEMO = Path(__file__).parents[2] / "deploy" / "demo" / "demo"


def test_the_demo_shows_a_failover_and_cleans_up(system: Kubectl, report: Report) -> None:
    namespace = "e2e-demo"
    environment = {
        **os.environ,
        "DEMO_NAMESPACE": namespace,
        "KUBECONFIG": find_kubeconfig(),
    }

    def demo(*arguments: str) -> str:
        result = subprocess.run(
            [str(DEMO), *arguments],
            capture_output=True,
            text=True,
            timeout=480,
            env=environment,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    told = demo()
    assert "Ready again" in told, told
    gap = re.search(r"longest time without an order\s+([\d.]+) s", told)
    errors = re.search(r"^\s*errors\s+(\d+)", told, re.MULTILINE)
    assert gap, told
    assert errors, told
    report.measured("demo, primary's pod deleted by force: gap", float(gap[1]), "s")
    report.measured("demo, primary's pod deleted by force: errors of 4 writers", int(errors[1]))
    for step in ("PAUSE", "RELOAD", "RESUME"):
        assert step in told, told
    demo("--clean")
    assert system.get("namespace", namespace) is None
