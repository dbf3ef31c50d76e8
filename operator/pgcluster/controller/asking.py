"""Who asked for something: what the API server keeps of it in the object itself. Pure.

That is the field manager, by which a client names itself: kubectl, a GitOps tool, the plugin. No
object says which user it was; the API server's audit log does (docs/isolation.md).
Source: Kubernetes, "Server-Side Apply", "Field management".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def manager_of(metadata: Mapping[str, Any], *path: str) -> str | None:
    """The field manager that last wrote the field at this path; None where nobody is on record."""
    found: tuple[str, str] | None = None
    for entry in metadata.get("managedFields") or ():
        manager = str(entry.get("manager") or "")
        if manager and _has(entry.get("fieldsV1"), path):
            # Several may own a field that they applied alike: the last of them asked.
            found = max(found or ("", ""), (str(entry.get("time") or ""), manager))
    return found[1] if found else None


def _has(fields: Any, path: tuple[str, ...]) -> bool:
    node = fields
    for name in path:
        if not isinstance(node, Mapping) or f"f:{name}" not in node:
            return False
        node = node[f"f:{name}"]
    return True
