"""This server's side of data that is taken over: databases under temporary names, then all at once.

A database is filled under a name of its own. When the last one is complete, one transaction gives
all of them their names and says in a table that it is done. So whatever ends the work before, a
crash or a failover, leaves nothing that anybody would take for the data, and it begins anew; and a
database that was there already is never touched.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from pgcluster.api import names
from pgcluster.postgres import local
from pgcluster.postgres.source import (
    Database,
    Facts,
    database_statements,
    membership_statements,
    role_statements,
    setting_statements,
    taken_roles,
)

log = logging.getLogger(__name__)

Connection = psycopg.AsyncConnection[dict[str, Any]]

# Whether there is a table first: to ask one that is not there is an error.
MARKED: LiteralString = "SELECT to_regclass('pgcluster.imported') IS NOT NULL AS marked"
DONE: LiteralString = (
    "SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS at"
    " FROM pgcluster.imported"
)


async def connect(database: str = "postgres") -> Connection:
    """A superuser's connection that logs no statement: there are password verifiers in some."""
    connection = await psycopg.AsyncConnection.connect(
        local.socket_conninfo(database), autocommit=True, row_factory=dict_row
    )
    for name, value in local.QUIET.items():
        await connection.execute("SELECT set_config(%s, %s, false)", (name, value))
    return connection


def temporary(number: int) -> str:
    """Name of a database while it is filled."""
    return f"{names.IMPORT_PREFIX}{number}"


async def clear(connection: Connection) -> None:
    """Drop what an attempt that was cut off has left."""
    cursor = await connection.execute(
        "SELECT datname AS name FROM pg_database WHERE starts_with(datname, %s)",
        (names.IMPORT_PREFIX,),
    )
    for row in await cursor.fetchall():
        name = sql.Identifier(row["name"])
        # Its restore may still be at work on connections of its own.
        await connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
        log.info("dropped %s, which was not complete", row["name"])


async def existing(connection: Connection, databases: Iterable[str]) -> tuple[str, ...]:
    """Those of these databases that are there already."""
    cursor = await connection.execute(
        "SELECT datname AS name FROM pg_database WHERE datname = ANY(%s) ORDER BY 1",
        (list(databases),),
    )
    return tuple(row["name"] for row in await cursor.fetchall())


async def available(connection: Connection) -> frozenset[str]:
    """The extensions that can be made here."""
    cursor = await connection.execute("SELECT name FROM pg_available_extensions")
    return frozenset(row["name"] for row in await cursor.fetchall())


async def make_roles(connection: Connection, facts: Facts) -> list[str]:
    """Make the source's roles; returns what could not be said of them, as sentences.

    A setting that this version does not have any more is no reason to leave the data there.
    """
    cursor = await connection.execute("SELECT rolname AS name FROM pg_roles")
    present = {row["name"] for row in await cursor.fetchall()}
    roles = taken_roles(facts.roles)
    made = frozenset(role.name for role in roles)
    for role in roles:
        for statement in role_statements(role, exists=role.name in present):
            await connection.execute(statement)
    return await _one_by_one(
        connection,
        [
            *membership_statements(facts.memberships, made, major=_major(connection)),
            *setting_statements(facts.settings, made, {}),
        ],
    )


async def make_database(connection: Connection, name: str, owner: str) -> None:
    """Make an empty one with this cluster's encoding and locale."""
    await connection.execute(
        sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0").format(
            sql.Identifier(name), sql.Identifier(owner)
        )
    )


async def owner_here(connection: Connection, database: Database) -> str:
    """Its owner there, where that is a role here that may own one; else the superuser for now."""
    if database.owner not in names.RESERVED_ROLES:
        cursor = await connection.execute(
            "SELECT 1 FROM pg_roles WHERE rolname = %s", (database.owner,)
        )
        if await cursor.fetchone():
            return database.owner
    return "postgres"


async def dress(
    connection: Connection, facts: Facts, here: Mapping[str, str], *, roles: bool
) -> list[str]:
    """Give the filled databases (name there → here) what pg_dump leaves out of a database.

    Returns what could not be given, as sentences.
    """
    made = frozenset(role.name for role in taken_roles(facts.roles)) if roles else frozenset()
    ours = [setting for setting in facts.settings if setting.database is not None]
    statements = setting_statements(ours, made, here)
    for database in facts.databases:
        statements += database_statements(database, here[database.name])
    return await _one_by_one(connection, statements)


async def finish(connection: Connection, here: Mapping[str, str]) -> None:
    """Give the databases their names and say that it is done: all of it or nothing."""
    async with connection.transaction():
        for name, temporary_ in here.items():
            await connection.execute(
                sql.SQL("ALTER DATABASE {} RENAME TO {}").format(
                    sql.Identifier(temporary_), sql.Identifier(name)
                )
            )
        await connection.execute("CREATE SCHEMA IF NOT EXISTS pgcluster")
        await connection.execute("CREATE TABLE pgcluster.imported (at timestamptz NOT NULL)")
        await connection.execute("INSERT INTO pgcluster.imported VALUES (now())")


async def _one_by_one(connection: Connection, statements: Sequence[sql.Composed]) -> list[str]:
    notes = []
    for statement in statements:
        try:
            await connection.execute(statement)
        except psycopg.Error as error:
            text = statement.as_string(connection)
            notes.append(f"{text}: {error.diag.message_primary or error}")
    return notes


def _major(connection: Connection) -> int:
    return connection.info.server_version // 10000
