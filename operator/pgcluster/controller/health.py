"""Health, readiness and metrics over HTTP; serves from the first second, leader or not.

kopf's own endpoint opens only after its startup, so that the kubelet would end a replica that waits
for the Lease.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from pgcluster.api import names

# A reconciliation has deadlines on all it does and takes seconds; one that takes minutes hangs.
STUCK_AFTER_S = 300.0


class Progress:
    """Since when each worker has been busy; idle workers are not in it."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[int, tuple[str, float]] = {}

    def started(self, worker: int, what: str) -> None:
        """A worker begins."""
        self._since[worker] = (what, self._clock())

    def ended(self, worker: int) -> None:
        """A worker is idle again."""
        self._since.pop(worker, None)

    def stuck(self) -> str | None:
        """What a worker has been busy with for too long, as a sentence."""
        for what, since_s in self._since.values():
            busy_s = self._clock() - since_s
            if busy_s > STUCK_AFTER_S:
                return f"the reconciliation of {what} has been going on for {busy_s:.0f} s"
        return None


class Health:
    """The HTTP server; `standing` is None while this replica can do its job, else why not."""

    def __init__(
        self,
        registry: CollectorRegistry,
        progress: Progress,
        *,
        standing: Callable[[], str | None],
    ) -> None:
        self._registry = registry
        self._progress = progress
        self._standing = standing
        self._runner: web.AppRunner | None = None

    async def start(self, *, port: int = names.PORT_OPERATOR) -> None:
        """Listen on all addresses."""
        application = web.Application()
        application.router.add_get("/livez", self._livez)
        application.router.add_get("/readyz", self._readyz)
        application.router.add_get("/metrics", self._metrics)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, None, port).start()

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _livez(self, _: web.Request) -> web.Response:
        # That it answers at all proves that the event loop turns.
        return _answer(self._progress.stuck())

    async def _readyz(self, _: web.Request) -> web.Response:
        return _answer(self._standing())

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )


def _answer(trouble: str | None) -> web.Response:
    return web.Response(text=(trouble or "ok") + "\n", status=503 if trouble else 200)
