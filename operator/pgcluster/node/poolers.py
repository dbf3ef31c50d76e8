"""The poolers that have registered, and what this instance's server hears of them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import Any, LiteralString

from pgcluster.api import names
from pgcluster.api.reports import PoolerReport
from pgcluster.clock import monotonic_s
from pgcluster.kube.client import KubeClient
from pgcluster.kube.resources import CONFIG_MAPS
from pgcluster.node.hearing import Backend, Hearing, Pooler
from pgcluster.postgres.local import LocalPostgres

log = logging.getLogger(__name__)

CONNECTIONS: LiteralString = """
SELECT pid, application_name AS application, host(client_addr) AS address,
       coalesce(state_change, backend_start)::text AS changed
FROM pg_stat_activity
WHERE backend_type = 'client backend' AND client_addr IS NOT NULL
      AND (usename = %s OR host(client_addr) = ANY(%s))
"""


class Poolers:
    """Follows ConfigMap `<cluster>-poolers` and listens for those in it."""

    def __init__(
        self, client: KubeClient, local: LocalPostgres, *, cluster: str, namespace: str
    ) -> None:
        self._client = client
        self._local = local
        self._name = names.config_map_poolers(cluster)
        self._namespace = namespace
        self._registered: tuple[Pooler, ...] = ()
        self._hearing = Hearing()
        self._silent: tuple[str, ...] = ()

    async def watch(self) -> None:
        """For ever."""
        async for event in self._client.watch(CONFIG_MAPS, self._namespace, name=self._name):
            if event.type == "SYNC":
                self._registered = registered(event.items[0] if event.items else {})
            elif event.type in ("ADDED", "MODIFIED"):
                self._registered = registered(event.object)
            elif event.type == "DELETED":
                self._registered = ()

    def heard(self) -> tuple[Pooler, ...]:
        """Those that are not silent, as far as this primary has listened."""
        return tuple(pooler for pooler in self._registered if pooler.pod not in self._silent)

    async def look(self, *, primary: bool) -> tuple[str, ...]:
        """Pods of the poolers that are silent; RetryError where the server does not answer."""
        poolers = self._registered
        rows = []
        if poolers:
            rows = await self._local.query(
                CONNECTIONS, names.ROLE_POOLER, [pooler.address for pooler in poolers]
            )
        silent = self._hearing.look(
            monotonic_s(), poolers, (Backend(**row) for row in rows), primary=primary
        )
        if primary and silent != self._silent:
            log.info("poolers that are not heard: %s", ", ".join(silent) or "none")
        self._silent = silent if primary else ()
        return self._silent


def registered(manifest: Mapping[str, Any]) -> tuple[Pooler, ...]:
    """Who has registered; without an address it is a pooler of a version that does not tell."""
    found = []
    for text in (manifest.get("data") or {}).values():
        with contextlib.suppress(ValueError):
            report = PoolerReport.model_validate_json(text)
            if report.address:
                found.append(Pooler(report.pod, report.address, report.mute))
    return tuple(found)
