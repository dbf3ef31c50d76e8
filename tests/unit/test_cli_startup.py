"""What a command waits for before it begins: no library that it does not use."""

from __future__ import annotations

import subprocess
import sys

import pytest

# They take from 60 ms to a second each.
HEAVY = ("kubernetes", "kopf", "psycopg", "prometheus_client", "cryptography", "requests")
HALF = ("pydantic", "aiohttp", "yaml")


def loaded(statement: str) -> set[str]:
    """The packages that a new Python has loaded after a statement."""
    asked = f"{statement}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_a_command_line_is_read_and_completed_without_any_of_them() -> None:
    found = loaded(
        "from pgcluster.cli import completing, kubectl\n"
        "kubectl.parse(['status', 'shop'])\ncompleting.complete(['st'], lambda *_: ())"
    )
    assert not found & {*HEAVY, *HALF}


def test_the_plugins_version_is_known_without_any_of_them() -> None:
    found = loaded(
        "from pgcluster.cli import kubectl\nassert kubectl.run(['version', '--client']) == 0"
    )
    assert not found & {*HEAVY, *HALF}


@pytest.mark.parametrize(
    "module", ["showing", "history", "keeping", "reporting", "following", "asking"]
)
def test_looking_and_asking_load_the_client_and_the_models_and_no_more(module: str) -> None:
    found = loaded(f"from pgcluster.cli import connecting, {module}")
    assert not found & set(HEAVY)
