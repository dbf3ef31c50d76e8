"""A whole cluster in one process and in no time: machines, network, faults, and what must be true.

See node.py for what of an instance is real. A script of faults and a seed make one history: every
random choice comes from the seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, get_args

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig, FailoverConfig, LeaseConfig, SynchronousConfig
from pgcluster.api.wal import Lsn, WalPoint
from pgcluster.kube.client import Manifest
from pgcluster.kube.resources import LEASES
from pgcluster.topology.election import below_mark
from pgcluster.topology.lease import LeaseRecord
from tests.model.kubernetes import ApiServer
from tests.model.machine import Clock, MachineLoop, Process, running
from tests.model.node import Handler, Node, replaced
from tests.model.postgres import Server

CLUSTER = "shop"
# Two clocks run apart by up to this: far more than any machine's.
DRIFT = 0.02
# Entries of WAL, which the agents take for bytes.
MAXIMUM_LAG = 150
_LOSS = 0.3
_BOOTSTRAP_S = 60.0
_HOST = re.compile(r"host=([^ ]+)")

Kind = Literal[
    "nothing",
    "crash",  # the postmaster alone
    "kill",  # the container
    "off",  # the machine
    "leave",  # the pod is deleted in order
    "freeze",  # everything in the container
    "freeze agent",
    "freeze postgres",
    "freeze guard",
    "cut",  # from everybody
    "cut api",
    "mute",  # what it sends to the other instances is lost
    "deaf",  # what they send to it is lost
    "apart",  # from the next instance alone
    "lag",  # its standby receives nothing
    "slow api",  # its requests, their answers and its watches take seconds
    "api away",  # for all
    "api loses",  # of all, some
    "gate",  # repmgrd asks for it
    "promote",  # a person types it
    "doom",  # whoever is promoted next is lost right after that, with its machine
]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Fault:
    """`after_s` the one before; `node` is counted modulo how many there are, or is the primary."""

    after_s: float
    kind: Kind
    node: int | Literal["primary"]
    lasts_s: float


@dataclass(frozen=True, slots=True)
class Script:
    """All that makes a history; `standbys` is what commits wait for, 0 for none."""

    seed: int
    instances: int = 3
    standbys: int = 0
    on_crash: Literal["restart", "failover"] = "restart"
    faults: tuple[Fault, ...] = ()
    timing: LeaseConfig = field(default_factory=LeaseConfig)
    peace_s: float = 90.0


class Violation(AssertionError):
    """What must never be was seen; its text is the whole history by true time."""


class _Told(logging.Handler):
    """The agents' own log, as part of the history; a defect that an agent caught is a violation."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(logging.INFO)
        self._cluster = cluster

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        process = running()
        if process is None or not isinstance(process.owner, Node):
            return
        name = process.owner.name
        where = record.name.removeprefix("pgcluster.")
        self._cluster.say(f"{name}: [{where}] {record.getMessage()}")
        if record.levelno >= logging.ERROR and record.exc_info:
            self._cluster.violation(f"{name}: {record.exc_info[1]!r}")


