"""The vocabulary of the resource's models: base class, field types, CEL rules.

What a model says with these ends up in the CRD (crd.py): descriptions from the docstrings, bounds
and patterns from the types, rules from `rules`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic.annotated_handlers import GetJsonSchemaHandler
from pydantic_core import CoreSchema


@dataclass(frozen=True, slots=True)
class Rule:
    """A CEL rule: an expression over `self` (and `oldSelf`), and what to tell who breaks it."""

    expression: str
    message: str
    field_path: str | None = None

    def manifest(self) -> dict[str, str]:
        """As the CRD has it."""
        manifest = {"rule": self.expression, "message": self.message}
        return manifest | ({"fieldPath": self.field_path} if self.field_path else {})


class Model(BaseModel):
    """Base of all models: camelCase outside, snake_case inside, frozen, lenient on read.

    Unknown fields are ignored on read, so that an old operator survives a newer CRD; the API
    server prunes or refuses them at the door.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="ignore",
        use_attribute_docstrings=True,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The model's schema with its rules in it."""
        schema = handler(core_schema)
        if cls.rules:
            handler.resolve_ref_schema(schema)["x-kubernetes-validations"] = [
                rule.manifest() for rule in cls.rules
            ]
        return schema


_INT_OR_STRING: dict[str, Any] = {
    "anyOf": [{"type": "integer"}, {"type": "string"}],
    "x-kubernetes-int-or-string": True,
}

Quantity = Annotated[
    str,
    BeforeValidator(lambda value: str(value) if isinstance(value, int) else value),
    WithJsonSchema(
        {
            **_INT_OR_STRING,
            "pattern": r"^[0-9]+(\.[0-9]+)?([KMGTPE]i|[mkMGTPE]|[eE][+-]?[0-9]+)?$",
            "maxLength": 32,
        }
    ),
]
Duration = Annotated[
    str,
    WithJsonSchema({"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(ms|s|m)$", "maxLength": 16}),
]
# What a name in SQL may be here: printable, and as long as PostgreSQL keeps it.
SqlName = Annotated[
    str,
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 1,
            "maxLength": 63,
            "pattern": r"^[A-Za-z_][A-Za-z0-9_$.@-]*$",
        }
    ),
]
# Narrower: pgbouncer's file has no quoting for names, and <database>_ro must fit as well.
DatabaseName = Annotated[
    str,
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 1,
            "maxLength": 60,
            "pattern": r"^[A-Za-z_][A-Za-z0-9_.-]*$",
        }
    ),
]
ObjectName = Annotated[
    str,
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 1,
            "maxLength": 253,
            "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        }
    ),
]
HostName = Annotated[
    str,
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 1,
            "maxLength": 253,
            "pattern": r"^[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?$",
        }
    ),
]
# Of a certificate: the first part may stand for any.
DnsName = Annotated[
    str,
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 1,
            "maxLength": 253,
            "pattern": r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$",
        }
    ),
]
ImageName = Annotated[
    str,
    WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 512, "pattern": r"^[^\s]+$"}),
]
Line = Annotated[
    str,
    WithJsonSchema(
        {"type": "string", "minLength": 1, "maxLength": 1024, "pattern": r"^[^\r\n\x00]+$"}
    ),
]
# Free text that ends up on one line of a file; may be empty.
Value = Annotated[
    str,
    WithJsonSchema({"type": "string", "maxLength": 4096, "pattern": r"^[^\r\n\x00]*$"}),
]
# A piece of the Kubernetes API that is handed on as it is.
Opaque = Annotated[
    dict[str, Any],
    WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
]
OpaqueItem = Annotated[
    dict[str, Any],
    WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True}),
]


def list_map(*keys: str, max_items: int) -> Any:
    """Field settings of a list whose items are told apart by `keys`."""
    return Field(
        default=(),
        max_length=max_items,
        json_schema_extra={
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": list(keys),
        },
    )


def atomic_list(*, max_items: int) -> Any:
    """Field settings of a list that is replaced as a whole."""
    return Field(
        default=(), max_length=max_items, json_schema_extra={"x-kubernetes-list-type": "atomic"}
    )
