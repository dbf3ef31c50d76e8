"""Writing what was rendered: only where it differs, and never onto somebody else's object."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from pgcluster.api import conditions, names
from pgcluster.api.errors import BlockedError, RetryError
from pgcluster.api.quantities import parse_quantity
from pgcluster.controller.observe import Observed, resource_of
from pgcluster.kube.client import KubeClient, Manifest
from pgcluster.kube.resources import Resource

log = logging.getLogger(__name__)

# By what the items of a list are told apart, in the order of preference. A list of anything else
# is compared as a whole.
_ITEM_KEYS = ("name", "mountPath", "containerPort", "port", "ip", "uid", "key")


def owned_by(manifest: Mapping[str, Any], uid: str) -> bool:
    """Whether the PgCluster with this identity controls an object."""
    references = manifest["metadata"].get("ownerReferences") or ()
    return any(reference.get("uid") == uid for reference in references)


def difference(wanted: Any, live: Any, path: str = "") -> str | None:
    """Where a live object lacks what we want, as a path; what the API server added is no matter."""
    if isinstance(wanted, Mapping):
        return _mapping_difference(wanted, live, path)
    if isinstance(wanted, list | tuple):
        return _list_difference(wanted, live, path)
    if wanted == live or (wanted in ("", None) and live in ("", None)):
        return None
    return None if _same_quantity(wanted, live) else path


def _mapping_difference(wanted: Mapping[str, Any], live: Any, path: str) -> str | None:
    if not isinstance(live, Mapping):
        # The API server drops an empty map.
        return path if wanted or live is not None else None
    for key, value in wanted.items():
        if found := difference(value, live.get(key), f"{path}.{key}" if path else str(key)):
            return found
    return None


def _list_difference(wanted: Iterable[Any], live: Any, path: str) -> str | None:
    ours = list(wanted)
    theirs = list(live) if isinstance(live, list) else []
    if len(ours) != len(theirs):
        return path
    if key := _item_key(ours):
        by_key = {item.get(key): item for item in theirs if isinstance(item, Mapping)}
        pairs = [(item, by_key.get(item[key]), f"{path}[{item[key]}]") for item in ours]
    else:
        pairs = [(item, theirs[at], f"{path}[{at}]") for at, item in enumerate(ours)]
    return next((found for pair in pairs if (found := difference(*pair))), None)


def _item_key(items: list[Any]) -> str | None:
    """By what these items are told apart; None where only their order can."""
    if not all(isinstance(item, Mapping) for item in items):
        return None
    for key in _ITEM_KEYS:
        values = [item.get(key) for item in items]
        if None not in values and len(set(map(str, values))) == len(values):
            return key
    return None


def _same_quantity(wanted: Any, live: Any) -> bool:
    """Whether both are the same amount: the API server turns 1000m into 1 and 1024Mi into 1Gi."""
    if isinstance(wanted, bool) or isinstance(live, bool):
        return False
    left, right = _quantity(wanted), _quantity(live)
    return left is not None and left == right


def _quantity(value: Any) -> Decimal | None:
    if not isinstance(value, str | int | float):
        return None
    try:
        return parse_quantity(str(value))
    except ValueError:
        return None


def stamped(manifest: Mapping[str, Any]) -> Manifest:
    """The manifest with its own hash: fields that are no longer rendered show only by that."""
    text = json.dumps(manifest, sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    metadata = manifest["metadata"]
    annotations = {**(metadata.get("annotations") or {}), names.ANNOTATION_HASH: digest}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


class Applier:
    """Writes the objects of one observed cluster."""

    def __init__(self, client: KubeClient, observed: Observed) -> None:
        self._client = client
        self._observed = observed
        self._live: dict[tuple[str, str], Manifest] = dict(observed.children)

    def live(self, manifest: Mapping[str, Any]) -> Manifest | None:
        """The object as it is, once `check` has seen it."""
        return self._live.get((manifest["kind"], manifest["metadata"]["name"]))

    def version(self, resource: Resource, name: str) -> str:
        """Resource version of an object that was observed or has just been written."""
        return str(self._live[resource.kind, name]["metadata"]["resourceVersion"])

    async def check(self, manifests: Iterable[Mapping[str, Any]]) -> None:
        """BlockedError where a name that is needed belongs to something else; before any write."""
        for manifest in manifests:
            kind, name = manifest["kind"], manifest["metadata"]["name"]
            live = self._live.get((kind, name))
            if live is None:
                # Absent, or there without our label: then it may well be somebody else's.
                live = await self._client.get(
                    resource_of(manifest), name, self._observed.key.namespace
                )
                if live is None:
                    continue
                self._live[kind, name] = live
            if not owned_by(live, self._observed.uid):
                raise self._taken(kind, name, live)

    async def apply(self, manifest: Mapping[str, Any]) -> bool:
        """Bring one checked object in line; True where that took a write."""
        wanted = stamped(manifest)
        live = self.live(wanted)
        differs = "it does not exist" if live is None else difference(wanted, live)
        if differs is None:
            return False
        kind, name = wanted["kind"], wanted["metadata"]["name"]
        answer = await self._client.apply(
            resource_of(wanted), wanted, manager=names.MANAGER_OPERATOR
        )
        self._live[kind, name] = answer
        log.info("applied %s %s: %s", kind, name, differs)
        return True

    async def create(self, manifest: Mapping[str, Any]) -> bool:
        """Create one checked object that must never be overwritten; False where it is there."""
        if self.live(manifest) is not None:
            return False
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        self._live[kind, name] = await self._client.create(resource_of(manifest), manifest)
        log.info("created %s %s", kind, name)
        return True

    async def delete_unwanted(self, wanted: Iterable[Mapping[str, Any]]) -> int:
        """Delete what is ours, is not wanted any more, and is not already on its way out."""
        keep = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in wanted}
        deleted = 0
        for (kind, name), live in self._observed.children.items():
            metadata = live["metadata"]
            if (
                (kind, name) in keep
                or not owned_by(live, self._observed.uid)
                or "deletionTimestamp" in metadata
            ):
                continue
            await self._client.delete(
                resource_of({"kind": kind}), name, metadata["namespace"], uid=metadata["uid"]
            )
            log.info("deleted %s %s: not wanted any more", kind, name)
            deleted += 1
        return deleted

    def _taken(self, kind: str, name: str, live: Mapping[str, Any]) -> Exception:
        key = self._observed.key
        references = live["metadata"].get("ownerReferences") or ()
        owner = next((r for r in references if r.get("controller")), None)
        if owner and owner["kind"] == names.KIND and owner["name"] == key.name:
            return RetryError(
                f"{kind} {name} of an earlier PgCluster {key.name} is still being removed",
                delay_s=2.0,
            )
        whose = f"belongs to {owner['kind']} {owner['name']}" if owner else "is not the operator's"
        return BlockedError(
            f"{kind} {name} is needed but {whose}: give this PgCluster another name, or remove"
            f" that {kind} if nobody needs it",
            reason=conditions.NAME_CONFLICT,
        )
