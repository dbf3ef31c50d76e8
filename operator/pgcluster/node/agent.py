"""The node agent: the only one that starts, stops and promotes postgres in its pod.

One loop looks at what is, asks the pure tables (start.py, gate.py) what to do, and does one thing.
Requests of repmgr and of people come in over the socket and go through the same tables.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig
from pgcluster.api.errors import FatalError, PgClusterError, RetryError
from pgcluster.api.wal import Lsn, WalPoint
from pgcluster.clock import monotonic_s
from pgcluster.kube.client import KubeClient
from pgcluster.kube.resources import CONFIG_MAPS, PODS
from pgcluster.node import files, http, ipc, peers
from pgcluster.node.handover import Handover
from pgcluster.node.instance import Instance
from pgcluster.node.members import (
    FOLLOWS_PLANS,
    Reporter,
    candidate_document,
    parse_failsafe,
)
from pgcluster.node.metrics import Metrics
from pgcluster.node.remote import Remote
from pgcluster.node.restart import Restart
from pgcluster.node.running import Running
from pgcluster.node.settings import Settings
from pgcluster.node.stopped import Stopped
from pgcluster.render import repmgr as render_repmgr
from pgcluster.repmgr import refusal
from pgcluster.topology.pods import report_of

log = logging.getLogger(__name__)

_REPORT_EVERY_S = 0.5
_ALIVE_WITHIN_S = 30.0
_SUCCESSOR_WITHIN_S = 10.0
# How long postgres stays down after `repmgr node service --action=stop` before the agent acts.
_HANDS_OFF_S = 120.0
# repmgr's own checks take seconds; less than whoever asks waits for.
_REHEARSAL_S = 15.0
# What was sent is received within moments, or was lost with its connection.
_RECEIVED_S = 0.3
_RECEIVED_POLL_S = 0.01


class Agent:
    """One instance. `run()` lives as long as the container."""

    def __init__(self, settings: Settings, client: KubeClient, config: ClusterConfig) -> None:
        self._settings = settings
        self._client = client
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()
        self._beat_s = monotonic_s()
        self._instance = Instance(
            settings, client, config, wake=self._wake, leaving=self._stopping.is_set
        )
        self._handover = Handover(self._instance)
        self._running = Running(
            self._instance,
            self._handover,
            Restart(self._instance, self._handover),
            Metrics(self._instance.registry),
        )
        self._stopped = Stopped(self._instance)
        self._reporter = Reporter(
            client, namespace=settings.namespace, me=settings.pod, report=self._instance.report
        )

    # --- life ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Live until SIGTERM, then leave in order; FatalError where a part of it gave up."""
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(sig, self._stop)
        runner = await http.serve(
            alive=lambda: monotonic_s() - self._beat_s < _ALIVE_WITHIN_S,
            ready=self._instance.ready,
            registry=self._instance.registry,
        )
        remote = Remote(
            lambda: render_repmgr.bindir(self._instance.config.postgres_major), self._others
        )
        peer_runner = await peers.serve(
            {
                ("GET", "/status"): self._status,
                ("POST", "/failsafe"): self._acknowledge,
                ("POST", "/run"): remote.run,
                ("POST", "/ready-for-switchover"): self._rehearse,
                ("POST", "/complete"): self._complete,
            },
            self._instance.credentials,
        )
        beat = asyncio.create_task(self._beat(), name="beat")
        try:
            await self._lock_volume()
            if not self._stopping.is_set():
                await self._live()
        finally:
            beat.cancel()
            await self._instance.peers.close()
            await peer_runner.cleanup()
            await runner.cleanup()

    async def _live(self) -> None:
        instance = self._instance
        instance.certificates.refresh()
        await instance.adopt(instance.config)
        instance.write_configuration()
        # What a former container of this pod knew may be all there is while the API is away.
        if not Path(names.HOSTS_FILE).exists():
            files.write_hosts(instance.config, {instance.me: self._settings.pod_ip})
        files.leave_word(self._settings.container)
        socket = await ipc.serve(names.AGENT_SOCKET, self._request)
        await instance.server.fence.start()
        instance.members.follow(instance.config.instances)
        background = [
            asyncio.create_task(coroutine, name=name)
            for name, coroutine in (
                ("lease-watch", instance.lease.watch()),
                ("lease-keep", instance.lease.keep()),
                ("succession", self._succeed()),
                ("config-watch", self._watch_config()),
                ("report", self._keep_reporting()),
                ("events", instance.events.run()),
                ("space", instance.space.keep()),
                ("poolers", instance.poolers.watch()),
            )
        ]
        loop = asyncio.create_task(self._loop(), name="loop")
        stop = asyncio.create_task(self._stopping.wait(), name="stop")
        ended, _ = await asyncio.wait(
            [*background, loop, stop], return_when=asyncio.FIRST_COMPLETED
        )
        # The loop ends by itself when it is to.
        expected = {stop, loop} if self._stopping.is_set() else {stop}
        broken = [task for task in ended if task not in expected]
        for task in broken:
            error = None if task.cancelled() else task.exception()
            log.critical("%s ended: please report it", task.get_name(), exc_info=error)
        self._stop()
        loop.cancel()
        await asyncio.gather(loop, return_exceptions=True)
        await self._leave()
        for task in (*background, stop):
            task.cancel()
        await asyncio.gather(*background, stop, return_exceptions=True)
        socket.close()
        await instance.server.fence.stop()
        await instance.members.close()
        if broken:
            raise FatalError("a part of the agent ended")

    def _stop(self) -> None:
        self._stopping.set()
        self._wake.set()

    async def _lock_volume(self) -> None:
        while not self._instance.server.lock.take() and not self._stopping.is_set():
            self._instance.say("waiting", "another container still holds the volume")
            log.info("another container still holds the volume")
            await asyncio.sleep(0.5)

    async def _beat(self) -> None:
        """Proves to the kubelet that the event loop turns, and nothing else."""
        while True:
            self._beat_s = monotonic_s()
            await asyncio.sleep(1)

    async def _loop(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            delay_s = await self._cycle()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._wake.wait()

    async def _cycle(self) -> float:
        instance = self._instance
        try:
            instance.standing.holding = instance.lease.holding()
            self._write_hosts()
            instance.renew_certificates()
            if instance.server.running:
                return await self._running.cycle()
            return await self._stopped.cycle()
        except PgClusterError as error:
            log.info("%s", error)
            if not instance.server.running:
                instance.say("waiting", str(error))
            return error.delay_s if isinstance(error, RetryError) else 5.0
        except Exception:
            log.exception("unexpected: please report it")
            return 1.0

    def _write_hosts(self) -> None:
        instance = self._instance
        addresses = {**instance.members.addresses(), instance.me: self._settings.pod_ip}
        if files.write_hosts(instance.config, addresses):
            log.info("the hosts file was rewritten", extra={"addresses": addresses})

    async def _leave(self) -> None:
        """Stop in order: repmgrd, postgres, then the Lease, so that nobody waits for it."""
        instance = self._instance
        instance.say("stopping", "the pod is being stopped")
        was_primary = instance.standing.primary
        if was_primary and instance.config.instances > 1 and instance.config.failover.automatic:
            outcome = await self._handover.leave()
            log.info("the primary is being stopped: %s", outcome.reason)
        # What a hand-over has done already is done; without one clients notice.
        await instance.stop_repmgrd()
        await instance.stop_postgres()
        await instance.lease.release()
        with contextlib.suppress(PgClusterError, TimeoutError):
            async with asyncio.timeout(2):
                await self._reporter.write()
        succeeded = instance.config.instances > 1 and instance.config.hibernation is None
        if was_primary and succeeded and instance.config.failover.automatic:
            await self._await_successor()

    async def _await_successor(self) -> None:
        """Stay until another instance is the primary, or for a while.

        As long as this pod has its address, connecting to it is refused at once; afterwards each
        of repmgrd's probes of it takes its whole timeout, in the middle of the failover.
        """
        deadline_s = monotonic_s() + _SUCCESSOR_WITHIN_S
        while monotonic_s() < deadline_s:
            reports = self._instance.members.reports()
            if any(
                report.role == "primary" and report.ready
                for pod, report in reports.items()
                if pod != self._instance.me
            ):
                return
            await asyncio.sleep(0.1)

    # --- requests over the socket -------------------------------------------------------------

    async def _request(self, words: list[str]) -> tuple[bool, str]:
        handlers: dict[str, Callable[[list[str]], Awaitable[tuple[bool, str]]]] = {
            "gate": lambda _: self._gate(),
            "promote": lambda _: self._promote(),
            "event": self._event,
            "service": self._service,
        }
        handler = handlers.get(words[0])
        if handler is None:
            return False, f"unknown request {words[0]!r}"
        return await handler(words[1:])

    async def _gate(self) -> tuple[bool, str]:
        """May repmgrd promote? What a person types comes by service_promote_command alone."""
        if not self._instance.config.failover.automatic:
            return False, "spec.failover.automatic is false"
        return await self._instance.promotion.gate()

    async def _event(self, words: list[str]) -> tuple[bool, str]:
        """An event of repmgr: a hint to look, a Kubernetes Event, a metric."""
        if len(words) < 3:
            return False, "an event has a node, a name and whether it succeeded"
        event, success = words[1], words[2] == "1"
        log.info("repmgr event", extra={"event": event, "success": success})
        if event == "repmgrd_upstream_disconnect":
            self._instance.promotion.suspect()
        self._instance.events.repmgr(self._instance.config, event=event, success=success)
        self._wake.set()
        return True, ""

    async def _promote(self) -> tuple[bool, str]:
        """The gate, the promotion, then the pools: service_promote_command."""
        done, message = await self._instance.promotion.promote()
        if done:
            self._instance.duties.forget()
            try:
                await self._instance.point_pools()
            except PgClusterError as error:
                # The loop tries again; the promotion itself is done.
                log.warning("the pools' databases section was not written: %s", error)
            self._wake.set()
        return done, message

    async def _service(self, words: list[str]) -> tuple[bool, str]:
        """What repmgr calls instead of pg_ctl."""
        instance = self._instance
        action = words[0] if words else ""
        log.info("repmgr asks for postgres to %s", action)
        if action == "reload":
            instance.server.reload()
            return True, ""
        if action not in ("start", "stop", "restart"):
            return False, f"unknown service action {action!r}"
        if action == "stop" and instance.standing.primary:
            return await self._stop_primary(words[1] if len(words) > 1 else None)
        if action in ("stop", "restart"):
            # First of all, so that the loop does not take the end for a crash.
            instance.hands_off_until_s = monotonic_s() + _HANDS_OFF_S
            await instance.stop_postgres()
        if action == "stop":
            await instance.lease.release(handover=True)
            return True, ""
        if (reason := instance.config.held(instance.me)) and not instance.lease.holding():
            return False, reason
        instance.hands_off_until_s = 0.0
        if instance.rejoining and not instance.server.running:
            await instance.server.start(primary_until_s=None)
            return True, ""
        self._wake.set()
        return await self._until_running()

    async def _stop_primary(self, asked_by: str | None) -> tuple[bool, str]:
        """Stop the primary: for `repmgr standby switchover` on a standby, or for a person here."""
        instance = self._instance
        if asked_by in self._others():
            # Down until repmgr has it rejoin; refused, nothing has changed.
            outcome = await self._handover.give(asked_by)
            return outcome.done, "" if outcome.done else outcome.reason
        if reason := await self._handover.stop():
            log.info("the pools are not held: %s", reason)
        instance.hands_off_until_s = monotonic_s() + _HANDS_OFF_S
        await instance.stop_postgres()
        # Whoever is told to take over is not to be outrun.
        await instance.lease.release(handover=True)
        await self._handover.let_go()
        return True, ""

    def _others(self) -> tuple[str, ...]:
        config = self._instance.config
        pods = (names.pod(config.name, ordinal) for ordinal in range(config.instances))
        return tuple(pod for pod in pods if pod != self._instance.me)

    async def _until_running(self) -> tuple[bool, str]:
        while not self._instance.in_service:
            if self._stopping.is_set():
                return False, "shutting down"
            await asyncio.sleep(0.1)
        return True, ""

    # --- what comes and goes by the API -------------------------------------------------------

    async def _status(self, _: Mapping[str, Any]) -> Mapping[str, Any]:
        instance = self._instance
        return candidate_document(
            await instance.candidate_now(),
            instance.report(),
            {"epoch": instance.lease.epoch, FOLLOWS_PLANS: True},
        )

    async def _rehearse(self, _: Mapping[str, Any]) -> Mapping[str, Any]:
        """The primary is to hand over to this instance: what does repmgr say?"""
        result = await self._instance.duties.repmgr.rehearse_switchover(within_s=_REHEARSAL_S)
        return {} if result.status == 0 else {"refused": refusal(result)}

    async def _complete(self, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """The primary has stopped at a position: is all of it here?"""
        instance = self._instance
        try:
            wanted = WalPoint(int(document["timeline"]), Lsn.parse(document["lsn"]))
        except (KeyError, TypeError, ValueError) as error:
            raise RetryError(f"this is no position: {error}") from error
        deadline_s = monotonic_s() + _RECEIVED_S
        while True:
            instance.standing.see(await instance.server.local.observe())
            point = instance.standing.point
            if point is not None and point >= wanted:
                return {}
            if monotonic_s() > deadline_s:
                return {"refused": f"it has received {point}, and not {wanted}"}
            await asyncio.sleep(_RECEIVED_POLL_S)

    async def _succeed(self) -> None:
        """As soon as a primary hands over to this instance, take over; for ever.

        Beside the loop, which may be in the middle of something: clients wait.
        """
        instance = self._instance
        while True:
            await instance.lease.named.wait()
            instance.lease.named.clear()
            if not instance.server.running or self._stopping.is_set():
                continue
            try:
                await instance.succeed()
            except PgClusterError as error:
                log.warning("succession: %s", error)
            except Exception:
                log.exception("unexpected: please report it")
            self._wake.set()

    async def _acknowledge(self, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """The primary cannot be heard by the API server, and asks whether it may go on."""
        instance = self._instance
        try:
            record = parse_failsafe(document)
        except (KeyError, TypeError, ValueError) as error:
            raise RetryError(f"this is no failsafe request: {error}") from error
        refusal = instance.lease.acknowledge(record)
        addresses = document.get("addresses")
        if refusal is None and isinstance(addresses, dict):
            instance.members.learn({str(pod): str(ip) for pod, ip in addresses.items()})
        return {} if refusal is None else {"refused": refusal}

    async def _watch_config(self) -> None:
        """Follow the cluster's configuration: a mounted ConfigMap lags by a minute or more."""
        name = names.config_map(self._settings.cluster)
        async for event in self._client.watch(CONFIG_MAPS, self._settings.namespace, name=name):
            manifests = event.items if event.type == "SYNC" else [event.object]
            if event.type in ("SYNC", "ADDED", "MODIFIED"):
                for manifest in manifests:
                    if text := ((manifest or {}).get("data") or {}).get(names.CONFIG_KEY):
                        await self._configure(text)

    async def _configure(self, text: str) -> None:
        instance = self._instance
        try:
            config = ClusterConfig.model_validate_json(text)
        except ValueError as error:
            log.warning("the new configuration cannot be read, the old one stays: %s", error)
            return
        if not instance.parameters.news(config):
            return
        await instance.adopt(config)
        instance.members.follow(config.instances)
        if instance.write_configuration() and instance.server.running:
            instance.reload()
            log.info("postgres was told to reload its configuration")
        self._wake.set()

    async def _recall(self) -> None:
        """What a former process of this pod has dealt with is not begun again."""
        try:
            pod = await self._client.get(PODS, self._instance.me, self._settings.namespace)
        except PgClusterError as error:
            log.info("the last report was not read: %s", error)
            pod = None
        report = report_of(pod) if pod else None
        self._handover.recall(report.handover if report else None)

    async def _keep_reporting(self) -> None:
        await self._recall()
        while True:
            try:
                await self._reporter.write()
            except PgClusterError as error:
                log.info("the report was not written: %s", error)
            await asyncio.sleep(_REPORT_EVERY_S)
