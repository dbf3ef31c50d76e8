"""The agents among themselves: JSON over HTTPS, each side proven by the cluster's certificate.

Whoever does not present a certificate of this cluster's own authority is refused in the handshake.
The certificates are read anew for each connection after the mounted Secret has changed, so a
renewal needs no restart; until a Secret is mounted, nobody is answered and nobody is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from pgcluster.api import names
from pgcluster.api.errors import PgClusterError, RetryError

log = logging.getLogger(__name__)

Handler = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]

REQUEST_BYTES = 64 * 1024
ANSWER_BYTES = 1024 * 1024

_FILES = (names.CA_BUNDLE_KEY, names.CERTIFICATE_KEY, names.PRIVATE_KEY_KEY)
# How long a cleanup waits for requests that are being answered: a pod that leaves is in a hurry.
_SHUTDOWN_S = 1.0
_CLOSE_S = 0.5


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What one state of the files was made into."""

    state: tuple[object, ...]
    client: ssl.SSLContext
    server: ssl.SSLContext


class Credentials:
    """This instance's certificate and the authorities that it believes, as mounted now.

    `name` is what a certificate must prove, on both sides.
    """

    def __init__(self, name: str, directory: Path = Path(names.PEERS_DIR)) -> None:
        self.name = name
        self._directory = directory
        self._loaded: _Loaded | None = None
        self._complaint = ""

    def client(self) -> ssl.SSLContext | None:
        """For a connection to a peer; None where nothing is mounted."""
        loaded = self._current()
        return loaded.client if loaded else None

    def server(self) -> ssl.SSLContext | None:
        """For a connection of a peer; None where nothing is mounted."""
        loaded = self._current()
        return loaded.server if loaded else None

    def belongs(self, certificate: Mapping[str, Any] | None) -> bool:
        """Whether a verified certificate is one of this cluster's instances."""
        return ("DNS", self.name) in (certificate or {}).get("subjectAltName", ())

    def _current(self) -> _Loaded | None:
        """What the files are now; what they were last where they cannot be read."""
        try:
            # The kubelet swaps one link for all files of a Secret: behind it they fit together.
            directory = (self._directory / "..data").resolve()
            if not directory.is_dir():
                directory = self._directory
            paths = [directory / file for file in _FILES]
            # A link's swap shows in the path, a file written in place in its stamp.
            state = tuple(
                (str(path), stat.st_mtime_ns, stat.st_ino)
                for path in paths
                for stat in (path.stat(),)
            )
            if self._loaded is None or self._loaded.state != state:
                self._loaded = _Loaded(state, *_contexts(*paths))
                log.info("the certificates of the agents were read")
            self._complaint = ""
        except (OSError, ValueError) as error:
            self._complain(f"the certificates of the agents cannot be read: {error}")
        return self._loaded

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            log.warning("%s", complaint)
        self._complaint = complaint


def _contexts(ca: Path, certificate: Path, key: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A client's and a server's; OSError (ssl.SSLError is one) where the files are no good."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.hostname_checks_common_name = False
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.verify_mode = ssl.CERT_REQUIRED
    # A resumed session would spare a peer the proof that its certificate is still believed.
    server.num_tickets = 0
    for context in (client, server):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_verify_locations(cafile=ca)
        context.load_cert_chain(certificate, key)
    return client, server


def _listening(credentials: Credentials) -> ssl.SSLContext:
    """A server's context that takes the present certificates for each connection."""

    def choose(
        connection: ssl.SSLObject, _server_name: str | None, _context: ssl.SSLContext
    ) -> int | None:
        current = credentials.server()
        if current is None:
            return int(ssl.AlertDescription.ALERT_DESCRIPTION_INTERNAL_ERROR)
        connection.context = current
        return None

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    # A connection takes this from here, and the authorities from the context that is chosen.
    context.verify_mode = ssl.CERT_REQUIRED
    context.sni_callback = choose
    return context


class Peers:
    """Asks the agents of the other instances."""

    def __init__(self, credentials: Credentials, *, port: int = names.PORT_PEER) -> None:
        self._credentials = credentials
        self._port = port
        self._session: aiohttp.ClientSession | None = None

    async def ask(
        self,
        address: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        deadline_s: float = 1.0,
    ) -> Mapping[str, Any]:
        """The answer of the agent at `address`: to a GET, or with a body to a POST.

        RetryError where it does not answer in time, is not one of this cluster, or refuses.
        """
        context = self._credentials.client()
        if context is None:
            raise RetryError("this instance has no certificate to ask its peers with")
        try:
            async with self._open().request(
                "GET" if body is None else "POST",
                URL.build(scheme="https", host=address, port=self._port, path=path),
                json=body,
                ssl=context,
                server_hostname=self._credentials.name,
                timeout=aiohttp.ClientTimeout(total=deadline_s),
                allow_redirects=False,
            ) as response:
                text = await _read(response)
                if response.status != 200:
                    raise RetryError(f"{address}{path}: {_reason(response.status, text)}")
                return _document(text)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise RetryError(f"{address}{path}: {error or type(error).__name__}") from error

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            # A farewell to a peer that does not listen would otherwise take a minute.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession()
        return self._session


async def _read(response: aiohttp.ClientResponse) -> bytes:
    received = bytearray()
    async for chunk in response.content.iter_any():
        received += chunk
        if len(received) > ANSWER_BYTES:
            response.close()
            raise ValueError(f"the answer has more than {ANSWER_BYTES} bytes")
    return bytes(received)


def _reason(status: int, text: bytes) -> str:
    """Why a peer did not answer: its sentence, or what HTTP says."""
    try:
        return str(_document(text)["error"])
    except (ValueError, KeyError):
        return f"status {status}"


def _document(text: bytes) -> Mapping[str, Any]:
    """A JSON object; ValueError for anything else."""
    document = json.loads(text or b"{}")
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    return document


async def serve(
    handlers: Mapping[tuple[str, str], Handler],
    credentials: Credentials,
    *,
    host: str | None = None,
    port: int = names.PORT_PEER,
) -> web.AppRunner:
    """Answer this cluster's other agents: (method, path) → handler; the caller cleans up.

    A handler gets the body ({} for a GET) and returns the answer; its RetryError becomes status
    503 with a sentence.
    """
    application = web.Application(client_max_size=REQUEST_BYTES)

    def route(handler: Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def answer(request: web.Request) -> web.Response:
            transport = request.transport
            if transport is None or not credentials.belongs(transport.get_extra_info("peercert")):
                return _error(403, "the certificate is not one of this cluster's instances")
            try:
                body = _document(await request.read()) if request.method == "POST" else {}
            except ValueError as error:
                return _error(400, f"the body cannot be read: {error}")
            try:
                answered = json.dumps(await handler(body))
            except PgClusterError as error:
                return _error(503, str(error))
            except Exception:
                log.exception("unexpected: please report it")
                return _error(500, "unexpected, see the log of the instance")
            if len(answered) > ANSWER_BYTES:
                return _error(500, f"the answer has more than {ANSWER_BYTES} bytes")
            return web.Response(text=answered, content_type="application/json")

        return answer

    for (method, path), handler in handlers.items():
        application.router.add_route(method, path, route(handler))
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    # Told in the log at once where there is nothing to answer with.
    credentials.server()
    site = web.TCPSite(runner, host, port, ssl_context=_listening(credentials))
    try:
        await site.start()
    except BaseException:
        await runner.cleanup()
        raise
    return runner


def _error(status: int, sentence: str) -> web.Response:
    return web.json_response({"error": sentence}, status=status)
