"""An application that only reads, through the read-only pool, and notes who answered.

Runs alone in a pod (standard library and psycopg only). Each reader asks in short transactions
which server answers, whether it is a standby, and how old what it has replayed is; it reconnects
50 ms after an error.

Asked over HTTP, in JSON: /mark?name=N, /stats?since=N, /healthz (200 once a read was answered).
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections import Counter
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any, LiteralString
from urllib.parse import parse_qs, urlsplit

import psycopg

READERS = 2
EVERY_S = 0.05
QUERY: LiteralString = """
    SELECT host(inet_server_addr()), pg_is_in_recovery(),
        coalesce(extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()), 0)::float8
"""


@dataclass(frozen=True)
class Answer:
    at_s: float
    server: str
    standby: bool
    age_s: float


class Reader(threading.Thread):
    """One connection at a time."""

    def __init__(self, login: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self.answers: list[Answer] = []
        self.failures: list[tuple[float, str]] = []
        self._login = login

    def run(self) -> None:
        connection: psycopg.Connection[Any] | None = None
        while True:
            try:
                if connection is None:
                    connection = psycopg.connect(autocommit=True, **self._login)
                row = connection.execute(QUERY, prepare=False).fetchone()
                assert row is not None
                self.answers.append(Answer(time.monotonic(), row[0], bool(row[1]), float(row[2])))
            except psycopg.Error as error:
                self.failures.append((time.monotonic(), " ".join(str(error).split())[:200]))
                if connection is not None:
                    connection.close()
                    connection = None
            time.sleep(EVERY_S)


def stats(readers: list[Reader], since_s: float) -> dict[str, Any]:
    """What was read since a moment; times are seconds after it."""
    now_s = time.monotonic()
    answers = sorted(
        (a for reader in readers for a in list(reader.answers) if a.at_s >= since_s),
        key=lambda answer: answer.at_s,
    )
    failures = [text for r in readers for at_s, text in list(r.failures) if at_s >= since_s]
    servers: dict[str, dict[str, Any]] = {}
    for answer in answers:
        role = "standby" if answer.standby else "primary"
        after_s = round(answer.at_s - since_s, 3)
        entry = servers.setdefault(f"{answer.server} {role}", {"reads": 0, "first_s": after_s})
        entry["reads"] += 1
        entry["last_s"] = after_s
    moments = [since_s, *(answer.at_s for answer in answers), now_s]
    return {
        "reads": len(answers),
        "errors": len(failures),
        "errors_by_text": Counter(failures),
        "longest_gap_s": round(max(b - a for a, b in pairwise(moments)), 3),
        "oldest_s": round(max((a.age_s for a in answers if a.standby), default=0.0), 3),
        "from_a_primary": sum(not answer.standby for answer in answers),
        "servers": servers,
    }


def handler(readers: list[Reader]) -> type[BaseHTTPRequestHandler]:
    """The HTTP side."""
    marks: dict[str, float] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            status, body = self._answer(url.path, query)
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _answer(self, path: str, query: dict[str, str]) -> tuple[int, dict[str, Any]]:
            match path:
                case "/mark":
                    marks[query["name"]] = time.monotonic()
                    return 200, {"mark": query["name"]}
                case "/stats" if query.get("since", "") in {"", *marks}:
                    return 200, stats(readers, marks.get(query.get("since", ""), 0.0))
                case "/healthz":
                    reading = any(reader.answers for reader in readers)
                    return (200 if reading else 503), {"reading": reading}
            return 404, {"error": f"nothing at {path}"}

        def log_message(self, *_: Any) -> None:
            """Requests are not worth a line."""

    return Handler


def main() -> None:
    # The Service's address does not change, so its name is looked up once.
    address = socket.getaddrinfo(os.environ["POOL_HOST"], None)[0][4][0]
    login = {
        "hostaddr": address,
        "port": os.environ.get("PGPORT", "5432"),
        "user": os.environ["PGUSER"],
        "password": os.environ["PGPASSWORD"],
        "dbname": os.environ["PGDATABASE"] + "_ro",
        "application_name": "e2e-reader",
        "sslmode": "require",
        "connect_timeout": 10,
        "tcp_user_timeout": 5000,
        "keepalives_idle": 2,
        "keepalives_interval": 1,
        "keepalives_count": 3,
    }
    readers = [Reader(login) for _ in range(READERS)]
    for reader in readers:
        reader.start()
    ThreadingHTTPServer(("", int(os.environ.get("PORT", "8000"))), handler(readers)).serve_forever()


if __name__ == "__main__":
    main()
