"""A script for a pgbouncer's pod: runs statements on its admin console and prints the rows.

`kubectl pgcluster` sends it there as text (`python -c`), so that it works with images of any
version; so it uses nothing of this package, and of psycopg only what has always been there.
"""

from __future__ import annotations

import sys

from psycopg import pq

# Over the socket a process of pgbouncer's own user is let in without a password.
_CONSOLE = b"host=/run/pgbouncer port=5432 user=pgbouncer dbname=pgbouncer connect_timeout=3"


def told(connection: pq.abc.PGconn, statement: str) -> str:
    """The answer to a statement: a line a row, fields apart by tabs, below their names."""
    result = connection.exec_(statement.encode())
    if result.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
        return "ERROR: " + (result.error_message or b"").decode(errors="replace").strip()
    columns = range(result.nfields)
    lines = [[(result.fname(n) or b"") for n in columns]]
    lines += [[(result.get_value(row, n) or b"") for n in columns] for row in range(result.ntuples)]
    return "\n".join(b"\t".join(line).decode(errors="replace") for line in lines)


def main(conninfo: bytes = _CONSOLE) -> None:
    """Each argument is a statement; ends with 1 where one was refused."""
    connection = pq.PGconn.connect(conninfo)
    if connection.status != pq.ConnStatus.OK:
        sys.exit((connection.error_message or b"").decode(errors="replace").strip())
    refused = False
    for statement in sys.argv[1:]:
        answer = told(connection, statement)
        refused = refused or answer.startswith("ERROR: ")
        sys.stdout.write(f"--- {statement}\n{answer}\n")
    connection.finish()
    sys.exit(1 if refused else 0)


if __name__ == "__main__":
    main()
