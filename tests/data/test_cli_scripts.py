"""What `kubectl pgcluster reload` and `report` run in the pods, on real servers."""

from __future__ import annotations

import subprocess
import sys

from pgcluster.cli import inside, reloading, reporting
from tests.data.pool import Pool
from tests.data.servers import Postgres, as_user
from tests.data.test_pooler import running


def psql(server: Postgres, script: str, *, stops: bool = True) -> subprocess.CompletedProcess[str]:
    """As the plugin has it run, by another socket."""
    own = inside.psql((), "pod", stops=stops)
    words = list(own[own.index("psql") :])
    words[words.index("--host") + 1] = str(server.data.parent)
    return subprocess.run(
        as_user([*words, "--port", str(server.port)]),
        input=script,
        capture_output=True,
        text=True,
        timeout=30,
        cwd="/",
        check=False,
    )


def reloaded(server: Postgres) -> reloading.Told:
    done = psql(server, reloading._SCRIPT)
    assert done.returncode == 0, done.stderr
    return reloading.instance_told("shop-0", done.stdout)


def test_a_reload_tells_what_took_effect_and_what_did_not(primary: Postgres) -> None:
    told = reloaded(primary)
    assert told.well
    assert "did not take effect" not in told.message
    primary.query("ALTER SYSTEM SET work_mem = '7MB'")
    assert reloaded(primary).well
    assert primary.query("SHOW work_mem") == [("7MB",)]
    primary.query("ALTER SYSTEM SET max_wal_senders = 7")
    restart = reloaded(primary)
    assert restart.well, "what waits for a restart is not wrong"
    assert "max_wal_senders" in restart.message.partition("waits for a restart: ")[2]
    with (primary.data / "pg_hba.conf").open("a") as file:
        file.write("host all all nonsense nonsense\n")
    with (primary.data / "postgresql.conf").open("a") as file:
        file.write("maintenance_work_mem = much\n")
    wrong = reloaded(primary)
    assert not wrong.well
    assert "pg_hba.conf line" in wrong.message
    assert "maintenance_work_mem" in wrong.message


def test_what_a_report_asks_of_postgres_is_answered(primary: Postgres, standby: Postgres) -> None:
    for server in (primary, standby):
        done = psql(server, reporting._SQL, stops=False)
        # repmgr is not in these servers, and older ones lack a column: the rest is answered.
        told = [line for line in done.stderr.splitlines() if "ERROR" in line]
        assert all("repmgr.nodes" in line for line in told), done.stderr
        for heading in ("pg_stat_replication", "settings that are not the default", "sessions"):
            assert f"--- {heading}" in done.stdout
    assert "application_name | walreceiver" in psql(primary, reporting._SQL, stops=False).stdout


def test_a_poolers_console_answers_all_that_a_report_asks(pool: Pool, primary: Postgres) -> None:
    running(pool, primary)
    words = inside.console((), "pod", *reporting._CONSOLE, "SHOW NONSENSE", "RELOAD")
    script = words[words.index("-c") + 1].replace(
        "host=/run/pgbouncer port=5432", f"host={pool.directory / 'run'} port={pool.port}"
    )
    asked = as_user([sys.executable, "-c", script, *words[words.index("-c") + 2 :]], reads_all=True)
    done = subprocess.run(asked, capture_output=True, text=True, timeout=30, cwd="/", check=False)
    assert done.returncode == 1, "one of them is nonsense"
    answers = dict(part.split("\n", 1) for part in done.stdout.removeprefix("--- ").split("\n--- "))
    refused = {name for name, text in answers.items() if text.startswith("ERROR: ")}
    # SHOW STATE is of a later version than Debian 12 has.
    assert refused - {"SHOW STATE"} == {"SHOW NONSENSE"}
    assert "app\t" in answers["SHOW DATABASES"]
    assert "default_pool_size" in answers["SHOW CONFIG"]
