"""A clone's turn and its pace: new standbys must not take the primary's disk and network at once.

A turn is an advisory lock in the primary's database, held by a connection for as long as the clone
lasts. So it needs nobody who hands turns out, and it ends with whoever had it, however that ends.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import LiteralString

import psycopg

from pgcluster.api.config import ClusterConfig
from pgcluster.api.errors import RetryError

# Advisory locks have two numbers: this one says what it is about, the other whose turn.
_CLONES = 0x70676363
_CONNECT_S = 5.0
_AGAIN_S = 2.0

# The connection is idle for as long as the clone takes. PostgreSQL 13 has no such setting.
_STAY: LiteralString = """
SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'
"""
_TAKE: LiteralString = "SELECT pg_try_advisory_lock(%s, %s)"


def options(config: ClusterConfig, waldir: Path | None) -> str:
    """What pg_basebackup is to be told; its rate is in KiB a second."""
    found = [f"--waldir={waldir}"] if waldir else []
    if config.clone_max_rate_bytes is not None:
        found.append(f"--max-rate={config.clone_max_rate_bytes >> 10}")
    return " ".join(found)


@contextlib.asynccontextmanager
async def turn(conninfo: str, *, at_once: int) -> AsyncIterator[None]:
    """One of `at_once` turns to clone from the server at `conninfo`.

    RetryError where all are taken. Nobody is preferred: who asks first when one ends has it.
    """
    try:
        async with asyncio.timeout(_CONNECT_S):
            connection = await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
    except (psycopg.Error, OSError, TimeoutError) as error:
        raise RetryError(f"the primary cannot be asked for a turn to clone: {error}") from error
    try:
        if not await _taken(connection, at_once):
            raise RetryError(
                f"waiting for a turn to clone: spec.replication.maxClones ({at_once}) others do",
                delay_s=_AGAIN_S,
            )
        yield
    finally:
        await connection.close()


async def _taken(connection: psycopg.AsyncConnection, at_once: int) -> bool:
    try:
        async with asyncio.timeout(_CONNECT_S):
            await connection.execute(_STAY)
            for number in range(at_once):
                cursor = await connection.execute(_TAKE, (_CLONES, number))
                row = await cursor.fetchone()
                if row and row[0]:
                    return True
    except (psycopg.Error, OSError, TimeoutError) as error:
        raise RetryError(f"the primary cannot be asked for a turn to clone: {error}") from error
    return False
