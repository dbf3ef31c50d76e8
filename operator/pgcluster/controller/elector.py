"""Which replica leads: a Lease of our own, since kopf's peering lets two pause each other.

The rule is client-go's: a Lease counts as expired when this process has watched it unchanged for
its whole duration by its own monotonic clock, and the leader stops at a deadline before that.
Sources: k8s.io/client-go/tools/leaderelection.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pgcluster.kube.client import KubeClient, Manifest
from pgcluster.kube.errors import AlreadyExists, ApiError, Conflict
from pgcluster.kube.resources import LEASES

log = logging.getLogger(__name__)

NAME = "pgcluster-operator"
DURATION_S = 15
RENEW_DEADLINE_S = 10.0
RETRY_S = 2.0
_TRY_S = 5.0


class Elector:
    """One replica's part in the election."""

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        identity: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._identity = identity
        self._clock = clock
        self._seen: dict[str, Any] = {}
        self._seen_at_s = clock()
        self._renewed_at_s: float | None = None
        self._answered_at_s: float | None = None

    @property
    def leads(self) -> bool:
        """Whether this replica may write."""
        return self._left_s() > 0

    @property
    def watches(self) -> bool:
        """Whether the API has lately answered: a hot standby."""
        return self._answered_at_s is not None and self._clock() - self._answered_at_s < DURATION_S

    async def acquire(self) -> None:
        """Wait until this replica leads."""
        while True:
            if await self.attempt():
                break
            await asyncio.sleep(RETRY_S)
        log.info("this replica leads now")

    async def hold(self) -> None:
        """Renew until that fails for too long, or another took it; then return."""
        while True:
            await asyncio.sleep(RETRY_S)
            # No try goes on past the deadline: by then this replica must know that it lost.
            renewed = await self.attempt(max(self._left_s(), 0.0))
            if not renewed and (self._held_by_other() or self._left_s() <= RETRY_S):
                log.error("this replica does not lead any more")
                return

    async def release(self) -> None:
        """Let another replica follow at once."""
        if self._renewed_at_s is None:
            return
        self._renewed_at_s = None
        try:
            lease = await self._client.get(LEASES, NAME, self._namespace)
            if lease is None or (lease.get("spec") or {}).get("holderIdentity") != self._identity:
                return
            lease["spec"] |= {"holderIdentity": "", "leaseDurationSeconds": 1}
            await self._client.replace(LEASES, lease)
            log.info("the leadership was given up")
        except ApiError as error:
            log.warning("the leadership was not given up and has to expire: %s", error)

    def _left_s(self) -> float:
        """How long until the deadline."""
        renewed_at_s = self._renewed_at_s
        return 0.0 if renewed_at_s is None else renewed_at_s + RENEW_DEADLINE_S - self._clock()

    async def attempt(self, within_s: float = _TRY_S) -> bool:
        """One try to take or renew the Lease."""
        started_s = self._clock()
        try:
            async with asyncio.timeout(min(within_s, _TRY_S)):
                held = await self._take_or_renew()
        except (ApiError, TimeoutError) as error:
            log.warning("the election's Lease: %s", str(error) or "no answer in time")
            return False
        self._answered_at_s = self._clock()
        if held:
            # Counted from before the request: the others count from when they see its effect.
            self._renewed_at_s = started_s
        return held

    async def _take_or_renew(self) -> bool:
        lease = await self._client.get(LEASES, NAME, self._namespace)
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if lease is None:
            return await self._create(now)
        spec = lease.get("spec") or {}
        if spec != self._seen:
            self._seen = spec
            self._seen_at_s = self._clock()
        holder = spec.get("holderIdentity") or ""
        if holder not in ("", self._identity) and not self._expired(spec):
            return False
        wanted = {
            **spec,
            "holderIdentity": self._identity,
            "leaseDurationSeconds": DURATION_S,
            "renewTime": now,
        }
        if holder != self._identity:
            wanted["acquireTime"] = now
            wanted["leaseTransitions"] = int(spec.get("leaseTransitions") or 0) + 1
        try:
            answer = await self._client.replace(LEASES, {**lease, "spec": wanted})
        except Conflict:
            return False
        self._seen = answer["spec"]
        self._seen_at_s = self._clock()
        return True

    async def _create(self, now: str) -> bool:
        manifest: Manifest = {
            "metadata": {"name": NAME, "namespace": self._namespace},
            "spec": {
                "holderIdentity": self._identity,
                "leaseDurationSeconds": DURATION_S,
                "acquireTime": now,
                "renewTime": now,
                "leaseTransitions": 0,
            },
        }
        try:
            self._seen = (await self._client.create(LEASES, manifest))["spec"]
        except AlreadyExists:
            return False
        self._seen_at_s = self._clock()
        return True

    def _expired(self, spec: Manifest) -> bool:
        duration_s = float(spec.get("leaseDurationSeconds") or DURATION_S)
        return self._clock() - self._seen_at_s > duration_s

    def _held_by_other(self) -> bool:
        return (self._seen.get("holderIdentity") or "") not in ("", self._identity)
