"""PostgreSQL as far as write authority goes: WAL, timelines, roles, a control file, commits.

A data directory is durable: it survives whatever ends the server. What the control file says of it
is what the real one says: the last checkpoint, or the least that a standby has, which is less than
there is. WAL is a list of commits, so that it can be seen which are missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from pgcluster.api.wal import Lsn, WalPoint
from pgcluster.postgres.control import ControlData
from pgcluster.postgres.local import Observation
from pgcluster.topology import quorum

# What the server itself writes.
RECORD = 0
# Both ends of a replication connection notice a silent one after this.
_SILENT_S = 5.0
_IN_PRODUCTION, _SHUT_DOWN = "in production", "shut down"
_RECOVERING, _SHUT_DOWN_RECOVERING = "in archive recovery", "shut down in recovery"


@dataclass(frozen=True, slots=True)
class Branch:
    """A timeline: its number, how much of the one before is in it, and which one it really is."""

    timeline: int
    begins: int
    identity: int


@dataclass(slots=True)
class Data:
    """A data directory."""

    system: str
    wal: list[int] = field(default_factory=list)
    branches: tuple[Branch, ...] = (Branch(1, 0, 0),)
    state: str = _SHUT_DOWN
    # What the control file vouches for.
    control: WalPoint = field(default_factory=lambda: WalPoint(1, Lsn(0)))
    # The timeline of its last checkpoint, which pg_rewind on others reads.
    settled: int = 1
    standby_signal: bool = False
    backup: bool = False
    upstream: str | None = None
    used: set[int] = field(default_factory=set)

    @property
    def timeline(self) -> int:
        """The one that it is on."""
        return self.branches[-1].timeline

    @property
    def point(self) -> WalPoint:
        """All that it has."""
        return WalPoint(self.timeline, Lsn(len(self.wal)))

    def contains(self, other: Data) -> bool:
        """Whether the other has a beginning of this one."""
        common = 0
        for mine, others in zip(self.branches, other.branches, strict=False):
            if mine != others:
                break
            common += 1
        if common < len(other.branches) or self.system != other.system:
            return False
        ends = self.branches[common].begins if common < len(self.branches) else len(self.wal)
        return len(other.wal) <= ends

    def copy(self) -> Data:
        """A base backup."""
        return Data(
            system=self.system,
            wal=list(self.wal),
            branches=self.branches,
            state=self.state,
            control=self.control,
            settled=self.settled,
            standby_signal=True,
            backup=True,
            used=set(self.used),
        )

    def receive(self, source: Data) -> None:
        """All that the source has."""
        self.wal.extend(source.wal[len(self.wal) :])
        self.branches = source.branches
        self.used |= source.used

    def rewind(self, source: Data) -> None:
        """`pg_rewind`, and what a standby receives then."""
        self.wal = list(source.wal)
        self.branches = source.branches
        self.control = source.control
        self.settled = source.settled
        self.state = _RECOVERING
        self.used |= source.used

    def read_control(self) -> ControlData:
        """`pg_controldata`."""
        return ControlData(
            self.system, self.state, self.control, checksums=True, backup=self.backup
        )


@dataclass(frozen=True, slots=True)
class Waiting:
    """A commit that is durable here, and that its client waits for."""

    number: int
    lsn: int


class Server:
    """A running postmaster and its backends.

    `lawful` is what the library in it finds in the guard's file; `now_s` is true time.
    """

    def __init__(
        self,
        node: str,
        data: Data,
        chance: Random,
        *,
        synchronous: str,
        lawful: Callable[[], bool],
        now_s: Callable[[], float],
    ) -> None:
        self.node = node
        self.data = data
        self.alive = True
        self.frozen = 0  # by how many
        self.stopping = False
        self.started = False
        self.synchronous = synchronous
        self.in_recovery = data.standby_signal
        self.received = False
        self._waiting: list[Waiting] = []
        # Standby → how far it is, when it said so.
        self._heard: dict[str, tuple[int, float]] = {}
        # Whom it receives from, when it last did.
        self._source: tuple[str, float] | None = None
        self._answers_at_s = now_s() + chance.choice([0.05, 0.2, 0.2, 1.0])
        self._read = data.control.lsn.value if self.in_recovery else len(data.wal)
        self._reads_again_s = self._answers_at_s
        self._chance = chance
        self._lawful = lawful
        self._now_s = now_s

    # --- its life -----------------------------------------------------------------------------

    def step(self) -> bool:
        """What it does by itself; True in the moment in which it becomes a primary."""
        now_s = self._now_s()
        if not self.alive or self.frozen or now_s < self._answers_at_s:
            return False
        if not self.started:
            self.started = True
            self.data.backup = False
            if not self.in_recovery:
                self.data.wal.append(RECORD)
                self._produce()
                self.checkpoint()
                return True
            self.data.state = _RECOVERING
        if self.in_recovery and now_s >= self._reads_again_s and not self.read_all:
            left = len(self.data.wal) - self._read
            self._read += self._chance.choice([left, left, (left + 1) // 2])
            self._reads_again_s = now_s + self._chance.uniform(0.05, 0.4)
        return False

    def _produce(self) -> None:
        self.in_recovery = False
        self._source = None
        self.data.state = _IN_PRODUCTION

    @property
    def read_all(self) -> bool:
        """Whether a standby has read all WAL that was there when it started."""
        return self._read >= len(self.data.wal)

    def answers(self) -> bool:
        """Whether a query gets an answer now."""
        return self.alive and not self.frozen and not self.stopping and self.started

    def promote(self, identity: int) -> None:
        """`pg_promote`: the next timeline of which it has no history."""
        data = self.data
        taken = data.used | {branch.timeline for branch in data.branches}
        timeline = data.timeline + 1
        while timeline in taken:
            timeline += 1
        data.branches = (*data.branches, Branch(timeline, len(data.wal), identity))
        data.used.add(timeline)
        data.wal.append(RECORD)
        data.standby_signal = False
        # CreateEndOfRecoveryRecord tells the control file of the new timeline, but not as that of
        # a checkpoint: there is none on it yet.
        data.control = data.point
        self._produce()

    def checkpoint(self) -> None:
        """What the control file vouches for from now on."""
        self.data.control = self.data.point
        self.data.settled = self.data.timeline

    def shut_down(self, send: Callable[[], None]) -> None:
        """A stop in order, after which the control file says all.

        The WAL senders stay until they have sent the last record.
        """
        if self.started:
            if not self.in_recovery:
                self.data.wal.append(RECORD)
            send()
            self.checkpoint()
            self.data.state = _SHUT_DOWN_RECOVERING if self.in_recovery else _SHUT_DOWN
        self.alive = False

    # --- replication --------------------------------------------------------------------------

    def can_follow(self, source: Server) -> bool:
        """Whether the source has the continuation of what is here."""
        return self.in_recovery and self.read_all and source.data.contains(self.data)

    def receive(self, source: Server) -> None:
        """Everything that the source has, and the source hears that it is here."""
        self.data.receive(source.data)
        self._read = len(self.data.wal)
        self.received = True
        self._source = (source.node, self._now_s())
        source.hear(self.node, len(self.data.wal))

    def hear(self, standby: str, lsn: int) -> None:
        """A standby says how much of it is on its disk."""
        self._heard[standby] = (lsn, self._now_s())

    def streaming(self) -> dict[str, int]:
        """`pg_stat_replication`: standby → how far it is."""
        now_s = self._now_s()
        return {
            standby: lsn
            for standby, (lsn, at_s) in sorted(self._heard.items())
            if now_s - at_s < _SILENT_S
        }

    def upstream(self) -> str | None:
        """`pg_stat_wal_receiver`."""
        if self._source is None or self._now_s() - self._source[1] > _SILENT_S:
            return None
        return self._source[0]

    # --- commits ------------------------------------------------------------------------------

    def writes(self) -> bool:
        """Whether it accepts a commit and tells its client so, at this moment."""
        return self.answers() and not self.in_recovery and self._lawful()

    def commit(self, number: int) -> None:
        """A client's commit, which is durable here."""
        self.data.wal.append(number)
        self._waiting.append(Waiting(number, len(self.data.wal)))

    def acknowledge(self) -> list[int]:
        """The commits that their clients hear of now."""
        if not self.writes():
            return []
        wanted = quorum.of_setting(self.synchronous, primary=self.node)
        known = len(self.data.wal)
        if wanted.standbys:
            streaming = self.streaming()
            reached = sorted((streaming.get(pod, 0) for pod in wanted.members), reverse=True)
            known = reached[wanted.standbys - 1]
        told = [each.number for each in self._waiting if each.lsn <= known]
        self._waiting = [each for each in self._waiting if each.lsn > known]
        return told

    # --- what an agent sees -------------------------------------------------------------------

    def observe(self, host: Callable[[str], str]) -> Observation:
        """One look at it; `host` makes an address of a node's name."""
        data, upstream = self.data, self.upstream()
        point = data.point
        if self.in_recovery:
            # It knows the timeline of what it receives; else that of its control file.
            timeline = data.timeline if upstream else data.control.timeline
            point = WalPoint(timeline, Lsn(self._read))
        return Observation(
            in_recovery=self.in_recovery,
            system_identifier=data.system,
            point=point,
            streaming=upstream is not None,
            upstream_host=host(upstream) if upstream else None,
            lag_bytes=0 if self.in_recovery else None,
            pending_restart=(),
            version="17.0",
            received=self.received,
            synchronous=self.synchronous,
            standbys=tuple(self.streaming()),
        )
