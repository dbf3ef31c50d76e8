"""Prometheus metrics of one pooler: what its agent does, and pgbouncer's own counters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from pgcluster.api.errors import PgClusterError
from pgcluster.pgbouncer.admin import Admin

# Columns of SHOW POOLS and SHOW STATS_TOTALS that every supported version has.
_POOLS = ("cl_active", "cl_waiting", "sv_active", "sv_idle", "sv_used", "sv_login", "maxwait")
_TOTALS = (
    "xact_count",
    "query_count",
    "bytes_received",
    "bytes_sent",
    "xact_time",
    "query_time",
    "wait_time",
)


class Metrics:
    """Set by the agent; pgbouncer is asked when somebody scrapes."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        prefix = "pgcluster_pooler_"

        def gauge(name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
            return Gauge(prefix + name, text, labels, registry=self._registry)

        self.ready = gauge("ready", "1 while new clients may be sent here")
        self.paused = gauge("paused", "1 while clients wait for a primary")
        self.epoch = gauge("epoch", "Epoch of the applied databases section")
        self.primary_up = gauge("primary_up", "1 while the primary answers as one")
        self.commands = Histogram(
            prefix + "command_seconds",
            "Time that PAUSE, RELOAD and RESUME took",
            ["command"],
            buckets=(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5),
            registry=self._registry,
        )
        self.not_accepted = Counter(
            prefix + "not_accepted",
            "Files that pgbouncer did not take",
            ["file"],
            registry=self._registry,
        )
        self._pools = {
            column: gauge(f"pool_{column}", f"{column} of SHOW POOLS", ["database", "user"])
            for column in _POOLS
        }
        self._totals = {
            column: gauge(f"database_{column}", f"{column} of SHOW STATS_TOTALS", ["database"])
            for column in _TOTALS
        }

    async def scrape(self, admin: Admin) -> bytes:
        """The metrics as Prometheus reads them; without pgbouncer's while it does not answer."""
        for family in (*self._pools.values(), *self._totals.values()):
            family.clear()
        try:
            for row in await admin.pools():
                _set(self._pools, row, {"database": row["database"], "user": row["user"]})
            for row in await admin.totals():
                _set(self._totals, row, {"database": row["database"]})
        except PgClusterError:
            # The gauge `ready` says it.
            pass
        return generate_latest(self._registry)


def _set(
    families: Mapping[str, Gauge],
    row: Mapping[str, str | None],
    labels: Mapping[str, str | None],
) -> None:
    for column, family in families.items():
        if (value := row.get(column)) is not None:
            family.labels(**{name: label or "" for name, label in labels.items()}).set(float(value))