class Cluster:
    """The world of one script."""

    def __init__(self, script: Script, loop: MachineLoop) -> None:
        self.script = script
        self.seed = script.seed
        self.loop = loop
        self.chance = Random(f"{script.seed} world")  # noqa: S311 # to be repeated
        self.history: list[str] = []
        self.broken: Violation | None = None
        self.over = False
        self.loss = 0.0
        self.processes: list[Process] = []
        self.acknowledged: set[int] = set()
        self._acknowledged_s = 0.0
        self._cuts: dict[tuple[str, str], int] = {}
        self._timelines: set[int] = {1}
        self._commits = 0
        self._systems = 0
        self._branches = 0
        self._writers: list[str] = []
        self._dooms: list[asyncio.Future[Node]] = []
        self._awaited: list[tuple[str, asyncio.Future[str]]] = []
        self.config = ClusterConfig(
            name=CLUSTER,
            namespace="prod",
            uid="u",
            instances=script.instances,
            failover=FailoverConfig(
                lease=script.timing, on_crash=script.on_crash, maximum_lag_bytes=MAXIMUM_LAG
            ),
            synchronous=SynchronousConfig(mode="quorum", standbys=script.standbys)
            if script.standbys
            else SynchronousConfig(),
        )
        self.api = ApiServer(self._written)
        self.api.write(
            LEASES.plural,
            {
                "metadata": {"name": names.primary_lease(CLUSTER), "uid": "u", "annotations": {}},
                "spec": {"holderIdentity": "", "leaseTransitions": 0},
            },
        )
        self.nodes: dict[str, Node] = {}
        for ordinal in range(script.instances):
            name = names.pod(CLUSTER, ordinal)
            rate = 1 + self.chance.uniform(-DRIFT, DRIFT) / 2
            self.nodes[name] = Node(self, name, Clock(self.chance.uniform(10, 1000), rate))

    # --- for the nodes ------------------------------------------------------------------------

    def process(self, owner: Node) -> Process:
        """A new process of a machine."""
        process = Process(self.loop, owner.clock, owner)
        self.processes.append(process)
        return process

    def say(self, text: str) -> None:
        """A line of the history."""
        if self.over:
            return
        self.history.append(f"{self.loop.true_s:9.3f}  {text}")
        for each in [each for each in self._awaited if each[0] in text]:
            self._awaited.remove(each)
            each[1].set_result(text)

    async def told(self, part: str) -> str:
        """The next line of the history with this in it."""
        line: asyncio.Future[str] = self.loop.create_future()
        self._awaited.append((part, line))
        return await line

    def new_system(self) -> str:
        """A system identifier that no other has."""
        self._systems += 1
        return f"70{self._systems:02}"

    def passes(self, sender: Node, receiver: Node) -> bool:
        """Whether what one sends reaches the other."""
        return not self._cuts.get((sender.name, receiver.name))

    def connected(self, one: Node, other: Node) -> bool:
        """Whether a connection between them works."""
        return self.passes(one, other) and self.passes(other, one)

    def find(self, host: str) -> Node | None:
        """By conninfo, address, host's name or pod's name."""
        if found := _HOST.search(host):
            host = found[1]
        for each in self.nodes.values():
            if host == each.address or host.split(".")[0] == each.name:
                return each
        return None

    def primary_at(self, asking: Node, host: str) -> Server | None:
        """The server there, where it answers and is a primary."""
        there = self.find(host)
        if there is None or not self.connected(asking, there):
            return None
        server = there.server
        return server if server and server.answers() and not server.in_recovery else None

    def ask(
        self,
        asking: Node,
        address: str,
        key: tuple[str, str],
        body: Mapping[str, Any],
        answer: asyncio.Future[Mapping[str, Any]],
    ) -> None:
        """A request to another agent and its answer, each late or lost."""
        there = self.find(address)
        assert there is not None

        def delay_s() -> float:
            chance = asking.chance
            return 0.7 if chance.random() < 0.03 else chance.uniform(0.001, 0.05)

        def arrive() -> None:
            handler = there.peers.get(key)
            if handler and there.agent and there.running and self.passes(asking, there):
                there.agent.spawn(handle(handler))

        async def handle(handler: Handler) -> None:
            found = await handler(body)
            self.loop.later(delay_s(), back, found)

        def back(found: Mapping[str, Any]) -> None:
            if self.passes(there, asking) and not answer.done():
                answer.set_result(found)

        self.loop.later(delay_s(), arrive)

    # --- what must be true --------------------------------------------------------------------

    def look(self) -> None:
        """At every moment: nobody writes beside somebody else."""
        if self.over:
            return
        if self.broken is not None:
            raise self.broken
        writers = [each.name for each in self.nodes.values() if each.writes()]
        if writers != self._writers:
            self._writers = writers
            self.say(f"clients are heard by {', '.join(writers) or 'nobody'}")
        if len(writers) > 1:
            raise self.violation(f"two write: {', '.join(writers)}")

    def violation(self, what: str) -> Violation:
        """Kept, because whoever raises it may be a task that nobody waits for."""
        self.say(f"VIOLATION: {what}")
        if self.broken is None and not self.over:
            self.broken = Violation("\n".join(["", repr(self.script), *self.history]))
        return self.broken or Violation(what)

    def lease(self) -> LeaseRecord:
        """What the API server has."""
        manifest = self.api.read(LEASES.plural, names.primary_lease(CLUSTER)) or {}
        return LeaseRecord.parse(manifest, default_duration_s=self.script.timing.duration_s)

    def _written(self, before: Manifest, after: Manifest) -> None:
        if not before or "leaseTransitions" not in after.get("spec", {}):
            return
        old = LeaseRecord.parse(before, default_duration_s=self.script.timing.duration_s)
        new = LeaseRecord.parse(after, default_duration_s=self.script.timing.duration_s)
        if old.holder != new.holder:
            self.say(f"Lease: {new.holder or 'nobody'} in epoch {new.epoch}, mark {new.mark.point}")
        if new.epoch < old.epoch or (new.holder not in ("", old.holder) and new.epoch <= old.epoch):
            self.violation(f"the epoch went from {old.epoch} to {new.epoch}")
        known = old.mark.system_identifier
        if known is not None and new.mark.system_identifier != known:
            self.violation(f"system {known} became {new.mark.system_identifier}")

    def began(self, at: Node, *, promoted: bool) -> None:
        """What has to be true of a new primary."""
        assert at.server is not None
        data = at.server.data
        self.say(f"{at.name}: postgres is a primary at {data.point}")
        mark = self.lease().mark
        if mark.system_identifier not in (None, data.system):
            self.violation(f"{at.name} is of system {data.system}")
        # What it had before it became one; a restart in place has to have all.
        branch = data.branches[-2] if promoted else data.branches[-1]
        had = WalPoint(branch.timeline, Lsn(len(data.wal) - 1))
        if reason := below_mark(had, mark, MAXIMUM_LAG if promoted else 0):
            self.violation(f"{at.name} became primary although {reason}")
        if promoted:
            if data.timeline in self._timelines:
                self.violation(f"{at.name} begins timeline {data.timeline}, which is another's")
            self._timelines.add(data.timeline)
        if self.script.standbys:
            self.expect_nothing_lost(at)

    def expect_nothing_lost(self, at: Node) -> None:
        """Every commit that a client was told of is here."""
        assert at.server is not None
        if missing := self.acknowledged - set(at.server.data.wal):
            self.violation(f"{at.name} lacks {len(missing)} acknowledged commits")

    def settled(self) -> bool:
        """Whether one writes, tells its clients so, and all others stream from it."""
        primary = next((each for each in self.nodes.values() if each.writes()), None)
        return (
            primary is not None
            and self.loop.true_s - self._acknowledged_s < 1.0
            and all(
                each is primary or (each.server and each.server.upstream() == primary.name)
                for each in self.nodes.values()
            )
        )

    def unsettled(self) -> str:
        """Why not."""
        primary = next((each for each in self.nodes.values() if each.writes()), None)
        if primary is None:
            return "nobody writes"
        for each in self.nodes.values():
            if each is not primary and (
                each.server is None or each.server.upstream() != primary.name
            ):
                return f"{each.name} does not follow {primary.name}"
        return f"{primary.name} acknowledges nothing"

    # --- what goes on by itself ---------------------------------------------------------------

    async def turn(self) -> None:
        """Servers, replication, clients."""
        while True:
            await asyncio.sleep(self.chance.uniform(0.03, 0.1))
            for each in self.nodes.values():
                if each.server is not None and each.server.step():
                    self.began(each, promoted=False)
            for each in self.nodes.values():
                if each.server is not None and each.server.data.upstream is not None:
                    self._replicate(each, self.nodes[each.server.data.upstream])
            for each in self.nodes.values():
                if each.server is None:
                    continue
                if each.writes():
                    self._commits += 1
                    each.server.commit(self._commits)
                if told := each.server.acknowledge():
                    self.acknowledged |= set(told)
                    self._acknowledged_s = self.loop.true_s

    def _replicate(self, to: Node, source: Node, *, stopping: bool = False) -> None:
        if (
            to is not source
            and to.server is not None
            and source.server is not None
            and to.server.answers()
            and (source.server.answers() or stopping)
            and not to.lagging
            and self.connected(to, source)
            and to.server.can_follow(source.server)
        ):
            to.server.receive(source.server)

    def last_wal(self, at: Node) -> None:
        """A shutdown in order ends when those that stream have everything."""
        for each in self.nodes.values():
            if each.server is not None and each.server.upstream() == at.name:
                self._replicate(each, at, stopping=True)

    def promote(self, at: Node) -> None:
        """`pg_ctl promote` has come through."""
        assert at.server is not None
        self._branches += 1
        at.server.promote(self._branches)
        self.began(at, promoted=True)
        for doom in self._dooms:
            doom.set_result(at)
        self._dooms.clear()

    # --- faults -------------------------------------------------------------------------------

    async def play(self) -> None:
        """The faults of the script; each lasts as long as it says, whatever comes after it."""
        playing = []
        for fault in self.script.faults:
            await asyncio.sleep(fault.after_s)
            at = self._target(fault)
            self.say(f"FAULT: {fault.kind} at {at.name} for {fault.lasts_s:.1f} s")
            playing.append(self.loop.outside(self._strike(fault.kind, at, fault.lasts_s)))
        await asyncio.gather(*playing)

    def _target(self, fault: Fault) -> Node:
        if fault.node != "primary":
            return self.nodes[names.pod(CLUSTER, fault.node % self.script.instances)]
        writing = [each for each in self.nodes.values() if each.writes()]
        return (writing or [self.nodes.get(self.lease().holder, self.nodes[f"{CLUSTER}-0"])])[0]

    async def _strike(self, kind: Kind, at: Node, lasts_s: float) -> None:
        match kind:
            case "crash":
                at.kill_server()
            case "kill":
                at.end()
                await asyncio.sleep(lasts_s)
                at.begin()
            case "leave":
                at.leave()
                while at.leaving:  # noqa: ASYNC110 # in virtual time a look costs nothing
                    await asyncio.sleep(0.2)
                await asyncio.sleep(lasts_s)
                at.begin()
            case "freeze" | "freeze agent" | "freeze postgres" | "freeze guard":
                await self._freeze(kind.removeprefix("freeze").strip(), at, lasts_s)
            case "gate" | "promote":
                if at.request is not None and at.agent is not None:
                    at.agent.spawn(self._wants(at, kind))
            case "doom":
                await self._doom(lasts_s)
            case _:
                with self._disturbed(kind, at):
                    await asyncio.sleep(lasts_s)
                if kind == "off":
                    at.begin()

    @contextlib.contextmanager
    def _disturbed(self, kind: Kind, at: Node) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            others = [name for name in self.nodes if name != at.name]
            if kind in ("off", "cut", "mute"):
                stack.enter_context(self._without((at.name, other) for other in others))
            if kind in ("off", "cut", "deaf"):
                stack.enter_context(self._without((other, at.name) for other in others))
            if kind == "apart":
                pod = names.pod(CLUSTER, (names.ordinal(at.name) + 1) % self.script.instances)
                stack.enter_context(self._without([(at.name, pod), (pod, at.name)]))
            if kind in ("off", "cut", "cut api"):
                at.api_cuts += 1
                stack.callback(setattr_less, at, "api_cuts")
            match kind:
                case "off":
                    at.off()
                case "lag":
                    at.lagging += 1
                    stack.callback(setattr_less, at, "lagging")
                case "slow api":
                    at.slow_api += 1
                    stack.callback(setattr_less, at, "slow_api")
                case "api away":
                    self.api.stop()
                    stack.callback(setattr, self.api, "up", True)
                case "api loses":
                    self.loss = _LOSS
                    stack.callback(setattr, self, "loss", 0.0)
            yield

    @contextlib.contextmanager
    def _without(self, ways: Iterable[tuple[str, str]]) -> Iterator[None]:
        cut = list(ways)
        for way in cut:
            self._cuts[way] = self._cuts.get(way, 0) + 1
        yield
        for way in cut:
            self._cuts[way] -= 1

    async def _wants(self, at: Node, what: str) -> None:
        if at.request is not None:
            done, reason = await at.request([what])
            self.say(f"{at.name}: {what}: {'yes' if done else 'no'}: {reason}")

    async def _doom(self, lasts_s: float) -> None:
        doom: asyncio.Future[Node] = self.loop.create_future()
        self._dooms.append(doom)
        await asyncio.wait({doom}, timeout=lasts_s)
        if not doom.done():
            self._dooms.remove(doom)
            return
        await asyncio.sleep(self.chance.uniform(0.0, 0.3))
        self.say(f"{doom.result().name} is doomed")
        with self._disturbed("off", doom.result()):
            await asyncio.sleep(lasts_s)
        doom.result().begin()

    async def _freeze(self, which: str, at: Node, lasts_s: float) -> None:
        processes: list[Process] = []
        if at.guard is not None and which in ("", "guard"):
            processes.append(at.guard.process)
        if at.agent is not None and which in ("", "agent"):
            processes.append(at.agent)
        server = at.server if which in ("", "postgres") else None
        for process in processes:
            process.freeze()
        if server is not None:
            server.frozen += 1
        await asyncio.sleep(lasts_s)
        self.say(f"{at.name} wakes up")
        if server is not None:
            # A backend may be the first that runs.
            server.frozen -= 1
            self.look()
        for process in processes:
            process.thaw()


