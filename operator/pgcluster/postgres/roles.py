"""Roles, databases and functions that the cluster needs, made or mended on the primary.

Everything here is idempotent and looks before it writes, so that it can be run again after each
promotion and each change of the configuration. Passwords travel as SCRAM verifiers only.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import psycopg
from psycopg import sql

from pgcluster.api import names
from pgcluster.api.config import DatabaseConfig, UserConfig
from pgcluster.postgres import scram
from pgcluster.postgres.local import QUIET, socket_conninfo

log = logging.getLogger(__name__)

Connection = psycopg.AsyncConnection[tuple[object, ...]]

# Runs as its owner, so that the pooler's role needs no right on pg_authid; the search path is
# pinned, so that nobody can put another pg_authid in front. Superusers are left out: they have no
# business in the pool. Source: pgbouncer documentation, `auth_query`.
_USER_LOOKUP = """
CREATE OR REPLACE FUNCTION pgcluster.user_lookup(IN wanted text, OUT usename text, OUT passwd text)
RETURNS record LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog AS $$
    SELECT rolname::text, rolpassword FROM pg_catalog.pg_authid
    WHERE rolname = wanted AND rolcanlogin AND NOT rolsuper
      AND (rolvaliduntil IS NULL OR rolvaliduntil > pg_catalog.now())
$$
"""


async def ensure_internal(*, repmgr_password: str, pooler_password: str) -> None:
    """Make what repmgr and the poolers need; psycopg.Error where the server says no."""
    async with await _connect("postgres") as connection:
        await _role(connection, names.ROLE_REPMGR, "LOGIN SUPERUSER REPLICATION", repmgr_password)
        await _database(connection, names.DB_REPMGR, names.ROLE_REPMGR)
        await _role(connection, names.ROLE_POOLER, "LOGIN", pooler_password)
        for role in ("postgres", names.ROLE_REPMGR):
            # Those that can end it are excepted from what a full volume forbids (node/space.py),
            # and so is repmgr, whose metadata must stay right.
            await _setting(connection, role, "default_transaction_read_only", "off")
        # What repmgr writes must not wait for standbys that it has yet to let in.
        await _setting(connection, names.ROLE_REPMGR, "synchronous_commit", "local")
        if not await _one(
            connection,
            "SELECT 1 FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace"
            " WHERE n.nspname = %s AND p.proname = 'user_lookup'",
            names.SCHEMA,
        ):
            pooler = sql.Identifier(names.ROLE_POOLER)
            await connection.execute("CREATE SCHEMA IF NOT EXISTS pgcluster")
            await connection.execute(_USER_LOOKUP)
            await connection.execute(
                "REVOKE ALL ON FUNCTION pgcluster.user_lookup(text) FROM PUBLIC"
            )
            await connection.execute(
                sql.SQL("GRANT USAGE ON SCHEMA pgcluster TO {}").format(pooler)
            )
            await connection.execute(
                sql.SQL("GRANT EXECUTE ON FUNCTION pgcluster.user_lookup(text) TO {}").format(
                    pooler
                )
            )


async def ensure_declared(
    users: Sequence[UserConfig],
    databases: Sequence[DatabaseConfig],
    passwords: Mapping[str, str],
) -> dict[str, str]:
    """Make the declared users and databases; `passwords` maps a role's name to its password.

    Returns what could not be made, name → reason: one bad entry does not hold up the others.
    """
    failed: dict[str, str] = {}
    async with await _connect("postgres") as connection:
        for user in users:
            try:
                await _role(connection, user.name, "LOGIN", passwords.get(user.name))
                await _memberships(connection, user)
            except psycopg.Error as error:
                failed[f"user {user.name}"] = _reason(error)
        for database in databases:
            try:
                await _database(connection, database.name, database.owner)
            except psycopg.Error as error:
                failed[f"database {database.name}"] = _reason(error)
    for database in databases:
        if database.extensions and f"database {database.name}" not in failed:
            failed |= await _extensions(database)
    return failed


async def _connect(database: str) -> Connection:
    quiet = " ".join(f"-c {name}={value}" for name, value in QUIET.items())
    return await psycopg.AsyncConnection.connect(
        socket_conninfo(database),
        autocommit=True,
        # With synchronous replication and no standby yet these must not wait for one.
        options=f"-c synchronous_commit=local -c statement_timeout=30s {quiet}",
    )


async def _one(connection: Connection, query: str, *values: object) -> tuple[object, ...] | None:
    cursor = await connection.execute(query.encode(), values)
    return await cursor.fetchone()


async def _role(connection: Connection, name: str, attributes: str, password: str | None) -> None:
    """Create a role, or give an existing one its password; attributes are set at creation."""
    row = await _one(connection, "SELECT rolpassword FROM pg_authid WHERE rolname = %s", name)
    statement = sql.SQL("ALTER ROLE {}") if row else sql.SQL("CREATE ROLE {}")
    statement_composed = statement.format(sql.Identifier(name))
    if row is None:
        statement_composed += sql.SQL(" " + attributes)
    elif password is None or scram.matches(password, row[0] if isinstance(row[0], str) else None):
        return
    if password is not None:
        statement_composed += sql.SQL(" PASSWORD {}").format(sql.Literal(scram.verifier(password)))
    await connection.execute(statement_composed)
    log.info("%s role", "altered" if row else "created", extra={"role": name})


async def _setting(connection: Connection, role: str, name: str, value: str) -> None:
    """Give a role a setting of its own for all its sessions."""
    if not await _one(
        connection,
        "SELECT 1 FROM pg_db_role_setting s JOIN pg_roles r ON r.oid = s.setrole"
        " WHERE s.setdatabase = 0 AND r.rolname = %s AND %s = ANY (s.setconfig)",
        role,
        f"{name}={value}",
    ):
        await connection.execute(
            sql.SQL("ALTER ROLE {} SET {} = {}").format(
                sql.Identifier(role), sql.Identifier(name), sql.Literal(value)
            )
        )


async def _memberships(connection: Connection, user: UserConfig) -> None:
    for group in user.member_of:
        held = await _one(
            connection,
            "SELECT 1 FROM pg_auth_members m JOIN pg_roles r ON r.oid = m.roleid"
            " JOIN pg_roles u ON u.oid = m.member WHERE r.rolname = %s AND u.rolname = %s",
            group,
            user.name,
        )
        if not held:
            await connection.execute(
                sql.SQL("GRANT {} TO {}").format(sql.Identifier(group), sql.Identifier(user.name))
            )


async def _database(connection: Connection, name: str, owner: str) -> None:
    row = await _one(
        connection,
        "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = %s",
        name,
    )
    identifiers = (sql.Identifier(name), sql.Identifier(owner))
    if row is None:
        await connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(*identifiers))
        log.info("created database", extra={"database": name})
    elif row[0] != owner:
        await connection.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(*identifiers))


async def _extensions(database: DatabaseConfig) -> dict[str, str]:
    failed: dict[str, str] = {}
    try:
        async with await _connect(database.name) as connection:
            for extension in database.extensions:
                try:
                    await connection.execute(
                        sql.SQL("CREATE EXTENSION IF NOT EXISTS {}").format(
                            sql.Identifier(extension)
                        )
                    )
                except psycopg.Error as error:
                    failed[f"extension {extension} in {database.name}"] = _reason(error)
    except psycopg.Error as error:
        failed[f"database {database.name}"] = _reason(error)
    return failed


def _reason(error: psycopg.Error) -> str:
    if error.diag.message_primary:
        return error.diag.message_primary
    return str(error).splitlines()[0] if str(error) else type(error).__name__
