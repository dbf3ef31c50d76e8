"""repmgr's table, slots and a full volume, seen to on real servers with repmgr's extension."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client import CollectorRegistry

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig
from pgcluster.api.wal import Lsn
from pgcluster.node.metadata import Metadata
from pgcluster.node.processes import Child
from pgcluster.node.repmgrd import Repmgrd
from pgcluster.node.retention import Retention, wal_gone
from pgcluster.node.space import BALLAST_BYTES, Space
from pgcluster.postgres.local import LocalPostgres
from pgcluster.proc import Result, run
from pgcluster.repmgr import Repmgr
from tests.data.conftest import PRIMARY, STANDBY
from tests.data.servers import Postgres, as_user, binaries, eventually, free_port, own

CONFIG = ClusterConfig(name="shop", namespace="prod", uid="u", instances=2)
MIB = 1 << 20

pytestmark = pytest.mark.timeout(180)  # WAL is filled by the segment, on a machine under load


class Clock:
    """Ticks as far as each look at it needs."""

    now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 5.0
        return self.now_s


class HostsRepmgr(Repmgr):
    """repmgr of this machine, which refuses root."""

    async def _run(self, *arguments: str, deadline_s: float) -> Result:
        command = [f"{self.bindir}/repmgr", f"--config-file={self.config}", *arguments]
        return await run(as_user(command), deadline_s=deadline_s, cwd="/")


class Pair:
    """A primary `shop-0` and its standby `shop-1`, as repmgr knows them."""

    def __init__(self, primary: Postgres, standby: Postgres, repmgr: Repmgr) -> None:
        self.primary, self.standby, self.repmgr = primary, standby, repmgr

    def rows(self) -> dict[int, tuple[Any, ...]]:
        found = self.primary.query_in(
            "repmgr", "SELECT node_id, type, active, upstream_node_id, location FROM repmgr.nodes"
        )
        return {row[0]: row[1:] for row in found}

    def streams(self) -> bool:
        return self.primary.query(
            "SELECT state FROM pg_stat_replication WHERE application_name = 'shop-1'"
        ) == [("streaming",)]

    def slots(self) -> dict[str, tuple[Any, ...]]:
        found = self.primary.query(
            "SELECT slot_name, active, wal_status, restart_lsn IS NULL FROM pg_replication_slots"
        )
        return {row[0]: row[1:] for row in found}

    def clone(self) -> None:
        shutil.rmtree(self.standby.data, ignore_errors=True)
        self.standby.clone(self.primary)
        with (self.standby.data / "postgresql.auto.conf").open("a") as file:
            file.write(
                f"primary_conninfo = 'host={PRIMARY} port={self.primary.port} user=postgres"
                " application_name=shop-1'\nprimary_slot_name = 'repmgr_slot_2'\n"
            )
        self.standby.start()
        eventually(self.streams, within=20, what="the standby streams")


def conninfo(host: str, port: int) -> str:
    address = STANDBY if "shop-1" in host else PRIMARY
    return f"host={address} port={port} user=repmgr dbname=repmgr connect_timeout=2"


@pytest.fixture
def pair(template: Path, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pair]:
    programs = binaries()
    assert programs
    port = free_port()
    primary = Postgres(programs, directory / "primary", PRIMARY, port)
    standby = Postgres(programs, directory / "standby", STANDBY, port)
    try:
        primary.copy(template)
        with (primary.data / "postgresql.conf").open("a") as file:
            file.write(
                "shared_preload_libraries = 'repmgr'\nwal_keep_size = 0\nmin_wal_size = 32MB\n"
                "max_wal_size = 64MB\nmax_slot_wal_keep_size = 96MB\n"
            )
        with (primary.data / "pg_hba.conf").open("r+") as file:
            lines = file.read()
            file.seek(0)
            file.write("host all repmgr 127.0.0.0/8 trust\n" + lines)
        primary.start()
        primary.query("CREATE ROLE repmgr SUPERUSER LOGIN")
        primary.query("CREATE DATABASE repmgr OWNER repmgr")
        primary.query("SELECT pg_create_physical_replication_slot('repmgr_slot_2', true)")
        config = directory / "repmgr.conf"
        config.write_text(
            f"node_id=1\nnode_name='shop-0'\nconninfo='{conninfo('shop-0', port)}'\n"
            f"data_directory='{primary.data}'\npg_bindir='{programs}'\n"
        )
        own(config)
        repmgr = HostsRepmgr(str(programs), config=str(config))
        result = asyncio.run(repmgr.primary_register())
        assert result.status == 0, result.output
        socket = directory / "primary"
        monkeypatch.setattr(
            "pgcluster.postgres.local.socket_conninfo",
            lambda database: f"host={socket} port={port} user=postgres dbname={database}",
        )
        monkeypatch.setattr(
            "pgcluster.render.repmgr.conninfo", lambda host, _: conninfo(host, port)
        )
        made = Pair(primary, standby, repmgr)
        made.clone()
        yield made
    finally:
        standby.end()
        primary.end()


def put_row(
    pair: Pair, node: int, type_: str, active: bool, upstream: int | None, **at: str
) -> None:
    pair.primary.query_in(
        "repmgr",
        "INSERT INTO repmgr.nodes (node_id, node_name, type, active, upstream_node_id, conninfo,"
        f" repluser, config_file, location) VALUES ({node}, 'shop-{node - 1}', '{type_}', {active},"
        f" {upstream or 'NULL'}, '{at.get('conninfo', 'host=nowhere.invalid')}', 'repmgr', '/x',"
        f" '{at.get('location', 'default')}')",
    )


async def test_the_primary_mends_the_table_on_its_own(pair: Pair) -> None:
    put_row(pair, 5, "primary", False, None)
    put_row(pair, 4, "standby", True, 5)
    put_row(pair, 2, "standby", False, 4, location="berlin")
    database = LocalPostgres(names.DB_REPMGR)
    metadata = Metadata(database, lambda: CONFIG, lambda: pair.repmgr, me="shop-0", clock=Clock())
    try:
        await metadata.keep()
        assert pair.rows() == {
            1: ("primary", True, None, "default"),
            2: ("standby", True, 1, "default"),
        }
        told = pair.primary.query_in(
            "repmgr", "SELECT node_id FROM repmgr.events WHERE event = 'standby_unregister'"
        )
        assert told == [(4,)], "repmgr itself has removed what it is willing to remove"
        before = pair.primary.query_in("repmgr", "SELECT xmin::text FROM repmgr.nodes ORDER BY 1")
        await metadata.keep()
        after = pair.primary.query_in("repmgr", "SELECT xmin::text FROM repmgr.nodes ORDER BY 1")
        assert after == before, "what is right is not written again"
    finally:
        await database.close()


async def test_a_repmgrd_that_postgres_forgot_or_somebody_paused_is_seen(pair: Pair) -> None:
    database = LocalPostgres(names.DB_REPMGR)
    child = Child("repmgrd", ended=asyncio.Event())
    watch = Repmgrd(child, database, epoch=lambda: 1, clock=Clock())
    await child.start(["sleep", "60"], env=os.environ)
    try:
        for _ in range(4):
            assert await watch.see_to() is None
        assert pair.primary.query_in("repmgr", "SELECT repmgr.get_repmgrd_pid()") == [(child.pid,)]
        assert not watch.paused
        pair.primary.query_in("repmgr", "SELECT repmgr.repmgrd_pause(true)")
        await watch.see_to()
        assert watch.paused
        pair.primary.query_in("repmgr", "SELECT repmgr.repmgrd_pause(false)")
        await watch.see_to()
        assert not watch.paused
    finally:
        await child.stop(signal.SIGKILL, within_s=5)
        await database.close()


def use_wal(server: Postgres, segments: int) -> None:
    for _ in range(segments):
        server.query("SELECT pg_logical_emit_message(false, 'test', repeat('x', 1000))")
        server.query("SELECT pg_switch_wal()")
    server.query("CHECKPOINT")


async def test_a_standby_that_was_away_for_too_long_is_found_by_both_sides(pair: Pair) -> None:
    local = LocalPostgres()
    retention = Retention(local, lambda: CONFIG, me="shop-0", registry=CollectorRegistry())
    here = conninfo("shop-0", pair.primary.port)
    try:
        pair.primary.query("SELECT pg_create_physical_replication_slot('repmgr_slot_7', true)")
        await retention.see_to()
        assert list(pair.slots()) == ["repmgr_slot_2"], "a slot of nobody is dropped"
        assert retention.findings.lost == ()
        pair.standby.stop()
        position = Lsn.parse(pair.primary.query("SELECT pg_current_wal_lsn()::text")[0][0])
        use_wal(pair.primary, 2)
        await retention.see_to()
        assert retention.findings.lost == (), "away, but what it needs is kept"
        assert await wal_gone(here, position) is None
        use_wal(pair.primary, 10)
        assert pair.slots()["repmgr_slot_2"][1] == "lost"
        await retention.see_to()
        assert retention.findings.lost == ("shop-1",)
        assert pair.slots()["repmgr_slot_2"] == (False, None, True), "there is one, and it is free"
        size = pair.primary.query("SELECT sum(size)::bigint FROM pg_ls_waldir()")[0][0]
        assert size <= 192 * MIB, "the volume is not filled"
        pair.standby.start()
        reason = await wal_gone(here, position)
        assert reason
        assert str(position) in reason
        await retention.see_to()
        assert retention.findings.lost == ("shop-1",), "running does not help it"
        pair.standby.stop()
        pair.clone()
        await retention.see_to()
        assert retention.findings.lost == ()
        # with the standby's first word of what it has flushed
        eventually(
            lambda: pair.slots()["repmgr_slot_2"][:2] == (True, "reserved"),
            within=20,
            what="the slot reserves WAL again",
        )
        position = Lsn.parse(pair.primary.query("SELECT pg_current_wal_lsn()::text")[0][0])
        assert await wal_gone(here, position) is None
    finally:
        await local.close()


# --- a full volume --------------------------------------------------------------------------------
@pytest.fixture
def small_volume() -> Iterator[Path]:
    """A volume of 320 MiB."""
    path = Path(tempfile.mkdtemp(prefix="pgc-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=320m", "tmpfs", path], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        path.rmdir()
        pytest.skip("a volume of its own needs the right to mount one")
    try:
        yield own(path)
    finally:
        subprocess.run(["umount", "-l", path], check=False)
        path.rmdir()


@pytest.fixture
def small(template: Path, small_volume: Path, directory: Path) -> Iterator[Postgres]:
    """A primary on it."""
    programs = binaries()
    assert programs
    server = Postgres(programs, small_volume / "primary", PRIMARY, free_port())
    try:
        server.copy(template)
        with (server.data / "postgresql.conf").open("a") as file:
            file.write(
                f"include_if_exists = '{directory}/space.conf'\nmax_wal_size = 64MB\n"
                "min_wal_size = 32MB\nwal_keep_size = 0\nautovacuum = off\n"
            )
        server.start()
        server.query("ALTER ROLE postgres SET default_transaction_read_only = off")
        server.query_in("app", "CREATE TABLE filler (a text)")
        server.query_in("app", "ALTER TABLE filler ALTER a SET STORAGE PLAIN, OWNER TO app")
        yield server
    finally:
        server.end()


def space_of(server: Postgres, volume: Path, directory: Path, running: list[bool]) -> Space:
    def reload() -> None:
        own(directory / "space.conf")
        if running[0]:
            server.query("SELECT pg_reload_conf()")

    return Space(
        lambda: {"data": volume},
        running=lambda: running[0],
        reload=reload,
        registry=CollectorRegistry(),
        read_only_conf=directory / "space.conf",
    )


def write(server: Postgres, mebibytes: int) -> None:
    """As the application."""
    with psycopg.connect(
        host=str(server.data.parent), port=server.port, user="app", dbname="app", autocommit=True
    ) as connection:
        for _ in range(mebibytes):
            connection.execute(
                "INSERT INTO filler SELECT repeat('x', 7000) FROM generate_series(1, 140)"
            )


async def test_a_filling_volume_makes_applications_read_only_before_postgres_dies(
    small: Postgres, small_volume: Path, directory: Path
) -> None:
    space = space_of(small, small_volume, directory, [True])
    await space.look()
    assert space.full is None
    assert (small_volume / ".ballast").stat().st_size == BALLAST_BYTES
    for _ in range(300):
        if not _writes(small):
            break
        await space.look()
        await asyncio.sleep(0.05)
    assert space.full == "data"
    assert (small_volume / ".ballast").exists()
    assert small.query_in("app", "SELECT count(*) > 0 FROM filler") == [(True,)]
    small.query_in("app", "TRUNCATE filler")
    small.query("CHECKPOINT")
    await space.look()
    assert space.full is None
    eventually(lambda: _writes(small), within=5, what="the application writes again")


async def test_a_primary_that_died_of_a_full_volume_comes_back_with_the_ballast(
    small: Postgres, small_volume: Path, directory: Path
) -> None:
    running = [True]
    space = space_of(small, small_volume, directory, running)
    await space.look()
    # too quick for anybody to look: WAL takes what is left
    filler = small_volume / "filler"
    free = os.statvfs(small_volume).f_bavail * os.statvfs(small_volume).f_frsize
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free)
    with pytest.raises(psycopg.OperationalError):
        use_wal(small, 20)
    small.crash()
    running[0] = False
    await space.look()
    assert not (small_volume / ".ballast").exists()
    small.start()
    running[0] = True
    await space.look()
    assert space.full == "data"
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        write(small, 1)
    filler.unlink()
    await space.look()
    assert space.full is None
    assert (small_volume / ".ballast").exists()
    eventually(lambda: _writes(small), within=5, what="the application writes again")


def _writes(server: Postgres) -> bool:
    try:
        write(server, 1)
    except psycopg.errors.ReadOnlySqlTransaction:
        return False
    return True
