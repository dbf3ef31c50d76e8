"""The plain kubeconfig: one file, a certificate or a token. Everything else is the library's.

Importing the Kubernetes library takes half a second, which is most of what a look at a cluster
takes. What is not plain (a login program, several files, a proxy), and what is wrong, gives None:
the library does it, or says what is wrong.
"""

from __future__ import annotations

import base64
import os
import ssl
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

_CLUSTER = {
    "server",
    "certificate-authority",
    "certificate-authority-data",
    "extensions",
}
_USER = {
    "client-certificate",
    "client-certificate-data",
    "client-key",
    "client-key-data",
    "token",
    "extensions",
}

# What something missing, unreadable or misshapen raises below; ssl's own errors are OSErrors.
_WRONG = (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration)


@dataclass(frozen=True, slots=True)
class Plain:
    """Where the API server is, and how to be known to it."""

    host: str
    tls: ssl.SSLContext
    token: str | None = field(repr=False)
    namespace: str


def read(path: str | None = None, context: str | None = None) -> Plain | None:
    """What a kubeconfig says (default: KUBECONFIG, else ~/.kube/config); None where not plain."""
    found = path or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    if os.pathsep in found:
        return None
    try:
        file = Path(found)
        return _plain(yaml.safe_load(file.read_text()), file.parent, context)
    except (*_WRONG, yaml.YAMLError):
        return None


def contexts(path: str | None = None) -> tuple[str, ...]:
    """Names of the contexts of one kubeconfig or of several; those that can be read."""
    given = path or os.environ.get("KUBECONFIG") or str(Path.home() / ".kube" / "config")
    found: dict[str, None] = {}
    for each in given.split(os.pathsep):
        try:
            document = yaml.safe_load(Path(each).read_text())
            found |= dict.fromkeys(str(entry["name"]) for entry in document["contexts"])
        except (*_WRONG, yaml.YAMLError):
            continue
    return tuple(found)


def _plain(document: Mapping[str, Any], folder: Path, context: str | None) -> Plain | None:
    chosen = _named(document["contexts"], context or document["current-context"])["context"]
    cluster = _named(document["clusters"], chosen["cluster"])["cluster"]
    user = _named(document["users"], chosen["user"])["user"] or {}
    if cluster.keys() - _CLUSTER or user.keys() - _USER:
        return None
    if not str(cluster["server"]).startswith("https://"):
        return None
    tls = ssl.create_default_context(cadata=_pem(cluster, "certificate-authority", folder))
    # Authorities of clusters are made by tools that leave out what this asks for.
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT
    certificate = _pem(user, "client-certificate", folder)
    if certificate is not None:
        _present(tls, certificate, _pem(user, "client-key", folder) or "")
    return Plain(
        str(cluster["server"]).rstrip("/"),
        tls,
        user.get("token"),
        str(chosen.get("namespace") or "default"),
    )


def _named(entries: Any, name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(entry for entry in entries if entry["name"] == name)
    return found


def _pem(entry: Mapping[str, Any], field: str, folder: Path) -> str | None:
    """A certificate or key that stands there, or in a file beside the kubeconfig."""
    if data := entry.get(f"{field}-data"):
        return base64.b64decode(data).decode()
    name = entry.get(field)
    return (folder / str(name)).read_text() if name else None


def _present(tls: ssl.SSLContext, certificate: str, key: str) -> None:
    """Have a certificate presented; Python takes it from a file alone."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "client.pem"
        file.touch(mode=0o600)
        file.write_text(f"{certificate.rstrip()}\n{key}")
        tls.load_cert_chain(file)
