"""What the Kubernetes API may answer."""

from __future__ import annotations

from pgcluster.api.errors import PgClusterError, RetryError


class ApiError(PgClusterError):
    """The API refused a request; `status` is the HTTP status, `reason` the API's identifier."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message or reason or f"HTTP status {status}")
        self.status = status
        self.reason = reason


class NotFound(ApiError):
    """404."""


class Conflict(ApiError):
    """409: the object has changed since it was read, or another manager owns a field."""


class AlreadyExists(ApiError):
    """409 on a creation."""


class Forbidden(ApiError):
    """401 or 403."""


class Invalid(ApiError):
    """422: the object breaks its schema or a rule; the same request never succeeds."""


class Unavailable(ApiError, RetryError):
    """No connection, no answer in time, 429 or 5xx: the same request may succeed later."""

    def __init__(self, status: int, reason: str, message: str, *, delay_s: float = 1.0) -> None:
        ApiError.__init__(self, status, reason, message)
        self.delay_s = delay_s


def from_status(status: int, reason: str, message: str) -> ApiError:
    """The error that an HTTP status and the reason of a Status object mean."""
    if status == 404:
        return NotFound(status, reason, message)
    if status == 409:
        kind = AlreadyExists if reason == "AlreadyExists" else Conflict
        return kind(status, reason, message)
    if status in (401, 403):
        return Forbidden(status, reason, message)
    if status in (400, 422):
        return Invalid(status, reason, message)
    if status == 429 or status >= 500:
        return Unavailable(status, reason, message)
    return ApiError(status, reason, message)
