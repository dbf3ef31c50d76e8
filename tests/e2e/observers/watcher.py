"""Looks for two primaries: asks every instance for its role and tries a write, ten times a second.

Runs alone in a pod (standard library and psycopg only). An instance is an *address*: a pod that was
deleted by force may still run on a node that nobody reaches, while its successor of the same name
runs elsewhere, and just those two must not both accept a write.

All writes that one address acknowledged on one timeline are one *reign*, from the start of its
first to the end of its last. Reigns must not overlap: a primary that restarts in place continues
its reign, one that was promoted again begins another, and a write on A after one on B without a
promotion between stretches A's reign over B's, however briefly each was seen.

Each address has a thread of its own. An attempt on a frozen instance is left waiting and not given
up: whether it is acknowledged on waking is the question. Cut connections end by tcp_user_timeout.

Asked over HTTP, in JSON: /mark?name=N, /stats?since=N, /healthz (200 once a write was accepted).
"""

from __future__ import annotations

import bisect
import heapq
import json
import os
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from array import array
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import combinations
from pathlib import Path
from typing import Any, LiteralString

import psycopg

TABLE: LiteralString = "pgcluster_watch"
EVERY_S = 0.1
# A standby is asked for its role each time and for a write this often: each refusal is two lines
# in its log, and pg_is_in_recovery() is the very thing that refuses.
TRY_STANDBY_EVERY_S = 2.0
# An address that was an instance's may become a pooler's, which refuses our options in its log.
NO_INSTANCE = "unsupported startup parameter"
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

ROLE: LiteralString = """
    SELECT pg_is_in_recovery(),
        CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
        ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int END
"""
WRITE: LiteralString = f"""
    INSERT INTO {TABLE} AS t (address, writes, at) VALUES (%s, 1, clock_timestamp())
    ON CONFLICT (address) DO UPDATE SET writes = t.writes + 1, at = clock_timestamp()
"""
CREATE: LiteralString = (
    f"CREATE TABLE IF NOT EXISTS {TABLE} "
    "(address text PRIMARY KEY, writes bigint NOT NULL, at timestamptz NOT NULL)"
)


def utc(monotonic_s: float) -> str:
    """A monotonic moment on the wall clock."""
    moment = datetime.fromtimestamp(time.time() + monotonic_s - time.monotonic(), UTC)
    return moment.strftime("%H:%M:%S.%f")[:-3] + "Z"


@dataclass
class Reign:
    """The writes that one address acknowledged on one timeline. Times are monotonic."""

    name: str
    address: str
    timeline: int
    started_s: float
    ended_s: float
    writes: int = 1

    def describe(self) -> dict[str, Any]:
        return {
            "instance": self.name,
            "address": self.address,
            "timeline": self.timeline,
            "from": utc(self.started_s),
            "to": utc(self.ended_s),
            "writes": self.writes,
        }


@dataclass
class Target:
    """What is known of one address."""

    address: str
    port: int
    name: str
    reigns: dict[int, Reign] = field(default_factory=dict)
    accepted: array[float] = field(default_factory=lambda: array("d"))
    changes: list[tuple[float, str]] = field(default_factory=list)
    # The last attempts, to be printed when two primaries were seen: start, end, outcome.
    attempts: deque[tuple[float, float, str]] = field(default_factory=lambda: deque(maxlen=3000))
    asked_s: float | None = None  # since when an answer is awaited
    answered_s: float = 0.0

    def saw(self, state: str, at_s: float) -> None:
        if not self.changes or self.changes[-1][1] != state:
            self.changes.append((at_s, state))

    def accepted_write(self, timeline: int, started_s: float, ended_s: float) -> None:
        self.accepted.append(ended_s)
        reign = self.reigns.get(timeline)
        if reign is None:
            self.reigns[timeline] = Reign(self.name, self.address, timeline, started_s, ended_s)
        else:
            reign.ended_s = ended_s
            reign.writes += 1


def overlapping(reigns: Iterable[Reign]) -> list[tuple[Reign, Reign]]:
    """Pairs of reigns of which both accepted a write at once, or in turns."""
    return [
        (one, other)
        for one, other in combinations(sorted(reigns, key=lambda r: r.started_s), 2)
        if one.started_s <= other.ended_s and other.started_s <= one.ended_s
    ]


