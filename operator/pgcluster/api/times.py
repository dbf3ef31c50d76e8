"""Moments as Kubernetes and the agents write them: RFC 3339."""

from __future__ import annotations

from datetime import UTC, datetime


def parse_time(text: str) -> datetime:
    """One that is known to be there, in UTC where no zone is told; ValueError for no moment."""
    parsed = datetime.fromisoformat(text)
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def time_of(text: object) -> datetime | None:
    """One that may be absent, or written by somebody else; None where there is none to read."""
    try:
        return parse_time(str(text))
    except ValueError:
        return None
