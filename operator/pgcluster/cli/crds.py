"""Writes, or checks, the files that are generated from the models."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from pgcluster.api import charts, names, reasons, reference
from pgcluster.api.crd import crd

_NOTE = "# Generated from operator/pgcluster/api/models.py by `make generate`. Do not edit.\n"


def generated(root: Path) -> dict[str, str]:
    """Path below the project's root → content."""
    manifest = yaml.safe_dump(crd(), sort_keys=False, width=100, allow_unicode=True)
    name = f"{names.PLURAL}.{names.GROUP}.yaml"
    found = {
        f"crds/{name}": _NOTE + manifest,
        "docs/conditions.md": reasons.markdown(),
        "docs/reference.md": reference.markdown(),
        f"charts/pgcluster-operator-crds/templates/{name}": _NOTE + charts.crd_template(),
        "charts/pgcluster-operator/files/rules.yaml": charts.rules(
            (root / "deploy/operator/rbac.yaml").read_text()
        ),
        "charts/pgcluster/values.schema.json": charts.cluster_values_schema(),
    }
    for chart in ("pgcluster", "pgcluster-operator", "pgcluster-operator-crds"):
        folder = f"charts/{chart}"
        schema = found.get(f"{folder}/values.schema.json")
        found[f"{folder}/README.md"] = charts.readme(
            yaml.safe_load((root / folder / "Chart.yaml").read_text()),
            yaml.safe_load((root / folder / "values.yaml").read_text()),
            schema or (root / folder / "values.schema.json").read_text(),
        )
    return found


def main() -> None:
    """Entry point: `pgcluster-crds [--check] [--root DIR] [--print]`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where a file is out of date")
    parser.add_argument("--print", action="store_true", help="print the CRD and write nothing")
    parser.add_argument("--root", type=Path, default=Path(), help="the project's root")
    arguments = parser.parse_args()
    if arguments.print:
        sys.stdout.write(yaml.safe_dump(crd(), sort_keys=False, width=100, allow_unicode=True))
        return
    files = generated(arguments.root)
    stale = []
    for name, content in files.items():
        path = arguments.root / name
        if path.exists() and path.read_text() == content:
            continue
        stale.append(name)
        if not arguments.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
    if stale and arguments.check:
        sys.exit(f"out of date: {', '.join(stale)}; run `make generate`")
    for name in stale:
        sys.stdout.write(f"wrote {name}\n")