class Probe(threading.Thread):
    """Asks one address for as long as the watcher lives."""

    def __init__(self, target: Target, login: dict[str, Any]) -> None:
        super().__init__(name=target.address, daemon=True)
        self.target = target
        self._login = login
        self._connection: psycopg.Connection[Any] | None = None
        self._cancelled_wait = False
        self._standby_tried_s = 0.0

    def run(self) -> None:
        due_s = time.monotonic()
        while True:
            started_s = time.monotonic()
            self.target.asked_s = started_s
            try:
                outcome = self._attempt()
            except (psycopg.Error, OSError) as error:
                outcome = _shortly(error)
                self._close()
            ended_s = time.monotonic()
            self.target.asked_s = None
            self.target.answered_s = ended_s
            self.target.saw(outcome, ended_s)
            self.target.attempts.append((started_s, ended_s, outcome))
            every_s = TRY_STANDBY_EVERY_S if outcome.endswith(NO_INSTANCE) else EVERY_S
            due_s = max(due_s + every_s, ended_s)
            time.sleep(due_s - ended_s)

    def _attempt(self) -> str:
        connection = self._connection or self._connect()
        row = connection.execute(ROLE, prepare=False).fetchone()
        assert row is not None
        in_recovery, timeline = bool(row[0]), int(row[1])
        now_s = time.monotonic()
        if in_recovery and now_s - self._standby_tried_s < TRY_STANDBY_EVERY_S:
            return f"standby on timeline {timeline}"
        if in_recovery:
            self._standby_tried_s = now_s
        return self._write(connection, in_recovery, timeline)

    def _write(self, connection: psycopg.Connection[Any], in_recovery: bool, timeline: int) -> str:
        self._cancelled_wait = False
        started_s = time.monotonic()
        try:
            connection.execute(WRITE, (self.target.address,), prepare=False)
        except psycopg.errors.ReadOnlySqlTransaction:
            return f"standby on timeline {timeline}" if in_recovery else "primary, read-only"
        except psycopg.errors.UndefinedTable:
            if in_recovery:
                return f"standby on timeline {timeline}"
            connection.execute(CREATE)
            return "primary, first write to come"
        if self._cancelled_wait:
            return "primary, waits for a synchronous standby"
        self.target.accepted_write(timeline, started_s, time.monotonic())
        return f"PRIMARY on timeline {timeline}"

    def _connect(self) -> psycopg.Connection[Any]:
        self._connection = psycopg.connect(
            hostaddr=self.target.address, port=self.target.port, autocommit=True, **self._login
        )
        self._connection.add_notice_handler(self._notice)
        return self._connection

    def _notice(self, notice: psycopg.errors.Diagnostic) -> None:
        # statement_timeout during the wait for a synchronous standby: committed here, not
        # acknowledged in the sense of the cluster.
        if "synchronous replication" in (notice.message_primary or ""):
            self._cancelled_wait = True

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


def _shortly(error: Exception) -> str:
    text = " ".join(str(error).split())
    for sign in (
        "Connection refused",
        "timeout",
        "starting up",
        "shutting down",
        "recovery",
        "No route to host",
        "Network is unreachable",
        "terminating connection",
        "authentication failed",
        "does not exist",
        "too many",
        NO_INSTANCE,
    ):
        if sign.lower() in text.lower():
            return f"down: {sign.lower()}"
    return f"down: {type(error).__name__} {text[:80]}"


