"""The sequence of faults that `make chaos` does, the history that it merges, its figures."""

from __future__ import annotations

import pytest

from tests.chaos.history import Line, merged, parse
from tests.chaos.outcome import Outcome, by_kind, lines
from tests.chaos.plan import CATALOGUE, GROUPS, plan


def outcome(label: str, *, gap_s: float, faults: int = 1, **more: object) -> Outcome:
    values: dict[str, object] = {
        "old_primary": "a-0",
        "new_primary": "a-0",
        "timelines": (1, 1),
        "gap_of_a_writer_s": gap_s,
        "errors": 1,
        "settled_s": 5.0,
        "lost": 0,
        "dual": 0,
    }
    row = {"number": 1, "missed": ""}
    return Outcome(faults=[row] * faults, label=label, gap_s=gap_s, **(values | more))  # type: ignore[arg-type]


def test_a_seed_gives_the_same_sequence_again() -> None:
    assert list(plan(5, 60)) == list(plan(5, 60))
    assert list(plan(5, 60)) != list(plan(6, 60))


@pytest.mark.parametrize("seed", range(20))
def test_as_many_faults_as_were_asked_for_each_of_its_own_number(seed: int) -> None:
    numbers = [fault.number for step in plan(seed, 33) for fault in step.faults]
    assert numbers == list(range(1, 34))


def test_a_long_sequence_has_every_kind_and_some_that_overlap() -> None:
    steps = list(plan(1, 1000))
    kinds = {fault.kind for step in steps for fault in step.faults}
    assert kinds == set(CATALOGUE)
    assert {kind.group for kind in kinds} == set(GROUPS)
    assert 0.1 < sum(len(step.faults) > 1 for step in steps) / len(steps) < 0.4


def test_only_the_groups_that_were_asked_for() -> None:
    steps = plan(1, 200, ["process", "pooler"])
    assert {f.kind.group for step in steps for f in step.faults} == {"process", "pooler"}


def test_what_needs_the_api_server_does_not_overlap_with_its_absence() -> None:
    for step in plan(2, 3000):
        away = [fault for fault in step.faults if fault.kind.takes_api_away]
        assert len(away) <= 1
        assert not (away and any(fault.kind.needs_api for fault in step.faults))


def test_an_overlapping_fault_begins_while_the_one_before_is_on() -> None:
    for step in plan(3, 500):
        for one, other in zip(step.faults, step.faults[1:], strict=False):
            assert one.starts_s <= other.starts_s <= max(one.ends_s, one.starts_s + 4)


def test_a_step_keeps_the_primary_only_if_each_of_its_faults_does() -> None:
    for step in plan(4, 500):
        assert step.keeps_primary == all(fault.kind.keeps_primary for fault in step.faults)
        assert step.keeps_data or not step.keeps_primary


def test_lines_of_several_pods_are_merged_by_time_and_none_is_there_twice() -> None:
    one = parse(
        "[pod/a-0/postgres] 2026-01-31T12:00:00.5Z second\n"
        "[pod/a-0/postgres] 2026-01-31T12:00:00.123456789Z first\n"
        "error: no previous container\n"
    )
    other = parse("[pod/a-1/postgres] 2026-01-31T12:00:01Z third\n")
    assert [line.text for line in merged(one, other, one)] == ["first", "second", "third"]
    assert other[0].at == "2026-01-31T12:00:01.000000000Z"


def test_a_line_of_json_is_told_by_what_it_says() -> None:
    text = '{"ts": "x", "level": "warning", "logger": "l", "msg": "fenced", "epoch": 4}'
    line = Line("2026-01-31T12:00:01.000000000Z", "a-0/postgres", text)
    assert line.short.endswith('warning: fenced {"epoch": 4}')
    assert line.is_of_interest
    assert not Line(line.at, line.source, "\t  INSERT INTO t").is_of_interest
    assert not Line(line.at, line.source, "LOG:  checkpoint starting: time").is_of_interest


def test_figures_by_kind_keep_those_that_overlapped_apart() -> None:
    figures = by_kind(
        [
            outcome("node-off primary", gap_s=7.0, timelines=(1, 2)),
            outcome("node-off primary", gap_s=9.0),
            outcome("node-off primary + api-stop", gap_s=40.0, faults=2, lost=3),
        ]
    )
    assert figures["node-off primary"]["gap_s"] == {"p50": 7.0, "p95": 9.0, "max": 9.0}
    assert figures["node-off primary"]["failovers"] == 1
    assert figures["overlapping"]["faults"] == 2
    assert figures["overlapping"]["lost"] == 3
    assert len(lines(figures)) == 3
