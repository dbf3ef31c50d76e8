"""Another server that data is taken over from: what it has, as statements that make it here.

pg_dumpall would do the roles too, but as text with password verifiers in it, which would have to be
parsed to leave out what the cluster must not get. Reading the catalogs works with every version.
Sources: PostgreSQL, pg_dumpall.c, dumputils.c (makeAlterConfigCommand), catalogs of 13 to 17.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, LiteralString

import psycopg
from psycopg import conninfo, sql
from psycopg.rows import dict_row

from pgcluster.api import names
from pgcluster.postgres import scram

_CONNECT_TIMEOUT_S = 10

# Settings whose value is a list of names: it is stored quoted, and set name by name.
_LISTS = frozenset(
    {
        "local_preload_libraries",
        "search_path",
        "session_preload_libraries",
        "temp_tablespaces",
        "unix_socket_directories",
    }
)

# By this a source is kept from being written meanwhile; here it would keep everybody from writing.
_NOT_TAKEN = frozenset({"default_transaction_read_only"})


_DATABASE_PRIVILEGES = ("CONNECT", "CREATE", "TEMPORARY")


@dataclass(frozen=True, slots=True)
class Source:
    """How to reach it. The password is in no argument, environment or connection string."""

    host: str
    port: int
    user: str
    password: str = field(repr=False)
    ssl_mode: str = "prefer"
    ca_file: str | None = None

    def conninfo(self, database: str) -> str:
        """A connection string without the password."""
        more = {"sslrootcert": self.ca_file} if self.ca_file else {}
        return conninfo.make_conninfo(
            host=self.host,
            port=self.port,
            user=self.user,
            dbname=database,
            sslmode=self.ssl_mode,
            connect_timeout=_CONNECT_TIMEOUT_S,
            application_name="pgcluster-import",
            **more,
        )

    def passfile(self) -> str:
        """libpq's password file for a program that connects by it.

        Not PGPASSWORD: an environment is inherited, and shown by /proc and in dumps of a process.
        """
        escaped = self.password.replace("\\", "\\\\").replace(":", "\\:")
        return f"*:*:*:*:{escaped}\n"

    async def connect(self, database: str) -> psycopg.AsyncConnection[dict[str, Any]]:
        """Connect; psycopg.Error where that is refused."""
        return await psycopg.AsyncConnection.connect(
            self.conninfo(database), password=self.password, autocommit=True, row_factory=dict_row
        )


@dataclass(frozen=True, slots=True)
class Role:
    """A role of the source; `password` is its verifier, where it has one that may be read."""

    name: str
    superuser: bool = False
    login: bool = False
    inherit: bool = True
    create_role: bool = False
    create_database: bool = False
    replication: bool = False
    bypass_rls: bool = False
    connection_limit: int = -1
    valid_until: str | None = None
    password: str | None = field(default=None, repr=False)
    comment: str | None = None


@dataclass(frozen=True, slots=True)
class Membership:
    """`member` belongs to `group`; the options are None where the source has none of the kind."""

    group: str
    member: str
    admin: bool = False
    inherit: bool | None = None
    set: bool | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """`name=value` for a role, for a database, or for a role in a database."""

    role: str | None
    database: str | None
    assignment: str


@dataclass(frozen=True, slots=True)
class Grant:
    """A privilege on a database; `role` None is everybody."""

    role: str | None
    privilege: str
    grantable: bool = False


@dataclass(frozen=True, slots=True)
class Database:
    """A database of the source; `grants` None are the default ones."""

    name: str
    owner: str
    size_bytes: int = 0
    comment: str | None = None
    grants: tuple[Grant, ...] | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What the source has beside what is inside of its databases."""

    version: int  # the major one
    reads_passwords: bool
    roles: tuple[Role, ...] = ()
    memberships: tuple[Membership, ...] = ()
    settings: tuple[Setting, ...] = ()
    databases: tuple[Database, ...] = ()


_ROLES: LiteralString = """
SELECT rolname AS name, rolsuper AS superuser, rolcanlogin AS login, rolinherit AS inherit,
       rolcreaterole AS create_role, rolcreatedb AS create_database, rolreplication AS replication,
       rolbypassrls AS bypass_rls, rolconnlimit AS connection_limit,
       rolvaliduntil::text AS valid_until, shobj_description(oid, 'pg_authid') AS comment
"""
_MEMBERSHIPS: LiteralString = """
SELECT g.rolname AS group, u.rolname AS member, bool_or(m.admin_option) AS admin
"""
_SETTINGS: LiteralString = """
SELECT r.rolname AS role, d.datname AS database, unnest(s.setconfig) AS assignment
FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole
     LEFT JOIN pg_database d ON d.oid = s.setdatabase ORDER BY 1, 2
"""
_DATABASES: LiteralString = """
SELECT datname AS name, pg_get_userbyid(datdba) AS owner, pg_database_size(oid) AS size_bytes,
       shobj_description(oid, 'pg_database') AS comment, datacl IS NULL AS plain
FROM pg_database WHERE datname = ANY(%s) AND datallowconn
"""
_GRANTS: LiteralString = """
SELECT d.datname AS database, r.rolname AS role, a.privilege_type AS privilege,
       a.is_grantable AS grantable
FROM pg_database d, aclexplode(d.datacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee
WHERE d.datname = ANY(%s) ORDER BY 1, 2, 3
"""


