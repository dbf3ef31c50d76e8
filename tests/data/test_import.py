"""A new cluster takes over roles and databases of another server, by real programs."""

from __future__ import annotations

import asyncio
import base64
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig, DatabaseConfig, ImportConfig, ImportSourceConfig
from pgcluster.controller.certificates import Certificates
from pgcluster.node.importing import Importing
from pgcluster.postgres import takeover
from tests.data.conftest import STANDBY, encrypted
from tests.data.pool import PASSWORD
from tests.data.servers import Postgres, binaries, eventually, free_port, own

SECRET = "the importer's: password"
SOURCE = """
CREATE ROLE importer SUPERUSER LOGIN PASSWORD 'the importer''s: password';
CREATE ROLE reader LOGIN PASSWORD 'of reader' CONNECTION LIMIT 7;
CREATE ROLE readers NOLOGIN;
COMMENT ON ROLE readers IS 'they ''read''';
GRANT readers TO reader;
GRANT pg_read_all_stats TO readers WITH ADMIN OPTION;
ALTER ROLE reader SET search_path = "$user", "Odd, one", public;
ALTER ROLE reader SET work_mem = '12MB';
SET password_encryption = 'md5';
CREATE ROLE old LOGIN PASSWORD 'hashed long ago';
RESET password_encryption;
CREATE ROLE boss SUPERUSER LOGIN PASSWORD 'of boss';
ALTER DATABASE app SET statement_timeout = '45s';
ALTER DATABASE app SET default_transaction_read_only = on;
COMMENT ON DATABASE app IS 'the shop''s';
REVOKE CONNECT ON DATABASE app FROM PUBLIC;
GRANT CONNECT ON DATABASE app TO readers;
CREATE DATABASE second OWNER boss TEMPLATE template0;
"""
TABLES = """
SET default_transaction_read_only = off;
DROP SCHEMA pgcluster CASCADE;
CREATE EXTENSION pgcrypto;
CREATE SCHEMA sales AUTHORIZATION app;
CREATE TABLE sales.orders (id bigserial PRIMARY KEY, note text);
ALTER TABLE sales.orders OWNER TO app;
INSERT INTO sales.orders (note) SELECT 'order ' || n FROM generate_series(1, 5000) AS n;
SELECT setval('sales.orders_id_seq', 7000);
GRANT USAGE ON SCHEMA sales TO readers;
GRANT SELECT ON sales.orders TO readers;
CREATE TABLE sales.scratch (id int);
ALTER TABLE sales.scratch OWNER TO boss;
SELECT lo_from_bytea(4711, 'a large object');
"""
DIGEST = "SELECT count(*), sum(id), md5(string_agg(note, ',' ORDER BY id)) FROM sales.orders"


class Secrets:
    """The API as far as an import asks it."""

    def __init__(self) -> None:
        self.kept = {"old-login": {"username": "importer", "password": SECRET}}

    async def get(self, _: Any, name: str, namespace: str) -> Any:
        assert namespace == "prod"
        found = self.kept.get(name)
        if found is None:
            return None
        return {"data": {k: base64.b64encode(v.encode()).decode() for k, v in found.items()}}


