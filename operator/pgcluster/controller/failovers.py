"""Who became primary when, from what the promoted instances and the poolers told. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from pgcluster.api.models import FailoverRecord
from pgcluster.api.reports import PoolerReport, PromotionPhases
from pgcluster.api.times import parse_time

KEPT = 10
# A promotion that is the continuation of what was, such as the first start or that of a whole
# cluster which was down: no failover.
_START = "start"
# A pooler that starts later applies the same section again; that is not part of the failover.
_SETTLED_AFTER_S = 120.0


def history(
    known: Iterable[FailoverRecord],
    promotions: Iterable[PromotionPhases],
    poolers: Iterable[tuple[str, PoolerReport]],
    *,
    now: str,
) -> tuple[FailoverRecord, ...]:
    """The records so far, newest first, with what is newly told; one a change of the Lease.

    `poolers` are (when the pod was created, its report): one that is younger than the failover
    applied the new primary at its own start, which is no phase of it.
    """
    records = {record.epoch: record for record in known}
    reports = tuple(poolers)
    for promotion in promotions:
        if promotion.cause == _START or promotion.previous is None:
            continue
        record = records.get(promotion.epoch)
        if record is not None and _settled(record, now):
            continue
        told = _record(promotion, reports)
        records[promotion.epoch] = told if record is None else _joined(record, told)
    return tuple(sorted(records.values(), key=lambda record: -record.epoch)[:KEPT])


def _settled(record: FailoverRecord, now: str) -> bool:
    if record.detected_at is None:
        return True
    return (parse_time(now) - parse_time(record.detected_at)).total_seconds() > _SETTLED_AFTER_S


def _record(
    promotion: PromotionPhases, poolers: Iterable[tuple[str, PoolerReport]]
) -> FailoverRecord:
    since = promotion.detected
    reports = [
        report
        for created, report in poolers
        if report.epoch == promotion.epoch
        and since is not None
        and parse_time(created) <= parse_time(since)
    ]
    reloaded = [_ms(promotion.detected, report.reloaded_at) for report in reports]
    resumed = [_ms(promotion.detected, report.resumed_at) for report in reports]
    first = [_ms(promotion.detected, report.first_transaction_at) for report in reports]
    return FailoverRecord(
        from_=promotion.previous,
        to=promotion.primary,
        cause=promotion.cause,
        timeline=promotion.timeline,
        epoch=promotion.epoch,
        detected_at=promotion.detected,
        gate_ms=_ms(promotion.detected, promotion.gate),
        promoted_ms=_ms(promotion.detected, promotion.promoted),
        config_ms=_ms(promotion.detected, promotion.config),
        reloaded_ms=max((ms for ms in reloaded if ms is not None), default=None),
        resumed_ms=max((ms for ms in resumed if ms is not None), default=None),
        first_transaction_ms=min((ms for ms in first if ms is not None), default=None),
    )


def _joined(known: FailoverRecord, told: FailoverRecord) -> FailoverRecord:
    """What is known stays when a pooler that told it is gone; of two answers the slower counts."""

    def later(field: str) -> int | None:
        times = (getattr(known, field), getattr(told, field))
        return max((ms for ms in times if ms is not None), default=None)

    fields = ("gate_ms", "promoted_ms", "config_ms", "reloaded_ms", "resumed_ms")
    first = (known.first_transaction_ms, told.first_transaction_ms)
    return told.model_copy(
        update={field: later(field) for field in fields}
        | {"first_transaction_ms": min((ms for ms in first if ms is not None), default=None)}
    )


def _ms(start: str | None, end: str | None) -> int | None:
    """Milliseconds from one moment to another; None where one is unknown or before the other."""
    if start is None or end is None:
        return None
    passed = (parse_time(end) - parse_time(start)).total_seconds()
    return round(passed * 1000) if passed >= 0 else None
