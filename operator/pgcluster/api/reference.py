"""docs/reference.md, generated from the CRD's schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pgcluster.api import names, validation
from pgcluster.api.crd import schema


def markdown() -> str:
    """The reference of the resource as a page."""
    root = schema()
    lines = [
        "# Reference: PgCluster",
        "",
        f"Group `{names.GROUP}`, version `{names.VERSION}`, kind `{names.KIND}`, short `pgc`.",
        "This page is generated from the models by `make generate`; `kubectl explain pgc` shows the"
        " same.",
        "",
    ]
    for part in ("spec", "status"):
        lines += [f"## {part}", "", "| field | type | meaning |", "|---|---|---|"]
        lines += [
            f"| `{path}` | {kind} | {text} |"
            for path, kind, text in _fields(root["properties"][part], part)
        ]
        lines += [""]
    lines += [
        "## PostgreSQL parameters that are refused",
        "",
        "The operator owns them; the reason stands in the condition `Ready` as well.",
        "",
        "| parameter | why |",
        "|---|---|",
        *(f"| `{name}` | {why} |" for name, why in sorted(validation.REFUSED_PARAMETERS.items())),
        "",
        "## pgbouncer settings that are allowed",
        "",
        ", ".join(f"`{name}`" for name in sorted(validation.ALLOWED_PGBOUNCER)),
        "",
    ]
    return "\n".join(lines)


def _fields(node: dict[str, Any], path: str) -> Iterator[tuple[str, str, str]]:
    for name, child in node.get("properties", {}).items():
        here = f"{path}.{name}"
        text = child.get("description", "").replace("|", "\\|")
        yield here, _kind(child, required=name in node.get("required", ())), text
        if child.get("type") == "array":
            yield from _fields(child["items"], f"{here}[]")
        else:
            yield from _fields(child, here)


def _kind(node: dict[str, Any], *, required: bool) -> str:
    if node.get("x-kubernetes-int-or-string"):
        kind = "quantity"
    elif "enum" in node:
        kind = " or ".join(f"`{value}`" for value in node["enum"])
    elif node.get("type") == "array":
        kind = f"list of {node['items'].get('type', 'object')}"
    elif isinstance(node.get("additionalProperties"), dict):
        kind = f"map of {node['additionalProperties'].get('type', 'string')}"
    else:
        kind = node.get("type", "object")
    return kind + (", required" if required else "")
