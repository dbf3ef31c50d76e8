"""The figures of all cases as the tables of docs/performance.md. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tests.bench.record import PHASES, summary
from tests.bench.record import CaseFile as File


def _ms(value: float | None) -> str:
    """Milliseconds as seconds, where people think in seconds."""
    if value is None:
        return ""
    return f"{value:.0f} ms" if abs(value) < 995 else f"{value / 1000:.1f} s"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _three(figures: dict[str, float | None], text: Any) -> str:
    return " / ".join(text(figures[key]) for key in ("p50", "p95", "max"))


def markdown(rows: Iterable[Sequence[str]]) -> str:
    """Rows as a table, the first is its head."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def gaps(files: Iterable[tuple[str, File]]) -> str:
    """What an application sees: one row a case."""
    rows: list[list[str]] = [
        [
            "fault of the primary",
            "runs",
            "another primary",
            "gap: p50 / p95 / max",
            "gap of one writer",
            "errors",
            "writers with an error",
            "lost",
            "two primaries",
        ]
    ]
    for title, file in files:
        figures = summary(file.runs)
        moved = sum(run.old_primary != run.new_primary for run in file.runs)
        rows.append(
            [
                title,
                str(figures["runs"]),
                str(moved),
                _three(figures["gap_ms"], _ms),
                _three(figures["gap_of_a_writer_ms"], _ms),
                _three(figures["errors"], _number),
                _three(figures["writers_with_an_error"], _number),
                str(figures["lost"]),
                str(figures["dual"]),
            ]
        )
    return markdown(rows)


def phases(files: Iterable[tuple[str, File]]) -> str:
    """Where the time of a failover goes: one row a case that had one."""
    words = [phase.replace("_", " ") for phase in PHASES]
    rows: list[list[str]] = [["fault of the primary", "failovers", *words]]
    for title, file in files:
        figures = summary(file.runs)
        if not figures["failovers"]:
            continue
        cells = [
            " / ".join(_ms(figures["phases_ms"][phase][key]) for key in ("p50", "p95"))
            for phase in PHASES
        ]
        rows.append([title, str(figures["failovers"]), *cells])
    return markdown(rows)


def conditions(files: Iterable[tuple[str, File]]) -> str:
    """Where and of what the figures are, one line for each that differs."""
    seen: dict[str, list[str]] = {}
    for _, file in files:
        about = file.about
        versions = ", ".join(f"{name} {text}" for name, text in about["versions"].items())
        loads = [run.load[0] for run in file.runs if run.load]
        text = (
            f"commit {about['commit'][:10]}, {about['machine']['cpus']} CPUs"
            f" ({about['machine']['model']}), {about['machine']['memory_gib']} GiB, {versions},"
            f" synchronous: {about['synchronous']}, {about['writers']} writers,"
            f" {about['data_mib']} MiB of data beforehand, seed {about['seed']}"
        )
        load = f"{min(loads):.1f} to {max(loads):.1f}" if loads else "?"
        seen.setdefault(text, []).append(f"{about['case']} (load average {load})")
    return "\n".join(f"{text}: {'; '.join(cases)}" for text, cases in seen.items())
