"""One fault under the observers: what is always true is asserted, what it cost is reported.

ordeal = ordeals.begin("primary's node switched off")
with nodes.switched_off(node):
    ordeal.writes_again(within=60)
outcome = ordeal.ended()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pgcluster.api import names
from tests.e2e.cluster import Cluster
from tests.e2e.observing import Client, Watcher
from tests.e2e.report import Report
from tests.e2e.waiting import eventually

# Generous: what is asserted is that it happens, what it took is reported.
WRITES_WITHIN_S = 60.0
SETTLED_WITHIN_S = 180.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """Who was primary and who is, and what the application counted in between."""

    before: str
    after: str
    counted: Mapping[str, Any]

    @property
    def gap_s(self) -> float:
        """The longest time without an acknowledged write."""
        return float(self.counted["longest_gap_s"])


class Ordeal:
    """From the moment before a fault to the moment when nothing of it is left."""

    def __init__(
        self,
        name: str,
        cluster: Cluster,
        client: Client,
        watcher: Watcher,
        report: Report,
        *,
        operator: bool = True,
    ) -> None:
        self.name = name
        self.cluster = cluster
        self._client = client
        self._watcher = watcher
        self._report = report
        # Without an operator there is no status to look at.
        self._settled = cluster.settled if operator else cluster.agreed
        self.primary = self._settled(within=SETTLED_WITHIN_S)
        self.seen = watcher.mark()
        self.mark = client.mark()

    def writes_again(self, *, within: float = WRITES_WITHIN_S) -> Mapping[str, Any]:
        """Wait until every writer is through it; what was counted so far."""
        return self._client.writes_again(self.mark, within=within)

    def handed_over(self, *, within: float = WRITES_WITHIN_S) -> str:
        """Wait until another holds the Lease: a pod that is deleted ends a moment later."""

        def other() -> str:
            holder = self.cluster.holder()
            assert holder not in ("", self.primary), f"the Lease is held by {holder!r}"
            return holder

        return eventually(other, within=within, what=f"{self.primary} hands over")

    def counted(self) -> Mapping[str, Any]:
        """What the application has counted since the ordeal began."""
        return self._client.stats(self.mark)

    def ended(self, *, may_lose: bool = False, within: float = SETTLED_WITHIN_S) -> Outcome:
        """Wait until all is as it should be, assert what is always true, report what it cost.

        `may_lose`: replication is asynchronous and the primary was lost, so that what it alone had
        is counted and not forbidden.
        """
        self.writes_again()
        after = self._settled(within=within)
        counted = self._client.stats(self.mark)
        self._tell(counted)
        self._watcher.assert_one_primary()
        found = self._client.verified()
        if may_lose:
            self._report.measured(f"{self.name}: acknowledged rows lost", found["lost"])
        else:
            known = self._client.lost_before
            assert found["lost"] == known, f"acknowledged rows are missing: {found}"
        self._client.lost_before = found["lost"]
        assert found["doubled"] == 0, f"rows are there twice: {found}"
        self._slots_are_the_standbys(after)
        return Outcome(self.primary, after, counted)

    def _tell(self, counted: Mapping[str, Any]) -> None:
        measured = self._report.measured
        measured(f"{self.name}: longest gap", counted["longest_gap_s"], "s")
        per_writer = counted["longest_gap_per_writer_s"]
        measured(f"{self.name}: longest gap of one writer", max(per_writer), "s")
        measured(f"{self.name}: errors of 8 writers", counted["errors"])
        for text, count in counted["errors_by_text"].items():
            measured(f"{self.name}: errors, {text[:90]}", count)
        gap_s = self._watcher.stats(self.seen)["longest_gap_s"]
        measured(f"{self.name}: gap of the watcher", gap_s, "s")

    def _slots_are_the_standbys(self, primary: str) -> None:
        wanted = [[names.slot(pod), "t"] for pod in self.cluster.instances() if pod != primary]
        query = "SELECT slot_name, active FROM pg_replication_slots ORDER BY 1"

        def right() -> bool:
            slots = self.cluster.psql(primary, query)
            assert slots == wanted, f"slots of {primary}: {slots}"
            return True

        eventually(right, within=60, what="the slots are the standbys")


@dataclass(frozen=True, slots=True)
class Ordeals:
    """Begins ordeals of one cluster."""

    cluster: Cluster
    client: Client
    watcher: Watcher
    report: Report

    def begin(self, name: str, *, operator: bool = True) -> Ordeal:
        """Wait until nothing is left of an earlier one, then set the marks."""
        return Ordeal(name, self.cluster, self.client, self.watcher, self.report, operator=operator)
