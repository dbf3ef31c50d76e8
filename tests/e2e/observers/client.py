"""The application in every fault test: writers through the pool, which count what they suffer.

Runs alone in a pod (standard library and psycopg only). Each writer commits one row a transaction,
keeps what was acknowledged and when, and reconnects 50 ms after an error, as a simple application
does. It never retries a row: one whose commit is unknown stays unknown, and the next has a new
number, so that "acknowledged but missing" and "there twice" are both plain set comparisons.

Asked over HTTP, in JSON:
  /mark?name=N     remember this moment as N
  /stats?since=N   errors, longest gaps, latency since the mark (or since the start)
  /verify          look for every row acknowledged so far, on the primary itself
  /finish          stop writing, then the same
  /healthz         200 once a row was acknowledged
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import json
import os
import secrets
import socket
import threading
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psycopg

TABLE = "pgcluster_client"
RECONNECT_AFTER_S = 0.05
DETAILED_ERRORS = 60


def utc(offset_s: float = 0.0) -> str:
    """The wall clock, `offset_s` from now, as Kubernetes writes times."""
    moment = datetime.fromtimestamp(time.time() + offset_s, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass(frozen=True)
class Failure:
    """One failed connect or transaction of one writer."""

    writer: int
    monotonic_s: float
    at: str
    phase: str
    sqlstate: str | None
    text: str


class Writer(threading.Thread):
    """One connection at a time, one row a transaction, `rate` a second at most."""

    def __init__(
        self,
        number: int,
        run: str,
        connect: Callable[[], Any],
        rate: float,
        lifetime_s: float | None = None,
    ) -> None:
        super().__init__(name=f"writer-{number}", daemon=True)
        self.number = number
        self.rows = array("q")  # acknowledged sequence numbers
        self.times = array("d")  # when each was acknowledged, monotonic
        self.took = array("f")  # how long each took, in seconds
        self.failures: list[Failure] = []
        self.connects = 0
        self._run_id = run
        self._connect = connect
        self._pause_s = 1.0 / rate
        # As an application's own pool does, which replaces a connection after a while.
        self._lifetime_s = lifetime_s
        self._ended = threading.Event()

    def stop(self) -> None:
        self._ended.set()

    def run(self) -> None:
        connection: psycopg.Connection[Any] | None = None
        sequence = 0
        opened_s = 0.0
        due_s = time.monotonic()
        while not self._ended.is_set():
            phase = "connect"
            try:
                if connection is not None and self._is_old(opened_s):
                    connection.close()
                    connection = None
                if connection is None:
                    connection = self._connect()
                    self.connects += 1
                    opened_s = time.monotonic()
                phase = "write"
                sequence += 1
                started_s = time.monotonic()
                connection.execute(
                    f"INSERT INTO {TABLE} (run, writer, seq) VALUES (%s, %s, %s)",
                    (self._run_id, self.number, sequence),
                )
                ended_s = time.monotonic()
            except psycopg.Error as error:
                self._note(phase, error)
                if connection is not None:
                    connection.close()
                    connection = None
                self._ended.wait(RECONNECT_AFTER_S)
                due_s = time.monotonic()
                continue
            # In this order: whoever reads takes the length of `times` first.
            self.rows.append(sequence)
            self.took.append(ended_s - started_s)
            self.times.append(ended_s)
            # A writer that had to wait does not make up for it with a burst.
            due_s = max(due_s + self._pause_s, ended_s)
            self._ended.wait(due_s - ended_s)
        if connection is not None:
            connection.close()

    def _is_old(self, opened_s: float) -> bool:
        return self._lifetime_s is not None and time.monotonic() - opened_s > self._lifetime_s

    def _note(self, phase: str, error: psycopg.Error) -> None:
        text = " ".join(str(error).split())
        self.failures.append(
            Failure(self.number, time.monotonic(), utc(), phase, error.sqlstate, text)
        )


def longest_gap(
    times: Iterable[float], since_s: float, now_s: float, before_s: float | None
) -> tuple[float, float]:
    """Longest time between two neighbours of `times`, and when it began; up to now if open.

    `before_s`, the last success before the mark, is where the first gap begins: a mark set in the
    middle of an outage must not shorten it.
    """
    best = (0.0, since_s)
    previous_s = since_s if before_s is None else before_s
    for moment_s in _and_then(times, now_s):
        if moment_s - previous_s > best[0]:
            best = (moment_s - previous_s, previous_s)
        previous_s = moment_s
    return best


def _and_then(times: Iterable[float], last: float) -> Iterator[float]:
    yield from times
    yield last


class Client:
    """All writers, the marks, and the questions about them."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.run_id = secrets.token_hex(4)
        # A Service's address does not change, so the name is looked up once: an outage of the
        # cluster's DNS is a fault of its own and not the client's business.
        self._pool = _address(environment["POOL_HOST"])
        self._primary = _address(environment["PRIMARY_HOST"])
        self._login: dict[str, Any] = {
            "port": environment.get("PGPORT", "5432"),
            "user": environment["PGUSER"],
            "password": environment["PGPASSWORD"],
            "dbname": environment["PGDATABASE"],
            "application_name": "e2e-client",
            # Else libpq would try again in clear text, and tell of that instead of the reason.
            "sslmode": "require",
            "connect_timeout": "10",
            # Notices a pooler that vanished without a word, and never a pooler that lets it wait.
            "tcp_user_timeout": "5000",
            "keepalives_idle": "2",
            "keepalives_interval": "1",
            "keepalives_count": "3",
        }
        rate = float(environment.get("RATE_PER_WRITER", "50"))
        lifetime_s = float(environment.get("LIFETIME_S", "0")) or None
        self.started_s = time.monotonic()
        self.marks: dict[str, float] = {}
        self.writers = [
            Writer(number, self.run_id, self._connect_pool, rate, lifetime_s)
            for number in range(int(environment.get("WRITERS", "8")))
        ]

    def _connect_pool(self) -> psycopg.Connection[Any]:
        return psycopg.connect(hostaddr=self._pool, autocommit=True, **self._login)

    def prepare(self) -> None:
        """Make the table; waits for a cluster that is not there yet."""
        while True:
            try:
                with self._connect_pool() as connection:
                    connection.execute(
                        f"CREATE TABLE IF NOT EXISTS {TABLE} (run text NOT NULL, writer int "
                        "NOT NULL, seq bigint NOT NULL, at timestamptz NOT NULL DEFAULT "
                        "clock_timestamp())"
                    )
                return
            except psycopg.Error as error:
                print(json.dumps({"at": utc(), "waiting": str(error).strip()}), flush=True)
                time.sleep(0.2)

    def start(self) -> None:
        for writer in self.writers:
            writer.start()

    def stop(self) -> None:
        for writer in self.writers:
            writer.stop()
        for writer in self.writers:
            writer.join(timeout=30)

    def mark(self, name: str) -> dict[str, Any]:
        self.marks[name] = time.monotonic()
        return {"mark": name, "at": utc()}

    def stats(self, since: str | None) -> dict[str, Any]:
        """What happened since the mark; KeyError where there is no such mark."""
        since_s = self.started_s if since is None else self.marks[since]
        now_s = time.monotonic()
        slices = [self._slice(writer, since_s) for writer in self.writers]
        lasts = [before for _, _, before in slices if before is not None]
        gap_s, began_s = longest_gap(
            heapq.merge(*(times for times, _, _ in slices)),
            since_s,
            now_s,
            max(lasts) if lasts else None,
        )
        lasts_of_all = [times[-1] for times, _, _ in slices if len(times)]
        per_writer = [longest_gap(times, since_s, now_s, before)[0] for times, _, before in slices]
        failures = sorted(
            (f for w in self.writers for f in list(w.failures) if f.monotonic_s >= since_s),
            key=lambda failure: failure.monotonic_s,
        )
        took = sorted(value for _, values, _ in slices for value in values)
        acknowledged = len(took)
        return {
            "since": since,
            "now": utc(),
            "seconds": round(now_s - since_s, 3),
            "acknowledged": acknowledged,
            "last_acknowledged": utc(max(lasts_of_all) - now_s) if lasts_of_all else None,
            "per_second": round(acknowledged / max(now_s - since_s, 1e-9), 1),
            "errors": len(failures),
            "writers_with_an_error": sorted({failure.writer for failure in failures}),
            "errors_by_text": Counter(
                f"{f.phase} {f.sqlstate or '-'}: {f.text[:200]}" for f in failures
            ),
            "error_details": [
                {"writer": f.writer, "at": f.at, "phase": f.phase, "sqlstate": f.sqlstate}
                | {"text": f.text}
                for f in failures[:DETAILED_ERRORS]
            ],
            "longest_gap_s": round(gap_s, 3),
            "longest_gap_began": utc(began_s - now_s),
            "longest_gap_per_writer_s": [round(value, 3) for value in per_writer],
            "latency_ms": {
                name: round(1000 * took[min(acknowledged - 1, int(share * acknowledged))], 1)
                for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))
                if acknowledged
            },
            "connects": sum(writer.connects for writer in self.writers),
        }

    @staticmethod
    def _slice(writer: Writer, since_s: float) -> tuple[array[float], array[float], float | None]:
        count = len(writer.times)
        first = bisect.bisect_left(writer.times, since_s, 0, count)
        before = writer.times[first - 1] if first else None
        return writer.times[first:count], writer.took[first:count], before

    def verify(self) -> dict[str, Any]:
        """Look for every row that was acknowledged before this call, on the primary itself."""
        acknowledged = {
            (writer.number, sequence)
            for writer in self.writers
            for sequence in writer.rows[: len(writer.times)]
        }
        found = Counter(self._rows_on_primary(give_up_after_s=150.0))
        lost = sorted(acknowledged - found.keys())
        doubled = sorted(row for row, count in found.items() if count > 1)
        return {
            "acknowledged": len(acknowledged),
            "found": found.total(),
            "lost": len(lost),
            "lost_rows": lost[:50],
            "lost_ranges": _ranges(lost),
            "doubled": len(doubled),
            "doubled_rows": doubled[:50],
            "errors": sum(len(writer.failures) for writer in self.writers),
        }

    def _rows_on_primary(self, *, give_up_after_s: float) -> list[tuple[int, int]]:
        deadline_s = time.monotonic() + give_up_after_s
        # Past the pool; but a Service follows only as well as Kubernetes' own controllers do, which
        # take up to a minute after an outage of the API server.
        for address in itertools.cycle((self._primary, self._pool)):
            try:
                with psycopg.connect(hostaddr=address, **self._login) as connection:
                    rows = connection.execute(
                        f"SELECT writer, seq FROM {TABLE} WHERE run = %s AND NOT "
                        "pg_is_in_recovery()",
                        (self.run_id,),
                    ).fetchall()
                if rows:
                    return [(int(writer), int(sequence)) for writer, sequence in rows]
                error: str = "no row there, or not a primary"
            except psycopg.Error as problem:
                error = str(problem)
            if time.monotonic() > deadline_s:
                break
            time.sleep(0.2)
        raise TimeoutError(f"the primary could not be asked: {error}")


