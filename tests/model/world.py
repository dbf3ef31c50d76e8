"""A cluster in one process: real keepers of the Lease, the real gate, and everything else made up.

What is real: LeaseKeeper (taking, renewing, releasing, failsafe, promises), the gate, the start
table, the election's rules and the quorum. What is a model: the API server (requests and answers
are late or lost, watches lag), the clocks (each runs at a rate of its own), the network between the
agents, postgres (a log of commits that standbys copy from whom they follow), the fence (nothing is
written past its deadline) and repmgrd (somebody asks the gate of any standby at any time, for no
reason).
"""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Iterable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from pgcluster.api import names
from pgcluster.api.config import LeaseConfig
from pgcluster.api.wal import Lsn, WalPoint
from pgcluster.kube.errors import Conflict, Unavailable
from pgcluster.node.gate import Ask, Deny, GateFacts, Pass, Take, decide_gate
from pgcluster.node.lease import LeaseKeeper
from pgcluster.node.start import (
    Clone,
    DataDirectory,
    Rejoin,
    StartFacts,
    StartPrimary,
    StartStandby,
    TakeLease,
    decide_start,
)
from pgcluster.topology.election import Candidate
from pgcluster.topology.lease import LeaseRecord, Mark
from pgcluster.topology.quorum import Quorum

SYSTEM = "7001"
# Two clocks may run apart by this: more than any machine's do.
DRIFT = 0.02
_REQUEST_S = 2.0
_now: ContextVar[Agent] = ContextVar("whose clock it is")


def monotonic_s() -> float:
    """The clock of whoever asks; takes the place of `pgcluster.clock.monotonic_s`."""
    return _now.get().clock_s()


class Violation(AssertionError):
    """Something that must never be was seen; its text is the whole history."""


