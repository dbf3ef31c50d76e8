"""The operator's process: health server, election, then watches, queue and workers."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Coroutine
from typing import Any

import kopf

from pgcluster.api import logs
from pgcluster.api.errors import FatalError, PgClusterError, RetryError
from pgcluster.controller import handlers
from pgcluster.controller.elector import DURATION_S, RENEW_DEADLINE_S, Elector
from pgcluster.controller.health import Health, Progress
from pgcluster.controller.leases import LeaseWatch
from pgcluster.controller.metrics import Metrics
from pgcluster.controller.nodes import NodeWatch
from pgcluster.controller.observe import Key
from pgcluster.controller.queue import WorkQueue
from pgcluster.controller.reconcile import Reconciler
from pgcluster.controller.settings import Settings
from pgcluster.kube.client import KubeClient
from pgcluster.kube.errors import ApiError, NotFound
from pgcluster.kube.resources import PGCLUSTERS

log = logging.getLogger(__name__)

WORKERS = 8
RESYNC_S = 300.0
# After a lost Lease, another replica may lead this much later; by then this process is gone.
_LOSS_GRACE_S = (DURATION_S - RENEW_DEADLINE_S) / 2
_CRD_POLL_S = 5.0
_GATHER_S = 0.1
_STOP_GRACE_S = 10.0


class Operator:
    """One replica."""

    def __init__(self, settings: Settings, client: KubeClient) -> None:
        self._settings = settings
        self._client = client
        self._metrics = Metrics()
        client.counted = self._metrics.request
        self._progress = Progress()
        self._queue: WorkQueue[Key] = WorkQueue()
        self._metrics.queue_depth.set_function(lambda: len(self._queue))
        self._elector = Elector(client, namespace=settings.namespace, identity=settings.identity)
        self._metrics.leader.set_function(lambda: float(self._elector.leads))
        self._health = Health(self._metrics.registry, self._progress, standing=self._standing)
        self._nodes = NodeWatch(client, self._wake, namespaces=settings.namespaces)
        self._reconcile = Reconciler(
            client,
            self._metrics,
            settings.catalog,
            identity=settings.identity,
            going=lambda: self._nodes.going,
        )
        self._known: set[Key] = set()
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Serve until SIGTERM; FatalError where the process cannot go on."""
        self._listen_for_signals()
        await self._health.start()
        try:
            if await self._unless_stopped(self._elected()):
                await self._lead()
        finally:
            await self._elector.release()
            await self._health.stop()

    async def _lead(self) -> None:
        # kopf cancels at its end whatever was started after its beginning: these come first.
        hold = asyncio.create_task(self._elector.hold(), name="election")
        tasks = [
            asyncio.create_task(self._work(number), name=f"worker-{number}")
            for number in range(WORKERS)
        ]
        tasks.append(asyncio.create_task(self._resync(), name="resync"))
        tasks.append(asyncio.create_task(self._nodes.run(), name="nodes"))
        leases = LeaseWatch(self._client, self._wake)
        tasks += [
            asyncio.create_task(leases.run(namespace), name=f"leases-{namespace or 'all'}")
            for namespace in self._settings.namespaces or (None,)
        ]
        serving = asyncio.create_task(self._watch(), name="kopf")
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        await asyncio.wait([hold, serving, stopping, *tasks], return_when=asyncio.FIRST_COMPLETED)
        lost = hold.done()
        if lost:
            self._end_soon()
        self._stop.set()
        for task in (hold, stopping, *tasks):
            task.cancel()
        ended = await asyncio.gather(hold, *tasks, return_exceptions=True)
        # From here on nothing is written: another replica need not wait for kopf's end.
        await self._elector.release()
        ended += await asyncio.gather(
            asyncio.wait_for(serving, _STOP_GRACE_S), return_exceptions=True
        )
        failures = [
            result
            for result in ended
            if isinstance(result, Exception) and not isinstance(result, TimeoutError)
        ]
        for failure in failures:
            log.error("this replica ends: %r", failure, exc_info=failure)
        if lost or failures:
            raise FatalError("the operator cannot go on; another replica takes over")

    def _end_soon(self) -> None:
        """Whatever hangs: no write of this process after another replica may lead."""
        asyncio.get_running_loop().call_later(_LOSS_GRACE_S, os._exit, 1)

    async def _unless_stopped(self, step: Coroutine[Any, Any, None]) -> bool:
        """Wait for a step, or for SIGTERM; False for the latter."""
        task = asyncio.create_task(step)
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not task.done():
            task.cancel()
            return False
        task.result()
        return True

    def _listen_for_signals(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stop.set)

    async def _elected(self) -> None:
        await self._resource_exists()
        await self._elector.acquire()

    async def _resource_exists(self) -> None:
        """kopf would stay blind for a resource that is not there when it starts."""
        while True:
            try:
                for namespace in self._settings.namespaces or (None,):
                    await self._client.list(PGCLUSTERS, namespace)
                return
            except NotFound:
                log.warning("the resource PgCluster does not exist: apply the CRD")
            except ApiError as error:
                log.warning("PgClusters cannot be listed: %s", error)
            await asyncio.sleep(_CRD_POLL_S)

    async def _watch(self) -> None:
        """Run kopf until it is stopped; it raises where a watch has died."""
        others = asyncio.all_tasks()
        tasks = await kopf.spawn_tasks(
            registry=handlers.registry(self._wake, self._client),
            settings=handlers.settings(),
            standalone=True,
            clusterwide=not self._settings.namespaces,
            namespaces=self._settings.namespaces,
            stop_flag=self._stop,
        )
        # kopf has just taken the signals; its own way to stop is seconds slower.
        self._listen_for_signals()
        await kopf.run_tasks(tasks, ignored=others)

    def _wake(self, key: Key) -> None:
        # Changes come in bursts: one reconciliation sees them all.
        self._queue.add_after(key, _GATHER_S)

    async def _resync(self) -> None:
        """Look at every cluster now and then: a watch may have missed something."""
        while True:
            await asyncio.sleep(RESYNC_S)
            try:
                found = set()
                for namespace in self._settings.namespaces or (None,):
                    items, _ = await self._client.list(PGCLUSTERS, namespace)
                    for item in items:
                        found.add(Key(item["metadata"]["namespace"], item["metadata"]["name"]))
            except ApiError as error:
                log.warning("the periodic list failed: %s", error)
                continue
            for key in self._known | found:
                self._queue.add(key)

    async def _work(self, number: int) -> None:
        while True:
            key = await self._queue.get()
            self._progress.started(number, str(key))
            try:
                # A process that was frozen past its Lease must not act on what it still knows.
                if self._elector.leads:
                    await self._once(key)
            finally:
                self._progress.ended(number)
                self._queue.done(key)

    async def _once(self, key: Key) -> None:
        started_s = time.monotonic()
        outcome = "error"
        logs.about.set(str(key))
        try:
            result = await self._reconcile(key)
        except RetryError as error:
            outcome = "retry"
            delay_s = self._queue.add_failed(key)
            log.info("again in %.1f s: %s", delay_s, error)
        except PgClusterError as error:
            delay_s = self._queue.add_failed(key)
            log.warning("again in %.1f s: %s", delay_s, error)
        except Exception:
            delay_s = self._queue.add_failed(key)
            log.exception("unexpected, please report it; again in %.1f s", delay_s)
        else:
            outcome = "gone" if result is None else result.outcome
            self._queue.forgive(key)
            if result is None:
                self._known.discard(key)
            else:
                self._known.add(key)
                if result.again_s is not None:
                    self._queue.add_after(key, result.again_s)
        self._metrics.reconciles.labels(outcome=outcome).inc()
        self._metrics.reconcile_seconds.observe(time.monotonic() - started_s)

    def _standing(self) -> str | None:
        """Why this replica could not do its job, leading or waiting to lead; None if it could."""
        if self._elector.leads or self._elector.watches:
            return None
        return "the API server has not answered lately"
