"""Entry point of the node agent."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from pgcluster.api import logs, names
from pgcluster.api.errors import FatalError, RetryError
from pgcluster.kube.client import KubeClient
from pgcluster.node import files
from pgcluster.node.agent import Agent
from pgcluster.node.settings import Settings

log = logging.getLogger(__name__)


async def _run(settings: Settings) -> None:
    while True:
        try:
            config = files.read_config()
            break
        except RetryError as error:
            log.warning("%s", error)
            await asyncio.sleep(error.delay_s)
    client = await KubeClient.connect(request_timeout_s=3.0)
    try:
        await Agent(settings, client, config).run()
    finally:
        await client.close()


def main() -> None:
    """Run the agent of the instance that the environment names, until SIGTERM."""
    settings = Settings.from_environment()
    for name in names.ENV_CLIENT_CERTIFICATE:
        # For what a person types. The agent's own connections say what they present, and it is
        # nobody else's business: a server outside of the cluster would end the handshake.
        os.environ.pop(name, None)
    logs.configure(cluster=f"{settings.namespace}/{settings.cluster}")
    try:
        asyncio.run(_run(settings))
    except FatalError as error:
        log.critical("%s", error)
        sys.exit(1)
