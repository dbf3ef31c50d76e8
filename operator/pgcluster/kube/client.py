"""The Kubernetes API as plain dicts, over aiohttp.

Typed models are left out on purpose: they take seconds and tens of megabytes to import, and refuse
what the API server accepts. Paths are built from static resources, so there is no discovery.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import aiohttp
from multidict import CIMultiDict

from pgcluster.kube import credentials, errors
from pgcluster.kube.credentials import Credentials
from pgcluster.kube.resources import Resource

log = logging.getLogger(__name__)

Manifest = dict[str, Any]

_CONNECT_S = 5.0
# The server ends a watch after this long, and sends something (a bookmark at least once a minute)
# in between, so that a connection that went silent is known to be dead.
_WATCH_S = 300
_WATCH_SILENCE_S = 70.0
_KEEPALIVE = (
    (socket.TCP_KEEPIDLE, 10),
    (socket.TCP_KEEPINTVL, 5),
    (socket.TCP_KEEPCNT, 3),
)
_PAGE = 500
_BACKOFF_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """SYNC carries `items`, the whole list; ADDED, MODIFIED, DELETED carry `object`.

    LOST: the connection broke; what was seen may be old until the next SYNC.
    """

    type: Literal["SYNC", "ADDED", "MODIFIED", "DELETED", "LOST"]
    object: Manifest = field(default_factory=dict)
    items: list[Manifest] = field(default_factory=list)


class KubeClient:
    """Requests to one API server; every request has a deadline.

    `counted(verb, plural)` is called for each request, for whoever wants to count them.
    """

    def __init__(self, identity: Credentials, *, request_timeout_s: float) -> None:
        self.counted: Callable[[str, str], None] = lambda verb, plural: None
        self._identity = identity
        self._timeout = aiohttp.ClientTimeout(total=request_timeout_s, connect=_CONNECT_S)
        self._session = aiohttp.ClientSession(
            connector=_connector(identity),
            # One object is one line of a watch, and may be large.
            read_bufsize=1 << 21,
        )

    @classmethod
    async def connect(cls, *, request_timeout_s: float = 10.0) -> Self:
        """As the pod's ServiceAccount where there is one, else as KUBECONFIG says."""
        identity = (
            credentials.of_pod() if credentials.in_pod() else await credentials.of_kubeconfig()
        )
        return cls(identity, request_timeout_s=request_timeout_s)

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    def session(self) -> tuple[str, aiohttp.ClientSession]:
        """Base URL and a new HTTP session with our credentials, for another client library.

        The token is asked for at each request, so that its rotation needs no new session.
        """

        async def authorize(
            request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
        ) -> aiohttp.ClientResponse:
            if authorization := await self._identity.authorization():
                request.headers["Authorization"] = authorization
            return await handler(request)

        return self._identity.host, aiohttp.ClientSession(
            connector=_connector(self._identity), middlewares=(authorize,), read_bufsize=1 << 21
        )

    # --- reading ------------------------------------------------------------------------------

    async def get(
        self, resource: Resource, name: str, namespace: str | None = None
    ) -> Manifest | None:
        """One object, or None where it does not exist."""
        self.counted("get", resource.plural)
        try:
            return await self._request("GET", resource.path(namespace, name))
        except errors.NotFound:
            return None

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
    ) -> tuple[list[Manifest], str]:
        """All objects that fit the selectors, and the resource version to watch from."""
        items: list[Manifest] = []
        query = _selectors(labels, fields) | {"limit": str(_PAGE)}
        while True:
            self.counted("list", resource.plural)
            page = await self._request("GET", resource.path(namespace), query)
            items += page.get("items") or []
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return items, metadata.get("resourceVersion", "")
            query["continue"] = metadata["continue"]

    async def watch(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        name: str | None = None,
        labels: str = "",
    ) -> AsyncIterator[WatchEvent]:
        """List, then follow changes, for ever; a broken connection starts over with a list."""
        fields = f"metadata.name={name}" if name else ""
        failures = 0
        while True:
            try:
                items, version = await self.list(resource, namespace, labels=labels, fields=fields)
                failures = 0
                yield WatchEvent("SYNC", items=items)
                query = _selectors(labels, fields) | {
                    "watch": "1",
                    "allowWatchBookmarks": "true",
                    "timeoutSeconds": str(random.randint(_WATCH_S, 2 * _WATCH_S)),  # noqa: S311 # spread
                }
                while version:
                    query["resourceVersion"] = version
                    version = ""
                    self.counted("watch", resource.plural)
                    async for kind, manifest in self._stream(resource.path(namespace), query):
                        version = manifest["metadata"]["resourceVersion"]
                        if kind != "BOOKMARK":
                            yield WatchEvent(kind, object=manifest)
            except errors.ApiError as error:
                log.info("watch of %s broke off: %s", resource.plural, error)
                yield WatchEvent("LOST")
                await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1

    # --- writing ------------------------------------------------------------------------------

    async def create(self, resource: Resource, manifest: Mapping[str, Any]) -> Manifest:
        """Create an object; AlreadyExists where there is one of its name."""
        self.counted("create", resource.plural)
        return await self._request(
            "POST", resource.path(_namespace(manifest)), body=_complete(resource, manifest)
        )

    async def replace(self, resource: Resource, manifest: Mapping[str, Any]) -> Manifest:
        """Write an object back; Conflict where it has changed since it was read."""
        self.counted("update", resource.plural)
        return await self._request(
            "PUT", _path_of(resource, manifest), body=_complete(resource, manifest)
        )

    async def apply(
        self,
        resource: Resource,
        manifest: Mapping[str, Any],
        *,
        manager: str,
        force: bool = True,
        subresource: str | None = None,
    ) -> Manifest:
        """Server-side apply; with metadata.resourceVersion in it, Conflict on any change."""
        self.counted("apply", resource.plural)
        return await self._request(
            "PATCH",
            _path_of(resource, manifest) + (f"/{subresource}" if subresource else ""),
            {"fieldManager": manager, "force": "true" if force else "false"},
            body=_complete(resource, manifest),
            content_type="application/apply-patch+yaml",
        )

    async def merge_patch(
        self,
        resource: Resource,
        name: str,
        namespace: str | None,
        patch: Mapping[str, Any],
        *,
        subresource: str | None = None,
        manager: str | None = None,
    ) -> Manifest:
        """JSON merge patch: None removes a field."""
        self.counted("patch", resource.plural)
        return await self._request(
            "PATCH",
            resource.path(namespace, name) + (f"/{subresource}" if subresource else ""),
            {"fieldManager": manager} if manager else {},
            body=dict(patch),
            content_type="application/merge-patch+json",
        )

    async def json_patch(
        self,
        resource: Resource,
        name: str,
        namespace: str | None,
        operations: Sequence[Mapping[str, Any]],
        *,
        manager: str | None = None,
    ) -> Manifest:
        """JSON patch (RFC 6902)."""
        self.counted("patch", resource.plural)
        return await self._request(
            "PATCH",
            resource.path(namespace, name),
            {"fieldManager": manager} if manager else {},
            body=[dict(operation) for operation in operations],
            content_type="application/json-patch+json",
        )

    async def delete(
        self,
        resource: Resource,
        name: str,
        namespace: str | None = None,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        grace_s: int | None = None,
        orphan: bool = False,
    ) -> None:
        """Delete an object (only that `uid` and `resource_version` if given); gone is fine.

        `orphan`: and leave all that it owns as it is.
        """
        self.counted("delete", resource.plural)
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        body: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if wanted := {key: value for key, value in preconditions.items() if value}:
            body["preconditions"] = wanted
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        if orphan:
            body["propagationPolicy"] = "Orphan"
        try:
            await self._request("DELETE", resource.path(namespace, name), body=body)
        except errors.NotFound:
            return

    # --- transport ----------------------------------------------------------------------------

    async def _headers(self) -> CIMultiDict[str]:
        authorization = await self._identity.authorization()
        headers = CIMultiDict([("Accept", "application/json"), *self._identity.headers])
        if authorization:
            headers["Authorization"] = authorization
        return headers

    async def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        body: object = None,
        content_type: str = "application/json",
    ) -> Manifest:
        headers = await self._headers()
        if body is not None:
            headers["Content-Type"] = content_type
        try:
            async with self._session.request(
                method,
                self._identity.host + path,
                params=query,
                headers=headers,
                data=None if body is None else json.dumps(body),
                timeout=self._timeout,
            ) as response:
                return _answer(response.status, await response.read())
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _unreachable(error) from error

    async def _stream(
        self, path: str, query: Mapping[str, str]
    ) -> AsyncIterator[tuple[Any, Manifest]]:
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=_CONNECT_S, sock_read=_WATCH_SILENCE_S
        )
        try:
            async with self._session.get(
                self._identity.host + path,
                params=query,
                headers=await self._headers(),
                timeout=timeout,
            ) as response:
                if response.status != 200:
                    _answer(response.status, await response.read())
                async for line in response.content:
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        status = event["object"]
                        raise errors.from_status(
                            int(status.get("code") or 500),
                            status.get("reason") or "",
                            status.get("message") or "the watch has ended",
                        )
                    yield event["type"], event["object"]
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise _unreachable(error) from error


