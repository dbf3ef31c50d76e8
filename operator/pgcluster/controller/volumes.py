"""Volumes that are to grow: a StatefulSet's templates are fixed, so each claim is told. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pgcluster.api import names
from pgcluster.api.quantities import parse_bytes


@dataclass(frozen=True, slots=True)
class Growth:
    """A claim that asks for less than the spec, and what it is to ask for."""

    claim: str
    size: str


def template_sizes(stateful_set: Mapping[str, Any]) -> dict[str, str]:
    """Claim template → size that it asks for."""
    return {
        claim["metadata"]["name"]: str(claim["spec"]["resources"]["requests"]["storage"])
        for claim in (stateful_set.get("spec") or {}).get("volumeClaimTemplates") or ()
    }


def changed(wanted: Mapping[str, Any], live: Mapping[str, Any] | None) -> bool:
    """Whether the spec asks for other sizes than those that the cluster was made with."""
    if live is None:
        return False
    now = template_sizes(live)
    return any(
        name in now and parse_bytes(size) != parse_bytes(now[name])
        for name, size in template_sizes(wanted).items()
    )


def to_grow(
    wanted: Mapping[str, Any], claims: Iterable[Mapping[str, Any]], *, cluster: str
) -> tuple[Growth, ...]:
    """Claims of the cluster's instances that ask for less than the spec."""
    sizes = template_sizes(wanted)
    found = []
    for claim in claims:
        name = claim["metadata"]["name"]
        asks = claim["spec"]["resources"]["requests"]["storage"]
        for template, size in sizes.items():
            instance = name.removeprefix(f"{template}-{names.statefulset(cluster)}-")
            if instance.isdecimal() and parse_bytes(str(asks)) < parse_bytes(size):
                found.append(Growth(name, size))
    return tuple(found)
