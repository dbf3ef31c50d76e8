"""What `kubectl pgcluster status`, `list` and `events` show, as lines. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pgcluster.api import conditions as c
from pgcluster.api import names
from pgcluster.api.models import FailoverRecord, Member, PgClusterStatus, Pooler, SwitchoverRecord
from pgcluster.api.times import time_of
from pgcluster.cli.terms import paint
from pgcluster.kube.client import Manifest

_TROUBLE = (c.DEGRADED, c.STALLED)
_PHASES = (
    ("had the right to write", "gate_ms"),
    ("promoted", "promoted_ms"),
    ("pools told", "config_ms"),
    ("pools reloaded", "reloaded_ms"),
    ("pools went on", "resumed_ms"),
    ("first transaction", "first_transaction_ms"),
)
_LONGEST_NOTE = 160


@dataclass(frozen=True, slots=True)
class Cell:
    """One field of a table."""

    text: str
    tone: str | None = None


Row = Sequence[Cell | str]


def table(head: Sequence[str], rows: Iterable[Row], *, colours: bool) -> list[str]:
    """Columns as wide as what is in them; the last one is not filled up."""
    cells = [[Cell(text, "quiet") for text in head]]
    cells += [[x if isinstance(x, Cell) else Cell(x) for x in row] for row in rows]
    widths = [max(len(row[n].text) for row in cells) for n in range(len(head))]
    lines = []
    for row in cells:
        made = [
            paint(cell.text, cell.tone, on=colours) + " " * (width - len(cell.text))
            for cell, width in zip(row, widths, strict=True)
        ]
        lines.append("   ".join(made).rstrip())
    return lines


def status(body: Manifest, known: PgClusterStatus, *, now: datetime, colours: bool) -> list[str]:
    """One cluster on one screen."""
    blocks = [
        _title(body, known, now=now, colours=colours),
        _conditions(known, now=now, colours=colours),
        _members(known, colours=colours),
        _poolers(known, colours=colours),
        _history(known, now=now, colours=colours),
    ]
    lines: list[str] = []
    for block in blocks:
        if block:
            lines += ([""] if lines else []) + block
    return lines


def _title(body: Manifest, known: PgClusterStatus, *, now: datetime, colours: bool) -> list[str]:
    metadata, spec = body["metadata"], body.get("spec") or {}
    summary = known.summary or "not seen by an operator yet"
    facts = [
        f"{known.ready_instances or 0} of {spec.get('instances')} instances ready",
        f"primary {known.primary}" if known.primary else "no primary",
    ]
    versions = sorted({m.postgres_version for m in known.members if m.postgres_version})
    if versions:
        facts.append(f"PostgreSQL {', '.join(versions)}")
    if known.timeline is not None:
        facts.append(f"timeline {known.timeline}")
    if known.epoch is not None:
        facts.append(f"epoch {known.epoch}")
    if known.synchronous:
        facts.append(f"commits wait for {known.synchronous}")
    if (created := time_of(metadata.get("creationTimestamp"))) is not None:
        facts.append(f"made {ago(now - created)}")
    name = paint(f"{metadata['namespace']}/{metadata['name']}", "strong", on=colours)
    tone = _tone_of_summary(known.summary)
    lines = [f"{name}  {paint(summary, tone, on=colours)}", ", ".join(facts)]
    generation = metadata.get("generation")
    if known.observed_generation is not None and known.observed_generation != generation:
        told = "the operator has not looked at the last change of the spec yet"
        lines.append(paint(told, "busy", on=colours))
    return lines


def _conditions(known: PgClusterStatus, *, now: datetime, colours: bool) -> list[str]:
    rows: list[Row] = []
    for condition in known.conditions:
        since = time_of(condition.last_transition_time)
        rows.append(
            [
                condition.type,
                Cell(condition.status, _tone(condition)),
                condition.reason,
                "" if since is None else short(now - since),
                condition.message,
            ]
        )
    return table(("CONDITION", "", "REASON", "FOR", "MESSAGE"), rows, colours=colours)


def _tone(condition: c.Condition) -> str:
    is_true = condition.status == "True"
    if condition.type == c.READY:
        return "good" if is_true else "bad"
    if condition.type in _TROUBLE:
        return "bad" if is_true else "quiet"
    return "busy" if is_true else "quiet"


def _tone_of_summary(summary: str | None) -> str:
    if summary in ("Ready", c.HIBERNATED):
        return "good"
    return "busy" if summary in (c.BOOTSTRAPPING, c.CREATING, c.FAILING_OVER, "Paused") else "bad"


def _members(known: PgClusterStatus, *, colours: bool) -> list[str]:
    head = ("INSTANCE", "ROLE", "STATE", "READY", "TL", "LAG", "FROM", "DISK", "NODE", "NOTE")
    return table(head, [_member(member) for member in known.members], colours=colours)


def _member(member: Member) -> Row:
    notes = [member.reason or "", member.progress or ""]
    if member.pending_restart:
        notes.append(f"waits for a restart: {', '.join(member.pending_restart)}")
    if member.up_to_date is False:
        notes.append("a rolling change has yet to come")
    if member.state == "running" and not member.repmgrd:
        notes.append("repmgrd does not run")
    if member.repmgrd_paused:
        notes.append("repmgrd is paused")
    disk = member.disk_used_percent
    standby = member.role == names.ROLE_STANDBY
    return (
        Cell(member.pod, "strong" if member.role == names.ROLE_PRIMARY else None),
        member.role or "-",
        Cell(member.state, None if member.state == "running" else "busy"),
        _yes(member.ready),
        "-" if member.timeline is None else str(member.timeline),
        _lag(member.lag_bytes) if standby else "-",
        member.upstream or "-",
        "-" if disk is None else Cell(f"{disk} %", "bad" if disk >= 90 else None),
        member.node or "-",
        _shortened("; ".join(note for note in notes if note)),
    )


def _poolers(known: PgClusterStatus, *, colours: bool) -> list[str]:
    if not known.poolers:
        return []
    rows = [_pooler(pooler) for pooler in known.poolers]
    return table(("POOLER", "READY", "CLIENTS", "TO", "NOTE"), rows, colours=colours)


def _pooler(pooler: Pooler) -> Row:
    return (
        pooler.pod,
        _yes(pooler.ready),
        Cell("wait", "busy") if pooler.paused else "served",
        pooler.primary or "-",
        _shortened(pooler.reason or ""),
    )


def _history(known: PgClusterStatus, *, now: datetime, colours: bool) -> list[str]:
    lines = []
    if known.last_failover is not None:
        lines += _failover(known.last_failover, now=now)
    if known.last_switchover is not None:
        lines += _switchover(known.last_switchover, now=now, colours=colours)
    return lines


def _failover(record: FailoverRecord, *, now: datetime) -> list[str]:
    at = time_of(record.detected_at)
    when = "" if at is None else f", {ago(now - at)}"
    told = [
        f"{name} {ms} ms" for name, field in _PHASES if (ms := getattr(record, field)) is not None
    ]
    lines = [f"Last change of primary: {record.cause} {record.from_} → {record.to}{when}"]
    return lines + ([f"  {', '.join(told)}"] if told else [])


def _switchover(record: SwitchoverRecord, *, now: datetime, colours: bool) -> list[str]:
    at = time_of(record.ended_at or record.started_at)
    when = "" if at is None else f", {ago(now - at)}"
    by = f" by {record.asked_by}" if record.asked_by else ""
    tone = {"Succeeded": "good", "Running": "busy"}.get(record.state, "bad")
    return [
        f"Last switchover: {paint(record.state, tone, on=colours)}"
        f" {record.from_ or '-'} → {record.to or 'any'}, {record.cause} {record.request}{by}{when}",
        f"  {_shortened(record.reason)}",
    ]


# --- list -------------------------------------------------------------------------------------
def clusters(
    bodies: Iterable[Manifest], *, namespaces: bool, now: datetime, colours: bool
) -> list[str]:
    """One line a cluster; what cannot be read of a status is left out."""
    head = ("NAME", "STATUS", "READY", "PRIMARY", "VERSION", "POOLERS", "LAST CHANGE", "AGE")
    rows: list[Row] = []
    for body in bodies:
        metadata, known = body["metadata"], body.get("status") or {}
        summary = known.get("summary")
        wanted = (body.get("spec") or {}).get("instances")
        versions = {m.get("postgresVersion") for m in known.get("members") or ()} - {None}
        poolers = known.get("poolers") or ()
        changed = time_of((known.get("lastFailover") or {}).get("detectedAt"))
        created = time_of(metadata.get("creationTimestamp"))
        row: Row = (
            metadata["name"],
            Cell(summary or "-", _tone_of_summary(summary) if summary else None),
            f"{known.get('readyInstances') or 0}/{wanted}",
            known.get("primary") or "-",
            ", ".join(sorted(versions)) or "-",
            f"{sum(bool(pooler.get('ready')) for pooler in poolers)}/{len(poolers)}",
            "-" if changed is None else ago(now - changed),
            "-" if created is None else short(now - created),
        )
        rows.append((metadata["namespace"], *row) if namespaces else row)
    return table(("NAMESPACE", *head) if namespaces else head, rows, colours=colours)


# --- events -----------------------------------------------------------------------------------
def concerns(event: Manifest, cluster: str) -> bool:
    """Whether an Event is about the PgCluster or something that was made for it."""
    name = str((event.get("regarding") or {}).get("name") or "")
    if name == cluster:
        return True
    # A volume's claim has its template's name before that of the pod.
    if (event.get("regarding") or {}).get("kind") == "PersistentVolumeClaim":
        _, _, name = name.partition("-")
    own, _, rest = name.partition(f"{cluster}-")
    if own or not rest:
        return False
    first = rest.split("-")[0]
    return first.isdecimal() or first in ("pgbouncer", "primary", "nodes", "ro", "config")


def moment(event: Manifest) -> datetime:
    """When an Event happened last."""
    series = event.get("series") or {}
    for text in (
        series.get("lastObservedTime"),
        event.get("deprecatedLastTimestamp"),
        event.get("eventTime"),
        event["metadata"].get("creationTimestamp"),
    ):
        if (found := time_of(text)) is not None:
            return found
    return datetime.fromtimestamp(0, UTC)


def events(found: Iterable[Manifest], *, now: datetime, colours: bool, head: bool) -> list[str]:
    """One line an Event, the newest last."""
    rows: list[Row] = []
    for event in sorted(found, key=moment):
        regarding = event.get("regarding") or {}
        rows.append(
            [
                short(now - moment(event)),
                Cell(event.get("type") or "", "bad" if event.get("type") == "Warning" else "quiet"),
                str(event.get("reason") or ""),
                f"{str(regarding.get('kind')).lower()}/{regarding.get('name')}",
                " ".join(str(event.get("note") or "").split()),
            ]
        )
    made = table(("AGE", "TYPE", "REASON", "OBJECT", "MESSAGE"), rows, colours=colours)
    return made if head else made[1:]


# --- words ------------------------------------------------------------------------------------
def _yes(fact: bool) -> Cell:
    return Cell("yes", "good") if fact else Cell("no", "bad")


def _lag(lag_bytes: int | None) -> str:
    """As the status has it: coarse, and 0 for anything up to 1 MiB."""
    if lag_bytes is None:
        return "-"
    if lag_bytes == 0:
        return "≤ 1 MiB"
    size, unit = lag_bytes / 1024**2, "MiB"
    if size >= 1024:
        size, unit = size / 1024, "GiB"
    return f"≤ {size:g} {unit}"


def short(passed: Any) -> str:
    """A span of time in one unit or two, as kubectl writes it."""
    seconds = max(0, int(passed.total_seconds()))
    if seconds < 120:
        return f"{seconds}s"
    minutes, seconds = divmod(seconds, 60)
    if minutes < 10:
        return f"{minutes}m{seconds}s"
    if minutes < 180:
        return f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h" if hours < 48 else f"{hours // 24}d"


def ago(passed: Any) -> str:
    """The same as the end of a sentence."""
    return f"{short(passed)} ago"


def _shortened(text: str) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= _LONGEST_NOTE else f"{joined[: _LONGEST_NOTE - 1]}…"