class Watcher:
    """All targets, the marks, and the questions about them."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.marks: dict[str, float] = {}
        self.started_s = time.monotonic()
        self.targets: dict[str, Target] = {}
        self._guard = threading.Lock()
        self._login: dict[str, Any] = {
            "user": environment["PGUSER"],
            "password": environment["PGPASSWORD"],
            "dbname": environment["PGDATABASE"],
            "application_name": "e2e-watcher",
            # Else libpq would try again in clear text, and tell of that instead of the reason.
            "sslmode": "require",
            "connect_timeout": "1",
            "tcp_user_timeout": "1000",
            "keepalives_idle": "1",
            "keepalives_interval": "1",
            "keepalives_count": "2",
            "options": "-c statement_timeout=1000 -c lock_timeout=1000",
        }

    def watch(self, address: str, name: str, port: int = 5432) -> None:
        """Ask `address` from now on; it is never given up, whatever becomes of its pod."""
        key = f"{address}:{port}"
        with self._guard:
            known = self.targets.get(key)
            if known is not None:
                known.name = name
                return
            target = self.targets[key] = Target(address, port, name)
        Probe(target, self._login).start()

    def mark(self, name: str) -> dict[str, Any]:
        self.marks[name] = time.monotonic()
        return {"mark": name, "at": utc(time.monotonic())}

    def stats(self, since: str | None) -> dict[str, Any]:
        """What was seen since the mark; two primaries at any time. KeyError: no such mark."""
        since_s = self.started_s if since is None else self.marks[since]
        now_s = time.monotonic()
        with self._guard:
            targets = list(self.targets.values())
        reigns = sorted(
            (reign for target in targets for reign in list(target.reigns.values())),
            key=lambda reign: reign.started_s,
        )
        gap_s, began_s = _longest_gap(targets, since_s, now_s)
        return {
            "since": since,
            "seconds": round(now_s - since_s, 3),
            "two_primaries": [
                self._describe_dual(one, other, targets) for one, other in overlapping(reigns)
            ],
            "reigns": [reign.describe() for reign in reigns if reign.ended_s >= since_s],
            "longest_gap_s": round(gap_s, 3),
            "longest_gap_began": utc(began_s),
            "instances": [
                {
                    "instance": target.name,
                    "address": target.address,
                    "state": target.changes[-1][1] if target.changes else "not asked yet",
                    "silent_for_s": round(now_s - target.answered_s, 3)
                    if target.answered_s
                    else None,
                    "history": [
                        f"{utc(at_s)} {state}" for at_s, state in _since(target.changes, since_s)
                    ],
                }
                for target in targets
            ],
        }

    def _describe_dual(self, one: Reign, other: Reign, targets: list[Target]) -> dict[str, Any]:
        started_s, ended_s = (
            max(one.started_s, other.started_s),
            min(one.ended_s, other.ended_s),
        )
        around = sorted(
            (start_s, end_s, f"{target.name} ({target.address}): {outcome}")
            for target in targets
            for start_s, end_s, outcome in list(target.attempts)
            if start_s <= ended_s + 1 and end_s >= started_s - 1
        )
        return {
            "from": utc(started_s),
            "to": utc(ended_s),
            "seconds": round(ended_s - started_s, 3),
            "reigns": [one.describe(), other.describe()],
            # How it began, and how it ended.
            "attempts": [
                f"{utc(a)} to {utc(b)} {text}"
                for a, b, text in (around if len(around) <= 200 else around[:100] + around[-100:])
            ],
        }

    def accepted_any(self) -> bool:
        return any(target.accepted for target in list(self.targets.values()))


def _since(changes: list[tuple[float, str]], since_s: float) -> list[tuple[float, str]]:
    """The changes since a moment, and the state that held when it came."""
    copy = list(changes)
    first = bisect.bisect_left([at_s for at_s, _ in copy], since_s)
    return copy[max(0, first - 1) :]


def _longest_gap(targets: list[Target], since_s: float, now_s: float) -> tuple[float, float]:
    """Longest time in which no instance accepted a write, and when it began."""
    best = (0.0, since_s)
    previous_s = since_s
    for moment_s in heapq.merge(*(list(target.accepted) for target in targets), [now_s]):
        if moment_s < since_s:
            previous_s = moment_s
            continue
        if moment_s - previous_s > best[0]:
            best = (moment_s - previous_s, previous_s)
        previous_s = moment_s
    return best


class PodList(threading.Thread):
    """Tells the watcher the address of each pod of a cluster, from the API.

    A pod's DNS name leads to its old address for some seconds after a restart, and those are the
    seconds of interest.
    """

    def __init__(self, watcher: Watcher, namespace: str, selector: str) -> None:
        super().__init__(name="pods", daemon=True)
        self._watcher = watcher
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        query = urllib.parse.urlencode({"labelSelector": selector})
        self._url = f"https://{host}:{port}/api/v1/namespaces/{namespace}/pods?{query}"
        self._tls = ssl.create_default_context(cafile=str(SERVICE_ACCOUNT / "ca.crt"))

    def run(self) -> None:
        while True:
            try:
                self._follow()
            except (OSError, ValueError, KeyError) as error:
                print(json.dumps({"pods": f"{type(error).__name__}: {error}"}), flush=True)
            time.sleep(0.3)

    def _follow(self) -> None:
        with self._open("") as answer:
            listing = json.load(answer)
        for item in listing["items"]:
            self._note(item)
        version = listing["metadata"]["resourceVersion"]
        with self._open(f"&watch=1&timeoutSeconds=50&resourceVersion={version}") as answer:
            for line in answer:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                self._note(event["object"])

    def _open(self, more: str) -> Any:
        token = (SERVICE_ACCOUNT / "token").read_text()
        request = urllib.request.Request(  # noqa: S310 the API server's own address
            self._url + more, headers={"Authorization": f"Bearer {token}"}
        )
        return urllib.request.urlopen(request, context=self._tls, timeout=60)  # noqa: S310

    def _note(self, pod: dict[str, Any]) -> None:
        if address := pod.get("status", {}).get("podIP"):
            self._watcher.watch(address, pod["metadata"]["name"])


def handler(watcher: Watcher) -> type[BaseHTTPRequestHandler]:
    """The HTTP side of `watcher`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urllib.parse.urlsplit(self.path)
            query = {k: v[0] for k, v in urllib.parse.parse_qs(url.query).items()}
            try:
                status, body = self._answer(url.path, query)
            except KeyError as error:
                status, body = 404, {"error": f"no mark {error}"}
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _answer(self, path: str, query: dict[str, str]) -> tuple[int, dict[str, Any]]:
            match path:
                case "/mark":
                    return 200, watcher.mark(query["name"])
                case "/stats":
                    return 200, watcher.stats(query.get("since"))
                case "/healthz":
                    accepted = watcher.accepted_any()
                    return (200 if accepted else 503), {"accepted": accepted}
            return 404, {"error": f"nothing at {path}"}

        def log_message(self, *_: Any) -> None:
            """Requests are not worth a line."""

    return Handler


def main() -> None:
    watcher = Watcher(dict(os.environ))
    # Without an API: TARGETS="name=address:port,…"
    for entry in filter(None, os.environ.get("TARGETS", "").split(",")):
        name, _, place = entry.partition("=")
        address, _, port = place.rpartition(":")
        watcher.watch(address, name, int(port))
    if selector := os.environ.get("POD_SELECTOR"):
        PodList(watcher, os.environ["POD_NAMESPACE"], selector).start()
    ThreadingHTTPServer(("", int(os.environ.get("PORT", "8000"))), handler(watcher)).serve_forever()


if __name__ == "__main__":
    main()
