"""The agent's HTTP port: probes for the kubelet, and metrics. What peers ask is in peers.py."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from pgcluster.api import names


async def serve(
    *,
    alive: Callable[[], bool],
    ready: Callable[[], tuple[bool, str]],
    registry: CollectorRegistry,
) -> web.AppRunner:
    """Listen on the agent's port; the caller cleans the runner up."""

    async def livez(_: web.Request) -> web.Response:
        return web.Response(status=200 if alive() else 503)

    async def readyz(_: web.Request) -> web.Response:
        is_ready, reason = ready()
        return web.Response(status=200 if is_ready else 503, text=reason + "\n")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )

    application = web.Application()
    application.add_routes(
        [
            web.get("/livez", livez),
            web.get("/readyz", readyz),
            web.get("/metrics", metrics),
        ]
    )
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=names.PORT_AGENT).start()
    return runner