def _connector(identity: Credentials) -> aiohttp.TCPConnector:
    return aiohttp.TCPConnector(ssl=identity.tls or True, limit=0, socket_factory=_socket)


def _socket(address: tuple[Any, ...]) -> socket.socket:
    """A connection that is over when it is closed, and that notices within half a minute that its
    other end is gone.

    By default the kernel goes on trying to deliver what was written before the close, for minutes:
    a request that was given up while the network was cut arrives when it is whole again, and undoes
    what was written after it.
    """
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


def _answer(status: int, text: bytes) -> Manifest:
    try:
        document: Manifest = json.loads(text) if text else {}
    except ValueError:
        document = {"message": text[:200].decode(errors="replace")}
    if 200 <= status < 300:
        return document
    raise errors.from_status(
        status, document.get("reason") or "", document.get("message") or f"HTTP status {status}"
    )


def _unreachable(error: BaseException) -> errors.Unavailable:
    return errors.Unavailable(
        0, "Unreachable", f"the API server does not answer: {error or type(error).__name__}"
    )


def _selectors(labels: str, fields: str) -> dict[str, str]:
    given = {"labelSelector": labels, "fieldSelector": fields}
    return {key: value for key, value in given.items() if value}


def _namespace(manifest: Mapping[str, Any]) -> str | None:
    namespace: str | None = manifest["metadata"].get("namespace")
    return namespace


def _path_of(resource: Resource, manifest: Mapping[str, Any]) -> str:
    return resource.path(_namespace(manifest), manifest["metadata"]["name"])


def _complete(resource: Resource, manifest: Mapping[str, Any]) -> Manifest:
    return {"apiVersion": resource.api_version, "kind": resource.kind, **manifest}
