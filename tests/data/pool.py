"""A pooler as in its pod, a pgbouncer and the real agent beside it, and clients that count."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import signal
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig, DatabaseConfig, TlsConfig
from pgcluster.controller.certificates import Certificates
from pgcluster.render import pgbouncer as render
from tests.data import pki
from tests.data.servers import DEADLINE_S, Postgres, Process, eventually, free_port, own

PASSWORD = "app-password"
ADDRESS = "127.77.0.9"
HOST = "shop.default.svc"
CONFIG = ClusterConfig(
    name="shop",
    namespace="default",
    uid="u",
    instances=2,
    databases=(DatabaseConfig(name="app", owner="app"),),
)


class Pool:
    """pgbouncer and its agent; `api` is what the Kubernetes API would show."""

    def __init__(self, program: Path, version: tuple[int, ...], directory: Path) -> None:
        self._program = program
        self.version = version
        self.directory = directory
        self.port = free_port()
        self.agent_port = free_port()
        self.api: dict = {"data": {}, "lease": None, "api": True}
        self.agent: Process | None = None
        self.pgbouncer: Process | None = None
        own(directory)
        own_made(directory / "run")
        secrets = own_made(directory / "secrets")
        for key in ("auth-password", "admin-password", "stats-password"):
            own_file(secrets / key, f"{key} '\" of the test")

    # --- certificates -------------------------------------------------------------------------

    def certify(self, shown: Certificates, server_ca: str) -> None:
        """Mount what clients see, and whom the pool believes."""
        content = {**shown.leaves[pki.POOL], names.SERVER_CA_KEY: server_ca}
        pki.mount(self.directory / "certificates", content)
        own_file(self.directory / "ca.crt", shown.bundle)
        (self.directory / "ca.crt").chmod(0o644)

    # --- the API ------------------------------------------------------------------------------

    def show(self, **changes: object) -> None:
        """Change what the API shows."""
        self.api |= changes
        own_file(self.directory / "api.json", json.dumps(self.api))

    def settings(self, **parameters: str) -> str:
        """pgbouncer.ini as the operator renders it, with this test's paths and ports."""
        text = render.pgbouncer_ini(parameters, tls=TlsConfig())
        text = text.replace(names.PGBOUNCER_DIR, str(self.directory / "run"))
        text = text.replace("listen_addr = *", f"listen_addr = {ADDRESS}")
        text = re.sub(r"(?m)^listen_port = .*", f"listen_port = {self.port}", text)
        if self.version < (1, 21):
            # 1.18, of Debian 12, knows neither; our images have a later one.
            text = re.sub(r"(?m)^(max_prepared_statements|auth_dbname) = .*\n", "", text)
        return text

    def section(
        self,
        primary: Postgres | None,
        standbys: Sequence[Postgres] = (),
        *,
        epoch: int = 1,
        name: str = "shop-0",
        config: ClusterConfig = CONFIG,
    ) -> str:
        """databases.ini as the promoted instance's agent renders it."""
        target = primary and render.PoolTarget(
            primary=name,
            primary_host=primary.address,
            standby_hosts=tuple(standby.address for standby in standbys),
            epoch=epoch,
            timeline=epoch,
        )
        text = render.databases_ini(config, target)
        if primary is not None:
            text = text.replace(f"port={names.PORT_POSTGRES}", f"port={primary.port}")
        if self.version < (1, 21):
            text = text.replace(f" auth_dbname={render.AUTH_DATABASE_READ_ONLY}", "")
        return text

    def point_at(
        self, primary: Postgres, standbys: Sequence[Postgres] = (), *, epoch: int, name: str
    ) -> None:
        """What the promoted instance's agent writes."""
        text = self.section(primary, standbys, epoch=epoch, name=name)
        self.show(
            data={**self.api["data"], names.DATABASES_KEY: text},
            lease={"holder": name, "epoch": epoch, "duration_s": 600.0},
        )

    # --- processes ----------------------------------------------------------------------------

    def start_agent(self, *, looks_every_s: float = 0.005) -> None:
        """Start the agent."""
        self.agent = Process(
            [
                *(sys.executable, "-m", "tests.data.pooler_main", self.directory),
                *(str(self.port), str(self.agent_port), str(looks_every_s)),
            ],
            self.directory / "agent.log",
            reads_all=True,
        )

    def start_pgbouncer(self) -> None:
        """Start pgbouncer, as its container does when the agent has given it its files."""
        ini = self.directory / "run" / "pgbouncer.ini"
        eventually(
            lambda: ini.exists() and (ini.parent / "userlist.txt").exists(),
            within=DEADLINE_S,
            what=f"pgbouncer's files are there: {self.agent_log()}",
        )
        self.pgbouncer = Process([self._program, ini], self.directory / "pgbouncer.log")
        eventually(self._listens, within=DEADLINE_S, what="pgbouncer listens")

    def _listens(self) -> bool:
        try:
            socket.create_connection((ADDRESS, self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def kill_agent(self) -> None:
        """kill -9."""
        assert self.agent
        self.agent.end()

    def stop_agent(self) -> None:
        """SIGTERM."""
        assert self.agent
        self.agent.signal(signal.SIGTERM)
        self.agent.wait()

    def end(self) -> None:
        """Leave nothing behind."""
        for process in (self.agent, self.pgbouncer):
            if process is not None:
                process.end()

    # --- looking ------------------------------------------------------------------------------

    def console(self, statement: str) -> list[dict]:
        """A command of the admin console, past the agent."""
        uri = psycopg.conninfo.make_conninfo(
            host=ADDRESS,
            port=self.port,
            dbname="pgbouncer",
            user=names.PGBOUNCER_ADMIN,
            password="admin-password '\" of the test",
            connect_timeout=5,
            sslmode="require",
        )
        with psycopg.connect(uri, autocommit=True, row_factory=psycopg.rows.dict_row) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def databases(self) -> dict[str, tuple[str, bool]]:
        """Name → host, paused."""
        return {
            row["name"]: (row["host"], str(row["paused"]) == "1")
            for row in self.console("SHOW DATABASES")
            if row["name"] != "pgbouncer"
        }

    def paused(self) -> set[str]:
        """The names of the databases that are paused."""
        return {name for name, (_, paused) in self.databases().items() if paused}

    def report(self) -> dict:
        """The agent's last report."""
        path = self.directory / "report.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def agent_log(self) -> str:
        """What the agent said."""
        path = self.directory / "agent.log"
        return path.read_text() if path.exists() else ""

    def pgbouncer_log(self) -> str:
        """What pgbouncer said."""
        return (self.directory / "pgbouncer.log").read_text()

    def commands(self, database: str = "app") -> list[str]:
        """PAUSE, RELOAD and RESUME of one database as the agent logged them."""
        lines = (json.loads(line) for line in self.agent_log().splitlines() if line[:1] == "{")
        return [
            line["msg"]
            for line in lines
            if line["msg"] in ("PAUSE", "RELOAD", "RESUME", "KILL")
            and database in line.get("databases", [database])
        ]

    def connect(self, database: str = "app", **more: object) -> psycopg.Connection:
        """A client's connection."""
        return psycopg.connect(self.uri(database), autocommit=True, **more)  # type: ignore[arg-type]

    def uri(self, database: str = "app") -> str:
        """Where clients connect to."""
        verified = f"hostaddr={ADDRESS}&sslmode=verify-full&sslrootcert={self.directory}/ca.crt"
        return f"postgresql://app:{PASSWORD}@{HOST}:{self.port}/{database}?{verified}"


@dataclass
class Writers:
    """Clients that write one short transaction after the other, on connections that they keep."""

    uri: str
    # pgbouncer before 1.21 does not know which server has which statement prepared.
    prepared: bool = True
    count: int = 8
    succeeded_at: list[float] = field(default_factory=list)
    acknowledged: list[int] = field(default_factory=list)
    errors: list[tuple[float, str]] = field(default_factory=list)
    _stop: bool = False
    _next: int = 0

    async def run(self) -> None:
        """Until `stop`."""
        await asyncio.gather(*(self._write() for _ in range(self.count)))

    def stop(self) -> None:
        """Let each finish what it does."""
        self._stop = True

    def gap_s(self) -> float:
        """The longest time without a success."""
        times = sorted(self.succeeded_at)
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)

    async def _write(self) -> None:
        connection: psycopg.AsyncConnection | None = None
        while not self._stop:
            try:
                if connection is None:
                    connection = await psycopg.AsyncConnection.connect(
                        self.uri, autocommit=True, prepare_threshold=5 if self.prepared else None
                    )
                self._next += 1
                number = self._next
                await connection.execute("INSERT INTO writes VALUES (%s)", (number,))
                self.succeeded_at.append(time.monotonic())
                self.acknowledged.append(number)
                await asyncio.sleep(0.02)
            except psycopg.Error as error:
                self.errors.append((time.monotonic(), str(error).strip().splitlines()[0]))
                if connection is not None:
                    with contextlib.suppress(psycopg.Error):
                        await connection.close()
                connection = None
                await asyncio.sleep(0.005)
        if connection is not None:
            await connection.close()


def own_made(directory: Path) -> Path:
    """A new directory of the servers' user."""
    directory.mkdir()
    return own(directory)


def own_file(path: Path, text: str) -> None:
    """Write a file of the servers' user, by rename."""
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(text)
    own(aside).rename(path)
