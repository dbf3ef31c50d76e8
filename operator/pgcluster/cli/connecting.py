"""The API server as kubectl would reach it: the same kubeconfig, context, namespace and flags."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from collections.abc import AsyncIterator

from pgcluster.cli.terms import Refused
from pgcluster.controller.observe import Key
from pgcluster.kube import credentials
from pgcluster.kube.client import KubeClient
from pgcluster.kube.credentials import Credentials

_REQUEST_S = 15.0


@contextlib.asynccontextmanager
async def connected(options: argparse.Namespace) -> AsyncIterator[tuple[KubeClient, Key]]:
    """A client, and the cluster that is meant; Refused where the kubeconfig cannot be used."""
    config, context = getattr(options, "kubeconfig", None), getattr(options, "context", None)
    try:
        identity, own = await _identity(config, context)
    except Exception as error:
        # Imported late: it takes half a second.
        if isinstance(error, credentials.unusable()):
            raise Refused(f"the kubeconfig cannot be used: {error}") from error
        raise
    timeout_s = getattr(options, "request_timeout", None) or _REQUEST_S
    client = KubeClient(_impersonating(identity, options), request_timeout_s=timeout_s)
    namespace = getattr(options, "namespace", None) or own
    try:
        yield client, Key(namespace, getattr(options, "cluster", None) or "")
    finally:
        await client.close()


async def _identity(config: str | None, context: str | None) -> tuple[Credentials, str]:
    """Who we are, and the namespace that is meant where nobody names one.

    In a pod without a kubeconfig the pod's ServiceAccount, as kubectl does.
    """
    if config is None and "KUBECONFIG" not in os.environ and credentials.in_pod():
        return credentials.of_pod(), credentials.namespace_of_pod()
    identity = await credentials.of_kubeconfig(config, context)
    return identity, credentials.namespace(config, context)


def _impersonating(identity: Credentials, options: argparse.Namespace) -> Credentials:
    """As another user, where `--as` says so."""
    headers: list[tuple[str, str]] = []
    if user := getattr(options, "as_", None):
        headers.append(("Impersonate-User", user))
    headers += [("Impersonate-Group", group) for group in getattr(options, "as_group", None) or ()]
    return dataclasses.replace(identity, headers=tuple(headers))
