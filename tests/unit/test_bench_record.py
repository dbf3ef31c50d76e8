"""The figures of `make bench`: percentiles, phases from when the writes stopped, its tables."""

from __future__ import annotations

from pathlib import Path

from tests.bench import table
from tests.bench.record import CaseFile, Run, percentile, phases, spread, summary

ABOUT = {
    "case": "node-off",
    "commit": "0123456789abcdef",
    "machine": {"cpus": 2, "model": "a processor", "memory_gib": 24},
    "versions": {"PostgreSQL": "17.12"},
    "synchronous": "none",
    "writers": 8,
    "data_mib": 0,
    "seed": 1,
}


def run(number: int, gap_ms: int, **more: object) -> Run:
    values: dict[str, object] = {
        "began": "2026-01-31T12:00:00.000000Z",
        "waited_s": 1.0,
        "old_primary": "b-0",
        "new_primary": "b-1",
        "gap_per_writer_ms": [gap_ms] * 8,
        "errors": 8,
        "writers_with_an_error": 8,
        "errors_by_text": {},
        "lost": 0,
        "doubled": 0,
        "dual": 0,
        "settled_s": 20.0,
        "poolers_beside": 0,
    }
    return Run(number=number, gap_ms=gap_ms, **(values | more))  # type: ignore[arg-type]


def test_percentiles_are_values_that_were_measured() -> None:
    values = list(range(1, 21))
    assert spread(values) == {"p50": 10, "p95": 19, "max": 20}
    assert percentile([7], 0.95) == 7
    assert percentile([], 0.5) is None


def test_phases_count_from_when_the_writes_stopped() -> None:
    record = {
        "detectedAt": "2026-01-31T12:00:00.700000Z",
        "gateMs": 50,
        "promotedMs": 400,
        "configMs": 401,
        "reloadedMs": 420,
        "firstTransactionMs": 500,
    }
    assert phases(record, stopped_at="2026-01-31T12:00:00.100000Z") == {
        "detected": 600,
        "gate": 650,
        "promoted": 1000,
        "config": 1001,
        "reloaded": 1020,
        "resumed": None,
        "first_transaction": 1100,
    }
    assert phases({}, stopped_at="2026-01-31T12:00:00Z") == {}


def test_a_file_that_was_left_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "node-off.json"
    file = CaseFile(path, ABOUT)
    file.add(run(1, 7000, phases={"detected": 5000, "promoted": 6900}))
    file.add(run(2, 8000))
    again = CaseFile.read(path)
    assert again.runs == file.runs
    assert summary(again.runs)["gap_ms"] == {"p50": 7000, "p95": 8000, "max": 8000}
    assert summary(again.runs)["failovers"] == 1


def test_the_tables_have_a_row_for_each_case(tmp_path: Path) -> None:
    file = CaseFile(tmp_path / "node-off.json", ABOUT)
    file.add(run(1, 850, load=[1.5, 1.0, 1.0], phases={"detected": 5000, "promoted": 6900}))
    gaps = table.gaps([("node off", file)]).splitlines()
    assert gaps[2].startswith("| node off | 1 | 1 | 850 ms / 850 ms / 850 ms |")
    assert (
        table.phases([("node off", file)])
        .splitlines()[2]
        .startswith("| node off | 1 | 5.0 s / 5.0 s |")
    )
    assert "commit 0123456789" in table.conditions([("node off", file)])
