"""Which parameters an instance runs with, and what it says of those that it does not take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from pgcluster.api.config import ClusterConfig, RestartConfig
from pgcluster.api.errors import RetryError
from pgcluster.api.wal import Lsn, WalPoint
from pgcluster.node.instance import Instance
from pgcluster.node.parameters import Parameters, complaints
from pgcluster.node.restart import Restart
from pgcluster.postgres.local import LocalPostgres, Observation

UNKNOWN = """\
2026-11-23 12:16:49.303 GMT [1] LOG:  unrecognized configuration parameter "foo" in file "/t" line 2
2026-11-23 12:16:49.303 GMT [1] FATAL:  configuration file "/t" contains errors
"""


def config(settings: str = "1", **parameters: str) -> ClusterConfig:
    made = ClusterConfig(name="shop", namespace="prod", uid="u", instances=3)
    return made.model_copy(update={"parameters": parameters, "settings": settings})


def observation(loaded: str = "1", pending: tuple[str, ...] = ()) -> Observation:
    point = WalPoint(1, Lsn.parse("0/1"))
    return Observation(False, "77", point, False, None, None, pending, "17", loaded=loaded)


class Database:
    """Answers what pg_file_settings would."""

    def __init__(self, *rows: dict[str, Any]) -> None:
        self.rows = list(rows)

    async def query(self, statement: str, *values: object) -> list[dict[str, Any]]:
        return self.rows


def parameters(path: Path) -> Parameters:
    """Without a data directory postgres is not asked."""
    return Parameters("shop-1", lambda: path / "pgdata", good=path / "good", trial=path / "trial")


def test_postgres_own_words_name_the_parameter() -> None:
    found = complaints(UNKNOWN, {"foo": "1", "work_mem": "4MB"})
    assert found == {"foo": 'unrecognized configuration parameter "foo"'}


def test_a_failure_that_is_not_the_files_refuses_nothing() -> None:
    assert complaints("postgres did not end within 10 s", {"foo": "1"}) == {}
    assert complaints('FATAL:  data directory "/x" has wrong ownership', {"foo": "1"}) == {}


async def test_after_a_failed_start_the_last_good_parameters_come_back(tmp_path: Path) -> None:
    made = parameters(tmp_path)
    first = await made.adopt(config(shared_buffers="128MB"))
    made.started(first)
    assert json.loads((tmp_path / "good").read_text()) == {"shared_buffers": "128MB"}
    second = await made.adopt(config("2", shared_buffers="1TB"))
    assert second.parameters == {"shared_buffers": "1TB"}
    back = made.fall_back(second)
    assert back is not None
    assert back.parameters == {"shared_buffers": "128MB"}
    assert "1TB" in made.refused["shared_buffers"]
    assert "128MB" in made.refused["shared_buffers"]
    # Nothing better is left, and a configuration with other news changes nothing of that.
    assert made.fall_back(back) is None
    other = config("2", shared_buffers="1TB").model_copy(update={"instances": 5})
    assert (await made.adopt(other)).parameters == {"shared_buffers": "128MB"}
    assert made.refused
    # A correction is taken.
    third = await made.adopt(config("3", shared_buffers="256MB"))
    assert third.parameters == {"shared_buffers": "256MB"}
    assert made.refused == {}


async def test_a_new_container_knows_the_last_good_parameters(tmp_path: Path) -> None:
    before = parameters(tmp_path)
    before.started(await before.adopt(config(shared_buffers="128MB")))
    made = parameters(tmp_path)
    bad = await made.adopt(config("2", shared_buffers="1TB"))
    back = made.fall_back(bad)
    assert back is not None
    assert back.parameters == {"shared_buffers": "128MB"}


async def test_a_first_start_that_fails_has_nothing_to_fall_back_to(tmp_path: Path) -> None:
    made = parameters(tmp_path)
    assert made.fall_back(await made.adopt(config(shared_buffers="1TB"))) is None


async def test_parameters_count_as_loaded_when_the_server_has_read_them(tmp_path: Path) -> None:
    made = parameters(tmp_path)
    database = cast(LocalPostgres, Database())
    await made.adopt(config("a"))
    await made.see(observation("1"), database)
    assert made.loaded == "a"
    await made.adopt(config("b", work_mem="8MB"))
    made.reloading(observation("1"))
    assert made.loaded == "a"
    await made.see(observation("1"), database)
    assert made.loaded == "a"
    await made.see(observation("2"), database)
    assert made.loaded == "b"


async def test_what_did_not_take_effect_is_told_by_name(tmp_path: Path) -> None:
    made = parameters(tmp_path)
    await made.adopt(config("b", work_mem="8MB", temp_buffers="x"))
    rows = (
        {"name": "work_mem", "error": None, "source": "/data/postgresql.auto.conf"},
        {"name": "temp_buffers", "error": "setting could not be applied", "source": None},
    )
    await made.see(observation(), cast(LocalPostgres, Database(*rows)))
    assert "postgresql.auto.conf" in made.overridden["work_mem"]
    assert "temp_buffers" in made.refused["temp_buffers"]


# --- restarts in place ------------------------------------------------------------------------
class Pools:
    """Holds clients, or says why not."""

    def __init__(self, log: list[str], refusal: str | None = None) -> None:
        self.log, self.refusal = log, refusal

    async def hold(self) -> str | None:
        self.log.append("hold")
        return self.refusal

    async def let_go(self) -> None:
        self.log.append("let go")


class FakeInstance:
    """As much of an instance as a restart needs."""

    me = "shop-1"

    def __init__(self, log: list[str]) -> None:
        self.log = log
        self.config = config().model_copy(
            update={"restart": RestartConfig(instance="shop-1", request="r1")}
        )
        self.restarted: str | None = None
        self.final_point: object = None
        self.lease = self
        self.fails = False

    def holding(self) -> bool:
        return True

    def say(self, state: str, reason: str) -> None:
        self.log.append(state)

    async def stop_repmgrd(self) -> None:
        self.log.append("stop repmgrd")

    async def stop_postgres(self, *, checkpoint: bool = True) -> None:
        if self.fails:
            raise RetryError("it hangs")
        self.log.append("stop postgres")
        self.final_point = "end"


@pytest.fixture
def log() -> list[str]:
    return []


def restart(instance: FakeInstance, pools: Pools) -> Restart:
    return Restart(cast(Instance, instance), pools)


PENDING = observation(pending=("shared_buffers",))


def test_only_who_is_meant_and_waits_for_it_restarts_and_once(log: list[str]) -> None:
    instance = FakeInstance(log)
    made = restart(instance, Pools(log))
    assert made.due(PENDING)
    assert not made.due(observation())
    instance.restarted = "r1"
    assert not made.due(PENDING)
    instance.restarted = None
    instance.me = "shop-2"
    assert not made.due(PENDING)


async def test_a_primary_holds_the_pools_until_it_answers_again(log: list[str]) -> None:
    instance = FakeInstance(log)
    made = restart(instance, Pools(log))
    await made.primary(PENDING)
    assert log == ["hold", "stopping", "stop repmgrd", "stop postgres"]
    # It goes on under the same Lease: what it has left is not the cluster's end.
    assert instance.final_point is None
    assert instance.restarted == "r1"
    await made.over()
    await made.over()
    assert log[4:] == ["let go"]


async def test_where_the_pools_cannot_be_held_nothing_is_stopped(log: list[str]) -> None:
    instance = FakeInstance(log)
    made = restart(instance, Pools(log, "a pooler does not answer"))
    await made.primary(PENDING)
    await made.primary(PENDING)
    assert log == ["hold"]
    assert made.due(PENDING)


async def test_a_stop_that_fails_lets_the_clients_go_on(log: list[str]) -> None:
    instance = FakeInstance(log)
    instance.fails = True
    made = restart(instance, Pools(log))
    with pytest.raises(RetryError):
        await made.primary(PENDING)
    assert log[-1] == "let go"
