"""The observers' own arithmetic: a check that cannot fail would prove nothing."""

from __future__ import annotations

import pytest

from tests.e2e.observers.client import _ranges, longest_gap
from tests.e2e.observers.watcher import Reign, Target, overlapping


def reign(name: str, timeline: int, started_s: float, ended_s: float) -> Reign:
    return Reign(name, f"address of {name}", timeline, started_s, ended_s)


def test_a_failover_and_one_back_are_three_reigns_and_never_two_primaries() -> None:
    reigns = [reign("a", 1, 0, 10), reign("b", 2, 11, 20), reign("a", 3, 21, 30)]
    assert overlapping(reigns) == []


def test_one_write_on_an_old_primary_that_returns_is_two_primaries() -> None:
    old = Target("10.0.0.1", 5432, "a")
    old.accepted_write(1, 0.0, 0.1)
    old.accepted_write(1, 5.0, 5.1)
    old.accepted_write(1, 12.0, 12.1)  # b has been primary since 6
    (pair,) = overlapping([old.reigns[1], reign("b", 2, 6, 20)])
    assert {one.name for one in pair} == {"a", "b"}


def test_writes_that_overlap_in_time_are_two_primaries() -> None:
    assert overlapping([reign("a", 1, 0, 10.05), reign("b", 2, 10.0, 20)])


def test_a_restart_in_place_continues_the_reign() -> None:
    target = Target("10.0.0.1", 5432, "a")
    target.accepted_write(1, 0.0, 0.1)
    target.accepted_write(1, 9.0, 9.1)
    assert [(r.started_s, r.ended_s, r.writes) for r in target.reigns.values()] == [(0.0, 9.1, 2)]


@pytest.mark.parametrize(
    ("times", "before", "expected"),
    [
        ([11.0, 12.0, 19.0], 9.9, (7.0, 12.0)),
        ([11.0, 12.0], 9.9, (8.0, 12.0)),  # still open at the moment of asking
        ([19.0, 19.5], 4.0, (15.0, 4.0)),  # the mark was set in the middle of an outage
        ([], None, (10.0, 10.0)),
    ],
)
def test_the_longest_gap_reaches_from_before_the_mark_to_now(
    times: list[float], before: float | None, expected: tuple[float, float]
) -> None:
    assert longest_gap(times, 10.0, 20.0, before) == expected


def test_lost_rows_are_told_as_ranges() -> None:
    rows = [(1, 5), (1, 6), (1, 7), (1, 9), (2, 10)]
    assert _ranges(rows) == ["writer 1: 5-7", "writer 1: 9-9", "writer 2: 10-10"]
