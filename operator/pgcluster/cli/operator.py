"""Entry point of the operator."""

from __future__ import annotations

import asyncio
import logging
import os
import sys

from pgcluster.api import logs
from pgcluster.api.errors import FatalError
from pgcluster.controller.main import Operator
from pgcluster.controller.settings import Settings
from pgcluster.kube.client import KubeClient

log = logging.getLogger(__name__)


async def _run(settings: Settings) -> None:
    client = await KubeClient.connect()
    try:
        await Operator(settings, client).run()
    finally:
        await client.close()


def main() -> None:
    """Run one replica of the operator until SIGTERM."""
    logs.configure(level=os.environ.get("PGCLUSTER_LOG_LEVEL", "INFO"))
    # kopf tells each event of each object; what matters is told by the reconciliation.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    try:
        asyncio.run(_run(Settings.from_environment(os.environ)))
    except FatalError as error:
        log.critical("%s", error)
        sys.exit(1)
