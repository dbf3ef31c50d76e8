"""Entry point of the pooler agent."""

from __future__ import annotations

import asyncio
import logging
import sys

from pgcluster.api import logs
from pgcluster.api.errors import FatalError
from pgcluster.kube.client import KubeClient
from pgcluster.pooler.agent import Agent
from pgcluster.pooler.settings import Settings
from pgcluster.pooler.source import KubeSource

log = logging.getLogger(__name__)


async def _run(settings: Settings) -> None:
    client = await KubeClient.connect(request_timeout_s=3.0)
    source = KubeSource(
        client, cluster=settings.cluster, namespace=settings.namespace, pod=settings.pod
    )
    try:
        await Agent(settings, source).run()
    finally:
        await client.close()


def main() -> None:
    """Run the agent of the pgbouncer in this pod, until SIGTERM."""
    try:
        settings = Settings.from_environment()
        logs.configure(cluster=f"{settings.namespace}/{settings.cluster}")
        asyncio.run(_run(settings))
    except FatalError as error:
        log.critical("%s", error)
        sys.exit(1)