class Bench:
    """The old server, the new one, and what works between the two."""

    def __init__(self, old: Postgres, new: Postgres, folder: Path) -> None:
        self.old, self.new, self.folder = old, new, folder
        self.secrets = Secrets()
        self.events: list[tuple[str, str]] = []
        self.config = ClusterConfig(
            name="shop",
            namespace="prod",
            uid="u",
            instances=1,
            postgres_major=int(binaries().parent.name),  # type: ignore[union-attr]
            databases=(DatabaseConfig(name="app", owner="app"),),
        )
        self.wants("app", "second")

    def wants(self, *databases: str, **more: Any) -> None:
        source = ImportSourceConfig(
            host=self.old.address, port=self.old.port, password_secret="old-login"
        )
        wanted = ImportConfig(source=source, databases=databases, **more)
        self.config = self.config.model_copy(update={"bootstrap_import": wanted})

    def importing(self) -> Importing:
        return Importing(
            self.secrets,  # type: ignore[arg-type]
            lambda: self.config,
            post=lambda reason, note, _: self.events.append((reason, note)),
            folder=self.folder,
            ca_file=self.folder.with_name("ca.crt"),
        )

    def run(self, until: Callable[[Importing], object], *, within_s: float = 60) -> Importing:
        """See to an import of a new agent, as its loop does, until something is so."""

        async def loop() -> Importing:
            importing = self.importing()
            async with asyncio.timeout(within_s):
                while not (await importing.see_to() or until(importing)):
                    assert until is not DONE or not failed(importing), importing.report
                    await asyncio.sleep(0.05)
            if until is not DONE:
                await importing.close()
            return importing

        return asyncio.run(loop())

    def databases(self) -> list[str]:
        rows = self.new.query("SELECT datname FROM pg_database WHERE NOT datistemplate ORDER BY 1")
        return [row[0] for row in rows]

    def log_in(self, user: str, password: str, database: str = "app") -> psycopg.Connection:
        address = {"host": self.new.address, "port": self.new.port}
        return psycopg.connect(user=user, password=password, dbname=database, **address)  # type: ignore[arg-type]


def script(server: Postgres, database: str, text: str) -> None:
    socket = str(server.data.parent)
    login = {"host": socket, "port": server.port, "user": "postgres", "dbname": database}
    with psycopg.connect(autocommit=True, **login) as connection:  # type: ignore[arg-type]
        for statement in text.strip().removesuffix(";").split(";\n"):
            connection.execute(statement.encode())


def DONE(_: Importing) -> bool:
    return False


def failed(importing: Importing) -> object:
    return importing.report and importing.report.state == "failed"


@pytest.fixture(scope="module")
def empty() -> Iterator[Path]:
    """A data directory that is as initdb leaves it; made once, copied."""
    programs = binaries()
    assert programs
    path = own(Path(tempfile.mkdtemp(prefix="pgc-")))
    server = Postgres(programs, path / "empty", STANDBY, free_port())
    try:
        server.initdb()
        yield server.data
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def bench(
    primary: Postgres,
    directory: Path,
    empty: Path,
    authorities: tuple[Certificates, Certificates],
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Bench]:
    """An old server with rows, and a new one that is empty."""
    script(primary, "postgres", SOURCE)
    script(primary, "app", TABLES)
    primary.query_in("second", "CREATE TABLE few AS SELECT 1 AS one")
    programs = binaries()
    assert programs
    new = Postgres(programs, directory / "new", STANDBY, free_port())
    try:
        new.copy(empty)
        encrypted(new, directory, authorities[0])
        new.start()
        socket, port = directory / "new", new.port
        monkeypatch.setattr(
            "pgcluster.postgres.local.socket_conninfo",
            lambda database: f"host={socket} port={port} user=postgres dbname={database}",
        )
        monkeypatch.setattr(
            "pgcluster.postgres.roles.socket_conninfo",
            lambda database: f"host={socket} port={port} user=postgres dbname={database}",
        )
        yield Bench(primary, new, directory / "import")
    finally:
        new.end()


def test_rows_sequences_roles_and_rights_arrive(bench: Bench) -> None:
    importing = bench.run(DONE)
    rows_and_owners(bench, importing)
    a_login_with_its_settings(bench)
    no_superuser(bench)


