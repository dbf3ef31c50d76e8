"""Objects as JSON or YAML, for `-o`."""

from __future__ import annotations

import json
from typing import Any

import yaml


def document(found: Any, format_: str) -> str:
    """As `-o json` or `-o yaml` shows it, without an end of line. Pure."""
    if format_ == "json":
        return json.dumps(found, indent=2, ensure_ascii=False)
    return yaml.safe_dump(found, sort_keys=False, allow_unicode=True).rstrip()
