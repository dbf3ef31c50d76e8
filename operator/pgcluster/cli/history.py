"""`kubectl pgcluster failovers`: the last changes of primary, as a table or a picture."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime

from pgcluster.api.models import FailoverRecord
from pgcluster.api.times import time_of
from pgcluster.cli import drawing, outside
from pgcluster.cli.documents import document
from pgcluster.cli.screen import Cell, Row, ago, table
from pgcluster.cli.terms import DONE, Refused, coloured, say
from pgcluster.controller.observe import Key
from pgcluster.kube.client import KubeClient

_COLUMNS = (
    ("GATE", "gate_ms"),
    ("PROMOTED", "promoted_ms"),
    ("CONFIG", "config_ms"),
    ("RELOADED", "reloaded_ms"),
    ("RESUMED", "resumed_ms"),
    ("FIRST", "first_transaction_ms"),
)


async def failovers(client: KubeClient, key: Key, options: argparse.Namespace) -> int:
    """The changes of primary that the status knows: the last ten."""
    if options.svg and options.output:
        raise Refused("--svg and -o do not go together")
    records = (await outside.status_of(client, key)).failovers
    if options.output:
        told = [x.model_dump(mode="json", by_alias=True, exclude_none=True) for x in records]
        say(document(told, options.output))
    elif options.svg:
        say(drawing.svg(str(key), records))
    elif not records:
        say(f"{key} has had no other primary than its first")
    else:
        for line in lines(records, now=datetime.now(UTC), colours=coloured()):
            say(line)
    return DONE


def lines(records: Sequence[FailoverRecord], *, now: datetime, colours: bool) -> list[str]:
    """One line a change, the newest first, with the milliseconds that each phase ended at. Pure."""
    head = ("WHEN", "", "CAUSE", "FROM", "TO", "TL", "EPOCH", *(name for name, _ in _COLUMNS))
    rows = [_row(record, now) for record in records]
    told = table(head, rows, colours=colours)
    return [*told, "", "Milliseconds since the loss was detected, or the successor told."]


def _row(record: FailoverRecord, now: datetime) -> Row:
    at = time_of(record.detected_at)
    phases = [getattr(record, field) for _, field in _COLUMNS]
    return (
        "-" if at is None else at.strftime("%Y-%m-%d %H:%M:%S"),
        "" if at is None else Cell(ago(now - at), "quiet"),
        Cell(record.cause, "busy" if record.cause == "failover" else None),
        record.from_ or "-",
        Cell(record.to, "strong"),
        str(record.timeline),
        str(record.epoch),
        *("-" if ms is None else str(ms) for ms in phases),
    )
