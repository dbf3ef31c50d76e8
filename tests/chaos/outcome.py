"""What the faults did to the application: per step, and by kind of fault. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.bench.record import spread


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was counted over one step: from its first fault until the cluster had settled."""

    faults: list[dict[str, Any]]  # number, kind, role, target, began, lasts_s, missed
    label: str
    old_primary: str
    new_primary: str
    timelines: tuple[int, int]
    gap_s: float
    gap_of_a_writer_s: float
    errors: int
    settled_s: float  # after the last fault was undone
    lost: int
    dual: int

    @property
    def failover(self) -> bool:
        """Whether there was a promotion."""
        return self.timelines[0] != self.timelines[1]


def by_kind(outcomes: Iterable[Outcome]) -> dict[str, dict[str, Any]]:
    """Figures by kind of fault; those that overlapped are together, for nobody can tell whose."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        label = outcome.label if len(outcome.faults) == 1 else "overlapping"
        groups.setdefault(label, []).append(outcome)
    return {
        label: {
            "faults": sum(len(outcome.faults) for outcome in found),
            "missed": sum(bool(f["missed"]) for outcome in found for f in outcome.faults),
            "failovers": sum(outcome.failover for outcome in found),
            "gap_s": spread([outcome.gap_s for outcome in found]),
            "settled_s": spread([outcome.settled_s for outcome in found]),
            "errors": sum(outcome.errors for outcome in found),
            "lost": sum(outcome.lost for outcome in found),
            "dual": sum(outcome.dual for outcome in found),
        }
        for label, found in sorted(groups.items())
    }


def lines(kinds: dict[str, dict[str, Any]]) -> list[str]:
    """The figures as a terminal shows them."""
    head = (
        f"{'fault':<28} {'faults':>6} {'missed':>6} {'failovers':>9} {'gap p50':>8} {'p95':>7}"
        f" {'max':>7} {'settled max':>11} {'errors':>7} {'lost':>5} {'dual':>5}"
    )
    rows = [
        f"{label:<28} {row['faults']:>6} {row['missed']:>6} {row['failovers']:>9}"
        f" {row['gap_s']['p50']:>8.2f} {row['gap_s']['p95']:>7.2f} {row['gap_s']['max']:>7.2f}"
        f" {row['settled_s']['max']:>11.1f} {row['errors']:>7} {row['lost']:>5} {row['dual']:>5}"
        for label, row in kinds.items()
    ]
    return [head, *rows]