async def look(source: Source, databases: Sequence[str]) -> Facts:
    """Read what there is; psycopg.Error where the login may not."""
    async with await source.connect(databases[0]) as connection:
        await connection.execute("SET datestyle = 'ISO'")

        async def rows(statement: LiteralString, *values: object) -> list[dict[str, Any]]:
            return await (await connection.execute(statement, values or None)).fetchall()

        version = connection.info.server_version // 10000
        reads = "SELECT has_column_privilege('pg_authid', 'rolpassword', 'SELECT') AS it"
        reads_passwords = bool((await rows(reads))[0]["it"])
        passwords: LiteralString = (
            ", rolpassword AS password FROM pg_authid" if reads_passwords else " FROM pg_roles"
        )
        options: LiteralString = (
            ", bool_or(m.inherit_option) AS inherit, bool_or(m.set_option) AS set"
            if version >= 16
            else ""
        )
        of: LiteralString = (
            " FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid"
            " JOIN pg_roles u ON u.oid = m.member GROUP BY 1, 2 ORDER BY 1, 2"
        )
        grants: dict[str, list[Grant]] = {}
        for row in await rows(_GRANTS, list(databases)):
            grants.setdefault(row.pop("database"), []).append(Grant(**row))
        found = {
            row["name"]: Database(
                grants=None if row.pop("plain") else tuple(grants.get(row["name"], ())), **row
            )
            for row in await rows(_DATABASES, list(databases))
        }
        return Facts(
            version=version,
            reads_passwords=reads_passwords,
            roles=tuple(Role(**row) for row in await rows(_ROLES + passwords + " ORDER BY 1")),
            memberships=tuple(Membership(**row) for row in await rows(_MEMBERSHIPS + options + of)),
            settings=tuple(Setting(**row) for row in await rows(_SETTINGS)),
            databases=tuple(found[name] for name in databases if name in found),
        )


async def extensions(source: Source, database: str) -> frozenset[str]:
    """The extensions that a database of it uses."""
    async with await source.connect(database) as connection:
        cursor = await connection.execute("SELECT extname FROM pg_extension")
        return frozenset(row["extname"] for row in await cursor.fetchall())


# --- what of it is made here: pure ------------------------------------------------------------
def refusal(
    facts: Facts,
    wanted: Sequence[str],
    used: Mapping[str, frozenset[str]],
    available: frozenset[str],
    *,
    major: int,
) -> str | None:
    """Why this cannot be taken over, as a sentence; None where it can.

    `used` are the extensions of each database, `available` those that can be made here.
    """
    if facts.version > major:
        return (
            f"the source runs PostgreSQL {facts.version} and this cluster {major}: data goes to the"
            " same or a newer major version only"
        )
    there = {database.name for database in facts.databases}
    if missing := [name for name in wanted if name not in there]:
        return f"the source has no database {', '.join(missing)}"
    lacking = {
        name: sorted(extensions_ - available)
        for name, extensions_ in used.items()
        if extensions_ - available
    }
    if lacking:
        told = "; ".join(f"database {n} needs {', '.join(x)}" for n, x in sorted(lacking.items()))
        return (
            f"extensions are missing in the image of this cluster: {told}; name an image that has"
            " them in spec.image"
        )
    return None


def taken_roles(roles: Iterable[Role]) -> tuple[Role, ...]:
    """The roles to make, as they are to be here.

    Those that every cluster has are left out. A superuser becomes a role that is none and cannot
    log in, so that what it owns keeps its owner. An MD5 verifier is left out: nobody could log in
    by it, since pg_hba.conf asks for SCRAM.
    """
    made = []
    for role in roles:
        if role.name in names.RESERVED_ROLES or role.name.startswith("pg_"):
            continue
        if role.superuser:
            made.append(Role(role.name, inherit=role.inherit, comment=role.comment))
            continue
        usable = role.password is not None and scram.is_verifier(role.password)
        made.append(role if usable else replace(role, password=None))
    return tuple(made)


def without_password(facts: Facts) -> tuple[str, ...]:
    """Roles that could log in there and cannot here until somebody gives them a password."""
    return tuple(
        role.name for role in taken_roles(facts.roles) if role.login and role.password is None
    )


