"""Parameters on real servers: refused, reloaded and verified, raised and lowered."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgcluster.api.config import ClusterConfig
from pgcluster.node.parameters import Parameters
from pgcluster.postgres import control, local
from pgcluster.postgres.local import LocalPostgres
from pgcluster.render import postgres as render_postgres
from tests.data.servers import Postgres, as_user, binaries, eventually

pytestmark = pytest.mark.timeout(180)
WORKERS = "max_worker_processes"


def major() -> int:
    programs = binaries()
    assert programs
    return int(programs.parent.name)


def config(**parameters: str) -> ClusterConfig:
    made = ClusterConfig(name="shop", namespace="prod", uid="u", instances=2)
    return made.model_copy(
        update={"parameters": parameters, "postgres_major": major(), "settings": str(parameters)}
    )


def write(server: Postgres, values: dict[str, str]) -> None:
    """Give a server these settings, and nothing else of ours."""
    lines = (f"{name} = {render_postgres.quote(value)}\n" for name, value in values.items())
    (server.data / "postgresql.conf").write_text("".join(lines))


def streams(primary: Postgres) -> bool:
    return primary.query("SELECT state FROM pg_stat_replication") == [("streaming",)]


@pytest.fixture
def parameters(primary: Postgres, directory: Path) -> Parameters:
    """Of the primary; asks its programs."""
    return Parameters(
        "shop-0",
        lambda: primary.data,
        good=directory / "good.json",
        trial=directory / "trial.conf",
        command=lambda words: as_user(words, reads_all=True),
    )


@pytest.fixture
def database(primary: Postgres, monkeypatch: pytest.MonkeyPatch) -> LocalPostgres:
    """The agent's own connection to the primary."""
    conninfo = f"host={primary.data.parent} port={primary.port} user=postgres dbname="
    monkeypatch.setattr(local, "socket_conninfo", lambda name: f"{conninfo}{name}")
    return LocalPostgres()


async def test_postgres_itself_refuses_what_it_cannot_parse(parameters: Parameters) -> None:
    good = await parameters.adopt(config(work_mem="8MB", shared_preload_libraries="nowhere"))
    assert parameters.refused == {}
    assert good.parameters["work_mem"] == "8MB"
    bad = await parameters.adopt(config(work_mem="much", max_connections="100"))
    assert list(parameters.refused) == ["work_mem"]
    assert "much" in parameters.refused["work_mem"]
    assert bad.parameters == good.parameters
    await parameters.adopt(config(no_such_parameter="1"))
    assert list(parameters.refused) == ["no_such_parameter"]
    out_of_range = await parameters.adopt(config(max_connections="999999999"))
    assert list(parameters.refused) == ["max_connections"]
    assert out_of_range.parameters == good.parameters
    again = await parameters.adopt(config(work_mem="16MB"))
    assert parameters.refused == {}
    assert again.parameters == {"work_mem": "16MB"}


async def test_a_reload_is_seen_through_and_what_overrides_it_is_told(
    primary: Postgres, parameters: Parameters, database: LocalPostgres
) -> None:
    write(primary, {"work_mem": "4MB", "temp_buffers": "8MB"})
    primary.query("ALTER SYSTEM SET temp_buffers = '1MB'")
    before = await database.observe()
    assert before.demanding["max_connections"] == 60
    wanted = config(work_mem="9MB", temp_buffers="16MB")
    await parameters.adopt(wanted)
    write(primary, wanted.parameters)
    parameters.reloading(before)
    await parameters.see(before, database)
    assert parameters.loaded is None
    primary.query("SELECT pg_reload_conf()")
    after = await database.observe()
    while after.loaded == before.loaded:
        after = await database.observe()
    await parameters.see(after, database)
    assert parameters.loaded == wanted.settings
    assert list(parameters.overridden) == ["temp_buffers"]
    assert "postgresql.auto.conf" in parameters.overridden["temp_buffers"]
    assert parameters.refused == {}
    assert (await database.query("SHOW work_mem"))[0]["work_mem"] == "9MB"
    await database.close()


async def test_a_standby_takes_what_is_lowered_when_its_primary_has(
    primary: Postgres, standby: Postgres
) -> None:
    bindir = f"/usr/lib/postgresql/{major()}/bin"

    async def demanded() -> int:
        found = await control.read(bindir, standby.data)
        assert found
        return found.demands[WORKERS]

    def rendered(wanted: str, floor: int = 0) -> dict[str, str]:
        return render_postgres.raised({WORKERS: wanted}, {WORKERS: floor})

    def restart(server: Postgres, values: dict[str, str]) -> None:
        server.stop()
        write(server, values)
        server.start()

    # Raised: the standby first, which may hold more than the primary.
    restart(standby, rendered("12", await demanded()))
    eventually(lambda: streams(primary), within=30, what="the standby streams")
    restart(primary, rendered("12"))
    eventually(lambda: streams(primary), within=30, what="the standby streams")
    eventually(lambda: standby.query(f"SHOW {WORKERS}") == [("12",)], within=30, what="12")
    while await demanded() != 12:
        primary.query("SELECT pg_switch_wal()")
    # Lowered: as long as the primary has more, the standby keeps that whatever is configured …
    restart(standby, rendered("4", await demanded()))
    assert standby.query(f"SHOW {WORKERS}") == [("12",)]
    eventually(lambda: streams(primary), within=30, what="the standby streams")
    # … and would not start with less.
    standby.stop()
    write(standby, rendered("4"))
    standby.start_process()
    assert standby._process
    assert standby._process.wait() != 0
    assert "insufficient parameter settings" in (standby.data.parent / "log").read_text()
    write(standby, rendered("4", await demanded()))
    standby.start()
    # The primary first; the standby learns of it from its WAL, and follows.
    restart(primary, rendered("4"))
    eventually(lambda: streams(primary), within=30, what="the standby streams")
    for _ in range(100):
        if await demanded() == 4:
            break
        primary.query("SELECT pg_switch_wal()")
    assert await demanded() == 4
    restart(standby, rendered("4", await demanded()))
    assert standby.query(f"SHOW {WORKERS}") == [("4",)]
    eventually(lambda: streams(primary), within=30, what="the standby streams")