class Timing(Protocol):
    """How an agent counts its own right to write, so that a wrong way can be tried too."""

    def __call__(self) -> LeaseConfig: ...


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit of a client; numbers are unique in a world."""

    number: int
    timeline: int


@dataclass(slots=True)
class Postgres:
    """The server of one instance: what it has, and whom it follows."""

    log: list[Commit] = field(default_factory=list)
    timeline: int = 1
    primary: bool = False
    was_primary: bool = False
    running: bool = True
    follows: str | None = None

    @property
    def point(self) -> WalPoint:
        """How far it has come."""
        return WalPoint(self.timeline, Lsn(len(self.log)))


class Agent:
    """One instance."""

    def __init__(self, world: World, name: str, *, rate: float, offset_s: float) -> None:
        self.world = world
        self.name = name
        self.rate = rate
        self.offset_s = offset_s
        self.postgres = Postgres()
        self.fence_s: float | None = None
        self.awake = asyncio.Event()
        self.awake.set()
        self.api = True  # whether it reaches the API server
        self.cut: set[str] = set()  # whom it does not reach
        self.tasks: list[asyncio.Task[None]] = []
        self.promoting = False
        self.inherited: tuple[Quorum, ...] = ()
        self.lagging = False  # receives nothing, though it could
        self.final: WalPoint | None = None  # the end of its WAL after a stop in order
        self.step = asyncio.Event()  # a step of a hand-over is over
        self.steps: list[str] = []
        self.acknowledged = 0  # how many commits of its log were, as long as it is the primary
        self.begin()

    def begin(self) -> None:
        """A new process: what it knew is forgotten, its data is not."""
        self.keeper = LeaseKeeper(
            Api(self),  # type: ignore[arg-type] # speaks the client's interface
            cluster="shop",
            namespace="test",
            me=self.name,
            timing=self.world.timing,
            mark=self._mark,
            quorums=self._quorums,
            inherit=self._inherit,
            container=f"{self.name} {self.world.random.random()}",
            failsafe=self._failsafe,
            renewed=self._renewed,
            changed=asyncio.Event(),
        )
        self.final = None
        self.tasks = [
            self.world.start(self, self._watch()),
            self.world.start(self, self.keeper.keep()),
            self.world.start(self, self._succeed()),
        ]

    def clock_s(self) -> float:
        """Its own monotonic clock."""
        return self.offset_s + self.world.time_s * self.rate

    def writes(self) -> bool:
        """Whether its postgres acknowledges commits at this moment.

        Not while it is frozen; and in the instant of its waking each backend looks at the deadline
        before it answers.
        """
        postgres = self.postgres
        return (
            postgres.primary
            and postgres.running
            and self.awake.is_set()
            and self.fence_s is not None
            and self.clock_s() < self.fence_s
        )

    def candidate(self) -> Candidate:
        """What it tells the others."""
        running = self.postgres.running
        return Candidate(SYSTEM, self.postgres.point, barred=not running, exact=running)

    def reaches(self, other: Agent) -> bool:
        """Whether a request gets there and its answer back."""
        return other.name not in self.cut and self.name not in other.cut

    async def kill(self) -> None:
        """The end of the container: agent and postgres at once."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.end()
        self.promoting = False

    def copy_from(self, source: Agent) -> None:
        """Have what another has, as its standby."""
        self.postgres.follows = source.name
        self.postgres.was_primary = False
        self.final = None
        self.postgres.log = list(source.postgres.log)
        self.postgres.timeline = source.postgres.timeline

    def end(self) -> None:
        """postgres does not run any more."""
        self.postgres.primary = False
        self.postgres.running = False
        self.fence_s = None

    async def boot(self) -> None:
        """Until postgres runs again: the start table, without its shell (node/stopped.py)."""
        started_s = self.clock_s()
        while not self.postgres.running:
            await self.awake.wait()
            await self._boot(started_s)
            await asyncio.sleep(self.world.random.uniform(0.05, 0.5))

    async def _boot(self, started_s: float) -> None:
        postgres, lease = self.postgres, self.keeper.view
        holder = self.world.agents.get(lease.record.holder) if lease else None
        facts = StartFacts(
            me=self.name,
            members=len(self.world.agents),
            now_s=self.clock_s(),
            agent_started_s=started_s,
            data=DataDirectory(SYSTEM, postgres.point, postgres.was_primary, clean=False),
            lease=lease,
            holding=self.keeper.holding(),
            holder_serves=holder is not None and holder.writes() and self.reaches(holder),
            peers=await self.world.ask(self, without=lease.record.holder if lease else ""),
            maximum_lag_bytes=self.world.maximum_lag,
        )
        decision = decide_start(facts)
        match decision:
            case TakeLease():
                await self.keeper.take(lease.record if lease else None, writes=postgres.was_primary)
            case StartPrimary():
                until_s = self.keeper.valid_until_s
                if until_s is not None and self.keeper.holding():
                    self.fence_s = until_s
                    postgres.running = postgres.primary = True
                    self.final = None
                    self.world.say(f"{self.name} goes on as the primary")
                    self.world.look()
            case StartStandby():
                postgres.running, postgres.follows = True, None
            case Rejoin() | Clone():
                if holder is not None and holder.writes():
                    postgres.log = list(holder.postgres.log)
                    postgres.timeline = holder.postgres.timeline
                    postgres.follows, postgres.was_primary = holder.name, False
                    postgres.running = True
            case _:
                if self.keeper.holding():
                    await self.keeper.release()

    async def leave(self) -> None:
        """A stop in order, and a start a while later."""
        was_primary = self.postgres.primary
        self.end()
        self.final = self.postgres.point if was_primary else None
        await self.keeper.release()
        await asyncio.sleep(self.world.random.uniform(0.5, 5.0))
        await self.boot()

    async def hand_over(self, successor: Agent, *, called_off: bool = False) -> None:
        """A planned hand-over as the primary has it: node/handover.py, without its shell.

        An order that is carried out late, or twice, must do no harm, so nothing is checked first.
        """
        chance = self.world.random
        if not self.writes():
            return
        self.took("asked")
        if not await self.keeper.announce(successor.name):
            await self.keeper.withdraw()
            return
        self.took("announced")
        await asyncio.sleep(chance.uniform(0.0, 1.0))
        await self.awake.wait()
        if called_off or not self.writes():
            await self.keeper.withdraw()
            return
        self.took("drained")
        # In order: who streams has everything.
        self.end()
        if self.reaches(successor) and successor.postgres.follows == self.name:
            successor.copy_from(self)
        self.final = self.postgres.point
        self.took("stopped")
        await asyncio.sleep(chance.uniform(0.0, 0.05))
        complete = successor.postgres.running and successor.postgres.point >= self.final
        if complete and self.reaches(successor):
            await self.keeper.release(handover=True, successor=successor.name)
            self.took("released")
        else:
            await self.keeper.withdraw()
        await self.boot()

    def took(self, step: str) -> None:
        """A step of a hand-over, or of a succession, is over."""
        self.steps.append(step)
        self.step.set()

    async def _succeed(self) -> None:
        """The successor of a planned hand-over: node/promotion.py, `succeed`."""
        while True:
            await self.keeper.named.wait()
            self.keeper.named.clear()
            await self.awake.wait()
            view, postgres = self.keeper.view, self.postgres
            if self.promoting or not postgres.running or postgres.primary or view is None:
                continue
            if view.kept_for(self.clock_s()) != self.name:
                continue
            self.promoting = True
            try:
                if isinstance(decide_gate(self._gate_facts(None)), Take):
                    self.took("named")
                    if reserved := await self.keeper.succeed(postgres.timeline):
                        self.took("taken")
                        await self._begin(reserved)
                        self.took("promoted")
            finally:
                self.promoting = False

    async def gate(self, *, within_s: float) -> None:
        """Somebody wants this standby to be the primary: node/promotion.py, without its shell."""
        if self.promoting or self.postgres.primary or not self.postgres.running:
            return
        self.promoting = True
        try:
            async with asyncio.timeout(within_s):
                if await self._passes():
                    await self._promote()
        except TimeoutError:
            pass
        finally:
            self.promoting = False

    async def _passes(self) -> bool:
        others: dict[str, Candidate] | None = None
        while True:
            await self.awake.wait()
            facts = self._gate_facts(others)
            match decide_gate(facts):
                case Pass():
                    return True
                case Deny():
                    return False
                case Ask():
                    lost = facts.lease.record.holder if facts.lease else ""
                    others = await self.world.ask(self, without=lost)
                    continue
                case Take():
                    if await self.keeper.take(facts.lease.record if facts.lease else None):
                        continue
            others = None
            await asyncio.sleep(0.1)

    def _gate_facts(self, others: dict[str, Candidate] | None) -> GateFacts:
        return GateFacts(
            me=self.name,
            now_s=self.clock_s(),
            lease=self.keeper.view,
            holding=self.keeper.holding(),
            candidate=self.candidate(),
            members=len(self.world.agents),
            maximum_lag_bytes=self.world.maximum_lag,
            holder_serves=None,
            others=others,
        )

    async def _promote(self) -> None:
        await self._begin(await self.keeper.reserve(self.postgres.timeline))

    async def _begin(self, reserved: int | None) -> None:
        await self.awake.wait()
        until_s = self.keeper.valid_until_s
        if reserved is None or until_s is None or self.postgres.primary:
            return
        await asyncio.sleep(self.world.random.uniform(0.0, 0.3))
        await self.awake.wait()
        if not self.postgres.running:
            return
        self.fence_s = max(until_s, self.fence_s or until_s)
        self.postgres.timeline = reserved
        self.postgres.primary = self.postgres.was_primary = True
        self.acknowledged = 0
        self.final = None
        self.postgres.follows = None
        self.world.promoted(self)

    def _mark(self) -> Mark:
        postgres = self.postgres
        if self.final is not None and not postgres.running:
            return Mark(SYSTEM, self.final, final=True)
        return Mark(SYSTEM, postgres.point if postgres.primary else None)

    def _quorums(self) -> tuple[Quorum, ...]:
        if not self.world.standbys:
            return ()
        others = tuple(sorted(self.world.names - {self.name}))
        return tuple({*self.inherited, Quorum(self.world.standbys, others, self.name)})

    def _inherit(self, quorums: tuple[Quorum, ...]) -> None:
        self.inherited = quorums

    def _renewed(self, until_s: float) -> None:
        # Before a promotion there is nothing to extend, and what has struck is not taken back.
        if self.fence_s is not None and self.clock_s() < self.fence_s:
            self.fence_s = until_s

    async def _failsafe(self, record: LeaseRecord) -> bool:
        others = [agent for agent in self.world.agents.values() if agent is not self]
        return all(
            await asyncio.gather(*(self.world.acknowledged(self, it, record) for it in others))
        )

    async def _watch(self) -> None:
        """What a watch of the Lease shows: late, and nothing while the API server is away."""
        while True:
            await asyncio.sleep(self.world.random.uniform(0.02, 0.8))
            await self.awake.wait()
            with suppress(Unavailable):
                await self.keeper._read()