def setattr_less(thing: object, name: str) -> None:
    """One reason less."""
    setattr(thing, name, getattr(thing, name) - 1)


async def nothing_else(_: Cluster) -> None:
    """While the faults come."""


async def whole_life(
    cluster: Cluster, meanwhile: Callable[[Cluster], Awaitable[None]] = nothing_else
) -> None:
    """From nothing to a cluster, then the faults and what else is to come, then peace."""
    for each in cluster.nodes.values():
        each.begin()
    while not cluster.settled():
        if cluster.loop.true_s > _BOOTSTRAP_S:
            raise cluster.violation(f"no cluster after {_BOOTSTRAP_S:g} s: {cluster.unsettled()}")
        await asyncio.sleep(0.5)
    await asyncio.gather(cluster.play(), meanwhile(cluster))
    cluster.say("all faults have ended")
    ended_s = cluster.loop.true_s
    await asyncio.sleep(2.0)
    while not cluster.settled():
        if cluster.loop.true_s - ended_s > cluster.script.peace_s:
            raise cluster.violation(
                f"after {cluster.script.peace_s:g} s of peace {cluster.unsettled()}"
            )
        await asyncio.sleep(1.0)


def run(script: Script, life: Callable[[Cluster], Awaitable[None]] = whole_life) -> Cluster:
    """Play a script to its end; Violation with the history where something is not as it must be."""
    worlds: list[Cluster] = []
    loop = MachineLoop(lambda: worlds[0].look() if worlds else None)

    async def main() -> None:
        cluster = Cluster(script, loop)
        worlds.append(cluster)
        turning = loop.outside(cluster.turn())
        with _listening(cluster):
            try:
                await life(cluster)
            finally:
                cluster.over = True
                turning.cancel()
                for process in cluster.processes:
                    process.bury()
                await asyncio.sleep(0.1)

    with contextlib.ExitStack() as stack:
        for each in replaced():
            stack.enter_context(each)
        with contextlib.suppress(Violation), asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(main())
    if broken := worlds[0].broken or loop.broken:
        raise broken
    return worlds[0]


@contextlib.contextmanager
def _listening(cluster: Cluster) -> Iterator[None]:
    logger = logging.getLogger("pgcluster")
    before = logger.level, logger.propagate, logger.handlers[:]
    logger.handlers[:] = [_Told(cluster)]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.setLevel(before[0])
        logger.propagate, logger.handlers[:] = before[1], before[2]
