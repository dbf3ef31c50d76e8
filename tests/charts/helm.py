"""The real Helm, and the charts as it renders them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
OPERATOR, CRDS, CLUSTER = (
    ROOT / "charts" / name
    for name in ("pgcluster-operator", "pgcluster-operator-crds", "pgcluster")
)
CHARTS = (OPERATOR, CRDS, CLUSTER)

Manifest = dict[str, Any]
NOTHING: Mapping[str, Any] = MappingProxyType({})


class HelmError(Exception):
    """What Helm said when it refused."""


@cache
def program() -> str:
    """Its path; builds it where it is not there yet."""
    found = subprocess.run(
        [ROOT / "deploy/build/helm"], stdout=subprocess.PIPE, text=True, check=True, timeout=1800
    )
    return found.stdout.strip()


def helm(*words: str | Path, timeout_s: float = 60) -> str:
    """What a command of Helm prints; HelmError where it fails."""
    done = subprocess.run(
        [program(), *words], capture_output=True, text=True, check=False, timeout=timeout_s
    )
    if done.returncode != 0:
        raise HelmError(f"{done.stdout}{done.stderr}")
    return done.stdout


def render(
    chart: Path, values: Mapping[str, Any] = NOTHING, *, release: str, namespace: str = "default"
) -> dict[tuple[str, str], Manifest]:
    """(kind, name) → manifest of a release with these values."""
    told = [f"--set-json={key}={json.dumps(value)}" for key, value in values.items()]
    text = helm("template", release, chart, "--namespace", namespace, *told)
    found = [document for document in yaml.safe_load_all(text) if document]
    made = {(each["kind"], _name(each)): each for each in found}
    assert len(made) == len(found), "two objects of one name"
    return made


def _name(manifest: Manifest) -> str:
    metadata = manifest["metadata"]
    within = metadata.get("namespace")
    return f"{within}/{metadata['name']}" if within else str(metadata["name"])
