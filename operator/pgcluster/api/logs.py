"""JSON logs, one object a line, each with the cluster that it is about."""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

# What the present task is about, such as "namespace/name": field `cluster` of each of its lines.
about: ContextVar[str | None] = ContextVar("about", default=None)

_STANDARD = frozenset(
    logging.LogRecord("", 0, "", 0, "", None, None).__dict__.keys() | {"message", "taskName"}
)


class JsonFormatter(logging.Formatter):
    """Everything given as `extra=` becomes a field; `fields` are in each line."""

    def __init__(self, **fields: str) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        at = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, object] = {
            "ts": at.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **self._fields,
            "msg": record.getMessage(),
        }
        if cluster := about.get():
            line["cluster"] = cluster
        line |= {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(*, level: str = "INFO", **fields: str) -> None:
    """Send all logs of this process to standard output as JSON."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonFormatter(**fields))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
