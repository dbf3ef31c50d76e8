"""A PgCluster with both observers, for the programs that are not pytest: bench and chaos."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from typing import Any

from pgcluster import __version__
from pgcluster.api import names
from tests.e2e.cluster import Cluster, describe, manifest
from tests.e2e.kubectl import Kubectl
from tests.e2e.observing import Client, Watcher
from tests.e2e.waiting import eventually

INSTANCES = 3
POOLERS = 2
WRITERS = 8
# Of all writers together, so that more of them are more connections and not more load.
RATE = 400
OBSERVER_IMAGE = f"pgcluster.dev/operator:{__version__}"


class World:
    """One cluster, an application that writes to it, and who looks for two primaries."""

    def __init__(
        self, cluster: Cluster, client: Client, watcher: Watcher, *, writers: int = WRITERS
    ) -> None:
        self.cluster = cluster
        self.client = client
        self.watcher = watcher
        self._writers = writers

    def settled(self, *, within: float) -> str:
        """Wait until everything that was asked for is there, right and at work; the primary."""

        def complete() -> str:
            primary = self.cluster.settled(within=5)
            status = self.cluster.status()
            assert len(status["members"]) == INSTANCES, describe(status)
            assert len(status["poolers"]) == POOLERS, describe(status)
            for row in status["poolers"]:
                assert row["ready"], describe(status)
                assert not row["paused"], describe(status)
                assert row["primary"] == primary, describe(status)
            slots = self.cluster.psql(
                primary, "SELECT slot_name, active FROM pg_replication_slots ORDER BY 1"
            )
            others = [pod for pod in self.cluster.instances() if pod != primary]
            assert slots == [[names.slot(pod), "t"] for pod in others], slots
            return primary

        return eventually(complete, within=within, what="the cluster has settled")

    def writes_flow(self, mark: str, *, within: float) -> dict[str, Any]:
        """Wait until every writer writes, without errors; what was counted since `mark`."""

        def flowing() -> dict[str, Any]:
            since = self.client.mark()
            eventually(
                lambda: self.client.stats(since)["acknowledged"] >= 5 * self._writers,
                within=5,
                every=0.2,
                what="the application writes",
            )
            now = self.client.stats(since)
            assert now["errors"] == 0, now["errors_by_text"]
            gaps = now["longest_gap_per_writer_s"]
            assert max(gaps) < now["seconds"], f"a writer has not written: gaps {gaps}"
            return self.client.stats(mark)

        return eventually(flowing, within=within, what="every writer writes without errors")

    def renew_client(self) -> None:
        """A new client: it forgets the rows of the old one, which grow with time."""
        self.client.stop()
        self.client = application(self.cluster, self._writers)

    def fill(self, mebibytes: int) -> None:
        """So much data that nobody writes to."""
        rows = f"SELECT repeat('x', 1000) FROM generate_series(1, {mebibytes << 10})"
        words = ("psql", "-XqU", "postgres", "-c", f"CREATE TABLE bulk AS {rows}", "app")
        self.cluster.exec(self.cluster.primary(), *words, timeout_s=600)


def application(cluster: Cluster, writers: int) -> Client:
    """So many connections that write."""
    return Client(cluster, OBSERVER_IMAGE, writers=writers, rate_per_writer=RATE / writers)


@contextlib.contextmanager
def world(name: str, *, keep: bool = False, writers: int = WRITERS, **spec: Any) -> Iterator[World]:
    """A namespace of its own with all of it, gone afterwards unless it is to be kept."""
    kubectl = Kubectl(f"{name}-{secrets.token_hex(2)}")
    label = {"pod-security.kubernetes.io/enforce": "restricted"}
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": kubectl.namespace, "labels": label},
        }
    )
    try:
        cluster = Cluster(kubectl, name)
        cluster.apply(
            manifest(name, **{"instances": INSTANCES, "pgbouncer": {"instances": POOLERS}, **spec})
        )
        client = application(cluster, writers)
        yield World(cluster, client, Watcher(cluster, OBSERVER_IMAGE), writers=writers)
    finally:
        if keep:
            print(f"kept: namespace {kubectl.namespace}", flush=True)
        else:
            kubectl.run("delete", "namespace", kubectl.namespace, "--wait=false", timeout_s=60)
