"""What a pooler's agent learns from the Kubernetes API and tells it.

A mounted ConfigMap lags by a minute or more, so the API is watched.
"""

from __future__ import annotations

import contextlib
import logging
from asyncio import TaskGroup
from collections.abc import Callable
from typing import Any, Protocol

from pgcluster.api import names
from pgcluster.api.config import LeaseConfig
from pgcluster.api.reports import PoolerReport
from pgcluster.kube.client import KubeClient, WatchEvent
from pgcluster.kube.resources import CONFIG_MAPS, LEASES, Resource
from pgcluster.topology.lease import LeaseRecord

log = logging.getLogger(__name__)

# The Lease says how long it lasts; this counts only for one that was never taken.
_DEFAULT_DURATION_S = LeaseConfig().duration_s


class Listener(Protocol):
    """Who is told what the API shows."""

    def files_seen(self, data: dict[str, str]) -> None:
        """The ConfigMap with pgbouncer's files, as it is now."""

    def lease_seen(self, record: LeaseRecord | None) -> None:
        """The Lease as it is now; None where there is none."""

    def api_lost(self) -> None:
        """What was seen may be old from now on."""


class Source(Protocol):
    """The agent's side of the API; the tests have another one."""

    async def follow(self, listener: Listener) -> None:
        """Tell the listener of every change, for ever."""

    async def lease(self) -> LeaseRecord | None:
        """Ask for the Lease now; PgClusterError where the API does not answer."""

    async def report(self, report: PoolerReport) -> None:
        """Publish what this pooler is and does; PgClusterError where that failed."""

    async def reports(self) -> dict[str, PoolerReport]:
        """What all poolers say, by pod; PgClusterError where the API does not answer."""


class KubeSource:
    """The API of the cluster that this pod is in."""

    def __init__(self, client: KubeClient, *, cluster: str, namespace: str, pod: str) -> None:
        self._client = client
        self._cluster = cluster
        self._namespace = namespace
        self._pod = pod

    async def follow_files(self, listener: Listener) -> None:
        """Follow ConfigMap `<cluster>-pgbouncer`."""
        name = names.config_map_pgbouncer(self._cluster)

        def see(manifest: dict[str, Any] | None) -> None:
            if manifest is not None:
                listener.files_seen(manifest.get("data") or {})

        await self._watch(CONFIG_MAPS, name, see, listener)

    async def follow_lease(self, listener: Listener) -> None:
        """Follow Lease `<cluster>-primary`."""
        name = names.primary_lease(self._cluster)
        await self._watch(LEASES, name, lambda seen: listener.lease_seen(_record(seen)), listener)

    async def follow(self, listener: Listener) -> None:
        """Tell the listener of every change, for ever."""
        async with TaskGroup() as group:
            group.create_task(self.follow_files(listener), name="files")
            group.create_task(self.follow_lease(listener), name="lease")

    async def lease(self) -> LeaseRecord | None:
        """Ask for the Lease now; PgClusterError where the API does not answer."""
        name = names.primary_lease(self._cluster)
        return _record(await self._client.get(LEASES, name, self._namespace))

    async def report(self, report: PoolerReport) -> None:
        """Write this pod's key of ConfigMap `<cluster>-poolers`."""
        await self._client.apply(
            CONFIG_MAPS,
            {
                "metadata": {
                    "name": names.config_map_poolers(self._cluster),
                    "namespace": self._namespace,
                },
                "data": {self._pod: report.model_dump_json(exclude_none=True)},
            },
            manager=f"{names.MANAGER_POOLER}-{self._pod}",
        )

    async def reports(self) -> dict[str, PoolerReport]:
        """Read ConfigMap `<cluster>-poolers`; what makes no sense is left out."""
        name = names.config_map_poolers(self._cluster)
        manifest = await self._client.get(CONFIG_MAPS, name, self._namespace)
        found = {}
        for pod, text in ((manifest or {}).get("data") or {}).items():
            with contextlib.suppress(ValueError):
                found[pod] = PoolerReport.model_validate_json(text)
        return found

    async def _watch(
        self,
        resource: Resource,
        name: str,
        see: Callable[[dict[str, Any] | None], None],
        listener: Listener,
    ) -> None:
        async for event in self._client.watch(resource, self._namespace, name=name):
            if event.type == "LOST":
                listener.api_lost()
            else:
                see(_current(event))


def _current(event: WatchEvent) -> dict[str, Any] | None:
    if event.type == "SYNC":
        return event.items[0] if event.items else None
    return None if event.type == "DELETED" else event.object


def _record(manifest: dict[str, Any] | None) -> LeaseRecord | None:
    if manifest is None:
        return None
    return LeaseRecord.parse(manifest, default_duration_s=_DEFAULT_DURATION_S)