def rows_and_owners(bench: Bench, importing: Importing) -> None:
    assert importing.report
    assert importing.report.state == "done"
    assert importing.report.at
    assert importing.hinders is None
    assert bench.databases() == ["app", "postgres", "second"]
    assert bench.new.query_in("app", DIGEST) == bench.old.query_in("app", DIGEST)
    assert bench.new.query_in("app", "SELECT nextval('sales.orders_id_seq')") == [(7001,)]
    assert bench.new.query_in("app", "SELECT lo_get(4711)") == [(b"a large object",)]
    assert bench.new.query_in("second", "SELECT one FROM few") == [(1,)]
    owners = bench.new.query_in(
        "app",
        "SELECT relname, pg_get_userbyid(relowner) FROM pg_class"
        " WHERE relname IN ('orders', 'scratch') ORDER BY 1",
    )
    assert owners == [("orders", "app"), ("scratch", "boss")]
    assert bench.new.query_in("app", "SELECT 1 FROM pg_extension WHERE extname = 'pgcrypto'")
    assert bench.new.query_in(
        "app", "SELECT 1 FROM pg_stats WHERE tablename = 'orders' AND attname = 'id'"
    ), "statistics were gathered"
    assert not bench.folder.exists(), "nothing is left of the dump"


def a_login_with_its_settings(bench: Bench) -> None:
    with bench.log_in("reader", "of reader") as connection:
        shown = {
            name: connection.execute(f"SHOW {name}".encode()).fetchone()
            for name in ("search_path", "work_mem", "statement_timeout", "transaction_read_only")
        }
        assert shown == {
            "search_path": ('"$user", "Odd, one", public',),
            "work_mem": ("12MB",),
            "statement_timeout": ("45s",),
            "transaction_read_only": ("off",),
        }
        assert connection.execute("SELECT count(*) FROM sales.orders").fetchone() == (5000,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT * FROM sales.scratch")
    rights = bench.new.query(
        "SELECT has_database_privilege('readers', 'app', 'CONNECT'),"
        " has_database_privilege('old', 'app', 'CONNECT'),"
        " pg_has_role('reader', 'readers', 'MEMBER'), pg_has_role('reader', 'pg_read_all_stats',"
        " 'MEMBER'), (SELECT rolconnlimit FROM pg_roles WHERE rolname = 'reader'),"
        " (SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = 'readers'),"
        " (SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = 'app')"
    )
    assert rights == [(True, False, True, True, 7, "they 'read'", "the shop's")]


def no_superuser(bench: Bench) -> None:
    rows = bench.new.query(
        "SELECT rolname, rolsuper, rolcanlogin, rolpassword IS NULL FROM pg_authid"
        " WHERE rolname IN ('boss', 'importer', 'old', 'pgcluster_pooler') ORDER BY 1"
    )
    assert rows == [
        ("boss", False, False, True),
        ("importer", False, False, True),
        ("old", False, True, True),
    ]
    assert bench.events[0][0] == "Imported"
    assert ("ImportIncomplete", "roles without a usable password: old") in bench.events


def test_a_wrong_password_is_told_and_the_right_one_helps(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.secrets.kept["old-login"]["password"] = "wrong"
    monkeypatch.setattr("pgcluster.node.importing._AGAIN_S", 0.3)

    def corrected(importing: Importing) -> bool:
        if failed(importing):
            assert importing.report
            assert 'password authentication failed for user "importer"' in importing.report.reason
            assert "wrong" not in importing.report.reason
            assert importing.hinders
            bench.secrets.kept["old-login"]["password"] = SECRET
        return False

    importing = bench.run(corrected)
    assert importing.report
    assert importing.report.state == "done"
    assert [reason for reason, _ in bench.events].count("ImportFailed") == 1


def test_an_attempt_that_was_cut_off_begins_anew(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed: list[str] = []
    finish = takeover.finish

    async def cut_off(*arguments: Any) -> None:
        renamed.append("cut off")
        raise OSError("the connection is gone")

    # Everything is filled and nothing has its name: the last moment at which it can end badly.
    monkeypatch.setattr("pgcluster.postgres.takeover.finish", cut_off)
    bench.run(failed)
    assert renamed
    assert bench.databases() == ["pgcluster_import_0", "pgcluster_import_1", "postgres"]
    monkeypatch.setattr("pgcluster.postgres.takeover.finish", finish)
    bench.new.crash()
    bench.new.start()
    bench.run(DONE)
    assert bench.databases() == ["app", "postgres", "second"]
    assert bench.new.query_in("app", DIGEST) == bench.old.query_in("app", DIGEST)
    # Its successor asks the database, and does nothing.
    before = bench.new.query("SELECT oid FROM pg_database WHERE datname = 'app'")
    assert bench.run(DONE, within_s=5).report == bench.run(DONE, within_s=5).report
    assert bench.new.query("SELECT oid FROM pg_database WHERE datname = 'app'") == before


def test_one_that_is_stopped_in_the_middle_leaves_no_files_and_no_process(bench: Bench) -> None:
    bench.run(lambda importing: "dumped" in (importing.progress or "") or bench.folder.exists())
    assert not bench.folder.exists()
    eventually(
        lambda: (
            not bench.old.query(
                "SELECT 1 FROM pg_stat_activity WHERE application_name = 'pgcluster-import'"
            )
        ),
        within=10,
        what="no connection to the source is left",
    )
    assert "app" not in bench.databases()


def test_a_database_that_is_there_already_is_not_touched(bench: Bench) -> None:
    bench.new.query("CREATE DATABASE app")
    bench.new.query_in("app", "CREATE TABLE precious AS SELECT 42 AS answer")
    importing = bench.run(failed)
    assert importing
    assert "a database app already" in bench.events[0][1]
    assert bench.new.query_in("app", "SELECT answer FROM precious") == [(42,)]
    assert bench.databases() == ["app", "postgres"]


def test_a_login_that_may_read_all_data_needs_no_superuser(bench: Bench) -> None:
    bench.old.query("ALTER ROLE importer NOSUPERUSER")
    bench.old.query("GRANT pg_read_all_data TO importer")
    bench.old.query("GRANT CONNECT ON DATABASE app TO importer")
    bench.old.query_in("app", "SET default_transaction_read_only = off; SELECT lo_unlink(4711)")
    bench.run(DONE)
    assert bench.new.query_in("app", DIGEST) == bench.old.query_in("app", DIGEST)
    bench.log_in("reader", "of reader").close()


def test_the_application_as_login_brings_what_it_may_read_and_no_passwords(bench: Bench) -> None:
    bench.secrets.kept["old-login"] = {"username": "app", "password": PASSWORD}
    bench.wants("app")
    bench.run(failed)
    (note,) = [note for reason, note in bench.events if reason == "ImportFailed"]
    assert "pg_dump of app" in note
    assert "permission denied for table scratch" in note
    bench.wants("app", exclude_tables=("sales.scratch",))
    bench.old.query_in("app", "SET default_transaction_read_only = off; SELECT lo_unlink(4711)")
    bench.run(DONE)
    assert bench.new.query_in("app", DIGEST) == bench.old.query_in("app", DIGEST)
    assert bench.new.query("SELECT rolpassword FROM pg_authid WHERE rolname = 'reader'") == [
        (None,)
    ]
    (note,) = [note for reason, note in bench.events if reason == "ImportIncomplete"]
    assert note == "roles without a usable password: app, old, reader"


def test_without_roles_an_owner_that_is_not_declared_is_named(bench: Bench) -> None:
    bench.wants("app", roles=False)
    bench.run(failed)
    (note,) = [note for reason, note in bench.events if reason == "ImportFailed"]
    assert "pg_restore of app" in note
    assert 'role "app" does not exist' in note or 'role "boss" does not exist' in note


def test_what_is_excluded_stays_there_and_definitions_alone_have_no_rows(bench: Bench) -> None:
    bench.wants("app", exclude_tables=("sales.scr*",), schema_only=True, jobs=1)
    bench.run(DONE)
    assert bench.databases() == ["app", "postgres"]
    assert bench.new.query_in("app", "SELECT count(*) FROM sales.orders") == [(0,)]
    assert bench.new.query_in("app", "SELECT to_regclass('sales.scratch')") == [(None,)]


def test_a_database_that_the_source_has_not_is_named(bench: Bench) -> None:
    bench.wants("app", "third")
    bench.run(failed)
    assert bench.events == [("ImportFailed", "the source has no database third")]
    assert names.IMPORT_PREFIX not in "".join(bench.databases())
