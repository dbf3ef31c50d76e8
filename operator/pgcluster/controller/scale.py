"""How many instances the StatefulSet may have now, and what of it cannot change. Pure."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pgcluster.api import conditions, names
from pgcluster.controller.observe import Observed
from pgcluster.kube.client import Manifest
from pgcluster.kube.resources import STATEFUL_SETS


@dataclass(frozen=True, slots=True)
class Instances:
    """How many there are to be, and why not as many as asked for: reason and message."""

    count: int
    refused: tuple[str, str] | None = None


def instances(observed: Observed, wanted: int, live: Mapping[str, Any] | None) -> Instances:
    """As many as the spec says, but never so few that the primary is removed.

    The StatefulSet removes the highest ordinals first, whoever they are.
    """
    current = int(((live or {}).get("spec") or {}).get("replicas") or 0)
    if wanted >= current:
        return Instances(wanted)
    if observed.primary is None:
        return Instances(
            current,
            (
                conditions.SCALE_REFUSED,
                f"spec.instances: {current} instances stay until a primary is known",
            ),
        )
    ordinal = names.ordinal(observed.primary.name)
    if ordinal < wanted:
        return Instances(wanted)
    return Instances(
        ordinal + 1,
        (
            conditions.SCALE_REFUSED,
            f"spec.instances: {wanted} would remove {observed.primary.name}, the primary; it stays"
            f" at {ordinal + 1} until another instance is the primary",
        ),
    )


def adjusted(
    manifest: Mapping[str, Any], *, replicas: int, live: Mapping[str, Any] | None
) -> Manifest:
    """The StatefulSet as it can be applied; any other manifest as it is.

    Its volume claim templates are fixed once it exists: a volume that grows, grows by its claim.
    """
    if manifest["kind"] != STATEFUL_SETS.kind:
        return dict(manifest)
    changed = copy.deepcopy(dict(manifest))
    changed["spec"]["replicas"] = replicas
    if live is not None:
        sizes = {
            claim["metadata"]["name"]: claim["spec"]["resources"]
            for claim in live["spec"].get("volumeClaimTemplates") or ()
        }
        for claim in changed["spec"].get("volumeClaimTemplates") or ():
            if claim["metadata"]["name"] in sizes:
                claim["spec"]["resources"] = sizes[claim["metadata"]["name"]]
    return changed
