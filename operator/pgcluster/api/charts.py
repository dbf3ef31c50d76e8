"""What the Helm charts take from elsewhere: CRD, rights, the schema of a cluster's values, tables.

Everything has one source; the charts hold copies that `pgcluster-crds --check` compares.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from pgcluster.api import names
from pgcluster.api.crd import crd, schema

# What belongs to no namespace, and is bound apart.
_CLUSTER_SCOPED = frozenset({"nodes", "storageclasses"})
_KEPT = frozenset(
    {"additionalProperties", "description", "enum", "format", "items", "maxItems", "maxLength"}
    | {"maxProperties", "maximum", "minItems", "minLength", "minProperties", "minimum", "pattern"}
    | {"properties", "required", "type", "anyOf", "oneOf", "allOf"}
)


def crd_template() -> str:
    """The CRD as a template of its chart: upgraded with it, kept when it is uninstalled."""
    manifest = crd()
    metadata = manifest.pop("metadata")
    body = yaml.safe_dump(manifest, sort_keys=False, width=100, allow_unicode=True)
    if "{{" in body:
        raise ValueError("the CRD holds what Helm takes for a template")
    lines = [
        "metadata:",
        f"  name: {metadata['name']}",
        "  labels:",
        "    app.kubernetes.io/name: pgcluster-operator-crds",
        "    app.kubernetes.io/instance: {{ .Release.Name }}",
        "    app.kubernetes.io/managed-by: {{ .Release.Service }}",
        '    helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}',
        "  annotations:",
        "    {{- if .Values.keep }}",
        "    helm.sh/resource-policy: keep",
        "    {{- end }}",
        "    {{- with .Values.annotations }}",
        "    {{- toYaml . | nindent 4 }}",
        "    {{- end }}",
    ]
    head, _, rest = body.partition("spec:\n")
    return head + "\n".join(lines) + "\nspec:\n" + rest


def rules(rbac: str) -> str:
    """The operator's rights out of `deploy/operator/rbac.yaml`, by where they hold."""
    found: dict[str, list[dict[str, Any]]] = {"namespaced": [], "cluster": [], "own": []}
    for document in yaml.safe_load_all(rbac):
        for rule in document.get("rules") or []:
            if document["kind"] == "Role":
                found["own"].append(rule)
            elif _CLUSTER_SCOPED & set(rule["resources"]):
                found["cluster"].append(rule)
            else:
                found["namespaced"].append(rule)
    return yaml.safe_dump(found, sort_keys=False, width=100)


def cluster_values_schema() -> str:
    """Values of chart `pgcluster`: the spec is that of the CRD, and nothing else is taken."""
    texts = {"type": "object", "additionalProperties": {"type": "string"}}
    document = {
        "$schema": "https://json-schema.org/draft-07/schema#",
        "type": "object",
        "additionalProperties": False,
        "required": ["spec"],
        "properties": {
            "global": {
                "type": "object",
                "description": "Helm's own, for charts of charts; not used here.",
            },
            "name": {
                "type": "string",
                "maxLength": names.MAX_CLUSTER_NAME,
                "description": "Name of the PgCluster; empty for the release's.",
            },
            "labels": {**texts, "description": "Of the PgCluster, beside the chart's."},
            "annotations": {
                **texts,
                "description": "Of the PgCluster, such as pgcluster.dev/switchover.",
            },
            "keep": {
                "type": "boolean",
                "description": "Whether the PgCluster, and so its data, stays when the release is"
                " uninstalled.",
            },
            "spec": strict(schema()["properties"]["spec"]),
        },
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def strict(node: Mapping[str, Any]) -> dict[str, Any]:
    """A node of the structural schema as JSON Schema that takes no unknown field."""
    made: dict[str, Any] = {key: node[key] for key in node if key in _KEPT}
    if node.get("x-kubernetes-int-or-string"):
        made["type"] = ["integer", "string"]
        made.pop("anyOf", None)
    if node.get("nullable") and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    if "properties" in node:
        made["properties"] = {name: strict(each) for name, each in node["properties"].items()}
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
    elif isinstance(node.get("additionalProperties"), Mapping):
        made["additionalProperties"] = strict(node["additionalProperties"])
    if isinstance(node.get("items"), Mapping):
        made["items"] = strict(node["items"])
    return made


def readme(chart: Mapping[str, Any], values: Mapping[str, Any], values_schema: str) -> str:
    """README.md of a chart: its values with their types, defaults and meaning."""
    rows = [
        f"| `{path}` | {kind} | {_default(values, path)} | {text} |"
        for path, kind, text in described(json.loads(values_schema), depth=3)
        if path.split(".")[0] != "global"
    ]
    head = [
        f"# {chart['name']}",
        "",
        f"{chart['description']}. How to install it: docs/install.md.",
        "",
        "| Value | Type | Default | Meaning |",
        "| --- | --- | --- | --- |",
    ]
    return "\n".join([*head, *rows]) + "\n"


def described(
    node: Mapping[str, Any], path: str = "", *, depth: int
) -> Iterator[tuple[str, str, str]]:
    """Path, type and description of each value that has no described values below it."""
    for name, each in node.get("properties", {}).items():
        here = f"{path}.{name}" if path else name
        if "properties" in each and depth > 1 and not each.get("description"):
            yield from described(each, here, depth=depth - 1)
        else:
            kind = each.get("type", "one of " + ", ".join(map(str, each.get("enum", []))))
            text = " ".join(str(each.get("description", "")).split())
            yield here, kind if isinstance(kind, str) else " or ".join(kind), text


def _default(values: Mapping[str, Any], path: str) -> str:
    found: Any = values
    for part in path.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return ""
        found = found[part]
    return f"`{json.dumps(found)}`" if found not in ("", None) else '`""`'
