"""A clone's turn, by advisory locks of a real server; and its pace, by a real pg_basebackup."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest

from pgcluster.api.config import ClusterConfig
from pgcluster.api.errors import RetryError
from pgcluster.node import cloning
from tests.data.servers import Postgres, as_user, binaries, free_port


def conninfo(server: Postgres) -> str:
    return f"host={server.address} port={server.port} user=postgres dbname=postgres"


async def test_no_more_clones_at_a_time_than_the_spec_says(primary: Postgres) -> None:
    async with cloning.turn(conninfo(primary), at_once=2):
        async with cloning.turn(conninfo(primary), at_once=2):
            with pytest.raises(RetryError, match="maxClones"):
                async with cloning.turn(conninfo(primary), at_once=2):
                    pass
        async with cloning.turn(conninfo(primary), at_once=2):
            pass


async def test_a_turn_ends_however_the_clone_ends(primary: Postgres) -> None:
    with contextlib.suppress(RetryError):
        async with cloning.turn(conninfo(primary), at_once=1):
            raise RetryError("the clone has failed")
    async with cloning.turn(conninfo(primary), at_once=1):
        primary.query("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
    async with cloning.turn(conninfo(primary), at_once=1):
        held = primary.query("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        assert held == [(1,)]


async def test_without_a_primary_there_is_no_turn() -> None:
    with pytest.raises(RetryError, match="cannot be asked"):
        async with cloning.turn(f"host=127.0.0.1 port={free_port()} user=x", at_once=1):
            pass


def test_pg_basebackup_takes_the_options(primary: Postgres, directory: Path) -> None:
    config = ClusterConfig(
        name="shop", namespace="prod", uid="u", instances=2, clone_max_rate_bytes=1 << 30
    )
    programs = binaries()
    assert programs
    made = subprocess.run(
        as_user(
            [
                programs / "pg_basebackup",
                *("-h", primary.address, "-p", str(primary.port), "-U", "postgres"),
                *("-D", str(directory / "clone"), "--checkpoint=fast"),
                *cloning.options(config, directory / "wal").split(),
            ]
        ),
        check=False,
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert made.returncode == 0, made.stderr
    assert (directory / "clone" / "pg_wal").is_symlink()
