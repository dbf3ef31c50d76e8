"""What a shell is offered for a command line, and that no command or flag is forgotten."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from pgcluster.cli import completing, kubectl
from pgcluster.cli.commands import SHELLS

KNOWN = {
    "CLUSTER": ("shop", "shipping"),
    "INSTANCE": ("shop-0", "shop-1"),
    "POD": ("shop-0", "shop-pgbouncer-x"),
    "NAMESPACE": ("default", "prod"),
    "CONTEXT": ("kind",),
}


def values(kind: str, options: argparse.Namespace, cluster: str | None) -> Sequence[str]:
    assert kind not in ("INSTANCE", "POD") or cluster == "shop"
    return KNOWN[kind]


def offered(line: str) -> list[str]:
    """Names that are offered for the last word of a line."""
    return [name for name, _ in completing.complete(line.split(" "), values)[0]]


@pytest.mark.parametrize(
    ("line", "has"),
    [
        ("stat", ["status"]),
        ("status sh", ["shop", "shipping"]),
        ("-n prod status sho", ["shop"]),
        ("status shop -o ", ["json", "yaml"]),
        ("status shop --output=y", ["--output=yaml"]),
        ("switchover shop --to ", ["shop-0", "shop-1"]),
        ("promote shop ", ["shop-0", "shop-1"]),
        ("reload shop --pod shop-p", ["shop-pgbouncer-x"]),
        ("logs shop --component ", ["postgres", "pgbouncer"]),
        ("--context ", ["kind"]),
        ("status -n pr", ["prod"]),
        ("completion f", ["fish"]),
        ("status shop ", []),
        ("psql shop -- --no", []),
    ],
)
def test_what_may_come_next_is_offered(line: str, has: list[str]) -> None:
    assert offered(line) == has


def test_every_command_and_flag_is_offered() -> None:
    commands = offered("")
    assert {"status", "report", "failovers", "hibernate", "completion"} <= set(commands)
    for command in commands:
        flags = offered(f"{command} --")
        assert "--namespace" in flags
        assert "--help" in flags
    assert "--dry-run" in offered("switchover shop --d")


def test_a_path_is_left_to_the_shell() -> None:
    assert completing.complete(["--kubeconfig", ""], values) == ([], 0)
    assert completing.complete(["report", "shop", "-f", ""], values) == ([], 0)
    assert completing.complete(["status", ""], values)[1] == 4


def test_no_api_server_is_no_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    found = completing.complete(["status", ""], completing._from_the_api)
    assert found == ([], 4)


def test_the_program_speaks_the_protocol_of_kubectl(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["kubectl_complete-pgcluster", "sta"])
    completing.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["status\tone cluster on one screen", ":4"]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shells_script_needs_no_cluster_and_is_one(
    shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    assert kubectl.run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "kubectl_complete-pgcluster" in script
    if program := shutil.which(shell):
        checked = subprocess.run([program, "-n"], input=script, text=True, capture_output=True)
        assert checked.returncode == 0, checked.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_by_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kubectl.run(["completion", "bash"])
    script = capsys.readouterr().out
    program = tmp_path / "kubectl_complete-pgcluster"
    program.write_text(
        f"#!/bin/sh\nexec {sys.executable} -c"
        ' "from pgcluster.cli.completing import main; main()" "$@"\n'
    )
    program.chmod(0o755)
    asked = f"""{script}
COMP_WORDS=(kubectl-pgcluster status shop --ou); COMP_CWORD=3
_kubectl_pgcluster; echo "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "-c", asked],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert done.stdout.strip() == "--output"
