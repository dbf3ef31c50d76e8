"""The real repmgr with our `ssh`: what it sends is understood, and does its work.

Three instances on addresses of their own, each with a server that runs commands as an agent does.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgcluster.api import names
from pgcluster.controller.certificates import Profile, plan
from pgcluster.node import ssh
from pgcluster.node.peers import Credentials, serve
from pgcluster.node.remote import RefusedError, parse
from pgcluster.proc import run
from tests.data.servers import as_user, binaries, eventually, free_port, own

NODES = {1: "127.77.1.1", 2: "127.77.1.2", 3: "127.77.1.3"}
NAME = names.peer_name("shop", "test")


class Site:
    """Three instances, registered; their agents' servers run in a thread of their own."""

    def __init__(self, directory: Path, programs: Path) -> None:
        self.directory = directory
        self.programs = programs
        self.port = free_port()
        self.peer_port = free_port()
        self.refused: list[str] = []
        self.commands: list[tuple[int, str]] = []
        self.environment = {
            "PATH": f"{directory / 'bin'}:{programs}:/usr/bin:/bin",
            "HOME": str(directory),
            "PGCLUSTER_NAME": "shop",
            "PGCLUSTER_NAMESPACE": "test",
            "PGCLUSTER_PEERS_DIR": str(directory / "peers"),
            "PGCLUSTER_PEER_PORT": str(self.peer_port),
        }
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    # --- making -------------------------------------------------------------------------------
    def make(self) -> None:
        """initdb, two clones, and the agents' servers."""
        self._make_ssh()
        self._make_certificates()
        for node in NODES:
            self._make_configuration(node)
        self.program("initdb", "-D", self.data(1), "-U", "repmgr", "--auth=trust", "--no-sync")
        settings = (
            f"port = {self.port}\nunix_socket_directories = ''\nfsync = off\n"
            "wal_log_hints = on\nhot_standby = on\nmax_wal_senders = 10\n"
            "max_replication_slots = 10\nshared_buffers = 16MB\narchive_mode = on\n"
            "archive_command = '/bin/true'\nwal_keep_size = 64MB\n"
        )
        with (self.data(1) / "postgresql.conf").open("a") as file:
            file.write(settings)
        hba = "host all all 127.0.0.0/8 trust\nhost replication all 127.0.0.0/8 trust\n"
        (self.data(1) / "pg_hba.conf").write_text(hba)
        self.start(1)
        self.query(1, "CREATE DATABASE shop")
        self.repmgr(1, "primary", "register")
        for node in (2, 3):
            self.repmgr(
                node,
                *("-h", NODES[1], "-p", str(self.port), "-U", "repmgr", "-d", "shop"),
                *("standby", "clone", "--fast-checkpoint"),
            )
            self.start(node)
            self.repmgr(node, "standby", "register", "--wait-sync=20")
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(20)

    def _make_ssh(self) -> None:
        script = own_folder(self.directory / "bin") / "ssh"
        script.write_text("#!/usr/bin/python3 -IS\n" + Path(ssh.__file__).read_text())
        script.chmod(0o755)

    def _make_certificates(self) -> None:
        profiles = {"peers": Profile("peers", (NAME,), client=True)}
        made = plan({}, {}, profiles, cluster="shop", now=datetime.now(UTC))
        folder = own_folder(self.directory / "peers")
        for key, value in made.leaves["peers"].items():
            (folder / key).write_text(value)
            own(folder / key)

    def _make_configuration(self, node: int) -> None:
        own_folder(self.directory / f"n{node}")
        (self.directory / f"n{node}" / "repmgr.conf").write_text(
            f"node_id={node}\nnode_name='n{node}'\n"
            f"conninfo='host={NODES[node]} port={self.port} user=repmgr dbname=shop"
            " connect_timeout=2 keepalives=1 tcp_user_timeout=3000'\n"
            f"data_directory='{self.data(node)}'\npg_bindir='{self.programs}'\n"
            f"repmgr_bindir='{self.programs}'\nuse_replication_slots=yes\n"
            f"log_level=INFO\nssh_options='-q -o ConnectTimeout=5'\n"
            f"service_start_command='{self._pg_ctl(node)} start > /dev/null'\n"
            f"service_stop_command='{self._pg_ctl(node)} -m fast stop > /dev/null'\n"
        )

    def _pg_ctl(self, node: int) -> str:
        return (
            f"{self.programs}/pg_ctl -D {self.data(node)} -w -l {self.directory}/n{node}.log"
            f' -o "-c listen_addresses={NODES[node]}"'
        )

    async def _serve(self) -> None:
        credentials = Credentials(NAME, self.directory / "peers")
        for node, address in NODES.items():

            async def answer(body: Mapping[str, Any], node: int = node) -> Mapping[str, Any]:
                return await self._run(node, str(body["command"]))

            await serve({("POST", "/run"): answer}, credentials, host=address, port=self.peer_port)

    async def _run(self, node: int, command: str) -> Mapping[str, Any]:
        """As Remote does, as another user and with the paths of this node."""
        self.commands.append((node, command))
        path = str(self.conf(node))
        try:
            found = parse(command.replace(path, names.REPMGR_CONF), bindir=str(self.programs))
        except RefusedError as error:
            self.refused.append(f"{command}: {error}")
            return {"status": 126, "output": "", "errors": str(error)}
        words = [path if word == names.REPMGR_CONF else word for word in found.arguments]
        result = await run(as_user(words), deadline_s=60, apart=True, env=self.environment, cwd="/")
        return {"status": result.status, "output": result.output, "errors": result.errors}

    # --- using --------------------------------------------------------------------------------
    def data(self, node: int) -> Path:
        return self.directory / f"n{node}" / "data"

    def conf(self, node: int) -> Path:
        return self.directory / f"n{node}" / "repmgr.conf"

    def program(self, name: str, *arguments: str | Path, check: bool = True) -> Any:
        """One of PostgreSQL's programs."""
        done = subprocess.run(
            as_user([self.programs / name, *arguments]),
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, **self.environment},
            cwd="/",
        )
        assert not check or done.returncode == 0, f"{name}:\n{done.stdout}{done.stderr}"
        return done

    def start(self, node: int) -> None:
        subprocess.run(
            as_user(["sh", "-c", f"{self._pg_ctl(node)} start"]),
            check=True,
            stdout=subprocess.DEVNULL,
            timeout=60,
            cwd="/",
        )

    def repmgr(self, node: int, *arguments: str, check: bool = True) -> Any:
        return self.program("repmgr", "-f", self.conf(node), *arguments, check=check)

    def query(self, node: int, statement: str) -> list[tuple[Any, ...]]:
        return self.query_in(node, "postgres", statement)

    def query_in(self, node: int, database: str, statement: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(
            host=NODES[node], port=self.port, user="repmgr", dbname=database, autocommit=True
        ) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def streaming(self, primary: int) -> set[str]:
        rows = self.query(
            primary, "SELECT application_name FROM pg_stat_replication WHERE state = 'streaming'"
        )
        return {row[0] for row in rows}

    def end(self) -> None:
        for node in NODES:
            self.program("pg_ctl", "-D", self.data(node), "-m", "immediate", "stop", check=False)
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)


