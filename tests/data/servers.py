"""Throw-away PostgreSQL servers and pgbouncers, as a user that is not root."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psycopg

USER = "postgres"  # of the operating system, where the tests run as root: postgres refuses root
DEADLINE_S = 30.0
_ports = iter(random.SystemRandom().sample(range(15000, 30000), 5000))


def as_user(arguments: Sequence[str | Path], *, reads_all: bool = False) -> list[str]:
    """The command line that runs a program as somebody whom postgres accepts.

    `reads_all`: it may read what only root may, such as a Python that lies in root's home.
    """
    command = [str(argument) for argument in arguments]
    if os.getuid() != 0:
        return command
    capability = "+dac_read_search"
    more = [f"--inh-caps={capability}", f"--ambient-caps={capability}"] if reads_all else []
    user = [f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
    return ["setpriv", *user, *more, "--", *command]


def own(path: Path) -> Path:
    """Make a path that user's."""
    if os.getuid() == 0:
        shutil.chown(path, USER, USER)
    return path


def binaries() -> Path | None:
    """PostgreSQL's server programs of the highest version that is installed."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name)
    )
    return next((path for path in reversed(found) if (path / "postgres").exists()), None)


def pgbouncers() -> list[Path]:
    """The pgbouncer of the machine; PGCLUSTER_TEST_PGBOUNCERS names others, parted by colons."""
    named = os.environ.get("PGCLUSTER_TEST_PGBOUNCERS")
    if named:
        return [Path(path) for path in named.split(":")]
    found = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    return [Path(found)] if found else []


def free_port() -> int:
    """A port that is free on all loopback addresses and is handed out once.

    From below the kernel's ephemeral range: one from inside of it can become the local end of
    somebody's outgoing connection between here and the server's bind.
    """
    for port in _ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("0.0.0.0", port))
            return port
    raise AssertionError("no free port below the ephemeral range")


def eventually(condition: Callable[[], object], *, within: float, what: str) -> None:
    """Wait until `condition` holds; an error with `what` where it does not in time."""
    deadline = time.monotonic() + within
    while True:
        if condition():
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within:g} s: {what}")
        time.sleep(0.01)


class Process:
    """A child in a process group of its own, ended by its number."""

    def __init__(
        self, arguments: Sequence[str | Path], log: Path, *, reads_all: bool = False
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                as_user(arguments, reads_all=reads_all),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Its number, which is its group's too."""
        return self._child.pid

    def signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        self._child.send_signal(number)

    def wait(self, within: float = DEADLINE_S) -> int:
        """Wait for its end."""
        return self._child.wait(within)

    def end(self) -> None:
        """Kill what is left of the group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._child.wait(DEADLINE_S)


class Postgres:
    """One instance with an address of its own."""

    def __init__(self, programs: Path, directory: Path, address: str, port: int) -> None:
        self._programs = programs
        self.address = address
        self.port = port
        self._directory = directory
        self.data = directory / "data"
        self._process: Process | None = None
        # Parameters beside those of every server, such as its certificate.
        self.settings: dict[str, str] = {}
        directory.mkdir()
        own(directory)

    def initdb(self) -> None:
        """Make an empty cluster."""
        self._run("initdb", "-D", self.data, "-U", "postgres", "--auth=trust", "--no-sync")
        hba = (
            "local all all trust\nhost replication postgres 127.0.0.0/8 trust\n"
            "host all postgres 127.0.0.0/8 trust\nhostssl all all all scram-sha-256\n"
        )
        (self.data / "pg_hba.conf").write_text(hba)

    def copy(self, data: Path) -> None:
        """Start from the data directory of another one that is down."""
        subprocess.run(as_user(["cp", "-a", data, self.data]), check=True, timeout=60, cwd="/")

    def clone(self, source: Postgres) -> None:
        """Make it a standby of `source`."""
        self._run(
            *("pg_basebackup", "-D", self.data, "-R", "-X", "stream", "--checkpoint=fast"),
            *("-h", source.address, "-p", str(source.port), "-U", "postgres"),
        )

    def follow(self, source: Postgres) -> None:
        """Come back as a standby of the one that took over, after a stop in order."""
        conninfo = f"host={source.address} port={source.port} user=postgres"
        with (self.data / "postgresql.auto.conf").open("a") as file:
            file.write(f"primary_conninfo = '{conninfo}'\n")
        own(self.data / "postgresql.auto.conf")
        (self.data / "standby.signal").touch()
        own(self.data / "standby.signal")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.start_process()
        eventually(self.answers, within=DEADLINE_S, what=f"{self.address} answers")

    def start_process(self) -> None:
        """Start it, and do not wait."""
        settings = {
            "listen_addresses": self.address,
            "port": str(self.port),
            "unix_socket_directories": str(self._directory),
            "fsync": "off",
            "max_connections": "60",
            "wal_retrieve_retry_interval": "200ms",
            "shared_buffers": "16MB",
            **self.settings,
        }
        options = [word for key, value in settings.items() for word in ("-c", f"{key}={value}")]
        self._process = Process(
            [self._programs / "postgres", "-D", self.data, *options], self._directory / "log"
        )

    def answers(self) -> bool:
        """Whether a query works."""
        try:
            return self.query("SELECT 1") == [(1,)]
        except psycopg.OperationalError:
            return False

    def query(self, statement: str) -> list[tuple]:
        """Run a statement as the superuser."""
        return self.query_in("postgres", statement)

    def query_in(self, database: str, statement: str) -> list[tuple]:
        """Run a statement as the superuser in a database."""
        with psycopg.connect(
            host=str(self._directory),
            port=self.port,
            user="postgres",
            dbname=database,
            autocommit=True,
        ) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def reload(self) -> None:
        """Have it read its configuration again."""
        assert self._process
        self._process.signal(signal.SIGHUP)

    def crash(self) -> None:
        """kill -9 of the postmaster; its children notice and end."""
        assert self._process
        self._process.signal(signal.SIGKILL)
        self._process.wait()

    def freeze(self) -> None:
        """Stop every process of it: connections stay, nobody answers."""
        assert self._process
        os.killpg(self._process.pid, signal.SIGSTOP)
        for child in _children(self._process.pid):
            os.kill(child, signal.SIGSTOP)

    def thaw(self) -> None:
        """Undo `freeze`."""
        assert self._process
        for child in [*_children(self._process.pid), self._process.pid]:
            os.kill(child, signal.SIGCONT)

    def stop(self) -> None:
        """A fast shutdown."""
        assert self._process
        self._process.signal(signal.SIGINT)
        self._process.wait()

    def promote(self) -> None:
        """Make a standby the primary, and wait until it is."""
        self._run("pg_ctl", "promote", "-w", "-D", self.data)

    def end(self) -> None:
        """Leave nothing behind."""
        if self._process is None:
            return
        for child in _children(self._process.pid):
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.end()

    def _run(self, program: str, *arguments: str | Path) -> None:
        command = as_user([self._programs / program, *arguments])
        subprocess.run(command, check=True, timeout=60, capture_output=True, cwd="/")


def _children(pid: int) -> list[int]:
    """Children of a postmaster have groups of their own."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(word) for word in path.read_text().split()] if path.exists() else []
