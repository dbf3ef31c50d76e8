"""A standby that is away for too long, and volumes that are full: A19 and A20."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from pgcluster.api import names
from tests.e2e import nodes
from tests.e2e.cluster import Cluster, describe, manifest
from tests.e2e.kubectl import Kubectl
from tests.e2e.observing import CONTROL_PLANE
from tests.e2e.report import Report
from tests.e2e.waiting import eventually, stays

pytestmark = pytest.mark.disturbs

MIB = 1 << 20


def use_wal(cluster: Cluster, pod: str, segments: int) -> subprocess.CompletedProcess[str]:
    """Fill that many WAL files, each with little in it, and let a checkpoint remove what it may."""
    script = (
        f"for i in $(seq {segments}); do"
        " psql -X -q -h $PGHOST -U postgres -v ON_ERROR_STOP=1 -c"
        " \"SELECT pg_logical_emit_message(false, 'test', repeat('x', 1000))\""
        ' -c "SELECT pg_switch_wal()" || exit 1; done;'
        " psql -X -q -h $PGHOST -U postgres -c CHECKPOINT"
    )
    result: subprocess.CompletedProcess[str] = cluster.exec(pod, "sh", "-c", script, check=False)
    return result


# --- A19 ------------------------------------------------------------------------------------------
@pytest.fixture
def far(own_namespace: Kubectl) -> Iterator[Cluster]:
    """A cluster that keeps little WAL for those who are away."""
    cluster = Cluster(own_namespace, "far")
    cluster.apply(
        manifest(
            "far",
            instances=2,
            postgres={"parameters": {"wal_keep_size": "16MB", "max_wal_size": "64MB"}},
            replication={"maxSlotWalKeepSize": "64Mi"},
            pgbouncer={"instances": 1},
        )
    )
    yield cluster
    with contextlib.suppress(AssertionError):
        cluster.delete()


def test_a_standby_that_was_away_for_too_long_is_cloned_anew_by_itself(
    far: Cluster, report: Report
) -> None:
    primary = far.settled()
    standby = next(pod for pod in far.instances() if pod != primary)
    identity = far.value(standby, "SELECT system_identifier FROM pg_control_system()")
    stopped = far.repmgr(standby, "node", "service", "--action=stop")
    assert stopped.returncode == 0, stopped.stderr
    far.psql(primary, "CREATE TABLE written AS SELECT generate_series(1, 1000) AS id")
    used = use_wal(far, primary, 12)
    assert used.returncode == 0, used.stderr
    kept = int(far.value(primary, "SELECT sum(size)::bigint FROM pg_ls_waldir()"))
    report.measured("WAL kept for a standby that is away", kept / MIB, "MiB")
    assert kept < 192 * MIB, "the volume is not to be filled"
    far.condition_says(f"StandbyLostWal .*{standby}.*cloned anew", within=60)
    assert far.status()["primary"] == primary
    # It is started by a person here; it starts by itself two minutes after such a stop.
    far.exec(
        standby, "sh", "-c", "repmgr node service --action=start >/dev/null 2>&1 &", check=False
    )

    def follows() -> bool:
        status = far.status()
        count = far.value(standby, "SELECT count(*) FROM written")
        assert count == "1000", f"{count} rows, {describe(status)}"
        return True

    eventually(follows, within=180, what="the standby has it all")
    assert far.settled() == primary
    assert far.value(standby, "SELECT system_identifier FROM pg_control_system()") == identity
    log = far.logs(standby)
    assert "standby clone" in log
    slots = far.psql(primary, "SELECT slot_name, active FROM pg_replication_slots")
    assert slots == [[names.slot(standby), "t"]]

    def told_no_more() -> bool:
        condition = far.condition("Degraded")
        assert condition["status"] == "False", condition
        return True

    eventually(told_no_more, within=30, what="the condition is gone")


# --- A20 ------------------------------------------------------------------------------------------
SIZE_MIB = 400
GROWN_MIB = 600


@dataclass(frozen=True, slots=True)
class SmallVolumes:
    """Volumes in memory, one on each of some nodes, behind a StorageClass of their own."""

    storage_class: str
    path: str
    nodes: tuple[str, ...]

    def mount(self) -> None:
        for node in self.nodes:
            script = (
                f"mkdir -p {self.path} && (mountpoint -q {self.path} ||"
                f" mount -t tmpfs -o size={SIZE_MIB}m,mode=0777 tmpfs {self.path})"
            )
            nodes.execute(node, "sh", "-c", script)

    def grow(self) -> None:
        for node in self.nodes:
            nodes.execute(node, "mount", "-o", f"remount,size={GROWN_MIB}m", self.path)

    def unmount(self) -> None:
        for node in self.nodes:
            with contextlib.suppress(nodes.NodeError):
                nodes.execute(node, "umount", "-l", self.path)

    def manifests(self) -> list[dict[str, object]]:
        made: list[dict[str, object]] = [
            {
                "apiVersion": "storage.k8s.io/v1",
                "kind": "StorageClass",
                "metadata": {"name": self.storage_class},
                "provisioner": "kubernetes.io/no-provisioner",
                "volumeBindingMode": "WaitForFirstConsumer",
            }
        ]
        for node in self.nodes:
            here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
            made.append(
                {
                    "apiVersion": "v1",
                    "kind": "PersistentVolume",
                    "metadata": {"name": f"{self.storage_class}-{node}"},
                    "spec": {
                        "accessModes": ["ReadWriteOnce"],
                        "capacity": {"storage": f"{SIZE_MIB}Mi"},
                        "local": {"path": self.path},
                        "nodeAffinity": {
                            "required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}
                        },
                        "persistentVolumeReclaimPolicy": "Retain",
                        "storageClassName": self.storage_class,
                    },
                }
            )
        return made


@pytest.fixture
def small_volumes(own_namespace: Kubectl) -> Iterator[SmallVolumes]:
    """Two of them, on two workers; a folder of the local provisioner has no limit to run into."""
    workers = [
        node["metadata"]["name"]
        for node in own_namespace.objects("nodes")
        if CONTROL_PLANE not in node["metadata"]["labels"]
    ]
    name = f"small-{own_namespace.namespace}"
    volumes = SmallVolumes(name, f"/var/lib/{name}", tuple(workers[:2]))
    volumes.mount()
    try:
        own_namespace.apply(*volumes.manifests())
        yield volumes
    finally:
        for made in volumes.manifests():
            name = str(made["metadata"]["name"])  # type: ignore[index] # a manifest
            own_namespace.delete(str(made["kind"]), name, "--wait=false")
        volumes.unmount()


@pytest.fixture
def brim(own_namespace: Kubectl, small_volumes: SmallVolumes) -> Iterator[Cluster]:
    """A cluster on them."""
    cluster = Cluster(own_namespace, "brim")
    cluster.apply(
        manifest(
            "brim",
            instances=2,
            storage={"size": f"{SIZE_MIB}Mi", "className": small_volumes.storage_class},
            pgbouncer={"instances": 1},
        )
    )
    yield cluster
    with contextlib.suppress(AssertionError):
        cluster.delete()


def as_application(cluster: Cluster, pod: str, script: str) -> subprocess.CompletedProcess[str]:
    """A shell script in which psql is the application."""
    app = cluster.secret(names.secret_app(cluster.name))
    environment = (
        f"PGPASSWORD={app['password']}",
        f"PGUSER={app['username']}",
        f"PGDATABASE={app['dbname']}",
        "PGHOST=127.0.0.1",
    )
    result: subprocess.CompletedProcess[str] = cluster.exec(
        pod, "env", *environment, "sh", "-c", script, check=False
    )
    return result


def writes(cluster: Cluster, pod: str, *, mebibytes: int = 1) -> bool:
    """Whether the application may write."""
    # 4 MiB a second: as an application fills a volume, and not as a copy does.
    script = (
        f"for i in $(seq {mebibytes}); do psql -X -q -c"
        " \"INSERT INTO filler SELECT repeat('x', 7000) FROM generate_series(1, 140)\" || exit 1;"
        " sleep 0.25; done"
    )
    result = as_application(cluster, pod, script)
    assert result.returncode == 0 or "read-only transaction" in result.stderr, result.stderr
    return result.returncode == 0


@pytest.mark.timeout(900)
def test_a_full_primary_stays_the_primary_and_recovers_when_there_is_room(
    brim: Cluster, small_volumes: SmallVolumes, report: Report
) -> None:
    primary = brim.settled()
    epoch = brim.status()["epoch"]
    made = as_application(
        brim,
        primary,
        'psql -X -q -c "CREATE TABLE filler (a text)"'
        ' -c "ALTER TABLE filler ALTER a SET STORAGE PLAIN"',
    )
    assert made.returncode == 0, made.stderr
    started = brim.value(primary, "SELECT pg_postmaster_start_time()")

    # It fills up: postgres lives, the application reads, nothing else happens.
    written = 0
    while writes(brim, primary, mebibytes=10):
        written += 10
        assert written < SIZE_MIB, "the volume should be full"
    report.measured("volume full: MiB that the application wrote", written)
    brim.condition_says(f"DiskFull .*{primary}.*spec.storage.size", within=30)
    assert brim.condition("Ready")["status"] == "False"
    assert brim.value(primary, "SELECT pg_postmaster_start_time()") == started

    def reads() -> bool:
        read = as_application(brim, primary, 'psql -XAtc "SELECT count(*) FROM filler"')
        assert int(read.stdout or "0") > 0, read.stderr
        return True

    eventually(reads, within=20, what="the application reads")

    # A superuser, whom nobody stops, fills it past that: postgres may panic, and comes back.
    use_wal(brim, primary, 20)
    eventually(
        lambda: brim.value(primary, "SELECT pg_is_in_recovery()") == "f",
        within=90,
        what="it is up again",
    )
    brim.condition_says(f"DiskFull .*{primary}", within=30)

    def unmoved() -> bool:
        status = brim.status()
        assert status["epoch"] == epoch, describe(status)
        return True

    stays(unmoved, for_s=30, every=2)
    assert brim.status()["summary"] == "DiskFull"

    # The volumes grow, and it goes on by itself.
    small_volumes.grow()
    eventually(lambda: writes(brim, primary), within=60, what="the application writes again")
    brim.wait_ready(within=240)
    assert brim.settled() == primary
    assert brim.status()["epoch"] == epoch

    # Or what takes the room is removed.
    while writes(brim, primary, mebibytes=20):
        written += 20
        assert written < GROWN_MIB, "the volume should be full"
    brim.condition_says("DiskFull", within=30)
    brim.psql(primary, "TRUNCATE filler", "app")
    brim.psql(primary, "CHECKPOINT")
    eventually(lambda: writes(brim, primary), within=60, what="the application writes again")
    brim.wait_ready(within=240)
    assert brim.status()["epoch"] == epoch
