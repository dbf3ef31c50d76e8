"""An API server, a client of it for each agent, and what the kubelets say.

The server is as strict as the real one: compare and swap by resource version, watches in order. The
way to it is not: requests and answers are late or lost, on their own or because a path is cut, a
request may take effect long after its sender has given up, and a watch lags, breaks off, starts
over.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import AsyncIterator, Callable, Mapping
from random import Random
from typing import Any, Protocol

from pgcluster.kube.client import Manifest, WatchEvent
from pgcluster.kube.errors import ApiError, Conflict, NotFound, Unavailable
from pgcluster.kube.resources import LEASES, PODS, Resource
from tests.model.machine import MachineLoop

# As the agent's client has it.
REQUEST_S = 3.0
_BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_KEPT = (LEASES.plural, PODS.plural)


class Way(Protocol):
    """The way from one agent to the API server and back."""

    def open(self) -> bool:
        """Whether what is sent now gets there."""

    def delay_s(self, chance: Random) -> float:
        """How long it takes."""

    def loses(self, chance: Random) -> bool:
        """Whether it is lost all the same."""


class ApiServer:
    """Leases and pods; whatever else is written is accepted and forgotten.

    `said` hears of every object before and after a write.
    """

    def __init__(self, said: Callable[[Manifest, Manifest], None]) -> None:
        self._said = said
        self._version = 0
        self._objects: dict[tuple[str, str], Manifest] = {}
        self._streams: list[_Stream] = []
        self.up = True

    def read(self, plural: str, name: str) -> Manifest | None:
        """One object as it is now."""
        return copy.deepcopy(self._objects.get((plural, name)))

    def write(self, plural: str, manifest: Mapping[str, Any]) -> Manifest:
        """Replace an object; Conflict where it has changed since it was read."""
        name = manifest["metadata"]["name"]
        before = self._objects.get((plural, name), {})
        version = manifest["metadata"].get("resourceVersion")
        if version is not None and version != before["metadata"]["resourceVersion"]:
            raise Conflict(409, "Conflict", f"{name} has changed")
        self._version += 1
        kept = copy.deepcopy(dict(manifest))
        kept["metadata"]["resourceVersion"] = str(self._version)
        self._objects[plural, name] = kept
        self._said(before, kept)
        for stream in self._streams:
            stream.push(plural, name, "MODIFIED" if before else "ADDED", kept)
        return copy.deepcopy(kept)

    def patch(self, plural: str, name: str, changes: Mapping[str, Any]) -> Manifest:
        """JSON merge patch."""
        found = self._objects.get((plural, name))
        if found is None:
            raise NotFound(404, "NotFound", f"there is no {name}")
        changed = _merged(found, changes)
        changed["metadata"].pop("resourceVersion", None)
        return self.write(plural, changed)

    def stop(self) -> None:
        """Its connections end with it."""
        self.up = False
        for stream in self._streams:
            stream.broken = True

    def connect(self, stream: _Stream) -> None:
        """A watch begins."""
        self._streams.append(stream)

    def disconnect(self, stream: _Stream) -> None:
        """A watch has ended."""
        with contextlib.suppress(ValueError):
            self._streams.remove(stream)


def _merged(found: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(dict(found))
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged


class _Stream:
    """One watch: events come in order, and not at all while the way is cut."""

    def __init__(self, loop: MachineLoop, way: Way, chance: Random, plural: str, name: str) -> None:
        self._loop = loop
        self._way = way
        self._chance = chance
        self._of = (plural, name)
        self._queue: asyncio.Queue[tuple[str, Manifest] | None] = asyncio.Queue()
        self._arrives_s = 0.0
        self.broken = False

    def push(self, plural: str, name: str, kind: str, manifest: Manifest) -> None:
        """Something has changed at the server."""
        if (plural, name) == self._of:
            delay_s = self._way.delay_s(self._chance)
            self._arrives_s = max(self._arrives_s, self._loop.true_s + delay_s)
            event = (kind, copy.deepcopy(manifest))
            self._loop.later(self._arrives_s - self._loop.true_s, self._arrive, event)

    def _arrive(self, event: tuple[str, Manifest]) -> None:
        if self.broken:
            self._queue.put_nowait(None)
        elif self._way.open():
            self._queue.put_nowait(event)
        else:
            # What is not acknowledged is sent again, for a while; then the connection is no more.
            if self._chance.random() < 0.1:
                self.broken = True
            self._arrives_s = max(self._arrives_s, self._loop.true_s + 0.5)
            self._loop.later(0.5, self._arrive, event)

    async def next(self) -> tuple[str, Manifest]:
        """The next event; Unavailable where the connection has ended."""
        while True:
            try:
                async with asyncio.timeout(2.0):
                    event = await self._queue.get()
            except TimeoutError:
                if not self.broken:
                    continue
                event = None
            if event is None:
                raise Unavailable(0, "Unreachable", "the watch has ended")
            return event


class Client:
    """What an agent has of `pgcluster.kube.client.KubeClient`."""

    def __init__(self, loop: MachineLoop, server: ApiServer, way: Way, seed: str) -> None:
        self._loop = loop
        self._server = server
        self._way = way
        self._seed = seed
        self._chance = Random(seed)  # noqa: S311 # to be repeated

    async def get(
        self, resource: Resource, name: str, namespace: str | None = None
    ) -> Manifest | None:
        """One object."""
        found: Manifest | None = await self._ask(lambda: self._server.read(resource.plural, name))
        return found

    async def replace(self, resource: Resource, manifest: Mapping[str, Any]) -> Manifest:
        """Compare and swap."""
        sent = copy.deepcopy(dict(manifest))
        written: Manifest = await self._ask(lambda: self._server.write(resource.plural, sent))
        return written

    async def merge_patch(
        self,
        resource: Resource,
        name: str,
        namespace: str | None,
        patch: Mapping[str, Any],
        **_: object,
    ) -> Manifest:
        """Merge what is given into an object."""
        sent = copy.deepcopy(dict(patch))
        written: Manifest = await self._ask(lambda: self._server.patch(resource.plural, name, sent))
        return written

    async def create(self, resource: Resource, manifest: Mapping[str, Any]) -> Manifest:
        """Accepted and forgotten."""
        accepted: Manifest = await self._ask(lambda: dict(manifest))
        return accepted

    async def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        name: str | None = None,
        labels: str = "",
    ) -> AsyncIterator[WatchEvent]:
        """The object, then its changes, for ever; over again after each break."""
        if resource.plural not in _KEPT or name is None:
            await self._loop.create_future()
            return
        failures = 0
        chance = Random(f"{self._seed} {resource.plural} {name}")  # noqa: S311 # to be repeated
        while True:
            stream = _Stream(self._loop, self._way, chance, resource.plural, name)
            try:
                found = await self._listed(resource.plural, name, stream)
                failures = 0
                yield WatchEvent("SYNC", items=[] if found is None else [found])
                while True:
                    kind, manifest = await stream.next()
                    yield WatchEvent(kind, object=manifest)  # type: ignore[arg-type] # ADDED or MODIFIED
            except ApiError:
                yield WatchEvent("LOST")
                await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1
            finally:
                self._server.disconnect(stream)

    async def close(self) -> None:
        """Nothing is kept open."""

    async def _listed(self, plural: str, name: str, stream: _Stream) -> Manifest | None:
        def begin() -> Manifest | None:
            self._server.connect(stream)
            return self._server.read(plural, name)

        found: Manifest | None = await self._ask(begin)
        return found

    async def _ask(self, effect: Callable[[], Any]) -> Any:
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._loop.later(self._way.delay_s(self._chance), self._arrive, effect, answer)
        try:
            async with asyncio.timeout(REQUEST_S):
                return await answer
        except TimeoutError:
            raise Unavailable(0, "Unreachable", "the API server does not answer") from None

    def _arrive(self, effect: Callable[[], Any], answer: asyncio.Future[Any]) -> None:
        """At the server, whether or not its sender still waits."""
        if not self._way.open() or self._way.loses(self._chance):
            return
        if not self._server.up:
            refused = Unavailable(0, "Unreachable", "connection refused")
            self._loop.later(self._way.delay_s(self._chance), self._answer, answer, None, refused)
            return
        result, error = None, None
        try:
            result = effect()
        except ApiError as raised:
            error = raised
        self._loop.later(self._way.delay_s(self._chance), self._answer, answer, result, error)

    def _answer(self, answer: asyncio.Future[Any], result: object, error: Exception | None) -> None:
        if answer.done() or not self._way.open() or self._way.loses(self._chance):
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(result)
