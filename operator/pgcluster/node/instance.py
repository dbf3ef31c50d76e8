"""Everything of one instance that the agent's loop, its start and its requests share."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import replace
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
from pgcluster.node.certificates import Certificates
from pgcluster.node.duties import Duties
from pgcluster.node.events import Events
from pgcluster.node.importing import Importing
from pgcluster.node.lease import LeaseKeeper
from pgcluster.node.members import Members
from pgcluster.node.parameters import Parameters
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
from pgcluster.render import postgres as render_postgres
from pgcluster.topology.election import Candidate
from pgcluster.topology.lease import Mark

log = logging.getLogger(__name__)

# A start may fail by chance, or because the disk was full a moment ago.
_FAILED_STARTS = 3
# How often a standby looks what its primary's WAL demands: always, and while it is less soon.
_DEMANDS_S = 15.0
_DEMANDS_SOON_S = 1.0
# Less than whoever asks waits for.
_LOOK_S = 0.3


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
        self.wake = wake
        self.started_s = monotonic_s()
        self.standing = Standing()
        self.registry = CollectorRegistry()
        self.server = Server(lambda: self.config, self.me, ended=wake, prepare=self._prepare)
        self.parameters = Parameters(self.me, lambda: self.server.data.current)
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
        self.certificates = Certificates()
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
        # Announced to the pools: what belongs to a primary's ordinary life waits.
        self.handing_over = False
        # The end of WAL that a clean stop of this primary has left.
        self.final_point: WalPoint | None = None
        # The last restart in place that was ordered, and starts in a row that failed.
        self.restarted: str | None = None
        self.failed_starts: list[str] = []
        # Its recovery took too long once, and nobody else took over.
        self.recovers_alone = False
        self._demands_again_s = 0.0

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
                "lowering": self._lowering(),
                "settings": self.parameters.loaded,
                "refused_parameters": dict(self.parameters.refused),
                "overridden_parameters": dict(self.parameters.overridden),
                "tls": self.config.tls is not None and self.certificates.complete,
                "restarted": self.restarted,
                "start_failed": self.failed_starts[-1]
                if len(self.failed_starts) >= _FAILED_STARTS
                else None,
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
            or (self.config.held(self.me) is not None and not self.lease.holding())
            or self.standing.state in ("cloning", "rewinding", "refused", "fenced"),
        )

    async def candidate_now(self) -> Candidate:
        """The same, as an election asks for it: by a look at what is there at this moment.

        What was seen before may be less than what was acknowledged since.
        """
        if self.server.running:
            with contextlib.suppress(RetryError, TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    self.standing.see(await self.server.local.observe())
                return self.candidate()
        elif self.standing.observed is None:
            return self.candidate()
        return replace(self.candidate(), exact=False)

    def say(self, state: InstanceState, reason: str) -> None:
        """Tell what this instance is doing, and why."""
        self.standing.state = state
        self.standing.reason = reason

    # --- steps that more than one caller takes ------------------------------------------------

    def serving(self, observed: Observation) -> None:
        """postgres has been started and answers."""
        self.standing.see(observed)
        if observed.in_recovery:
            self.standing.timeline = max(self.standing.timeline, self.server.data.newest_timeline())
        self.standing.holding = self.lease.holding()
        self.final_point = None
        self.recovers_alone = False
        self.answered_s = monotonic_s()
        self.in_service = True
        self.failed_starts.clear()
        self.parameters.started(self.config)
        self.duties.forget()
        self.say("running", "postgres runs")

    async def stop_postgres(self, *, checkpoint: bool = True) -> None:
        """A clean stop, which leaves the exact end of WAL for the Lease's mark.

        `checkpoint`: with one before, where the caller has not made it.
        """
        if not self.server.running:
            return
        was_primary = self.standing.primary
        self.in_service = False
        if was_primary and checkpoint:
            await self.server.checkpoint()
        await self.importing.close()
        await self.duties.close()
        await self.server.stop()
        self.rest(await self.server.control())
        control = self.standing.control
        # One that had to be killed has more than its control file tells.
        if was_primary and control is not None and control.clean:
            self.final_point = control.point

    async def hold(self, reason: str) -> None:
        """Keep postgres down, and leave the volume to whoever works on it."""
        await self.stop_repmgrd()
        await self.stop_postgres()
        self.say("maintenance", reason)

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
        return files.write_all(
            self.config, self.me, synchronous=setting, floor=self.parameters.floor
        )

    def reload(self) -> None:
        """Have postgres read what has just been written, and look later what came of it."""
        self.parameters.reloading(self.standing.observed)
        self.server.reload()

    def start_failed(self, error: RetryError) -> None:
        """postgres did not start: the former parameters come back, if they were others."""
        self.failed_starts = [*self.failed_starts, str(error)][-_FAILED_STARTS:]
        former = self.parameters.fall_back(self.config)
        if former is not None:
            self.config = former
            self.failed_starts.clear()
            self.write_configuration()

    async def heed_demands(self, *, primary: bool) -> None:
        """Hold what the WAL of the primary demands, and no more: it may have come to be less."""
        now_s = monotonic_s()
        if primary:
            floor: Mapping[str, int] = {}
        elif now_s < self._demands_again_s:
            return
        else:
            control = await self.server.control()
            floor = control.demands if control else {}
            higher = bool(self._lowering())
            self._demands_again_s = now_s + (_DEMANDS_SOON_S if higher else _DEMANDS_S)
        if floor != self.parameters.floor:
            self.parameters.floor = floor
            if self.write_configuration():
                self.reload()

    async def adopt(self, config: ClusterConfig) -> None:
        """Go on with this configuration, as far as this pod can."""
        if config.tls is not None and not self.certificates.mounted:
            # Made by an operator that has no certificates: they come with the next pod.
            config = config.model_copy(update={"tls": None})
        self.config = await self.parameters.adopt(config)

    def renew_certificates(self) -> None:
        """Take what the kubelet has brought; connections that are open keep what they have."""
        if self.certificates.refresh() and self.server.running and self.config.tls is not None:
            self.reload()

    async def keep_repmgrd(self) -> None:
        """Have repmgrd run, and do its work; not while it would take a hand-over for a loss."""
        if self.handing_over:
            return
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

    async def quieten_repmgrd(self) -> None:
        """Have repmgrd not take the planned stop of its primary for a loss.

        One that somebody has paused is left alone, as is its pause. The end is a hard one: told in
        order, it would write an event into the very primary that is being drained.
        """
        if self.repmgrd.running and not await self.repmgrd_watch.is_paused():
            await self.repmgrd.stop(signal.SIGKILL, within_s=5)
        self.standing.repmgrd = self.repmgrd.running

    async def promoted(self, how: str) -> None:
        """This instance has been promoted past repmgr: tell the pools, then repmgr's tables."""
        self.duties.forget()
        await self.point_pools()
        self.events.repmgr(self.config, event="standby_promote", success=True)
        await self.duties.metadata.promoted(how)

    async def succeed(self) -> bool:
        """Take over from a primary that has handed over to this instance; False where it may not
        yet."""
        done, message = await self.promotion.succeed()
        log.log(logging.INFO if done else logging.WARNING, "succession: %s", message)
        if done:
            await self.promoted(f"{self.me} was promoted by its agent, as a planned successor")
        return done

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

    def _prepare(self, control: ControlData | None, primary: bool) -> None:
        """postgres is about to be started: a standby with less than its WAL demands would end."""
        if self.config.tls is not None:
            self.certificates.require()
        self.parameters.floor = control.demands if control and not primary else {}
        wanted = render_postgres.parameters(self.config, instance=self.me)
        if render_postgres.lowering(wanted, self.parameters.floor):
            # It starts with more than was asked for; a restart for that is still to come.
            self.restarted = None
        self.write_configuration()

    def _lowering(self) -> tuple[str, ...]:
        """Parameters that are higher in the running server than the spec says."""
        seen = self.standing.observed
        if seen is None:
            return ()
        wanted = render_postgres.parameters(self.config, instance=self.me)
        return render_postgres.lowering(wanted, seen.demanding)

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
