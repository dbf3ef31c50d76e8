"""`kubectl pgcluster failovers`: the table, the records and the picture."""

from __future__ import annotations

import itertools
import json
import re
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pgcluster.api.models import FailoverRecord
from pgcluster.cli import drawing, history, kubectl, terms
from tests.unit.fakekube import FakeKube
from tests.unit.test_cli_kubectl import carry_out, world

SVG = "{http://www.w3.org/2000/svg}"
FIRST = {
    "from": "shop-0",
    "to": "shop-1",
    "cause": "failover",
    "timeline": 2,
    "epoch": 3,
    "detectedAt": "2026-05-01T10:00:00Z",
    "gateMs": 900,
    "promotedMs": 1100,
    "configMs": 1120,
    "reloadedMs": 1160,
    "resumedMs": 1170,
    "firstTransactionMs": 1190,
}
SECOND = {**FIRST, "to": "shop-2", "cause": "switchover", "epoch": 4, "timeline": 3, "gateMs": 10}
RECORDS = tuple(FailoverRecord.model_validate(x) for x in (SECOND, FIRST))


async def run(kube: FakeKube, *words: str) -> terms.Ending:
    return await carry_out(kube, kubectl.parse(["failovers", "shop", *words]))


async def test_the_table_has_a_line_for_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(world(failovers=[SECOND, FIRST])) == terms.DONE
    lines = capsys.readouterr().out.splitlines()
    assert re.split(r"\s{2,}", lines[0])[:4] == ["WHEN", "CAUSE", "FROM", "TO"]
    assert "switchover" in lines[1]
    assert re.search(r"failover +shop-0 +shop-1 +2 +3 +900 +1100 +1120 +1160 +1170 +1190", lines[2])


async def test_a_phase_that_is_not_known_is_a_dash(capsys: pytest.CaptureFixture[str]) -> None:
    lost = {k: v for k, v in FIRST.items() if k not in ("resumedMs", "detectedAt")}
    now = datetime(2026, 5, 1, 12, tzinfo=UTC)
    line = history.lines([FailoverRecord.model_validate(lost)], now=now, colours=False)[1]
    assert line.startswith("- ")
    assert re.search(r"1160 +- +1190", line)


@pytest.mark.parametrize(("format_", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
async def test_the_records_as_a_document(
    format_: str, read: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    await run(world(failovers=[SECOND, FIRST]), "-o", format_)
    found = read(capsys.readouterr().out)
    assert [record["epoch"] for record in found] == [4, 3]
    assert found[1]["from"] == "shop-0"


async def test_a_cluster_without_any_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(world()) == terms.DONE
    assert "no other primary than its first" in capsys.readouterr().out
    assert await run(world(), "-o", "json") == terms.DONE
    assert json.loads(capsys.readouterr().out) == []
    assert await run(world(), "--svg") == terms.DONE
    assert "There has been none." in capsys.readouterr().out
    with pytest.raises(terms.Refused, match="do not go together"):
        await run(world(), "--svg", "-o", "json")


async def test_the_picture_has_a_bar_for_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    await run(world(failovers=[SECOND, FIRST]), "--svg")
    root = ElementTree.fromstring(capsys.readouterr().out)  # noqa: S314 # our own
    bars = root.findall(f"{SVG}g")
    assert len(bars) == 2
    for bar, record in zip(bars, RECORDS, strict=True):
        rectangles = bar.findall(f"{SVG}rect")
        assert [x.get("class") for x in rectangles] == [f"p{n}" for n in range(6)]
        title = bar.find(f"{SVG}title")
        assert title is not None
        assert f"promoted after {record.promoted_ms} ms" in (title.text or "")
    assert "1.19 s" in [text.text for text in bars[0].findall(f"{SVG}text")]


def test_the_lengths_are_the_times() -> None:
    root = ElementTree.fromstring(drawing.svg("test/shop", RECORDS))  # noqa: S314 # our own
    (bar,) = root.findall(f"{SVG}g")[1:]
    widths = [float(x.get("width", "0")) for x in bar.findall(f"{SVG}rect")]
    # 900 ms, then 200 ms.
    assert widths[0] / widths[1] == pytest.approx(4.5, rel=0.01)
    starts = [float(x.get("x", "0")) for x in bar.findall(f"{SVG}rect")]
    assert starts == sorted(starts)
    width = float(root.get("width", "0"))
    assert all(start + w <= width for start, w in zip(starts, widths, strict=True))


def test_phases_out_of_order_and_missing_ones_have_no_length_below_zero() -> None:
    odd = FailoverRecord.model_validate({**FIRST, "promotedMs": 800, "configMs": None})
    found = drawing.segments(odd)
    assert all(x.end_ms >= x.start_ms for x in found)
    assert [x.phase for x in found] == [0, 1, 3, 4, 5]
    for before, after in itertools.pairwise(found):
        assert after.start_ms == before.end_ms


@given(
    st.text(max_size=60),
    st.lists(st.tuples(st.text(max_size=30), st.integers(0, 10**7) | st.none()), max_size=4),
)
def test_whatever_names_say_it_is_a_picture_and_nothing_else(
    title: str, changes: list[tuple[str, int | None]]
) -> None:
    records = [
        FailoverRecord(to=name, cause=name, timeline=1, epoch=1, gate_ms=ms) for name, ms in changes
    ]
    root = ElementTree.fromstring(drawing.svg(title, records))  # noqa: S314 # our own
    tags = {node.tag.removeprefix(SVG) for node in root.iter()}
    assert tags <= {"svg", "title", "desc", "style", "rect", "text", "line", "g"}
    allowed = {"class", "x", "y", "x1", "x2", "y1", "y2", "width", "height", "rx", "id"}
    allowed |= {"viewBox", "role", "aria-labelledby"}
    assert {name for node in root.iter() for name in node.attrib} <= allowed


def test_markup_in_a_name_is_text() -> None:
    bad = '<script>alert("1")</script>&'
    record = FailoverRecord(to=bad, cause="failover", timeline=1, epoch=1, gate_ms=5)
    told = drawing.svg(bad, [record])
    assert "<script" not in told
    root = ElementTree.fromstring(told)  # noqa: S314 # our own
    title = root.find(f"{SVG}title")
    assert title is not None
    assert bad in (title.text or "")


@pytest.mark.parametrize("longest", [0, 7, 99, 640, 1190, 8000, 123456, 10**8])
def test_an_axis_has_few_round_steps_and_reaches_the_end(longest: int) -> None:
    step, end = drawing.axis(longest)
    assert end >= longest
    assert 2 <= end / step <= 9
    assert str(f"{step:.0f}").rstrip("0") in ("1", "2", "5")


def luminance(colour: str) -> float:
    """Source: WCAG 2, relative luminance."""
    parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return sum(weight * x for weight, x in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(("scheme", "at"), [("light", 2), ("dark", 3)])
def test_it_can_be_read_in_both_schemes(scheme: str, at: int) -> None:
    ground = drawing.GROUND[scheme]
    assert contrast(drawing.INK[scheme], ground) >= 7
    assert contrast(drawing.QUIET[scheme], ground) >= 4.5
    for phase in drawing.PHASES:
        assert contrast(phase[at], ground) >= 3, phase
    assert "prefers-color-scheme:dark" in drawing.svg("x", ())
