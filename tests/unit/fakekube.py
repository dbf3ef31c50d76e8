"""A Kubernetes API in memory, as far as the reconciliation uses it; it can be cut off at any write.

It proves only what the reconciler decides to write. What the API server does with that is proven
against a real one, in tests/api and tests/e2e.
"""

from __future__ import annotations

import copy
import itertools
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any

from pgcluster.kube.errors import AlreadyExists, Conflict, NotFound, Unavailable
from pgcluster.kube.resources import Resource

Manifest = dict[str, Any]
_Path = tuple[str, str, str]  # plural, namespace, name


class FakeKube:
    """Speaks the interface of KubeClient."""

    def __init__(self) -> None:
        self.objects: dict[_Path, Manifest] = {}
        self.writes: list[str] = []
        self.requests = 0
        # Number of the write after which everything fails, as if the process had been killed.
        self.dies_after: int | None = None
        self._applied: dict[tuple[_Path, str, str | None], Manifest] = {}
        self._counter = itertools.count(1)

    # --- reading ------------------------------------------------------------------------------
    async def get(
        self, resource: Resource, name: str, namespace: str | None = None
    ) -> Manifest | None:
        self._request()
        return copy.deepcopy(self.objects.get((resource.plural, namespace or "", name)))

    async def list(
        self, resource: Resource, namespace: str | None = None, *, labels: str = ""
    ) -> tuple[list[Manifest], str]:
        self._request()
        wanted = dict(pair.split("=") for pair in labels.split(",") if pair)
        found = [
            {key: value for key, value in item.items() if key not in ("kind", "apiVersion")}
            for (plural, place, _), item in sorted(self.objects.items())
            if plural == resource.plural
            and namespace in (None, place)
            and wanted.items() <= (item["metadata"].get("labels") or {}).items()
        ]
        return copy.deepcopy(found), "1"

    # --- writing ------------------------------------------------------------------------------
    async def create(self, resource: Resource, manifest: Mapping[str, Any]) -> Manifest:
        path = self._path(resource, manifest)
        self._write("create", path)
        if path in self.objects:
            raise AlreadyExists(409, "AlreadyExists", f"{path} exists")
        return self.put(resource, manifest)

    async def apply(
        self,
        resource: Resource,
        manifest: Mapping[str, Any],
        *,
        manager: str,
        force: bool = True,
        subresource: str | None = None,
    ) -> Manifest:
        path = self._path(resource, manifest)
        self._write(f"apply{'/' + subresource if subresource else ''}", path)
        live = self.objects.get(path)
        metadata = manifest["metadata"]
        for key in ("uid", "resourceVersion"):
            if key in metadata and (live is None or live["metadata"][key] != metadata[key]):
                raise Conflict(409, "Conflict", f"{path}: {key} differs")
        if live is None:
            if subresource:
                raise NotFound(404, "NotFound", f"{path} does not exist")
            live = self.put(resource, {"metadata": {k: metadata[k] for k in ("name", "namespace")}})
        before = self._applied.get((path, manager, subresource), {})
        merged = _merged(_without(self.objects[path], before, manifest), manifest)
        self._applied[path, manager, subresource] = copy.deepcopy(dict(manifest))
        self._store(path, merged)
        return copy.deepcopy(merged)

    async def replace(self, resource: Resource, manifest: Mapping[str, Any]) -> Manifest:
        path = self._path(resource, manifest)
        self._write("update", path)
        live = self.objects.get(path)
        version = manifest["metadata"]["resourceVersion"]
        if live is None or live["metadata"]["resourceVersion"] != version:
            raise Conflict(409, "Conflict", f"{path} has changed")
        self._store(path, copy.deepcopy(dict(manifest)))
        return copy.deepcopy(self.objects[path])

    async def merge_patch(
        self,
        resource: Resource,
        name: str,
        namespace: str | None,
        patch: Mapping[str, Any],
        *,
        manager: str | None = None,
    ) -> Manifest:
        path = (resource.plural, namespace or "", name)
        self._write("patch", path)
        if path not in self.objects:
            raise NotFound(404, "NotFound", f"{path} does not exist")
        version = (patch.get("metadata") or {}).get("resourceVersion")
        if version not in (None, self.objects[path]["metadata"]["resourceVersion"]):
            raise Conflict(409, "Conflict", f"{path} has changed")
        self._store(path, _merged(self.objects[path], patch))
        return copy.deepcopy(self.objects[path])

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        orphan: bool = False,
    ) -> None:
        path = (resource.plural, namespace or "", name)
        self._write("delete/orphan" if orphan else "delete", path)
        if path in self.objects and uid in (None, self.objects[path]["metadata"]["uid"]):
            del self.objects[path]

    # --- for the tests ------------------------------------------------------------------------
    def put(self, resource: Resource, manifest: Mapping[str, Any]) -> Manifest:
        """Make an object as somebody else would."""
        path = self._path(resource, manifest)
        made = {"apiVersion": resource.api_version, "kind": resource.kind}
        made |= copy.deepcopy(dict(manifest))
        for key, value in made.pop("stringData", {}).items():
            made.setdefault("data", {})[key] = b64encode(value.encode()).decode()
        made["metadata"].setdefault("uid", f"uid-{next(self._counter)}")
        made["metadata"].setdefault("generation", 1)
        made["metadata"].setdefault("creationTimestamp", "2026-05-01T09:00:00Z")
        self._store(path, made)
        return copy.deepcopy(made)

    def find(self, resource: Resource, name: str, namespace: str = "test") -> Manifest | None:
        """One object as it is stored."""
        return self.objects.get((resource.plural, namespace, name))

    def names(self, *without: str) -> Sequence[str]:
        """Kinds and names of all objects."""
        return sorted(
            f"{plural}/{name}" for plural, _, name in self.objects if plural not in without
        )

    def _store(self, path: _Path, manifest: Manifest) -> None:
        manifest["metadata"]["resourceVersion"] = str(next(self._counter))
        self.objects[path] = manifest

    def _request(self) -> None:
        self.requests += 1
        if self.dies_after is not None and len(self.writes) >= self.dies_after:
            raise Unavailable(0, "Unreachable", "the process was killed")

    def _write(self, verb: str, path: _Path) -> None:
        self._request()
        self.writes.append(f"{verb} {path[0]}/{path[2]}")

    @staticmethod
    def _path(resource: Resource, manifest: Mapping[str, Any]) -> _Path:
        metadata = manifest["metadata"]
        return resource.plural, metadata.get("namespace", ""), metadata["name"]


def _merged(live: Any, patch: Any) -> Any:
    if not isinstance(live, Mapping) or not isinstance(patch, Mapping):
        return copy.deepcopy(patch)
    merged = copy.deepcopy(dict(live))
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merged(merged[key], value) if key in merged else copy.deepcopy(value)
    return merged


def _without(live: Any, before: Any, after: Any) -> Any:
    """`live` without the fields that a manager applied before and does not apply any more."""
    if not isinstance(live, Mapping) or not isinstance(before, Mapping):
        return live
    kept = {}
    for key, value in live.items():
        if key in before and not (isinstance(after, Mapping) and key in after):
            continue
        kept[key] = (
            _without(value, before[key], after[key]) if key in before else copy.deepcopy(value)
        )
    return kept
