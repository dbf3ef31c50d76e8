"""Changed settings go from pooler to pooler, and not past the first that does not take them."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st

from pgcluster.api.reports import PoolerReport
from pgcluster.pooler.turn import SKIP_AFTER_S, Line, wait

NEW, OLD = "new", "old"


def told(pod: str, settings_hash: str | None = OLD, **more: object) -> PoolerReport:
    return PoolerReport.model_validate(
        {"pod": pod, "ready": True, "settings_hash": settings_hash, **more}
    )


def reports(*given: PoolerReport) -> dict[str, PoolerReport]:
    return {report.pod: report for report in given}


def test_a_lone_pooler_takes_them_at_once() -> None:
    assert wait("a", NEW, {}) is None
    assert wait("a", NEW, reports(told("a"))) is None


def test_the_order_is_that_of_names_and_each_waits_for_those_before() -> None:
    before = reports(told("a"), told("b"), told("c"))
    assert wait("a", NEW, before) is None
    second = wait("b", NEW, before)
    assert second is not None
    assert (second.behind, second.reason) == ("a", "a takes the changed settings first")
    assert wait("b", NEW, {**before, "a": told("a", NEW)}) is None
    third = wait("c", NEW, {**before, "a": told("a", NEW)})
    assert third is not None
    assert third.behind == "b"


def test_one_that_does_not_take_them_stops_all_others_wherever_it_stands() -> None:
    refuses = told("b", settings_refused=NEW, settings_reason="default_pool_size is '20'")
    for me in ("a", "c"):
        found = wait(me, NEW, reports(told("a", NEW), refuses, told("c")))
        assert found is not None
        assert found.behind is None, "nobody passes it over"
        assert found.reason == "b did not take the changed settings: default_pool_size is '20'"
    # What it refused before is no matter.
    assert wait("c", "newer", reports(refuses, told("c")), skipped={"b"}) is None
    # Itself it may try again.
    assert wait("b", NEW, reports(told("a", NEW), refuses)) is None


def test_one_that_is_not_ready_with_them_stops_those_behind_it() -> None:
    found = wait("b", NEW, reports(told("a", NEW, ready=False, reason="it does not answer")))
    assert found is not None
    assert found.behind is None
    assert found.reason == "a is not ready with the changed settings: it does not answer"


def test_one_that_is_gone_is_passed_over_after_a_while_and_costs_that_once() -> None:
    """Twenty poolers, of which one is on a lost node: its report stays behind."""
    pods = [f"p{number:02}" for number in range(20)]
    lines = {pod: Line(pod) for pod in pods if pod != "p03"}
    told_by = {pod: told(pod) for pod in pods}
    now_s = 0.0
    while any(told_by[pod].settings_hash == OLD for pod in lines) and now_s < 300:
        now_s += 1.0
        # All look before any of them reports.
        takes = [
            pod
            for pod, line in lines.items()
            if told_by[pod].settings_hash == OLD and line.wait(NEW, told_by, now_s) is None
        ]
        assert len(takes) <= 1, "one at a time"
        told_by |= {pod: told(pod, NEW) for pod in takes}
    assert all(told_by[pod].settings_hash == NEW for pod in lines)
    assert now_s < SKIP_AFTER_S + 2 * len(pods)


def test_other_settings_begin_a_new_line() -> None:
    line = Line("b")
    found = reports(told("a"))
    assert line.wait(NEW, found, 0) is not None
    assert line.wait(NEW, found, SKIP_AFTER_S) is None
    again = line.wait("newer", found, SKIP_AFTER_S)
    assert again is not None
    assert again.behind == "a"


@given(
    st.dictionaries(
        st.sampled_from("abcdef"),
        st.tuples(st.sampled_from((OLD, NEW, None)), st.booleans(), st.booleans()),
        min_size=1,
    )
)
def test_at_most_one_of_those_that_lack_them_has_its_turn(
    world: Mapping[str, tuple[str | None, bool, bool]],
) -> None:
    found = {
        pod: told(pod, has, ready=ready, settings_refused=NEW if refuses else None)
        for pod, (has, ready, refuses) in world.items()
    }
    turns = [
        pod
        for pod, report in found.items()
        if report.settings_hash != NEW and wait(pod, NEW, found) is None
    ]
    assert len(turns) <= 1
    if any(report.settings_refused == NEW for report in found.values()):
        assert all(found[pod].settings_refused == NEW for pod in turns)
