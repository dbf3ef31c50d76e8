"""The agent's thin shell, against real processes, files and sockets."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from pgcluster.api.config import ClusterConfig
from pgcluster.api.errors import RetryError
from pgcluster.api.reports import InstanceReport
from pgcluster.api.wal import Lsn, WalPoint
from pgcluster.kube.client import KubeClient
from pgcluster.node import client, files, ipc
from pgcluster.node.data import DataDirectories
from pgcluster.node.fence import Fence
from pgcluster.node.members import Members, candidate_document, parse_candidate
from pgcluster.node.peers import Peers
from pgcluster.node.processes import Child, clear_survivors, survivors
from pgcluster.node.server import VolumeLock
from pgcluster.node.standing import Standing, coarse
from pgcluster.postgres.local import Observation
from pgcluster.topology.election import Candidate

CONFIG = ClusterConfig(name="shop", namespace="prod", uid="u", instances=3)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    """A process that a fence may stop; it ends with the test whatever happens."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process
        process.kill()


def test_a_fence_strikes_only_after_its_deadline(
    victim: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    clock, standby_signal = Clock(), tmp_path / "standby.signal"
    fence = Fence(clock, standby_signal)
    fence.arm(victim.pid, 104.0)
    clock.now_s = 103.9
    fence.look()
    assert victim.poll() is None
    fence.extend(108.0)
    clock.now_s = 107.9
    fence.look()
    assert victim.poll() is None
    assert not standby_signal.exists()
    clock.now_s = 108.0
    fence.look()
    assert victim.wait(timeout=5) == -signal.SIGQUIT
    assert standby_signal.exists()
    assert fence.fenced


def test_a_fence_kills_what_does_not_hear_sigquit(
    victim: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    clock = Clock()
    fence = Fence(clock, tmp_path / "standby.signal")
    victim.send_signal(signal.SIGSTOP)
    os.waitpid(victim.pid, os.WUNTRACED)
    fence.arm(victim.pid, 100.0)
    fence.look()
    clock.now_s = 101.5
    fence.look()
    assert victim.wait(timeout=5) == -signal.SIGKILL


def test_a_passed_deadline_cannot_be_extended(
    victim: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    clock = Clock()
    fence = Fence(clock, tmp_path / "standby.signal")
    fence.arm(victim.pid, 99.0)
    fence.look()
    fence.extend(500.0)
    fence.arm(victim.pid, 500.0)
    assert fence.fenced
    fence.disarm()
    assert not fence.fenced


def test_a_disarmed_fence_leaves_a_standby_alone(
    victim: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    clock = Clock()
    fence = Fence(clock, tmp_path / "standby.signal")
    fence.extend(50.0)
    fence.look()
    fence.arm(victim.pid, 50.0)
    fence.disarm()
    fence.look()
    assert victim.poll() is None


def test_the_fence_works_while_the_event_loop_is_blocked(
    victim: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    fence = Fence(time.monotonic, tmp_path / "standby.signal")
    fence.arm(victim.pid, time.monotonic() + 0.2)
    fence.start()

    async def block() -> None:
        time.sleep(1.0)  # noqa: ASYNC251 # blocking is what this test is about

    asyncio.run(block())
    fence.stop()
    assert victim.wait(timeout=5) == -signal.SIGQUIT


async def test_one_volume_has_one_agent_and_what_is_left_of_its_postgres_keeps_the_lock(
    tmp_path: Path,
) -> None:
    path = tmp_path / ".lock"
    first = VolumeLock(path)
    assert first.take()
    child = Child("postgres", ended=asyncio.Event())
    await child.start(["sleep", "60"], env=os.environ, inherited=first.descriptors)
    os.close(first.descriptors[0])  # the agent is gone
    second = VolumeLock(path)
    assert not second.take(), "what the first agent has left behind still works on the volume"
    await child.stop(signal.SIGKILL, within_s=5)
    assert second.take()


async def test_the_end_of_a_child_is_noticed_at_once() -> None:
    ended = asyncio.Event()
    child = Child("sleep", ended=ended)
    await child.start(["sleep", "60"], env=os.environ)
    assert child.running
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    async with asyncio.timeout(2):
        await ended.wait()
    assert not child.running
    assert child.last_status == -signal.SIGKILL


async def test_a_child_that_does_not_stop_is_killed() -> None:
    child = Child("deaf", ended=asyncio.Event())
    await child.start(["sh", "-c", "trap '' INT; while :; do sleep 0.1; done"], env=os.environ)
    await asyncio.sleep(0.3)
    assert not await child.stop(signal.SIGINT, within_s=0.3)
    assert not child.running


async def test_survivors_of_a_postmaster_are_killed_and_its_pid_file_goes(tmp_path: Path) -> None:
    (tmp_path / "postmaster.pid").write_text(str(os.getpid()))
    survivor = await asyncio.create_subprocess_exec("sleep", "60", cwd=tmp_path)
    bystander = await asyncio.create_subprocess_exec("sleep", "60", cwd=tmp_path.parent)
    assert survivors(tmp_path) == [survivor.pid]
    await clear_survivors(tmp_path)
    assert await survivor.wait() == -signal.SIGKILL
    assert bystander.returncode is None
    bystander.kill()
    await bystander.wait()
    assert not (tmp_path / "postmaster.pid").exists()


@pytest.mark.parametrize(
    ("answer", "status"), [((True, ""), 0), ((False, "shop-0 holds the Lease\n"), 1)]
)
async def test_a_command_of_repmgr_reaches_the_agent_and_brings_back_its_verdict(
    tmp_path: Path, answer: tuple[bool, str], status: int
) -> None:
    heard: list[list[str]] = []

    async def handler(words: list[str]) -> tuple[bool, str]:
        heard.append(words)
        return answer

    path = str(tmp_path / "agent.sock")
    server = await ipc.serve(path, handler)
    arguments = ["event", "1", "standby_promote", "1; $(touch /tmp/x) \"quoted\" 'too'"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", str(client.__file__), *arguments,
        env={"PGCLUSTER_AGENT_SOCKET": path},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    stdout, stderr = await process.communicate()
    server.close()
    assert process.returncode == status
    assert heard == [arguments]
    assert stdout == b"", "repmgr reads one line and closes the pipe: the client must be silent"
    assert stderr.decode() == (answer[1] + "\n" if status else "")


def test_without_an_agent_the_gate_stays_shut(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(client.__file__), "gate"],
        env={"PGCLUSTER_AGENT_SOCKET": str(tmp_path / "nobody.sock")},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == b""


def test_a_file_is_replaced_in_one_step_and_only_when_it_differs(tmp_path: Path) -> None:
    path = tmp_path / "x.conf"
    assert files.write_atomically(path, "a")
    before = path.stat()
    assert not files.write_atomically(path, "a")
    assert path.stat().st_ino == before.st_ino
    assert files.write_atomically(path, "b")
    assert path.read_text() == "b"
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.conf"]


async def test_a_clone_replaces_the_data_only_when_it_is_whole(tmp_path: Path) -> None:
    data = DataDirectories(lambda: CONFIG, "shop-1")
    data.volume, data.current = tmp_path, tmp_path / "pgdata"
    data._new, data._aside = tmp_path / "pgdata.new", tmp_path / "pgdata.old"
    data.current.mkdir()
    (data.current / "rows").write_text("old")
    data._new.mkdir()
    (data._new / "rows").write_text("new")
    data._swap_in()
    assert (data.current / "rows").read_text() == "new"
    assert (data._aside / "rows").read_text() == "old"
    await data.remove_aside()
    assert not data._aside.exists()


def test_an_agents_status_survives_the_wire() -> None:
    candidate = Candidate("7001", WalPoint(3, Lsn.parse("1/A0")), barred=True)
    report = InstanceReport(pod="shop-1", state="running")

    assert parse_candidate(candidate_document(candidate, report, {})) == candidate
    assert parse_candidate({}) == Candidate(None, None)


class Answers:
    """Peers of which one answers, one does not, and one makes no sense."""

    async def ask(self, address: str, path: str) -> Mapping[str, Any]:
        assert path == "/status"
        if address == "10.0.0.2":
            raise RetryError("no answer")
        return ANSWER if address == "10.0.0.1" else {"candidate": {"timeline": "x", "lsn": "0/1"}}


CANDIDATE = Candidate("7001", WalPoint(1, Lsn(1)))
ANSWER = candidate_document(CANDIDATE, InstanceReport(pod="shop-1", state="running"), {})


async def test_whoever_does_not_answer_is_no_candidate() -> None:
    members = Members(
        cast(KubeClient, None),
        cast(Peers, Answers()),
        cluster="shop",
        namespace="test",
        me="shop-0",
        changed=asyncio.Event(),
    )
    for ordinal in range(4):
        status = {"podIP": f"10.0.0.{ordinal}"}
        members._set(f"shop-{ordinal}", {"metadata": {}, "status": status})
    assert await members.candidates() == {"shop-1": CANDIDATE}


def observation(**changes: object) -> Observation:
    values = {
        "in_recovery": True,
        "system_identifier": "7001",
        "point": WalPoint(1, Lsn(1)),
        "streaming": True,
        "upstream_host": "shop-0",
        "lag_bytes": 0,
        "pending_restart": (),
        "version": "17.1",
        **changes,
    }
    return Observation(**values)  # type: ignore[arg-type] # a builder for tests


def test_ready_means_in_its_role() -> None:
    standing = Standing(state="running", registered=True)
    assert not standing.ready(100)[0]
    standing.see(observation())
    assert standing.ready(100) == (True, "streaming")
    standing.see(observation(streaming=False))
    assert standing.ready(100) == (False, "not streaming")
    standing.see(observation(lag_bytes=101))
    assert not standing.ready(100)[0]
    standing.see(observation(in_recovery=False))
    assert standing.ready(100) == (False, "postgres accepts writes without the Lease")
    standing.holding = True
    assert standing.ready(100) == (True, "primary")
    standing.registered = False
    assert not standing.ready(100)[0]


def test_a_standby_remembers_the_timeline_it_has_followed() -> None:
    standing = Standing()
    standing.see(observation(point=WalPoint(3, Lsn(9))))
    standing.see(observation(point=WalPoint(2, Lsn(9)), streaming=False))
    assert standing.point == WalPoint(3, Lsn(9))
    standing.replaced()
    assert standing.point is None


def test_the_reported_lag_is_coarse() -> None:
    lags = (None, 0, 1 << 20, (1 << 20) + 1, 1 << 24, (1 << 24) + 1)
    assert [coarse(lag) for lag in lags] == [None, 0, 0, 1 << 24, 1 << 24, 1 << 28]