def role_statements(role: Role, *, exists: bool) -> list[sql.Composed]:
    """What makes a role, or an existing one the same."""
    name = sql.Identifier(role.name)
    flags = {
        "LOGIN": role.login,
        "INHERIT": role.inherit,
        "CREATEROLE": role.create_role,
        "CREATEDB": role.create_database,
        "REPLICATION": role.replication,
        "BYPASSRLS": role.bypass_rls,
    }
    words = " ".join(word if on else f"NO{word}" for word, on in flags.items())
    statement = sql.SQL("{} ROLE {} WITH NOSUPERUSER {} CONNECTION LIMIT {}").format(
        sql.SQL("ALTER" if exists else "CREATE"),
        name,
        sql.SQL(words),
        sql.Literal(role.connection_limit),
    )
    if role.valid_until is not None:
        statement += sql.SQL(" VALID UNTIL {}").format(sql.Literal(role.valid_until))
    if role.password is not None:
        statement += sql.SQL(" PASSWORD {}").format(sql.Literal(role.password))
    made = [statement]
    if role.comment is not None:
        made.append(sql.SQL("COMMENT ON ROLE {} IS {}").format(name, sql.Literal(role.comment)))
    return made


def membership_statements(
    memberships: Iterable[Membership], made: frozenset[str], *, major: int
) -> list[sql.Composed]:
    """Who belongs to whom, among the roles that are made and PostgreSQL's own groups."""
    statements = []
    for membership in memberships:
        group = membership.group
        if membership.member not in made or not (group in made or group.startswith("pg_")):
            continue
        options = [f"ADMIN {_boolean(membership.admin)}"]
        if major >= 16:
            options += [
                f"{word} {_boolean(value)}"
                for word, value in (("INHERIT", membership.inherit), ("SET", membership.set))
                if value is not None
            ]
        elif not membership.admin:
            options = []
        else:
            options = ["ADMIN OPTION"]
        statement = sql.SQL("GRANT {} TO {}").format(
            sql.Identifier(group), sql.Identifier(membership.member)
        )
        if options:
            statement += sql.SQL(" WITH " + ", ".join(options))
        statements.append(statement)
    return statements


def setting_statements(
    settings: Iterable[Setting], made: frozenset[str], databases: Mapping[str, str]
) -> list[sql.Composed]:
    """Settings of roles and databases; `databases` maps a name there to the name here, so far."""
    statements = []
    for setting in settings:
        if setting.role is not None and setting.role not in made:
            continue
        if setting.database is not None and setting.database not in databases:
            continue
        if setting.role is None and setting.database is None:
            continue
        name, _, value = setting.assignment.partition("=")
        if name in _NOT_TAKEN:
            continue
        target: sql.Composable = sql.SQL("")
        if setting.database is not None:
            here = sql.Identifier(databases[setting.database])
            target = sql.SQL("DATABASE {}").format(here)
        if setting.role is not None:
            of = sql.SQL(" IN {}").format(target) if setting.database is not None else target
            target = sql.SQL("ROLE {}{}").format(sql.Identifier(setting.role), of)
        values = split_names(value) if name in _LISTS else [value]
        statements.append(
            sql.SQL("ALTER {} SET {} = {}").format(
                target,
                sql.Identifier(name),
                sql.SQL(", ").join(map(sql.Literal, values or [""])),
            )
        )
    return statements


def database_statements(database: Database, here: str) -> list[sql.Composed]:
    """Comment and privileges of a database."""
    name = sql.Identifier(here)
    made = []
    if database.comment is not None:
        made.append(
            sql.SQL("COMMENT ON DATABASE {} IS {}").format(name, sql.Literal(database.comment))
        )
    if database.grants is None:
        return made
    made.append(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name))
    for grant in database.grants:
        if grant.privilege not in _DATABASE_PRIVILEGES:
            continue
        statement = sql.SQL("GRANT {} ON DATABASE {} TO {}").format(
            sql.SQL(grant.privilege),
            name,
            sql.SQL("PUBLIC") if grant.role is None else sql.Identifier(grant.role),
        )
        made.append(statement + sql.SQL(" WITH GRANT OPTION") if grant.grantable else statement)
    return made


def split_names(text: str) -> list[str]:
    """The names of a list such as `"$user", public`, without their quotes."""
    found: list[str] = []
    current, quoted = "", False
    position = 0
    while position < len(text):
        character = text[position]
        if quoted and text[position : position + 2] == '""':
            current += '"'
            position += 1
        elif character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            found.append(current)
            current = ""
        elif quoted or not character.isspace():
            current += character
        position += 1
    return [*found, current] if current or found else []


def _boolean(value: bool) -> str:
    return "TRUE" if value else "FALSE"
