"""Servers for the tests of the data path; all of them end with the test that started them."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgcluster.api import names
from pgcluster.api.config import TlsConfig
from pgcluster.controller.certificates import Certificates
from pgcluster.node.certificates import Certificates as NodeCertificates
from pgcluster.postgres import roles
from pgcluster.render import postgres as render_postgres
from tests.data import pki
from tests.data.pool import CONFIG, PASSWORD, Pool
from tests.data.servers import Postgres, as_user, binaries, eventually, free_port, own, pgbouncers

PRIMARY, STANDBY = "127.77.0.1", "127.77.0.2"


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path that the servers' user may enter: sockets have at most 107 bytes."""
    path = Path(tempfile.mkdtemp(prefix="pgc-"))
    own(path)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def authorities() -> tuple[Certificates, Certificates]:
    """What the instances have, and what the pools show."""
    return pki.issue(pki.OF_INSTANCES), pki.issue(pki.OF_POOLS)


def encrypted(server: Postgres, directory: Path, made: Certificates) -> None:
    """Mount a server's certificates, and have it serve TLS as an instance does."""
    pod = server.data.parent.name
    server_folder = pki.mount(directory / f"{pod}-server", made.leaves[pki.SERVER])
    client_folder = pki.mount(directory / f"{pod}-client", made.leaves[pki.CLIENT])
    taken = NodeCertificates(
        server=server_folder,
        client=client_folder,
        server_pem=server.data.parent / "server.pem",
        client_pem=server.data.parent / "client.pem",
        ca_pem=server.data.parent / "ca.pem",
    )
    taken.require()
    config = CONFIG.model_copy(update={"tls": TlsConfig()})
    server.settings = {
        key: value.replace(names.RUN, str(server.data.parent))
        for key, value in render_postgres.encryption(config).items()
    }
    # The agent runs as postgres does; here it may be root.
    for path in server.data.parent.glob("*.pem"):
        own(path)


@pytest.fixture(scope="session")
def template() -> Iterator[Path]:
    """A data directory with what a cluster's primary has for its poolers; made once, copied."""
    programs = binaries()
    if programs is None:
        pytest.fail("PostgreSQL is not installed: apt-get install postgresql")
    path = Path(tempfile.mkdtemp(prefix="pgc-"))
    own(path)
    server = Postgres(programs, path / "template", PRIMARY, free_port())
    try:
        server.initdb()
        server.start()
        server.query("CREATE ROLE pgcluster_pooler LOGIN PASSWORD 'auth-password ''\" of the test'")
        server.query(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'")
        # In template1 too: a pgbouncer before 1.19 asks the database that the client wants.
        for database in ("postgres", "template1"):
            server.query_in(database, "CREATE SCHEMA pgcluster")
            server.query_in(database, roles._USER_LOOKUP)
            server.query_in(database, "GRANT USAGE ON SCHEMA pgcluster TO pgcluster_pooler")
        server.query("CREATE DATABASE app OWNER app")
        server.stop()
        yield server.data
    finally:
        server.end()
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def primary(
    template: Path, directory: Path, authorities: tuple[Certificates, Certificates]
) -> Iterator[Postgres]:
    """A primary."""
    programs = binaries()
    assert programs
    server = Postgres(programs, directory / "primary", PRIMARY, free_port())
    try:
        server.copy(template)
        encrypted(server, directory, authorities[0])
        server.start()
        yield server
    finally:
        server.end()


@pytest.fixture
def standby(
    primary: Postgres, directory: Path, authorities: tuple[Certificates, Certificates]
) -> Iterator[Postgres]:
    """A standby that streams from the primary."""
    programs = binaries()
    assert programs
    server = Postgres(programs, directory / "standby", STANDBY, primary.port)
    try:
        server.clone(primary)
        encrypted(server, directory, authorities[0])
        server.start()
        eventually(
            lambda: primary.query("SELECT state FROM pg_stat_replication") == [("streaming",)],
            within=20,
            what="the standby streams",
        )
        yield server
    finally:
        server.end()


@pytest.fixture(params=pgbouncers() or [None], ids=str)
def pool(
    request: pytest.FixtureRequest,
    directory: Path,
    authorities: tuple[Certificates, Certificates],
) -> Iterator[Pool]:
    """A pooler without processes yet."""
    if request.param is None:
        pytest.fail("pgbouncer is not installed: apt-get install pgbouncer")
    said = subprocess.run(
        as_user([request.param, "--version"]), check=True, capture_output=True, text=True, cwd="/"
    ).stdout
    version = re.search(r"PgBouncer (\d+)\.(\d+)", said)
    assert version, said
    made = Pool(request.param, (int(version[1]), int(version[2])), directory_in(directory))
    made.certify(authorities[1], authorities[0].bundle)
    try:
        yield made
    finally:
        made.end()
        print(made.agent_log())


def directory_in(directory: Path) -> Path:
    """Of its own."""
    path = directory / "pool"
    path.mkdir()
    return path
