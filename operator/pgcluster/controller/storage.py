"""Bringing the volumes in line with the spec: the calls that controller/volumes.py decides on."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from pgcluster.api import conditions, names
from pgcluster.api.errors import RetryError
from pgcluster.api.models import PgCluster
from pgcluster.controller import volumes
from pgcluster.controller.observe import Observed
from pgcluster.controller.status import Told
from pgcluster.kube.client import KubeClient, Manifest
from pgcluster.kube.errors import Conflict, Forbidden, Invalid, NotFound
from pgcluster.kube.resources import PVCS, STATEFUL_SETS, STORAGE_CLASSES

log = logging.getLogger(__name__)


class Storage:
    """One look at one cluster's volumes. `refused` and `pending` are what people should know."""

    def __init__(self, client: KubeClient, observed: Observed, cluster: PgCluster) -> None:
        self._client = client
        self._observed = observed
        self._cluster = cluster
        self.refused: Told | None = None
        self.pending: Told | None = None

    async def see_to(self, wanted: Manifest, live: Manifest | None, *, instances: int) -> None:
        """Grow, own and delete claims. `wanted` is the StatefulSet as the spec has it."""
        key = self._observed.key
        selector = f"{names.LABEL_CLUSTER}={key.name}"
        claims, _ = await self._client.list(PVCS, key.namespace, labels=selector)
        await self._grow(wanted, claims, instances)
        for change in volumes.to_own(self._observed, self._cluster, claims):
            await self._own(change)
        doomed = volumes.to_delete(self._observed, self._cluster, claims, live, instances=instances)
        for claim in doomed:
            name = claim["metadata"]["name"]
            await self._client.delete(PVCS, name, key.namespace, uid=claim["metadata"].get("uid"))
            log.info("deleted volume claim %s: its instance was removed", name)

    async def remake(self, wanted: Manifest, live: Manifest | None) -> bool:
        """Take away a StatefulSet that makes smaller volumes than the spec, and nothing with it.

        The next look makes it anew, and its pods, which run on, are its own again. True where it is
        to come soon.
        """
        if live is None or not volumes.outgrown(wanted, live):
            return False
        metadata = live["metadata"]
        await self._client.delete(
            STATEFUL_SETS,
            metadata["name"],
            metadata["namespace"],
            uid=metadata["uid"],
            orphan=True,
        )
        log.info("the StatefulSet is made anew around its pods: later volumes are larger")
        return True

    async def _grow(self, wanted: Manifest, claims: list[Manifest], instances: int) -> None:
        key = self._observed.key
        found = volumes.to_grow(
            wanted, claims, await self._classes(claims), cluster=key.name, instances=instances
        )
        refused = list(found.refused)
        for growth in found.growths:
            patch = {"spec": {"resources": {"requests": {"storage": growth.size}}}}
            try:
                await self._client.merge_patch(
                    PVCS, growth.claim, key.namespace, patch, manager=names.MANAGER_OPERATOR
                )
            except (Invalid, Forbidden) as error:
                refused.append(f"{growth.claim}: {error}")
            except NotFound:
                continue
            else:
                log.info("volume %s is to grow to %s", growth.claim, growth.size)
        if refused:
            self.refused = (conditions.VOLUME_GROWTH_REFUSED, volumes.advice(refused))
        if found.pending:
            self.pending = (conditions.VOLUME_RESIZING, "; ".join(found.pending))

    async def _own(self, change: volumes.Owned) -> None:
        patch = {
            "metadata": {
                "ownerReferences": list(change.owners),
                "resourceVersion": change.version,
            }
        }
        namespace = self._observed.key.namespace
        try:
            await self._client.merge_patch(
                PVCS, change.claim, namespace, patch, manager=names.MANAGER_OPERATOR
            )
        except NotFound:
            return
        except Conflict as error:
            raise RetryError(f"claim {change.claim} changed meanwhile", delay_s=0.5) from error
        what = "goes with" if change.owners else "outlives"
        log.info("volume %s %s its PgCluster from now on", change.claim, what)

    async def _classes(self, claims: list[Manifest]) -> Mapping[str, Mapping[str, Any]]:
        if not claims:
            return {}
        try:
            items, _ = await self._client.list(STORAGE_CLASSES)
        except Forbidden:
            # An operator for some namespaces only may lack the right to look; the API server tells.
            return {}
        return {item["metadata"]["name"]: item for item in items}
