"""Who we are to the API server: a pod's ServiceAccount, or what KUBECONFIG says.

A pod's case is twenty lines here because importing `kubernetes` for it would cost each agent
12 MiB and 0.7 s of start-up (requests, oauthlib and urllib3 come with it); the other case, with its
many ways to log in, is the library's.
"""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from pgcluster.api.errors import FatalError
from pgcluster.kube import kubeconfig

_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# The kubelet rotates the token; client-go reads it again as often.
_TOKEN_LIVES_S = 60.0


@dataclass(frozen=True, slots=True)
class Credentials:
    """Base URL, trust, and the value of the Authorization header (None: a client certificate)."""

    host: str
    tls: ssl.SSLContext | None
    authorization: Callable[[], Awaitable[str | None]]
    # Beside it in each request: for whom it is done, where not for ourselves.
    headers: tuple[tuple[str, str], ...] = ()


def in_pod() -> bool:
    """Whether this process runs in a pod."""
    return "KUBERNETES_SERVICE_HOST" in os.environ


def of_pod(directory: Path = _SERVICE_ACCOUNT) -> Credentials:
    """The pod's ServiceAccount; FatalError where it has none."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    read: tuple[str, float] = ("", 0.0)

    async def authorization() -> str:
        nonlocal read
        if time.monotonic() >= read[1]:
            token = (directory / "token").read_text().strip()
            read = (f"Bearer {token}", time.monotonic() + _TOKEN_LIVES_S)
        return read[0]

    try:
        tls = ssl.create_default_context(cafile=str(directory / "ca.crt"))
    except OSError as error:
        raise FatalError(f"the pod has no ServiceAccount token: {error}") from error
    address = f"[{host}]" if ":" in host else host
    return Credentials(f"https://{address}:{port}", tls, authorization)


def namespace_of_pod(directory: Path = _SERVICE_ACCOUNT) -> str:
    """The namespace that the pod runs in; FatalError where it has no ServiceAccount."""
    try:
        return (directory / "namespace").read_text().strip()
    except OSError as error:
        raise FatalError(f"the pod has no ServiceAccount: {error}") from error


async def of_kubeconfig(path: str | None = None, context: str | None = None) -> Credentials:
    """What a kubeconfig says; without arguments what KUBECONFIG says."""
    plain = kubeconfig.read(path, context)
    if plain is not None:
        bearer = f"Bearer {plain.token}" if plain.token else None

        async def known() -> str | None:
            return bearer

        return Credentials(plain.host, plain.tls, known)
    from kubernetes.aio.client.configuration import Configuration  # see above
    from kubernetes.aio.client.rest import RESTClientObject
    from kubernetes.aio.config import load_kube_config

    configuration = Configuration()
    await load_kube_config(path, context, client_configuration=configuration)

    async def authorization() -> str | None:
        token: str | None = await configuration.get_api_key_with_prefix("BearerToken")
        return token

    return Credentials(
        configuration.host, RESTClientObject(configuration).ssl_context, authorization
    )


def unusable() -> tuple[type[Exception], ...]:
    """What these raise where a kubeconfig is not there, or makes no sense."""
    from kubernetes.aio.config import ConfigException  # see above

    return ConfigException, OSError, ValueError


def namespace(path: str | None = None, context: str | None = None) -> str:
    """The namespace that a kubeconfig's context names, else `default`."""
    plain = kubeconfig.read(path, context)
    if plain is not None:
        return plain.namespace
    from kubernetes.aio.config import list_kube_config_contexts  # see above

    contexts, current = list_kube_config_contexts(path)
    chosen = current
    if context is not None:
        chosen = next((one for one in contexts if one["name"] == context), current)
    return str((chosen.get("context") or {}).get("namespace") or "default")
