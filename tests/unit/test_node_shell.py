"""The agent's thin shell, against real processes, files and sockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig
from pgcluster.api.errors import RetryError
from pgcluster.api.reports import InstanceReport
from pgcluster.api.wal import Lsn, WalPoint
from pgcluster.clock import monotonic_s
from pgcluster.kube.client import KubeClient
from pgcluster.node import client, files, guard, ipc
from pgcluster.node.data import DataDirectories
from pgcluster.node.fence import Fence
from pgcluster.node.members import (
    Members,
    candidate_document,
    failsafe_document,
    parse_candidate,
    parse_failsafe,
)
from pgcluster.node.peers import Peers
from pgcluster.node.processes import Child, clear_survivors, survivors
from pgcluster.node.server import VolumeLock
from pgcluster.node.standing import Standing, coarse
from pgcluster.postgres.local import Observation
from pgcluster.topology.election import Candidate
from pgcluster.topology.lease import LeaseRecord, Mark
from pgcluster.topology.quorum import Quorum

CONFIG = ClusterConfig(name="shop", namespace="prod", uid="u", instances=3)


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that works in the data directory; it ends with the test whatever happens."""
    with subprocess.Popen(["sleep", "60"], cwd=tmp_path) as process:
        yield process
        process.kill()


def written(tmp_path: Path) -> int:
    return int.from_bytes((tmp_path / "lease").read_bytes(), sys.byteorder)


async def ends(victim: subprocess.Popen[bytes], within_s: float = 5.0) -> int:
    return await asyncio.to_thread(victim.wait, within_s)


async def test_a_fence_strikes_only_after_its_deadline(
    victim: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    fence = Fence(monotonic_s, tmp_path, tmp_path / "lease")
    await fence.start()
    assert written(tmp_path) == 0, "who is not armed may not write at all"
    fence.arm(monotonic_s() + 0.3)
    await asyncio.sleep(0.15)
    until_s = monotonic_s() + 0.6
    fence.extend(until_s)
    await asyncio.sleep(0.4)
    assert written(tmp_path) == int(until_s * 1e9)
    assert victim.poll() is None
    assert not fence.fenced
    assert await ends(victim) == -signal.SIGKILL
    assert fence.fenced
    fence.extend(monotonic_s() + 60)
    assert fence.fenced, "a passed deadline cannot be extended"
    fence.disarm()
    assert not fence.fenced
    await fence.stop()
    assert (tmp_path / "standby.signal").exists()


async def test_a_disarmed_fence_leaves_a_standby_alone(
    victim: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    fence = Fence(monotonic_s, tmp_path, tmp_path / "lease")
    await fence.start()
    fence.extend(monotonic_s() + 0.05)
    fence.arm(monotonic_s() + 0.2)
    fence.disarm()
    await asyncio.sleep(0.5)
    await fence.stop()
    assert victim.poll() is None
    assert not (tmp_path / "standby.signal").exists()


async def test_the_fence_works_while_the_agent_is_blocked(
    victim: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    fence = Fence(monotonic_s, tmp_path, tmp_path / "lease")
    await fence.start()
    fence.arm(monotonic_s() + 0.2)
    await asyncio.sleep(0)
    time.sleep(0.6)  # noqa: ASYNC251 # blocking is what this test is about
    assert victim.poll() == -signal.SIGKILL
    await fence.stop()


async def test_the_fence_strikes_a_stopped_process_too(
    victim: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    victim.send_signal(signal.SIGSTOP)
    os.waitpid(victim.pid, os.WUNTRACED)  # noqa: ASYNC222 # it stops at once
    fence = Fence(monotonic_s, tmp_path, tmp_path / "lease")
    await fence.start()
    fence.arm(monotonic_s() + 0.1)
    assert await ends(victim) == -signal.SIGKILL
    await fence.stop()


async def test_a_guard_that_ends_is_replaced_and_told_the_deadline(
    victim: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    fence = Fence(monotonic_s, tmp_path, tmp_path / "lease")
    await fence.start()
    fence.arm(monotonic_s() + 1.0)
    assert fence._process is not None
    fence._process.kill()
    assert await ends(victim) == -signal.SIGKILL
    await fence.stop()


def test_the_end_of_the_agent_is_the_end_of_its_primary(
    victim: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    guard_ = subprocess.Popen(
        [sys.executable, "-I", "-S", guard.__file__, str(tmp_path), str(tmp_path / "lease")],
        stdin=subprocess.PIPE,
    )
    assert guard_.stdin is not None
    guard_.stdin.write(f"until {monotonic_s() + 60}\n".encode())
    guard_.stdin.close()
    assert victim.wait(5) == -signal.SIGKILL
    assert guard_.wait(5) == 0


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


async def test_a_stop_that_a_peer_asks_for_names_who_asks(tmp_path: Path) -> None:
    heard: list[list[str]] = []

    async def handler(words: list[str]) -> tuple[bool, str]:
        heard.append(words)
        return True, ""

    path = str(tmp_path / "agent.sock")
    server = await ipc.serve(path, handler)
    for asked_by in ("shop-1", ""):
        for words in (["service", "stop"], ["gate"]):
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", str(client.__file__), *words),
                env={"PGCLUSTER_AGENT_SOCKET": path, names.ENV_ASKED_BY: asked_by},
            )
            assert await process.wait() == 0
    server.close()
    assert heard == [["service", "stop", "shop-1"], ["gate"], ["service", "stop"], ["gate"]]


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
    assert parse_candidate({}) == Candidate(None, None, exact=False)
    record = LeaseRecord(
        "shop-0", 4, 6.0, "", Mark("7001", candidate.point), (Quorum(1, ("shop-1",)),), "word", "u",
        last_holder="shop-0",
    )  # fmt: skip
    assert parse_failsafe(json.loads(json.dumps(failsafe_document(record)))) == record


class Answers:
    """Peers of which one answers, one does not, and one makes no sense."""

    async def ask(self, address: str, path: str, *, deadline_s: float) -> Mapping[str, Any]:
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


def test_used_up_timelines_are_nobodys_until_the_one_that_was_begun_tells_of_them(
    tmp_path: Path,
) -> None:
    data = DataDirectories(lambda: CONFIG, "shop-1")
    data.current = tmp_path
    wal = tmp_path / "pg_wal"
    wal.mkdir()
    (wal / "00000003.history").write_text("2\t0/5000000\tno recovery target specified\n")
    data.use_up_timelines(6)
    assert {path.name: path.read_text() for path in wal.iterdir()} == {
        "00000002.history": "",
        "00000003.history": "2\t0/5000000\tno recovery target specified\n",
        "00000004.history": "",
        "00000005.history": "",
    }
    begun = "2\t0/5000000\tx\n3\t0/6000000\tx\n"
    (wal / "00000006.history").write_text(begun)
    data.tell_timelines(4, 6)
    assert (wal / "00000004.history").read_text() == begun
    assert (wal / "00000005.history").read_text() == begun
    assert (wal / "00000002.history").read_text() == ""
