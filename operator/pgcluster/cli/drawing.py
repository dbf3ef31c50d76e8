"""Changes of primary as a picture: a bar each, of the phases that it went through. Pure.

One SVG file that needs nothing else, follows the light or dark scheme of whoever looks, and says
the same in words to who cannot see it. Names and causes come from the API and may hold anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from pgcluster.api.models import FailoverRecord
from pgcluster.api.times import time_of

# Phase: field, in words, and its colour by light and by dark. The colours are those of Okabe and
# Ito, which people who see colours differently can tell apart, moved to 3:1 before either ground.
PHASES: Sequence[tuple[str, str, str, str]] = (
    ("gate_ms", "has the right to write", "#b35a00", "#e69f00"),
    ("promoted_ms", "promoted", "#0072b2", "#56b4e9"),
    ("config_ms", "pools told", "#8a7a00", "#f0e442"),
    ("reloaded_ms", "pools reloaded", "#007a5a", "#2fc79a"),
    ("resumed_ms", "pools went on", "#a8326e", "#dd8fbd"),
    ("first_transaction_ms", "first transaction", "#5c5c5c", "#a0a0a0"),
)
INK = {"light": "#1b1f24", "dark": "#e8eaed"}
QUIET = {"light": "#57606a", "dark": "#9aa4af"}
GROUND = {"light": "#ffffff", "dark": "#15181c"}

_WIDTH, _LEFT, _RIGHT = 1000, 300, 90
_TOP, _ROW, _BAR = 92, 46, 20
_LEAST_MS = 100.0
_LONGEST_NAME = 40


@dataclass(frozen=True, slots=True)
class Segment:
    """One phase of a bar, in milliseconds since the loss was detected."""

    phase: int
    start_ms: int
    end_ms: int


def segments(record: FailoverRecord) -> tuple[Segment, ...]:
    """The phases that are known, one after the other.

    Each ended when the record says, and began when the one before it ended; of two that ended out
    of order the later has no length.
    """
    found = []
    start_ms = 0
    for number, (field, *_) in enumerate(PHASES):
        end_ms: int | None = getattr(record, field)
        if end_ms is None:
            continue
        end_ms = max(end_ms, start_ms)
        found.append(Segment(number, start_ms, end_ms))
        start_ms = end_ms
    return tuple(found)


def svg(title: str, records: Sequence[FailoverRecord]) -> str:
    """The picture, the newest change on top."""
    height = _TOP + _ROW * max(1, len(records)) + 40
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}"'
            f' width="{_WIDTH}" height="{height}" role="img" aria-labelledby="title desc">',
            f'<title id="title">{_text(f"Changes of primary of {title}")}</title>',
            f'<desc id="desc">{_text(_in_words(records))}</desc>',
            _style(),
            f'<rect class="ground" width="{_WIDTH}" height="{height}"/>',
            f'<text class="head" x="24" y="34">{_text(f"Changes of primary: {title}")}</text>',
            *_legend(),
            *_chart(records, height),
            "</svg>",
        ]
    )


def _in_words(records: Sequence[FailoverRecord]) -> str:
    if not records:
        return "There has been none."
    return " ".join(f"{_heading(record)}: {_sentence(record)}." for record in records)


def _sentence(record: FailoverRecord) -> str:
    told = [f"{PHASES[x.phase][1]} after {x.end_ms} ms" for x in segments(record)]
    return ", ".join(told) or "its phases are not known"


def _heading(record: FailoverRecord) -> str:
    return f"{record.cause} {record.from_ or '-'} → {record.to}"


def _style() -> str:
    def scheme(name: str, at: int) -> str:
        rules = [
            f".ground{{fill:{GROUND[name]}}}",
            f"text{{fill:{INK[name]}}}",
            f".quiet{{fill:{QUIET[name]}}}",
            f".line{{stroke:{QUIET[name]};stroke-opacity:.35}}",
            *(f".p{n}{{fill:{phase[at]}}}" for n, phase in enumerate(PHASES)),
        ]
        return "".join(rules)

    font = "font-family:system-ui,-apple-system,'Segoe UI',sans-serif;font-size:13px"
    return (
        f"<style>text{{{font}}}.head{{font-size:17px;font-weight:600}}.end{{text-anchor:end}}"
        f".middle{{text-anchor:middle}}{scheme('light', 2)}"
        f"@media (prefers-color-scheme:dark){{{scheme('dark', 3)}}}</style>"
    )


def _legend() -> Iterator[str]:
    x = 24.0
    for number, (_, words, *_) in enumerate(PHASES):
        yield f'<rect class="p{number}" x="{x:g}" y="51" width="12" height="12" rx="2"/>'
        yield f'<text class="quiet" x="{x + 18:g}" y="62">{_text(words)}</text>'
        x += 44 + 7.0 * len(words)


def _chart(records: Sequence[FailoverRecord], height: int) -> Iterator[str]:
    if not records:
        yield f'<text class="quiet" x="24" y="{_TOP + 24}">There has been none.</text>'
        return
    longest = max((x.end_ms for record in records for x in segments(record)), default=0)
    step, end_ms = axis(longest)
    scale = (_WIDTH - _LEFT - _RIGHT) / end_ms
    bottom = height - 40
    at_ms = 0.0
    while at_ms <= end_ms:
        x = _LEFT + at_ms * scale
        yield f'<line class="line" x1="{x:.1f}" y1="{_TOP - 8}" x2="{x:.1f}" y2="{bottom}"/>'
        yield f'<text class="quiet middle" x="{x:.1f}" y="{bottom + 20}">{_span(at_ms)}</text>'
        at_ms += step
    for number, record in enumerate(records):
        yield from _bar(record, _TOP + _ROW * number, scale)


def _bar(record: FailoverRecord, y: int, scale: float) -> Iterator[str]:
    at = time_of(record.detected_at)
    when = "" if at is None else at.strftime("%Y-%m-%d %H:%M:%S")
    heading = _cut(_heading(record))
    yield f"<g><title>{_text(f'{_heading(record)}: {_sentence(record)}')}</title>"
    yield f'<text x="24" y="{y + 9}">{_text(heading)}</text>'
    detail = f"{when}  timeline {record.timeline}".strip()
    yield f'<text class="quiet" x="24" y="{y + 26}">{_text(detail)}</text>'
    found = segments(record)
    for segment in found:
        x, width = _LEFT + segment.start_ms * scale, (segment.end_ms - segment.start_ms) * scale
        # What took no time that could be seen is there all the same.
        yield (
            f'<rect class="p{segment.phase}" x="{x:.1f}" y="{y}" width="{max(width, 1):.1f}"'
            f' height="{_BAR}"/>'
        )
    end_ms = found[-1].end_ms if found else 0
    words = _span(float(end_ms)) if found else "not known"
    yield f'<text x="{_LEFT + end_ms * scale + 8:.1f}" y="{y + 15}">{words}</text></g>'


def axis(longest_ms: float) -> tuple[float, float]:
    """The step of an axis, and its end: round numbers, at most eight of them."""
    longest_ms = max(longest_ms, _LEAST_MS)
    step = 1.0
    while True:
        for factor in (1, 2, 5):
            if longest_ms / (step * factor) <= 8:
                size = step * factor
                return size, -(-longest_ms // size) * size
        step *= 10


def _span(ms: float) -> str:
    return f"{ms:g} ms" if ms < 1000 else f"{ms / 1000:g} s"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…"


def _text(text: str) -> str:
    """Text as XML takes it: nothing of it is markup, and no character that XML has not."""
    kept = "".join(one for one in text if one in "\t\n" or ord(one) >= 32)
    return escape("".join(one for one in kept if not 0xD800 <= ord(one) <= 0xDFFF), {'"': "&quot;"})
