"""Clones that take long, fail half-way, have to stand in for a rewind, or are not needed.

A08 to A11.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from pgcluster.api import names
from tests.e2e.cluster import Cluster, describe
from tests.e2e.extent import lasting, times
from tests.e2e.kubectl import KubectlError
from tests.e2e.ordeal import Ordeals
from tests.e2e.report import Report
from tests.e2e.waiting import eventually, stays

pytestmark = pytest.mark.disturbs

_SENDERS = "^postgres: .*walsender"
# Stops the server process that sends a base backup, as soon as there is one; prints its id.
_STOP_THE_SENDER = f"""
for _ in $(seq 1 3000); do
    pid=$(pgrep -f '{_SENDERS}.*sending backup' | head -n 1)
    if [ -n "$pid" ]; then kill -STOP "$pid"; echo "$pid"; exit; fi
    sleep 0.03
done
exit 1
"""


@contextmanager
def _stopped_backup_from(shop: Cluster, *sources: str) -> Iterator[Future[str]]:
    """The next base backup from one of `sources` stops in the middle; goes on at the end."""

    def stop(source: str) -> str:
        command = ["sh", "-c", _STOP_THE_SENDER, "stop-the-sender"]
        return str(shop.exec(source, *command, timeout_s=150).stdout)

    with ThreadPoolExecutor(len(sources)) as pool:
        waiting = {source: pool.submit(stop, source) for source in sources}
        first: Future[str] = Future()

        def note(source: str, ended: Future[str]) -> None:
            if ended.exception() is None and not first.done():
                first.set_result(source)

        for source, future in waiting.items():
            future.add_done_callback(lambda ended, source=source: note(source, ended))  # type: ignore[misc]
        try:
            yield first
        finally:
            for source in sources:
                shop.exec(source, "pkill", "-CONT", "-f", _SENDERS, check=False)
                # The ones that still look for a backup have no more business.
                shop.exec(source, "pkill", "-f", "stop-the-sender$", check=False)


def test_a_slow_clone_is_told_of_and_not_restarted(ordeals: Ordeals) -> None:
    shop = ordeals.cluster
    ordeal = ordeals.begin("slow clone")
    standby = next(pod for pod in shop.instances() if pod != ordeal.primary)
    with _stopped_backup_from(shop, ordeal.primary) as stopped:
        shop.kubectl.run("delete", "pvc", f"data-{standby}", "--wait=false")
        shop.delete_pod(standby)
        assert stopped.result(timeout=120) == ordeal.primary
        eventually(lambda: _clones(shop, standby), within=30, what="the progress is told")
        shop.condition_says(f"{standby}: cloning clone: \\d+ MiB", within=20)
        # A11: whatever else is wanted waits for it, and its source above all.
        pods = _uids(shop)
        _image(shop, "pgcluster.dev/postgres:17-never-built")
        # Longer than any probe of a pod that does not get on would have patience.
        stays(
            lambda: _clones(shop, standby) and _uids(shop) == pods,
            for_s=lasting(300, short_s=25),
            every=3,
        )
        _image(shop, None)
    outcome = ordeal.ended()
    assert outcome.after == outcome.before
    assert outcome.counted["errors"] == 0, outcome.counted
    assert shop.restarts()[f"{standby}/postgres"] == 0


def test_a_standby_with_data_that_restarts_needs_no_clone(ordeals: Ordeals, report: Report) -> None:
    """A08."""
    shop = ordeals.cluster
    primary, mebibytes = shop.settled(), times(2048, short=256)
    fill = (
        f"CREATE TABLE bulk AS SELECT repeat('x', 1000) FROM generate_series(1, {mebibytes << 10})"
    )
    shop.exec(primary, "psql", "-XqU", "postgres", "-c", fill, "app", timeout_s=300)
    ordeal = ordeals.begin("standby with data restarted")
    standby = next(pod for pod in shop.instances() if pod != ordeal.primary)
    pod = shop.pod(standby)["metadata"]["uid"]
    shop.delete_pod(standby)
    began_s = time.monotonic()

    def streams() -> bool:
        assert shop.pod(standby)["metadata"]["uid"] != pod
        seen = shop.value(
            ordeal.primary,
            f"SELECT state FROM pg_stat_replication WHERE application_name = '{standby}'",
        )
        assert seen == "streaming", seen
        return True

    eventually(streams, within=60, every=0.5, what=f"{standby} streams again")
    report.measured(f"standby with {mebibytes} MiB streams again", time.monotonic() - began_s, "s")
    outcome = ordeal.ended()
    assert outcome.after == outcome.before
    assert outcome.counted["errors"] == 0, outcome.counted
    assert "standby clone" not in shop.logs(standby), "a base backup was taken"
    shop.psql(outcome.after, "DROP TABLE bulk", "app")


def _uids(shop: Cluster) -> dict[str, str]:
    return {pod["metadata"]["name"]: pod["metadata"]["uid"] for pod in shop.pods()}


def _image(shop: Cluster, image: str | None) -> None:
    shop.kubectl.patch("pgcluster", shop.name, {"spec": {"image": image}})


def _clones(shop: Cluster, pod: str) -> bool:
    status = shop.status()
    row = next(row for row in status["members"] if row["pod"] == pod)
    assert row["state"] == "cloning", describe(status)
    assert "MiB" in (row.get("progress") or ""), describe(status)
    assert shop.restarts()[f"{pod}/postgres"] == 0
    return True


@pytest.fixture
def fails_over_on_a_crash(shop: Cluster) -> Iterator[None]:
    shop.change({"failover": {"onCrash": "failover"}})
    yield
    shop.change({"failover": {"onCrash": None}})


# In one breath: what is written here reaches no standby, so that only a rewind could mend it, and
# the rewind finds a file that it may not write (pg_rewind copies it; postgres only reads it).
_PART_WAYS = f"""
chmod 0400 {names.PGDATA}/base/1/pg_filenode.map
pkill -STOP -f '{_SENDERS}'
psql -X -q -c 'CREATE TABLE parted (one int)'
kill -9 $(head -n 1 {names.PGDATA}/postmaster.pid)
"""


@pytest.mark.usefixtures("fails_over_on_a_crash")
def test_data_that_cannot_be_rewound_is_kept_until_a_clone_is_complete(ordeals: Ordeals) -> None:
    shop = ordeals.cluster
    ordeal = ordeals.begin("rewind fails, then the clone is stopped half-way")
    old = ordeal.primary
    others = [pod for pod in shop.instances() if pod != old]
    with _stopped_backup_from(shop, *others) as stopped:
        shop.exec(old, "sh", "-c", _PART_WAYS)
        ordeal.writes_again()
        new = stopped.result(timeout=120)
        assert new == shop.holder()
        assert _directories(shop, old) >= {"pgdata", "pgdata.new"}
        shop.exec(old, "pkill", "-KILL", "-x", "pg_basebackup")
        assert "pgdata" in _directories(shop, old), "the old data is not kept"
    told = [f"{event['reason']} {event['message']}" for event in shop.events()]
    assert any("RejoinFailed" in text and old in text for text in told), told
    outcome = ordeal.ended(may_lose=True)
    assert outcome.after == new
    eventually(
        lambda: {"pgdata"} == {d for d in _directories(shop, old) if d.startswith("pgdata")},
        within=30,
        what="the old data is removed once its successor streams",
    )
    tables = shop.value(old, "SELECT count(*) FROM pg_class WHERE relname = 'parted'")
    assert tables == "0", "it still has what the cluster never had"


def _directories(shop: Cluster, pod: str) -> set[str]:
    try:
        return set(shop.exec(pod, "ls", names.VOLUME).stdout.split())
    except KubectlError as error:
        raise AssertionError(str(error)) from error
