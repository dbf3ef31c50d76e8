"""Writes, or checks, the files that are generated from the models."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import yaml

from pgcluster.api import names, reasons, reference
from pgcluster.api.crd import crd

_NOTE = "# Generated from operator/pgcluster/api/models.py by `make generate`. Do not edit.\n"


def generated() -> dict[str, str]:
    """Path below the project's root → content."""
    manifest = yaml.safe_dump(crd(), sort_keys=False, width=100, allow_unicode=True)
    return {
        f"crds/{names.PLURAL}.{names.GROUP}.yaml": _NOTE + manifest,
        "docs/conditions.md": reasons.markdown(),
        "docs/reference.md": reference.markdown(),
    }


def main() -> None:
    """Entry point: `pgcluster-crds [--check] [--root DIR] [--print]`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where a file is out of date")
    parser.add_argument("--print", action="store_true", help="print the CRD and write nothing")
    parser.add_argument("--root", type=Path, default=Path(), help="the project's root")
    arguments = parser.parse_args()
    files = generated()
    if arguments.print:
        sys.stdout.write(files[f"crds/{names.PLURAL}.{names.GROUP}.yaml"])
        return
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
