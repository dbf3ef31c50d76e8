"""Every reason that the code can give is documented, and no other is."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgcluster.api import conditions, reasons
from pgcluster.kube import events as rates

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "operator" / "pgcluster"
TYPES = {"READY", "PROGRESSING", "RECONCILING", "DEGRADED", "STALLED", "MAINTENANCE"}
# Calls whose argument at this place is a reason.
GIVES = {"Event": 0, "Finding": 0, "post": 1, "_post": 0}


def constants() -> dict[str, str]:
    """The reasons of api/conditions.py by the name of their constant."""
    found = vars(conditions).items()
    return {name: value for name, value in found if name.isupper() and name not in TYPES}


def calls() -> Iterator[tuple[str, ast.Call]]:
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield str(path.relative_to(SOURCE)), node


def named(call: ast.Call) -> str:
    target = call.func
    return target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")


# What a wish may come to, by how its reasons begin.
ENDS = {
    "Switchover": ("Succeeded", "Refused", "Failed"),
    "ForcedPromotion": ("Succeeded", "Superseded", "Ignored", "Withdrawn"),
}


def literals() -> dict[str, str]:
    """Reasons that are spelled out where they are given, and where that is."""
    found = {}
    for path, call in calls():
        place = GIVES.get(named(call))
        if place is not None and len(call.args) > place:
            reason = call.args[place]
            if isinstance(reason, ast.Constant) and isinstance(reason.value, str):
                found[reason.value] = path
            elif isinstance(reason, ast.JoinedStr):
                (start, *_) = reason.values
                assert isinstance(start, ast.Constant), path
                for end in ENDS[str(start.value)]:
                    found[f"{start.value}{end}"] = path
    return found


def test_every_reason_of_a_condition_is_documented_and_no_other_is() -> None:
    assert set(constants().values()) == set(reasons.CONDITIONS)
    assert {getattr(conditions, name) for name in TYPES} == set(reasons.TYPES)


def test_every_reason_of_an_event_is_documented_and_no_other_is() -> None:
    given = literals()
    assert "Fenced" in given, "the search finds those of the agents"
    assert "Failover" in given, "the search finds those of the operator"
    assert set(given) | {rates.TOO_MANY, "RepmgrEvent"} == set(reasons.EVENTS)


def test_a_reason_of_a_condition_is_spelled_by_its_constant_alone() -> None:
    """One that is spelled out would be found by nobody who looks for the constant."""
    # These two are also words of Kubernetes' own, or of the summary.
    known = set(reasons.CONDITIONS) - {conditions.PAUSED, conditions.UNSCHEDULABLE}
    for path in (SOURCE / "controller").glob("*.py"):
        text = set(re.findall(r'"([A-Z][A-Za-z]+)"', path.read_text()))
        assert not text & known, path


def test_each_constant_is_used() -> None:
    used = "".join(path.read_text() for path in SOURCE.glob("[!a]*/*.py"))
    unused = [name for name in constants() if not re.search(rf"\b{name}\b", used)]
    assert not unused


@pytest.mark.parametrize("name", sorted({*reasons.CONDITIONS, *reasons.EVENTS}))
def test_a_reason_is_an_identifier_and_has_a_meaning(name: str) -> None:
    """As metav1.Condition and the API of Events want it."""
    assert re.fullmatch(r"[A-Z][A-Za-z0-9]{2,127}", name)
    told = reasons.CONDITIONS.get(name) or reasons.EVENTS[name]
    assert told.means
    assert told.do
    assert "|" not in told.means + told.do + told.where


def test_repmgrs_events_have_bounded_reasons() -> None:
    assert reasons.of_repmgr("standby_promote") == "StandbyPromote"
    assert reasons.of_repmgr("whatever_'$(id)") == "RepmgrEvent"
    assert len(set(map(reasons.of_repmgr, reasons.REPMGR))) == len(reasons.REPMGR)


def test_the_links_of_the_page_lead_somewhere() -> None:
    page = reasons.markdown()
    for target, anchor in re.findall(r"\]\(([a-z-]+\.md)(?:#([a-z-]+))?\)", page):
        text = (ROOT / "docs" / target).read_text()
        heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        anchors = {re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in heads}
        assert not anchor or anchor in anchors, f"{target}#{anchor}"
