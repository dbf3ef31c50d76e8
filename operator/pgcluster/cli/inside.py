"""The command lines by which kubectl runs something in a pod of a cluster. Pure but for a file."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from pgcluster.api import names

_PYTHON = "/opt/pgcluster/bin/python"


def psql(
    kubectl: Sequence[str], pod: str, database: str = "postgres", *, stops: bool = True
) -> tuple[str, ...]:
    """psql as the superuser by the pod's own socket; what it is to run comes on standard input.

    `stops`: it ends at the first statement that fails.
    """
    where = ("exec", pod, "--container=postgres", "--stdin", "--")
    own = ("psql", "--host", names.PG_SOCKET_DIR, "--username", "postgres", "--dbname", database)
    return (*kubectl, *where, *own, "--no-psqlrc", "--quiet", f"--set=ON_ERROR_STOP={stops:d}")


def shell(kubectl: Sequence[str], pod: str, *command: str) -> tuple[str, ...]:
    """A program in the container of postgres."""
    return (*kubectl, "exec", pod, "--container=postgres", "--", *command)


def console(kubectl: Sequence[str], pod: str, *statements: str) -> tuple[str, ...]:
    """Statements on the admin console of a pooler."""
    where = ("exec", pod, "--container=pgbouncer", "--")
    return (*kubectl, *where, _PYTHON, "-c", _script(), *statements)


def _script() -> str:
    """The source of pgbouncer/console.py; it is not imported, since it needs psycopg."""
    found = importlib.util.find_spec("pgcluster.pgbouncer.console")
    if found is None or found.origin is None:
        raise FileNotFoundError("pgcluster/pgbouncer/console.py")
    return Path(found.origin).read_text()