def own_folder(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    return own(path)


@pytest.fixture
def site(directory: Path) -> Iterator[Site]:
    programs = binaries()
    if programs is None or not (programs / "repmgr").exists():
        pytest.fail("repmgr is not installed: apt-get install postgresql-15-repmgr")
    made = Site(directory, programs)
    try:
        made.make()
        yield made
    finally:
        made.end()


@pytest.mark.timeout(180)
def test_the_commands_that_need_ssh_work_over_it(site: Site) -> None:
    matrix = site.repmgr(1, "cluster", "matrix", "--csv")
    assert sorted(matrix.stdout.split()) == [f"{a},{b},0" for a in NODES for b in NODES]
    crosscheck = site.repmgr(2, "cluster", "crosscheck", "--csv")
    assert sorted(crosscheck.stdout.split()) == [f"{a},{b},0" for a in NODES for b in NODES]

    switchover = ("standby", "switchover", "--siblings-follow", "--force-rewind")
    dry = site.repmgr(2, *switchover, "--dry-run")
    assert "prerequisites for executing STANDBY SWITCHOVER are met" in dry.stderr, dry.stderr
    done = site.repmgr(2, *switchover)
    assert "STANDBY SWITCHOVER has completed successfully" in done.stderr, done.stderr
    assert site.query(2, "SELECT pg_is_in_recovery()") == [(False,)]
    eventually(lambda: site.streaming(2) == {"n1", "n3"}, within=20, what="both follow")
    assert site.refused == []
    kinds = "\n".join(command for _, command in site.commands)
    print(kinds)
    for words in (
        "/bin/true",
        "--version",
        "test -f",
        "node check --data-directory-config",
        "node check --terse -LERROR --archive-ready",
        "--replication-connection",
        "node service --action=stop --checkpoint",
        "node status --is-shutdown-cleanly",
        "node rejoin",
        "standby follow",
        "cluster show --csv",
        "cluster matrix --csv",
    ):
        assert words in kinds


@pytest.mark.timeout(180)
def test_a_switchover_whose_stop_has_promoted_the_target_already_ends_well(site: Site) -> None:
    """As with the agents: the stop is the whole hand-over, and repmgr's promotion finds it done."""
    promote = f"{site.programs}/psql -h {NODES[2]} -p {site.port} -U repmgr -d postgres -qAtc"
    with site.conf(1).open("a") as file:
        file.write(
            f"service_stop_command='{site.directory}/bin/stop > /dev/null'\n",
        )
    stop = site.directory / "bin" / "stop"
    stop.write_text(
        f"#!/bin/sh\n{site.programs}/pg_ctl -D {site.data(1)} -w -m fast stop\n"
        f'{promote} "SELECT pg_promote()"\n'
    )
    stop.chmod(0o755)
    with site.conf(2).open("a") as file:
        file.write("service_promote_command='/bin/true'\n")
    done = site.repmgr(2, "standby", "switchover", "--siblings-follow")
    assert "STANDBY SWITCHOVER has completed successfully" in done.stderr, done.stderr
    eventually(lambda: site.streaming(2) == {"n1", "n3"}, within=20, what="both follow")
    rows = site.query_in(2, "shop", "SELECT node_name, type, active FROM repmgr.nodes ORDER BY 1")
    assert rows == [("n1", "standby", True), ("n2", "primary", True), ("n3", "standby", True)]


@pytest.mark.timeout(180)
def test_a_promotion_tells_the_siblings_to_follow(site: Site) -> None:
    site.program("pg_ctl", "-D", site.data(1), "-m", "fast", "stop")
    done = site.repmgr(2, "standby", "promote", "--siblings-follow")
    assert "STANDBY FOLLOW successfully executed" in done.stderr, done.stderr
    eventually(lambda: site.streaming(2) == {"n3"}, within=20, what="n3 follows n2")
    assert site.refused == []
