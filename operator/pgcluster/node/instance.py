"""Everything of one instance that the agent's loop, its start and its requests share."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry

from pgcluster import __version__
from pgcluster.api import names
from pgcluster.api.config import ClusterConfig, LeaseConfig
from pgcluster.api.errors import RetryError
from pgcluster.api.reports import InstanceReport, InstanceState
from pgcluster.api.wal import WalPoint
from pgcluster.clock import monotonic_s, utc_now
from pgcluster.kube.client import KubeClient
from pgcluster.node import files
from pgcluster.node.duties import Duties
from pgcluster.node.events import Events
from pgcluster.node.importing import Importing
from pgcluster.node.lease import LeaseKeeper
from pgcluster.node.members import Members
from pgcluster.node.peers import Credentials, Peers
from pgcluster.node.poolers import Poolers
from pgcluster.node.processes import Child
from pgcluster.node.promotion import Promotion
from pgcluster.node.repmgrd import Repmgrd
from pgcluster.node.server import Server
from pgcluster.node.settings import Settings
from pgcluster.node.space import Space, coarse_percent
from pgcluster.node.standing import Standing
from pgcluster.node.synchronous import Synchronous
from pgcluster.postgres.control import ControlData
from pgcluster.postgres.local import Observation
from pgcluster.topology.election import Candidate
from pgcluster.topology.lease import Mark

log = logging.getLogger(__name__)


class Instance:
    """The parts, wired to one another, and the few facts that outlive one look at the world.

    `wake` ends the loop's pause; `leaving` tells whether the pod is being stopped.
    """

    def __init__(
        self,
        settings: Settings,
        client: KubeClient,
        config: ClusterConfig,
        *,
        wake: asyncio.Event,
        leaving: Callable[[], bool],
    ) -> None:
        self.me = settings.pod
        self.settings = settings
        self.config = config
        self.leaving = leaving
        self.started_s = monotonic_s()
        self.standing = Standing()
        self.registry = CollectorRegistry()
        self.server = Server(lambda: self.config, self.me, ended=wake)
        self.repmgrd = Child("repmgrd", ended=wake)
        self.synchronous = Synchronous(self.me)
        self.lease = LeaseKeeper(
            client,
            cluster=settings.cluster,
            namespace=settings.namespace,
            me=self.me,
            timing=self._timing,
            mark=self._mark,
            quorums=lambda: self.synchronous.quorums(self.config),
            inherit=self.synchronous.inherit,
            container=settings.container,
            failsafe=lambda record: self.members.acknowledge(record, self.config.instances),
            renewed=self.server.fence.extend,
            changed=wake,
        )
        self.credentials = Credentials(names.peer_name(settings.cluster, settings.namespace))
        self.peers = Peers(self.credentials)
        self.members = Members(
            client,
            self.peers,
            cluster=settings.cluster,
            namespace=settings.namespace,
            me=self.me,
            changed=wake,
        )
        self.duties = Duties(
            client,
            self.members,
            self.server.local,
            lambda: self.config,
            me=self.me,
            address=settings.pod_ip,
            registry=self.registry,
        )
        self.space = Space(
            self._volumes,
            running=lambda: self.server.running,
            reload=self.server.reload,
            registry=self.registry,
        )
        self.promotion = Promotion(
            me=self.me,
            config=lambda: self.config,
            lease=self.lease,
            members=self.members,
            server=self.server,
            standing=self.standing,
            leaving=leaving,
        )
        self.repmgrd_watch = Repmgrd(
            self.repmgrd, self.duties.repmgr_database, epoch=lambda: self.lease.epoch
        )
        self.events = Events(client, self.me, self.registry)
        self.importing = Importing(
            client,
            lambda: self.config,
            post=lambda reason, note, normal: self.events.post(
                self.config, reason, note, normal=normal
            ),
        )
        self.poolers = Poolers(
            client, self.server.local, cluster=settings.cluster, namespace=settings.namespace
        )
        # A rewind was tried since this data directory was last in service.
        self.rewind_failed = False
        # The history here has parted from the cluster's.
        self.must_rejoin = False
        # Why this standby could not go on from where it was, until it streams again.
        self.lost_wal: str | None = None
        # `repmgr node rejoin` runs and will ask for a start.
        self.rejoining = False
        # postgres was in service, and nobody has asked it to stop.
        self.in_service = False
        self.answered_s = 0.0
        # Until when postgres stays down because somebody asked for that.
        self.hands_off_until_s = 0.0
        # The end of WAL that a clean stop of this primary has left.
        self.final_point: WalPoint | None = None
        # Its recovery took too long once, and nobody else took over.
        self.recovers_alone = False

    # --- what others ask ----------------------------------------------------------------------

    def report(self) -> InstanceReport:
        """This instance as it is now."""
        told = self.standing.report(
            self.me, maximum_lag_bytes=self.config.failover.maximum_lag_bytes, version=__version__
        )
        ready, why = self.ready()
        slots = self.duties.retention.findings
        return told.model_copy(
            update={
                "ready": told.ready and ready,
                "reason": why if told.ready and not ready else told.reason,
                "disk_used_percent": coarse_percent(self.space.seen),
                "disk_full": self.space.full is not None,
                "lost_wal": self.lost_wal,
                "lost_standbys": slots.lost,
                "retained_wal_bytes": dict(slots.retained),
                "progress": told.progress or self.importing.progress,
                "importing": self.importing.report if self.standing.primary else None,
            }
        )

    def ready(self) -> tuple[bool, str]:
        """Whether this instance is in its role, and why (not)."""
        if self.leaving():
            return False, "shutting down"
        ready, why = self.standing.ready(self.config.failover.maximum_lag_bytes)
        if ready and self.standing.primary and (hinders := self.importing.hinders):
            return False, hinders
        if ready and self.space.full is not None and not self.standing.primary:
            # It falls down again and again as it receives; readers are not to fall with it.
            return False, f"volume {self.space.full} is full"
        return ready, why

    def candidate(self) -> Candidate:
        """This instance as the other agents' elections see it."""
        return Candidate(
            self.standing.system_identifier,
            self.standing.point,
            exact=self.standing.exact,
            barred=self.leaving()
            or self.must_rejoin
            or self.standing.state in ("cloning", "rewinding", "refused", "fenced"),
        )

    def say(self, state: InstanceState, reason: str) -> None:
        """Tell what this instance is doing, and why."""
        self.standing.state = state
        self.standing.reason = reason

    # --- steps that more than one caller takes ------------------------------------------------

    def serving(self, observed: Observation) -> None:
        """postgres has been started and answers."""
        self.standing.see(observed)
        self.standing.holding = self.lease.holding()
        self.final_point = None
        self.recovers_alone = False
        self.answered_s = monotonic_s()
        self.in_service = True
        self.duties.forget()
        self.say("running", "postgres runs")

    async def stop_postgres(self) -> None:
        """A clean stop, which leaves the exact end of WAL for the Lease's mark."""
        if not self.server.running:
            return
        was_primary = self.standing.primary
        self.in_service = False
        if was_primary:
            await self.server.checkpoint()
        await self.importing.close()
        await self.duties.close()
        await self.server.stop()
        self.rest(await self.server.control())
        if was_primary and self.standing.control is not None:
            self.final_point = self.standing.control.point

    async def stop_at_once(self) -> None:
        """A stop that waits for nobody; the next start recovers."""
        self.in_service = False
        self.importing.abandon()
        await self.duties.close()
        await self.server.stop(fast=False)
        self.rest(await self.server.control())

    def rest(self, control: ControlData | None) -> None:
        """postgres does not run: take note of its data directory."""
        self.standing.rest(control)
        self.synchronous.stopped()

    def write_configuration(self) -> bool:
        """Write every configuration file, and have repmgrd read its own again.

        True where postgres should reload.
        """
        if files.write_repmgr(self.config, self.me):
            self.repmgrd.signal(signal.SIGHUP)
        setting = self.synchronous.setting(self.config)
        return files.write_all(self.config, self.me, synchronous=setting)

    async def keep_repmgrd(self) -> None:
        """Have repmgrd run, and do its work."""
        if not self.repmgrd.running:
            await self.repmgrd.start(self.duties.repmgr.daemon(), env=os.environ)
        if trouble := await self.repmgrd_watch.see_to():
            note = f"{self.me}: repmgrd hung ({trouble}) and was started anew"
            self.events.post(self.config, "RepmgrdHung", note, normal=False)
        self.standing.repmgrd = self.repmgrd.running
        self.standing.repmgrd_paused = self.repmgrd_watch.paused

    async def stop_repmgrd(self) -> None:
        """Have repmgrd not run."""
        await self.repmgrd.stop(signal.SIGTERM, within_s=5)
        self.standing.repmgrd = False

    async def look_around(self, *, primary: bool) -> None:
        """See who is there; nothing else of a cycle waits for that."""
        try:
            self.standing.silent_poolers = await self.poolers.look(primary=primary)
            if primary:
                await self.duties.see_standbys()
        except RetryError as error:
            log.info("who is there was not seen: %s", error)
        self.standing.streaming = self.duties.streaming

    async def point_pools(self) -> bool:
        """Tell the pools that this instance is the primary; True where that was news to them."""
        seen = self.standing.observed
        if seen is None or not await self.importing.complete():
            return False
        # From before the request: the poolers may act on it before its answer is here.
        sent_at = utc_now()
        written = await self.duties.point_pools_here(
            epoch=self.lease.epoch, timeline=seen.point.timeline
        )
        if written:
            self.promotion.note_config(sent_at)
        return written

    def _volumes(self) -> Mapping[str, Path]:
        wal = {"wal": Path(names.WAL_VOLUME)} if self.config.wal_volume else {}
        return {"data": Path(names.VOLUME), **wal}

    def _timing(self) -> LeaseConfig:
        return self.config.failover.lease

    def _mark(self) -> Mark:
        """What the Lease's holder writes into it: only what a primary can vouch for."""
        standing = self.standing
        if self.final_point is not None:
            return Mark(standing.system_identifier, self.final_point, final=True)
        if standing.observed is not None and not standing.observed.in_recovery:
            return Mark(standing.system_identifier, standing.point)
        return Mark(standing.system_identifier, None)
