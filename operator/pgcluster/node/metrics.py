"""Prometheus metrics of one instance."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge

from pgcluster.node.standing import Standing


class Metrics:
    """Gauges that the agent's loop sets; no label but the ones that Prometheus adds."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"pgcluster_instance_{name}", text, registry=registry)

        self._primary = gauge("primary", "1 while this instance is the primary")
        self._streaming = gauge("streaming", "1 while this standby streams from its upstream")
        self._lag = gauge("replay_lag_bytes", "WAL received by the upstream but not replayed here")
        self._timeline = gauge("timeline", "Timeline of this instance")
        self._position = gauge("wal_position_bytes", "WAL flushed (primary) or received (standby)")
        self._repmgrd = gauge("repmgrd_up", "1 while repmgrd runs")
        self._paused = gauge("repmgrd_paused", "1 while repmgrd is paused")

    def observe(self, standing: Standing) -> None:
        """Set everything from what was just seen."""
        seen = standing.observed
        self._primary.set(standing.primary)
        self._repmgrd.set(standing.repmgrd)
        self._paused.set(standing.repmgrd_paused)
        if seen is None:
            return
        self._streaming.set(seen.streaming)
        self._lag.set(seen.lag_bytes or 0)
        self._timeline.set(seen.point.timeline)
        self._position.set(seen.point.lsn.value)
