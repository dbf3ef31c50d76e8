"""The errors of the project: one base, three kinds, each with what the caller does about it."""

from __future__ import annotations


class PgClusterError(Exception):
    """Base of every error that the project raises on purpose."""


class RetryError(PgClusterError):
    """The world was not ready; the same step may succeed after `delay_s` seconds."""

    def __init__(self, message: str, *, delay_s: float = 1.0) -> None:
        super().__init__(message)
        self.delay_s = delay_s


class BlockedError(PgClusterError):
    """Only a change of the spec or of the world helps: becomes a condition with `reason`."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class FatalError(PgClusterError):
    """The process cannot do its job and ends."""
