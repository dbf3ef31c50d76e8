"""What the operator tells Prometheus."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

_PHASES_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 20.0, 30.0, 60.0, 120.0)


class Metrics:
    """All metrics of one operator process."""

    def __init__(self) -> None:
        # Else each counter and histogram has one more series.
        disable_created_metrics()  # type: ignore[no-untyped-call] # prometheus-client has it so
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "pgcluster_api_requests",
            "Requests to the Kubernetes API, but for the watches",
            ["verb", "resource"],
            registry=self.registry,
        )
        self.reconciles = Counter(
            "pgcluster_reconciles",
            "Reconciliations, by how they ended: done, blocked, retry or error",
            ["outcome"],
            registry=self.registry,
        )
        self.reconcile_seconds = Histogram(
            "pgcluster_reconcile_duration_seconds",
            "How long a reconciliation took",
            registry=self.registry,
        )
        self.queue_depth = Gauge(
            "pgcluster_queue_depth", "Clusters that wait for a worker", registry=self.registry
        )
        self.leader = Gauge(
            "pgcluster_operator_leader", "1 in the replica that leads", registry=self.registry
        )
        self.ready = Gauge(
            "pgcluster_cluster_ready",
            "1 while the cluster is Ready",
            ["namespace", "name"],
            registry=self.registry,
        )
        self.outdated = Gauge(
            "pgcluster_rollout_outdated_instances",
            "Instances that a rolling change has yet to come to",
            ["namespace", "name"],
            registry=self.registry,
        )
        self.failovers = Counter(
            "pgcluster_failovers",
            "Changes of primary that this operator has seen",
            ["namespace", "name", "cause"],
            registry=self.registry,
        )
        self.failover_seconds = Histogram(
            "pgcluster_failover_duration_seconds",
            "From the detection of a primary's loss to the end of each phase of the failover",
            ["phase"],
            buckets=_PHASES_S,
            registry=self.registry,
        )
        self.switchovers = Counter(
            "pgcluster_switchovers",
            "Switchovers that this operator has seen the end of, by who asked and what came of it",
            ["namespace", "name", "cause", "outcome"],
            registry=self.registry,
        )
        # Which series of which counter there are, by cluster.
        self._series: dict[tuple[str, str], set[tuple[Counter, tuple[str, ...]]]] = {}

    def request(self, verb: str, resource: str) -> None:
        """Count one request to the API."""
        self.requests.labels(verb=verb, resource=resource).inc()

    def failover(self, namespace: str, name: str, cause: str) -> None:
        """Count one change of primary."""
        self._count(self.failovers, namespace, name, cause)

    def switchover(self, namespace: str, name: str, cause: str, outcome: str) -> None:
        """Count one switchover that has ended."""
        self._count(self.switchovers, namespace, name, cause, outcome.lower())

    def _count(self, counter: Counter, namespace: str, name: str, *labels: str) -> None:
        self._series.setdefault((namespace, name), set()).add((counter, labels))
        counter.labels(namespace, name, *labels).inc()

    def forget(self, namespace: str, name: str) -> None:
        """Drop what is kept for a cluster that is gone: its series would stay for ever."""
        for counter, labels in self._series.pop((namespace, name), set()):
            counter.remove(namespace, name, *labels)
        _remove(self.ready, namespace, name)
        _remove(self.outdated, namespace, name)


def _remove(gauge: Gauge, *labels: str) -> None:
    try:
        gauge.remove(*labels)
    except KeyError:
        return