class Api:
    """The API server as one agent reaches it: requests and answers take time and may be lost."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._world = agent.world

    async def get(self, *_: object) -> dict[str, Any] | None:
        """The Lease."""
        await self._travel()
        found = copy.deepcopy(self._world.lease)
        await self._travel()
        return found

    async def replace(self, _: object, manifest: dict[str, Any]) -> dict[str, Any]:
        """Compare and swap by resource version."""
        await self._travel()
        lease = self._world.lease
        if manifest["metadata"]["resourceVersion"] != lease["metadata"]["resourceVersion"]:
            await self._travel()
            raise Conflict(409, "Conflict", "the Lease has changed")
        self._world.store(manifest)
        written = copy.deepcopy(self._world.lease)
        await self._travel()
        return written

    async def _travel(self) -> None:
        await self._agent.awake.wait()
        chance = self._world.random
        if not self._agent.api or chance.random() < self._world.loss:
            # Nobody says that nobody answers.
            await asyncio.sleep(_REQUEST_S if chance.random() < 0.5 else 0.01)
            raise Unavailable(0, "Unreachable", "the API server does not answer")
        slow = chance.random() < self._world.loss
        await asyncio.sleep(chance.uniform(0.0, 1.5 if slow else 0.01))
        await self._agent.awake.wait()


class World:
    """All of it, from one seed. `standbys` is what commits wait for, 0 for none."""

    def __init__(
        self, seed: int, *, instances: int, standbys: int = 0, timing: Timing = LeaseConfig
    ) -> None:
        self.random = random.Random(seed)  # noqa: S311 # to be repeated
        self._loop = asyncio.get_running_loop()
        self.timing = timing
        self.standbys = standbys
        self.maximum_lag = 1_000_000
        self.loss = 0.0
        self.history: list[str] = []
        self.acknowledged_commits: set[int] = set()
        self.broken: Violation | None = None
        self._commits = 0
        self._version = 0
        self.lease: dict[str, Any] = {}
        self.store(
            {
                "metadata": {"name": names.primary_lease("shop"), "uid": "u", "annotations": {}},
                "spec": {"holderIdentity": "", "leaseTransitions": 0},
            }
        )
        self.names = {f"shop-{n}" for n in range(instances)}
        self.agents: dict[str, Agent] = {}
        for name in sorted(self.names):
            rate = 1 + self.random.uniform(-DRIFT, DRIFT) / 2
            offset_s = self.random.uniform(0, 1000)
            self.agents[name] = Agent(self, name, rate=rate, offset_s=offset_s)
        self._epoch = 0
        # Whoever is promoted next is killed right afterwards.
        self.doomed = False
        self._doom: list[asyncio.Task[None]] = []
        self._clients = [self.start(None, each) for each in (self._replicate(), self._commit())]

    @property
    def time_s(self) -> float:
        """True time."""
        return self._loop.time()

    def start(self, agent: Agent | None, coroutine: Any) -> asyncio.Task[None]:
        """A task that lives by an agent's clock."""
        if agent is None:
            return self._loop.create_task(coroutine)
        token = _now.set(agent)
        try:
            return self._loop.create_task(coroutine)
        finally:
            _now.reset(token)

    def say(self, text: str) -> None:
        """A line of the history."""
        self.history.append(f"{self.time_s:9.3f}  {text}")

    def store(self, manifest: dict[str, Any]) -> None:
        """What the API server keeps."""
        self._version += 1
        kept = copy.deepcopy(manifest)
        kept["metadata"]["resourceVersion"] = str(self._version)
        before = (self.lease.get("spec") or {}).get("holderIdentity")
        self.lease = kept
        if kept["spec"]["holderIdentity"] != before:
            spec = kept["spec"]
            self.say(f"Lease: {spec['holderIdentity'] or 'nobody'}, {spec['leaseTransitions']}")

    async def ask(self, agent: Agent, *, without: str) -> dict[str, Candidate]:
        """What the others have; who does not answer is absent."""
        found = {}
        for other in self.agents.values():
            if other is agent or other.name == without:
                continue
            await asyncio.sleep(self.random.uniform(0.001, 0.05))
            if agent.reaches(other) and other.awake.is_set() and self.random.random() >= self.loss:
                found[other.name] = other.candidate()
        return found

    async def acknowledged(self, agent: Agent, other: Agent, record: LeaseRecord) -> bool:
        """Whether another agent acknowledges a holder, and the holder hears it."""
        try:
            async with asyncio.timeout(1.0):
                await asyncio.sleep(self.random.uniform(0.001, 0.3))
                if not agent.reaches(other):
                    await asyncio.sleep(2.0)
                await other.awake.wait()
                token = _now.set(other)
                try:
                    refused = other.keeper.acknowledge(record)
                finally:
                    _now.reset(token)
                await asyncio.sleep(self.random.uniform(0.001, 0.3))
                await agent.awake.wait()
        except TimeoutError:
            return False
        return refused is None and self.random.random() >= self.loss

    def promoted(self, agent: Agent) -> None:
        """Check what has to be true of a new primary."""
        self.say(f"{agent.name} is promoted to {agent.postgres.point}")
        timelines = [a.postgres.timeline for a in self.agents.values() if a is not agent]
        if agent.postgres.timeline in timelines:
            raise self.violation(f"{agent.name} began a timeline that another has begun before")
        if self.standbys:
            has = {commit.number for commit in agent.postgres.log}
            if missing := self.acknowledged_commits - has:
                raise self.violation(f"{agent.name} lacks acknowledged commits {sorted(missing)}")
        self.look()
        if self.doomed:
            self.doomed = False
            self.say(f"{agent.name} is doomed")
            self._doom.append(self.start(None, self._end(agent)))

    async def _end(self, agent: Agent) -> None:
        """Killed within moments of its promotion, and back a while later."""
        await asyncio.sleep(self.random.uniform(0.0, 0.3))
        await agent.kill()
        await asyncio.sleep(self.random.uniform(8.0, 20.0))
        agent.begin()
        agent.tasks.append(self.start(agent, agent.boot()))

    def look(self) -> None:
        """What must be true at every moment."""
        if self.broken is not None:
            raise self.broken
        writers = [agent.name for agent in self.agents.values() if agent.writes()]
        if len(writers) > 1:
            raise self.violation(f"two write: {', '.join(writers)}")
        epoch = int(self.lease["spec"]["leaseTransitions"])
        if epoch < self._epoch:
            raise self.violation(f"the epoch went back from {self._epoch} to {epoch}")
        self._epoch = epoch

    def violation(self, what: str) -> Violation:
        """The history with what went wrong at its end.

        Kept, too: whoever raises it may be a task that nobody waits for.
        """
        self.say(what)
        self.broken = self.broken or Violation("\n" + "\n".join(self.history))
        return self.broken

    def heal(self) -> None:
        """The end of all faults."""
        self.say("all faults end")
        self.loss = 0.0
        for agent in self.agents.values():
            agent.api, agent.cut, agent.lagging = True, set(), False
            agent.awake.set()
        self.doomed = False

    def close(self) -> None:
        """The end of the world."""
        tasks: Iterable[asyncio.Task[None]] = [
            *self._clients,
            *self._doom,
            *(task for agent in self.agents.values() for task in agent.tasks),
        ]
        for task in tasks:
            task.cancel()

    async def _commit(self) -> None:
        """Clients write to whoever accepts."""
        while True:
            await asyncio.sleep(self.random.uniform(0.01, 0.2))
            for agent in self.agents.values():
                if agent.writes():
                    self._commits += 1
                    commit = Commit(self._commits, agent.postgres.timeline)
                    agent.postgres.log.append(commit)
                    if not self.standbys:
                        self.acknowledged_commits.add(commit.number)

    async def _replicate(self) -> None:
        """Standbys copy from whom they follow; a commit is acknowledged when enough have it."""
        while True:
            await asyncio.sleep(self.random.uniform(0.01, 0.1))
            for agent in self.agents.values():
                self._end_if_fenced(agent)
            for agent in self.agents.values():
                if not agent.postgres.primary:
                    self._copy(agent)
            if self.standbys:
                self._acknowledge_commits()

    def _end_if_fenced(self, agent: Agent) -> None:
        postgres = agent.postgres
        if postgres.primary and agent.awake.is_set() and not agent.writes():
            self.say(f"{agent.name} is fenced")
            agent.end()
            agent.keeper.drop()
            agent.tasks.append(self.start(agent, agent.boot()))

    def _copy(self, standby: Agent) -> None:
        if not standby.awake.is_set() or not standby.postgres.running or standby.lagging:
            return
        view = standby.keeper.view
        source = self.agents.get(view.record.holder) if view else None
        if source is None or source is standby or not source.postgres.primary:
            return
        if not (source.awake.is_set() and standby.reaches(source)):
            return
        if standby.keeper.holding():
            return  # it is about to be promoted
        if standby.postgres.follows != source.name and self.random.random() < 0.9:
            return  # it takes a while to find, rewind or clone
        standby.copy_from(source)

    def _acknowledge_commits(self) -> None:
        for agent in self.agents.values():
            if not agent.writes():
                continue
            # What follows has a beginning of the same log.
            lengths = [
                len(other.postgres.log)
                for other in self.agents.values()
                if other is not agent and other.postgres.follows == agent.name
            ]
            if len(lengths) >= self.standbys:
                agent.inherited = ()
            known = sorted(lengths, reverse=True)[self.standbys - 1 : self.standbys]
            for commit in agent.postgres.log[agent.acknowledged : known[0] if known else 0]:
                self.acknowledged_commits.add(commit.number)
            agent.acknowledged = max(agent.acknowledged, known[0] if known else 0)
