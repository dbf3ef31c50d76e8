"""The agent's HTTP port: probes for the kubelet, and metrics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST


async def serve(
    *,
    port: int,
    alive: Callable[[], bool],
    ready: Callable[[], tuple[bool, str]],
    status: Callable[[], str],
    metrics: Callable[[], Awaitable[bytes]],
) -> web.AppRunner:
    """Listen on `port`; the caller cleans the runner up."""

    async def livez(_: web.Request) -> web.Response:
        return web.Response(status=200 if alive() else 503)

    async def readyz(_: web.Request) -> web.Response:
        is_ready, reason = ready()
        return web.Response(status=200 if is_ready else 503, text=reason + "\n")

    async def show_status(_: web.Request) -> web.Response:
        return web.Response(text=status(), content_type="application/json")

    async def show_metrics(_: web.Request) -> web.Response:
        return web.Response(body=await metrics(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    application = web.Application()
    application.add_routes(
        [
            web.get("/livez", livez),
            web.get("/readyz", readyz),
            web.get("/status", show_status),
            web.get("/metrics", show_metrics),
        ]
    )
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, port=port).start()
    return runner
