"""The CustomResourceDefinition, generated from the models.

The API server wants a structural schema: no references, a type at every node, nothing but
validation below anyOf.
Source: Kubernetes, "Extend the Kubernetes API with CustomResourceDefinitions".
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from pgcluster.api import names
from pgcluster.api.models import PgCluster

# Titles repeat the field's name; defaults are applied by the operator, not stamped into objects;
# additionalProperties beside properties is what pruning does anyway.
_DROPPED = frozenset({"title", "default", "$defs"})


def crd() -> dict[str, Any]:
    """The manifest of the CRD."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{names.PLURAL}.{names.GROUP}"},
        "spec": {
            "group": names.GROUP,
            "names": {
                "categories": ["all"],
                "kind": names.KIND,
                "listKind": f"{names.KIND}List",
                "plural": names.PLURAL,
                "shortNames": ["pgc"],
                "singular": names.KIND.lower(),
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": names.VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": _columns(),
                    "schema": {"openAPIV3Schema": schema()},
                    "subresources": {
                        "scale": {
                            "labelSelectorPath": ".status.selector",
                            "specReplicasPath": ".spec.instances",
                            "statusReplicasPath": ".status.instances",
                        },
                        "status": {},
                    },
                }
            ],
        },
    }


def schema() -> dict[str, Any]:
    """The structural schema of the resource."""
    document = PgCluster.model_json_schema(by_alias=True, mode="validation")
    root = structural(document, document.get("$defs", {}))
    root["properties"] = {
        "apiVersion": {"type": "string", "description": "Version of the API of this object."},
        "kind": {"type": "string", "description": "Kind of this object."},
        "metadata": {"type": "object"},
        "spec": root["properties"]["spec"],
        "status": root["properties"]["status"],
    }
    # kstatus takes an object without a status for one that is as it should be. So the API server
    # says of a new one that nobody has looked at it yet.
    root["properties"]["status"]["default"] = {"observedGeneration": -1}
    root["required"] = ["spec"]
    return root


def structural(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """One node of a JSON schema as a structural schema; ValueError for what has no such form."""
    if "$ref" in node:
        target = definitions[node["$ref"].rpartition("/")[2]]
        # What stands beside a reference (the field's description) goes before what it names.
        node = {**target, **{key: value for key, value in node.items() if key != "$ref"}}
    if "anyOf" in node and not node.get("x-kubernetes-int-or-string"):
        options = [option for option in node["anyOf"] if option.get("type") != "null"]
        if len(options) != 1:
            raise ValueError(f"a union has no structural form: {node}")
        rest = {key: value for key, value in node.items() if key != "anyOf"}
        return structural({**options[0], **rest}, definitions)
    if "prefixItems" in node or "oneOf" in node:
        raise ValueError(f"a tuple or a tagged union has no structural form: {node}")
    # Copied: where two fields are of one model, YAML would show the second as an alias.
    made = {key: deepcopy(value) for key, value in node.items() if key not in _DROPPED}
    if "const" in made:
        made["enum"] = [made.pop("const")]
    if "properties" in made:
        made.pop("additionalProperties", None)
        made["properties"] = {
            name: structural(child, definitions) for name, child in made["properties"].items()
        }
    if isinstance(made.get("additionalProperties"), dict):
        made["additionalProperties"] = structural(made["additionalProperties"], definitions)
    if "items" in made:
        made["items"] = structural(made["items"], definitions)
    if "description" in made:
        made["description"] = " ".join(made["description"].split())
    return dict(sorted(made.items()))


def _columns() -> list[dict[str, Any]]:
    def column(name: str, type_: str, path: str, description: str) -> dict[str, Any]:
        return {"name": name, "type": type_, "jsonPath": path, "description": description}

    return [
        column("Instances", "integer", ".spec.instances", "Instances that are wanted"),
        column("Ready", "integer", ".status.readyInstances", "Instances that are ready"),
        column("Primary", "string", ".status.primary", "Pod of the primary"),
        column("Status", "string", ".status.summary", "What the cluster is doing"),
        column("Age", "date", ".metadata.creationTimestamp", "Since when it exists"),
    ]
