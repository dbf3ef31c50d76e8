"""What one run measured, and the file of a case. Pure but for reading and writing that file."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

# In the order of a failover. Milliseconds since the application's writes stopped, each.
PHASES = (
    "detected",
    "gate",
    "promoted",
    "config",
    "reloaded",
    "resumed",
    "first_transaction",
)


@dataclass(frozen=True, slots=True)
class Run:
    """One fault and what the application suffered. Times in milliseconds."""

    number: int
    began: str
    waited_s: float  # from settled to the fault: the random moment
    old_primary: str
    new_primary: str
    gap_ms: int  # longest time in which none of the writers got an acknowledgement
    gap_per_writer_ms: list[int]
    errors: int
    writers_with_an_error: int
    errors_by_text: dict[str, int]
    lost: int  # acknowledged rows that are missing
    doubled: int
    dual: int  # intervals in which two instances accepted writes
    settled_s: float  # from the fault until everything was as before
    poolers_beside: int  # poolers on the primary's node
    load: list[float] = field(default_factory=list)  # of the machine, when the run began
    phases: dict[str, int | None] = field(default_factory=dict)  # empty without a failover

    @property
    def failover(self) -> bool:
        """Whether another instance became primary, or the same one anew."""
        return bool(self.phases)


def phases(record: Mapping[str, Any], *, stopped_at: str) -> dict[str, int | None]:
    """The phases of a `status.failovers` entry, from when the application's writes stopped.

    The status counts from when the loss was noticed, and what the application waits for begins
    before that.
    """
    detected_at = record.get("detectedAt")
    if detected_at is None:
        return {}
    passed = datetime.fromisoformat(detected_at) - datetime.fromisoformat(stopped_at)
    detected_ms = round(passed.total_seconds() * 1000)
    found: dict[str, int | None] = {"detected": detected_ms}
    for phase in PHASES[1:]:
        head, *rest = phase.split("_")
        ms = record.get(head + "".join(word.title() for word in rest) + "Ms")
        found[phase] = None if ms is None else detected_ms + ms
    return found


def percentile(values: Iterable[float], share: float) -> float | None:
    """The smallest value that `share` of all are not above; None of none."""
    ordered = sorted(values)
    if not ordered:
        return None
    # 0.95 * 20 is a little more than 19, and the ceiling of that is not what is meant.
    rank = math.ceil(round(share * len(ordered), 6))
    return ordered[max(1, rank) - 1]


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """p50, p95 and the largest."""
    return {
        "p50": percentile(values, 0.5),
        "p95": percentile(values, 0.95),
        "max": max(values, default=None),
    }


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """The figures of a case over its runs."""
    return {
        "runs": len(runs),
        "failovers": sum(run.failover for run in runs),
        "gap_ms": spread([run.gap_ms for run in runs]),
        "gap_of_a_writer_ms": spread([gap for run in runs for gap in run.gap_per_writer_ms]),
        "errors": spread([run.errors for run in runs]),
        "writers_with_an_error": spread([run.writers_with_an_error for run in runs]),
        "settled_s": spread([run.settled_s for run in runs]),
        "phases_ms": {
            phase: spread([ms for run in runs if (ms := run.phases.get(phase)) is not None])
            for phase in PHASES
        },
        "lost": sum(run.lost for run in runs),
        "doubled": sum(run.doubled for run in runs),
        "dual": sum(run.dual for run in runs),
    }


@dataclass(slots=True)
class CaseFile:
    """build/bench/<case>.json: what was run where, each run, the summary."""

    path: Path
    about: dict[str, Any]
    runs: list[Run] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> CaseFile:
        """What a former invocation left."""
        document = json.loads(path.read_text())
        known = {entry.name for entry in fields(Run)}
        runs = [
            Run(**{key: value for key, value in row.items() if key in known})
            for row in document["runs"]
        ]
        return cls(path, document["about"], runs)

    def add(self, run: Run) -> None:
        """Keep a run: an invocation that is cut off keeps those that it has finished."""
        self.runs.append(run)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        document = {
            "about": self.about,
            "summary": summary(self.runs),
            "runs": [asdict(run) for run in self.runs],
        }
        aside = self.path.with_suffix(".new")
        aside.write_text(json.dumps(document, indent=1) + "\n")
        aside.replace(self.path)
