"""One instance: the real agent, and everything outside of its process made up.

The whole of `pgcluster.node` that decides runs as it is: the agent's loop, both of its halves, the
start table, the gate, promotions, the keeper of the Lease, failsafe, quorums, the fence's end in
the agent. What is replaced is what touches the world: processes, files, sockets, SQL, repmgr.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest import mock

from pgcluster import clock as clock_module
from pgcluster.api import names
from pgcluster.api.config import ClusterConfig
from pgcluster.api.errors import RetryError
from pgcluster.kube.resources import PODS
from pgcluster.node import agent as agent_module
from pgcluster.node import fence as fence_module
from pgcluster.node import handover as handover_module
from pgcluster.node import instance as instance_module
from pgcluster.node import promotion as promotion_module
from pgcluster.node import running as running_module
from pgcluster.node import server as server_module
from pgcluster.node.settings import Settings
from pgcluster.postgres.control import ControlData
from pgcluster.postgres.local import Observation
from pgcluster.proc import Result
from tests.model.kubernetes import Client
from tests.model.machine import Clock, MachineLoop, Process, current
from tests.model.postgres import Data, Server

if TYPE_CHECKING:
    from tests.model.cluster import Cluster

Handler = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]
Request = Callable[[list[str]], Awaitable[tuple[bool, str]]]

_QUERY_S = 3.0
# Between the word to a pod that it is deleted and its end.
_GRACE_S = 30.0


class Node:
    """A machine with one instance's pod on it; what is durable of it is here."""

    def __init__(self, world: Cluster, name: str, clock: Clock) -> None:
        self.world = world
        self.loop: MachineLoop = world.loop
        self.name = name
        self.address = f"10.0.0.{names.ordinal(name)}"
        self.clock = clock
        self.chance = Random(f"{world.seed} {name}")  # noqa: S311 # to be repeated
        self.data: Data | None = None
        self.server: Server | None = None
        self.setting = ""  # synchronous_standby_names in the configuration file
        self.api_cuts = 0  # what keeps this machine from the API server
        self.slow_api = 0
        self.lagging = 0  # its standby receives nothing
        self.agent: Process | None = None
        self.guard: Guard | None = None
        self.child: Child | None = None
        self.request: Request | None = None
        self.peers: Mapping[tuple[str, str], Handler] = {}
        self.word_s = 0.0  # the guard's word, in the file that postgres looks into
        self.leaving = False
        self._containers = 0
        self._word = ""  # what the container leaves to the kubelet
        self._last_word: str | None = None

    # --- the way to the API server (kubernetes.Way) -------------------------------------------

    def open(self) -> bool:
        """Whether what is sent now gets there."""
        return self.api_cuts == 0

    def delay_s(self, chance: Random) -> float:
        """How long a request, an answer or an event takes on its way."""
        if self.slow_api:
            return chance.choice([chance.uniform(0, 0.5), chance.uniform(0, 5.0)])
        return chance.uniform(0.001, 0.02)

    def loses(self, chance: Random) -> bool:
        """Whether it is lost all the same."""
        return chance.random() < self.world.loss

    # --- the container ------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether there is a container."""
        return self.agent is not None and self.agent.alive

    def begin(self) -> None:
        """The kubelet starts a container."""
        if self.running:
            return
        self._containers += 1
        word = f"{self.name} {self._containers}"
        self.world.say(f"{self.name}: container {self._containers} starts")
        process = self.agent = self.world.process(self)
        client: Any = Client(self.loop, self.world.api, self, f"{self.world.seed} {word}")
        config = self.world.config
        settings = Settings(config.name, config.namespace, self.name, self.address, word)

        async def life() -> None:
            try:
                await agent_module.Agent(settings, client, config).run()
            finally:
                if process.alive:
                    self.loop.later(0, self.end, process)

        process.spawn(life())
        self._publish()

    def end(self, process: Process | None = None) -> None:
        """Everything in the container ends at once, and the kubelet sees it.

        `process`: only if it is still the container of that agent.
        """
        if self.agent is None or not self.running or process not in (None, self.agent):
            return
        self.world.say(f"{self.name}: the container ends")
        self.agent.kill()
        self._end_rest()
        self._last_word = None if self.leaving else self._word
        self.leaving = False
        self._publish()

    def off(self) -> None:
        """The machine ends, and its kubelet with it."""
        if self.agent is not None:
            self.agent.kill()
        self._end_rest()
        self._last_word = None
        self.leaving = False

    def _end_rest(self) -> None:
        if self.guard is not None:
            self.guard.process.kill()
        self.kill_server()
        self.request, self.peers = None, {}

    def leave(self) -> None:
        """The pod is deleted: a word to the agent, and the end after a while."""
        if self.agent is not None and self.running and not self.leaving:
            self.leaving = True
            self._publish()
            self.agent.later(0, _terminate, self.agent)
            self.loop.later(_GRACE_S, self.end, self.agent)

    def leave_word(self, container: str) -> None:
        """The container's termination message."""
        self._word = container

    def _publish(self) -> None:
        """What the kubelet says of the pod, as soon as it can."""
        last = {"terminated": {"message": self._last_word}} if self._last_word else {}
        state: dict[str, Any] = {"running": {}}
        if not self.running:
            state, last = last or {"waiting": {}}, {}
        manifest: dict[str, Any] = {
            "metadata": {"name": self.name, "namespace": self.world.config.namespace},
            "status": {
                "phase": "Running",
                "podIP": self.address,
                "containerStatuses": [{"state": state, "lastState": last}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        }
        if self.leaving:
            manifest["metadata"]["deletionTimestamp"] = "now"
        self.loop.later(self.chance.uniform(0.05, 1.0), self._write_pod, manifest)

    def _write_pod(self, manifest: Mapping[str, Any]) -> None:
        if self.open() and self.world.api.up:
            self.world.api.write(PODS.plural, manifest)
        else:
            self.loop.later(1.0, self._write_pod, manifest)

    # --- postgres -----------------------------------------------------------------------------

    def start_server(self) -> None:
        """A postmaster."""
        assert self.data is not None
        assert self.server is None or not self.server.alive, "two postmasters on one volume"
        self.server = Server(
            self.name,
            self.data,
            self.chance,
            synchronous=self.setting,
            lawful=self.lawful,
            now_s=lambda: self.loop.true_s,
        )
        role = "standby" if self.server.in_recovery else "primary"
        self.world.say(f"{self.name}: postgres starts as a {role}")

    def lawful(self) -> bool:
        """What the library in postgres finds in the guard's file."""
        return self.clock.local_s(self.loop.true_s) < self.word_s

    def kill_server(self) -> None:
        """The postmaster and its backends are no more."""
        if self.server is not None and self.server.alive:
            self.world.say(f"{self.name}: postgres ends")
            self.server.alive = False
            if self.child is not None and self.agent is not None:
                self.agent.later(0.001, self.child.ended.set)

    def writes(self) -> bool:
        """Whether clients get commits acknowledged here at this moment."""
        return self.server is not None and self.server.writes()


def _terminate(process: Process) -> None:
    process.signals[signal.SIGTERM]()


def node() -> Node:
    """The machine that the running code is on."""
    owner = current().owner
    assert isinstance(owner, Node)
    return owner


def data() -> Data:
    """The data directory there."""
    found = node().data
    assert found is not None
    return found


# --- the fence --------------------------------------------------------------------------------


class Guard:
    """node/guard.py: another process, told by a pipe until when postgres may be a primary."""

    def __init__(self, of: Node) -> None:
        self._node = of
        self.process = of.world.process(of)
        self._until_s: float | None = None
        self._lines: list[bytes] = []
        self._closed = False
        of.word_s = 0.0

    def write(self, text: bytes) -> None:
        """The agent's end of the pipe."""
        self._lines += text.splitlines()
        self.process.later(self._node.chance.uniform(0, 0.005), self._wake)

    def close(self) -> None:
        """The agent has closed its end."""
        self._closed = True
        self.process.later(0.001, self._wake)

    def _wake(self) -> None:
        lines, self._lines = self._lines, []
        for line in lines:
            self._until_s = float(line[6:]) if line.startswith(b"until ") else None
            self._node.word_s = self._until_s or 0.0
            if self._until_s is not None:
                left_s = self._until_s - self.process.now_s()
                self.process.later(left_s + 0.0001, self._wake)
        if self._until_s is not None and (self._closed or self.process.now_s() >= self._until_s):
            self._until_s = None
            self.strike()

    def strike(self) -> None:
        """Kill all of postgres, and see to it that its next start is not that of a primary."""
        self._node.world.say(f"{self._node.name}: the guard strikes")
        if self._node.data is not None:
            self._node.data.standby_signal = True
        self._node.kill_server()


class Fence(fence_module.Fence):
    """The real end in the agent of a guard that is made up."""

    async def start(self) -> None:
        """A guard of its own for each container."""
        guard = node().guard = Guard(node())
        self._process = SimpleNamespace(stdin=guard, returncode=None)  # type: ignore[assignment] # as much of a process as is used

    async def stop(self) -> None:
        """The end of the pipe."""
        if (guard := node().guard) is not None:
            guard.close()
            await asyncio.sleep(0.01)


# --- programs and files -----------------------------------------------------------------------


class Child:
    """processes.Child: postgres, or repmgrd, of which nothing is seen here."""

    def __init__(self, name: str, *, ended: asyncio.Event) -> None:
        self.name = name
        self.ended = ended
        self.last_status = 0
        self._repmgrd = False
        if name == "postgres":
            node().child = self

    @property
    def running(self) -> bool:
        """Whether it runs."""
        if self.name != "postgres":
            return self._repmgrd
        server = node().server
        return server is not None and server.alive

    @property
    def pid(self) -> int | None:
        """A number while it runs."""
        return 1 if self.running else None

    async def start(self, *_: object, **__: object) -> None:
        """Start it."""
        await asyncio.sleep(0.01)
        if self.name == "postgres":
            node().start_server()
        else:
            self._repmgrd = True

    async def stop(self, sig: signal.Signals, *, within_s: float) -> bool:
        """Stop it in order, or at once; kill it where it does not hear."""
        self._repmgrd = False
        here, server = node(), node().server
        if self.name != "postgres" or server is None or not server.alive:
            return True
        in_order = sig == signal.SIGINT
        server.stopping = in_order
        now_s = asyncio.get_running_loop().time
        deadline_s = now_s() + within_s
        await asyncio.sleep(here.chance.uniform(0.02, 0.4) if in_order else 0.005)
        while server.alive and server.frozen and now_s() < deadline_s:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        if server.alive and in_order and not server.frozen:
            server.shut_down(lambda: here.world.last_wal(here))
            here.world.say(f"{here.name}: postgres has shut down")
            self.ended.set()
        here.kill_server()
        return not server.frozen

    def signal(self, sig: signal.Signals) -> None:
        """Only a reload is ever asked for."""
        here = node()

        def reload(server: Server | None) -> None:
            if server is not None and server is here.server and server.alive:
                server.synchronous = here.setting

        if self.name == "postgres" and sig == signal.SIGHUP:
            here.loop.later(here.chance.uniform(0.001, 0.3), reload, here.server)


class DataDirectories:
    """data.DataDirectories: whole steps, each durable once it is done."""

    def __init__(self, *_: object) -> None:
        self.current = "pgdata"

    async def initdb(self) -> None:
        """A new system."""
        here = node()
        await asyncio.sleep(here.chance.uniform(0.2, 1.5))
        here.data = Data(system=here.world.new_system())
        here.world.say(f"{here.name}: initdb, system {here.data.system}")

    async def clone(self, host: str, *, progress: Callable[[str | None], None]) -> None:
        """A base backup, whole or not at all."""
        here = node()
        source = here.world.primary_at(here, host)
        await asyncio.sleep(here.chance.uniform(0.2, 3.0))
        if source is None or source is not here.world.primary_at(here, host):
            raise RetryError("repmgr standby clone failed", delay_s=3)
        here.data = source.data.copy()
        here.data.upstream = source.node
        here.world.say(f"{here.name}: cloned from {source.node}")

    async def remove_aside(self) -> None:
        """Nothing is left aside."""

    def put_standby_signal(self) -> None:
        """The next start is that of a standby."""
        data().standby_signal = True

    def remove_standby_signal(self) -> None:
        """The next start is that of a primary."""
        data().standby_signal = False

    def use_up_timelines(self, end: int) -> None:
        """The next promotion begins timeline `end`."""
        data().used |= set(range(2, end))

    def newest_timeline(self) -> int:
        """Of what there is."""
        return data().timeline

    def tell_timelines(self, first: int, end: int) -> None:
        """For repmgr's eyes only."""


async def _run(arguments: Sequence[str], **_: object) -> Result:
    """proc.run: `pg_ctl promote` is all that is run."""
    here, server = node(), node().server
    assert arguments[-1] == "promote", arguments
    await asyncio.sleep(here.chance.uniform(0.02, 0.5))
    if server is None or server is not here.server or not server.answers():
        return Result(1, "pg_ctl: server does not answer")
    _promote(here, server)
    await asyncio.sleep(here.chance.uniform(0.0, 0.1))
    return Result(0, "") if server.answers() else Result(1, "pg_ctl: server ended")


async def _clear_survivors(*_: object, **__: object) -> None:
    node().kill_server()


async def _read_control(*_: object) -> ControlData | None:
    await asyncio.sleep(0.01)
    found = node().data
    return None if found is None else found.read_control()


def _promote(here: Node, server: Server) -> None:
    if server is here.server and server.answers() and server.in_recovery:
        here.world.promote(here)


class LocalPostgres:
    """postgres.local.LocalPostgres, over the local socket."""

    def __init__(self, *_: object, deadline_s: float = _QUERY_S) -> None:
        self._deadline_s = deadline_s

    async def observe(self) -> Observation:
        """A look."""
        server = await self._server()
        nodes = node().world.nodes
        return server.observe(lambda name: nodes[name].address)

    async def query(self, statement: str, *_: object) -> list[dict[str, Any]]:
        """What the agents themselves ask for; nothing depends on the rest."""
        server, here = await self._server(), node()
        if statement == "CHECKPOINT":
            await asyncio.sleep(here.chance.uniform(0.01, 1.0))
            if server is await self._server():
                server.checkpoint()
        elif "pg_promote" in statement:
            here.loop.later(here.chance.uniform(0.01, 0.5), _promote, here, server)
        elif "pg_is_in_recovery() AS r" in statement:
            return [{"r": server.in_recovery}]
        elif "pg_stat_replication" in statement:
            known = len(server.data.wal)
            return [{"pod": pod, "lag": known - lsn} for pod, lsn in server.streaming().items()]
        return []

    async def close(self) -> None:
        """Nothing is kept open."""

    async def _server(self) -> Server:
        await asyncio.sleep(node().chance.uniform(0.001, 0.01))
        now_s = asyncio.get_running_loop().time
        deadline_s = now_s() + self._deadline_s
        while (server := node().server) is not None and server.alive:
            if server.answers():
                return server
            if not server.frozen:
                raise RetryError("postgres does not answer: it is starting, or shutting down")
            if now_s() > deadline_s:
                raise RetryError("postgres does not answer: it hangs")
            await asyncio.sleep(0.1)
        raise RetryError("postgres does not answer: it does not run")


# --- repmgr -----------------------------------------------------------------------------------


class Repmgr:
    """repmgr's commands, each of which may fail."""

    def daemon(self) -> list[str]:
        """repmgrd is not seen here; what it asks the agents for is, at any time (cluster.py)."""
        return ["repmgrd"]

    async def standby_promote(self) -> Result:
        """By the agent's own socket; repmgr sometimes refuses before that."""
        here = node()
        await asyncio.sleep(here.chance.uniform(0.05, 0.3))
        if here.request is None or here.chance.random() < 0.3:
            return Result(8, "repmgr refuses")
        done, reason = await here.request(["promote"])
        return Result(0 if done else 1, reason)

    async def rehearse_switchover(self, *, within_s: float) -> Result:
        """`repmgr standby switchover --dry-run`, which may refuse."""
        here = node()
        await asyncio.sleep(here.chance.uniform(0.5, 3.0))
        return Result(0 if here.chance.random() < 0.9 else 1, "repmgr refuses")

    async def standby_follow(self, upstream: str) -> Result:
        """Another upstream from now on."""
        here = node()
        await asyncio.sleep(here.chance.uniform(0.05, 0.5))
        source = here.world.primary_at(here, upstream)
        if source is None or here.data is None or not source.data.contains(here.data):
            return Result(1, f"{upstream} cannot be followed")
        here.data.upstream = source.node
        return Result(0, "")

    async def node_rejoin(self, conninfo: str) -> Result:
        """A rewind where that is needed, then a start that the agent is asked for."""
        here = node()
        await asyncio.sleep(here.chance.uniform(0.1, 2.0))
        source = here.world.primary_at(here, conninfo)
        if source is None or here.data is None or here.chance.random() < 0.1:
            return Result(1, "repmgr node rejoin failed")
        if not source.data.contains(here.data):
            here.data.rewind(source.data)
            here.world.say(f"{here.name}: rewound to {source.node}")
        here.data.standby_signal = True
        here.data.upstream = source.node
        if here.request is None:
            return Result(1, "the agent does not answer")
        done, reason = await here.request(["service", "start"])
        return Result(0 if done else 1, reason)


class Duties:
    """duties.Duties: repmgr's rows and slots, roles, labels, the pools: all done in no time."""

    def __init__(self, *_: object, **__: object) -> None:
        self.repmgr = Repmgr()
        self.repmgr_database = LocalPostgres()
        self.failed_objects: dict[str, str] = {}
        self.streaming: tuple[str, ...] | None = None
        self.retention = SimpleNamespace(findings=SimpleNamespace(lost=(), retained={}))
        self.metadata = SimpleNamespace(promoted=_done)

    def forget(self) -> None:
        """Nothing is remembered."""

    async def point_pools_here(self, *, epoch: int, timeline: int) -> bool:
        """The pools are not seen here."""
        await _done()
        return False

    def __getattr__(self, name: str) -> Callable[..., Awaitable[None]]:
        if name.startswith("_"):
            raise AttributeError(name)
        return _done


async def _done(*_: object, **__: object) -> None:
    await asyncio.sleep(node().chance.uniform(0.0, 0.01))


async def _for_ever(*_: object, **__: object) -> None:
    await asyncio.get_running_loop().create_future()


async def _look_at_poolers(*_: object, **__: object) -> tuple[str, ...]:
    """A query, which takes its time where the server has much to do."""
    chance = node().chance
    await asyncio.sleep(chance.choice([0.002, 0.002, 0.01, chance.uniform(0, 1.5)]))
    return ()


# --- the other instances ----------------------------------------------------------------------


class Peers:
    """peers.Peers, without TLS: requests are late or lost, and so are answers."""

    def __init__(self, *_: object) -> None:
        pass

    async def ask(
        self,
        address: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        deadline_s: float = 1.0,
    ) -> Mapping[str, Any]:
        """GET, or POST with a body."""
        here = node()
        answer: asyncio.Future[Mapping[str, Any]] = here.loop.create_future()
        key = ("GET" if body is None else "POST", path)
        here.world.ask(here, address, key, body or {}, answer)
        try:
            async with asyncio.timeout(deadline_s):
                return await answer
        except TimeoutError:
            raise RetryError(f"{address} does not answer") from None

    async def close(self) -> None:
        """Nothing is kept open."""


async def _serves_as_primary(
    conninfo: str, *, settled: bool = False, deadline_s: float = 2.5
) -> bool:
    here = node()
    await asyncio.sleep(here.chance.uniform(0.001, 0.05))
    source = here.world.primary_at(here, conninfo)
    if source is None:
        await asyncio.sleep(here.chance.choice([0.0, deadline_s]))
        return False
    return not settled or source.data.settled == source.data.timeline


async def _serve_peers(handlers: Mapping[tuple[str, str], Handler], *_: object) -> object:
    node().peers = handlers
    return SimpleNamespace(cleanup=_done)


async def _serve_http(**_: object) -> object:
    return SimpleNamespace(cleanup=_done)


async def _serve_socket(_: str, handler: Request) -> object:
    node().request = handler
    return SimpleNamespace(close=lambda: None)


class Parameters:
    """Those of the spec are taken as they are."""

    def __init__(self, *_: object, **__: object) -> None:
        self.floor: Mapping[str, int] = {}
        self.refused: dict[str, str] = {}
        self.overridden: dict[str, str] = {}
        self.loaded: str | None = None

    def news(self, config: ClusterConfig) -> bool:
        """Whether they have to be tried."""
        return False

    async def adopt(self, config: ClusterConfig) -> ClusterConfig:
        """As the spec has them."""
        return config

    def started(self, config: ClusterConfig) -> None:
        """They are good."""

    def fall_back(self, config: ClusterConfig) -> ClusterConfig | None:
        """A start that fails is not their doing."""
        return None

    def reloading(self, observed: Observation | None) -> None:
        """Nothing to look at."""

    async def see(self, observed: Observation, local: object) -> None:
        """Nothing to see."""


def _write_all(*_: object, synchronous: str, floor: object) -> bool:
    changed = node().setting != synchronous
    node().setting = synchronous
    return changed


def _now(_: object) -> datetime:
    return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=current().now_s())


def replaced() -> list[Any]:
    """Everything that touches the world, as patches with what takes its place."""
    files = SimpleNamespace(
        write_all=_write_all,
        write_repmgr=lambda *_: False,
        write_hosts=lambda *_: False,
        leave_word=lambda word: node().leave_word(word),
    )
    boottime = SimpleNamespace(clock_gettime=lambda _: current().now_s(), CLOCK_BOOTTIME=7)
    poolers = SimpleNamespace(watch=_for_ever, look=_look_at_poolers, heard=lambda: ())
    repmgrd = SimpleNamespace(see_to=_done, paused=False, is_paused=_done)
    certificates = SimpleNamespace(refresh=lambda: False, mounted=False, complete=False)
    space = SimpleNamespace(seen=(), full=None, keep=_for_ever, look=_done)
    volume = SimpleNamespace(descriptors=(), take=lambda: True)

    def made(thing: Any) -> Callable[..., Any]:
        return lambda *_, **__: thing

    found: list[tuple[Any, str, Any]] = [
        (clock_module, "time", boottime),
        (clock_module, "datetime", SimpleNamespace(now=_now)),
        (agent_module, "files", files),
        (agent_module, "http", SimpleNamespace(serve=_serve_http)),
        (agent_module, "ipc", SimpleNamespace(serve=_serve_socket)),
        (agent_module, "peers", SimpleNamespace(serve=_serve_peers)),
        (handover_module, "LocalPostgres", LocalPostgres),
        (instance_module, "files", files),
        (instance_module, "Child", Child),
        (instance_module, "Certificates", made(certificates)),
        (instance_module, "Credentials", made(None)),
        (instance_module, "Duties", Duties),
        (instance_module, "Parameters", Parameters),
        (instance_module, "Peers", Peers),
        (instance_module, "Poolers", made(poolers)),
        (instance_module, "Repmgrd", made(repmgrd)),
        (instance_module, "Space", made(space)),
        (promotion_module, "serves_as_primary", _serves_as_primary),
        (running_module, "wal_gone", _done),
        (server_module, "Child", Child),
        (server_module, "DataDirectories", DataDirectories),
        (server_module, "Fence", Fence),
        (server_module, "LocalPostgres", LocalPostgres),
        (server_module, "VolumeLock", made(volume)),
        (server_module, "clear_survivors", _clear_survivors),
        (server_module, "control", SimpleNamespace(read=_read_control)),
        (server_module, "run", _run),
    ]
    return [mock.patch.object(module, name, by) for module, name, by in found]