def _ranges(rows: list[tuple[int, int]]) -> list[str]:
    """Lost rows as people read them: `writer 3: 120-131`."""
    texts: list[str] = []
    start: tuple[int, int] | None = None
    for row, following in itertools.pairwise([*rows, (-1, -1)]):
        start = start or row
        if following != (row[0], row[1] + 1):
            texts.append(f"writer {row[0]}: {start[1]}-{row[1]}")
            start = None
    return texts[:50]


def _address(host: str) -> str:
    while True:
        try:
            return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
        except OSError as error:
            print(json.dumps({"at": utc(), "waiting": f"{host}: {error}"}), flush=True)
            time.sleep(0.2)


def handler(client: Client) -> type[BaseHTTPRequestHandler]:
    """The HTTP side of `client`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            try:
                status, body = self._answer(url.path, query)
            except KeyError as error:
                status, body = 404, {"error": f"no mark {error}"}
            except TimeoutError as error:
                status, body = 504, {"error": str(error)}
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _answer(self, path: str, query: dict[str, str]) -> tuple[int, dict[str, Any]]:
            match path:
                case "/mark":
                    return 200, client.mark(query["name"])
                case "/stats":
                    return 200, client.stats(query.get("since"))
                case "/verify":
                    return 200, client.verify()
                case "/finish":
                    client.stop()
                    return 200, client.verify()
                case "/healthz":
                    alive = any(len(writer.times) for writer in client.writers)
                    return (200 if alive else 503), {"writing": alive}
            return 404, {"error": f"nothing at {path}"}

        def log_message(self, *_: Any) -> None:
            """Requests are not worth a line."""

    return Handler


def main() -> None:
    client = Client(dict(os.environ))
    server = ThreadingHTTPServer(("", int(os.environ.get("PORT", "8000"))), handler(client))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    client.prepare()
    client.start()
    while True:
        time.sleep(10)
        print(json.dumps(client.stats(None) | {"error_details": None}), flush=True)


if __name__ == "__main__":
    main()
