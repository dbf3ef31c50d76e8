"""The demo's application: four connections through the pool, one order a transaction.

Prints one line of JSON a second: orders taken, errors met, and the longest time without an order
that ended in this second or is still going on. On an error it connects anew, as any application
would; it knows nothing of primaries and standbys.
"""

from __future__ import annotations

import json
import os
import threading
import time

import psycopg

CONNECTIONS = 4
PAUSE_S = 0.02


class Shop:
    """Counts what all connections do."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._guard = threading.Lock()
        self._orders = 0
        self._errors = 0
        self._last_error = ""
        self._last_order_s = time.monotonic()
        self._longest_s = 0.0

    def open(self) -> None:
        """Make the table; waits for a database that is not there yet."""
        while True:
            try:
                with psycopg.connect(self._uri) as connection:
                    connection.execute(
                        "CREATE TABLE IF NOT EXISTS orders (id bigint GENERATED ALWAYS AS "
                        "IDENTITY PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())"
                    )
                return
            except psycopg.Error as error:
                print(json.dumps({"waiting": str(error).strip()}), flush=True)
                time.sleep(0.5)

    def sell(self) -> None:
        """Take orders for ever."""
        connection: psycopg.Connection[tuple[object, ...]] | None = None
        while True:
            try:
                connection = connection or psycopg.connect(self._uri, autocommit=True)
                connection.execute("INSERT INTO orders DEFAULT VALUES")
                self._sold()
            except psycopg.Error as error:
                self._failed(error)
                connection = None
            time.sleep(PAUSE_S)

    def _sold(self) -> None:
        now_s = time.monotonic()
        with self._guard:
            self._orders += 1
            self._longest_s = max(self._longest_s, now_s - self._last_order_s)
            self._last_order_s = now_s

    def _failed(self, error: psycopg.Error) -> None:
        with self._guard:
            self._errors += 1
            self._last_error = " ".join(str(error).split())

    def report(self) -> None:
        """One line about the second that has passed."""
        with self._guard:
            gap_s = max(self._longest_s, time.monotonic() - self._last_order_s)
            self._longest_s = 0.0
            line = {
                "orders": self._orders,
                "errors": self._errors,
                "gap_s": round(gap_s, 3),
                "last_error": self._last_error,
            }
        print(json.dumps(line), flush=True)


def main() -> None:
    shop = Shop(os.environ["DATABASE_URI"])
    shop.open()
    for _ in range(CONNECTIONS):
        threading.Thread(target=shop.sell, daemon=True).start()
    while True:
        time.sleep(1)
        shop.report()


if __name__ == "__main__":
    main()
