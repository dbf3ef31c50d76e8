"""What in pg_hba.conf and the parameters would open a hole, and how to say that it is meant. Pure.

Each hole has a name and is refused unless `spec.postgres.allowInsecure` has that name: so a review
of the manifest sees it in one place, and a line copied from an old server opens nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Literal

from pgcluster.api import names
from pgcluster.api.hba import Line

Hole = Literal[
    "trust", "ident", "clearTextPasswords", "md5", "superuserOverNetwork", "secretsInSpec"
]

# Hole → why it is one.
REASONS: Mapping[Hole, str] = {
    "trust": "whoever reaches the port gets in as any role, without a password",
    "ident": "the client's own machine would say who asks",
    "clearTextPasswords": "the password would cross the network in clear text: write hostssl, or"
    " method scram-sha-256",
    "md5": "an MD5 hash that was seen or stolen is as good as the password: write scram-sha-256",
    "superuserOverNetwork": "whoever guesses one password owns the instance and its volume; the"
    " pod's own socket lets the superuser in",
    "secretsInSpec": "whoever may read PgClusters or ConfigMaps would know the secret",
}

# Methods by which the server is told the password itself.
# Source: PostgreSQL, "Authentication Methods".
_TELLS_PASSWORD = frozenset({"ldap", "pam", "password", "radius"})
# Connections that are encrypted; what is `local` does not leave the pod.
_ENCRYPTED = frozenset({"hostssl", "hostgssenc", "local"})
_SECRET_OPTIONS = ("ldapbindpasswd", "radiussecrets")
_SUPERUSER = "postgres"


def in_line(line: Line) -> dict[Hole, str]:
    """The holes that a line opens, and by which word of it."""
    found: dict[Hole, str] = {}
    if line.method == "trust":
        found["trust"] = "method trust"
    if line.method == "md5":
        found["md5"] = "method md5"
    if line.method == "ident" and line.type != "local":
        found["ident"] = "method ident"
    if line.method in _TELLS_PASSWORD and line.type not in _ENCRYPTED:
        found["clearTextPasswords"] = f"method {line.method} with {line.type}"
    if names_superuser(line) and line.method != "reject":
        found["superuserOverNetwork"] = f"a network login of {_SUPERUSER}"
    for option in line.options:
        key = option.partition("=")[0].lower()
        if key in _SECRET_OPTIONS:
            found["secretsInSpec"] = f"option {key}"
    return found


def names_superuser(line: Line) -> bool:
    """Whether a line is about the superuser's logins over the network.

    One that says `all` is not: the operator's own line before it rejects the superuser.
    """
    return line.type != "local" and _SUPERUSER in line.users


def in_parameter(name: str, value: str) -> dict[Hole, str]:
    """The holes that a parameter opens."""
    if name == "password_encryption" and value.lower() == "md5":
        return {"md5": f"{name} = {value}"}
    return {}


def without_effect(line: Line) -> str | None:
    """The role for which a line says nothing, since an earlier line of the operator's decides."""
    own = {names.ROLE_REPMGR, names.ROLE_POOLER}
    if line.type == "local":
        own |= {_SUPERUSER}
        own -= {names.ROLE_POOLER}
    return next((user for user in line.users if user in own), None)


def refusals(found: Mapping[Hole, str], meant: Collection[Hole]) -> Iterable[str]:
    """Why each hole is refused that nobody has said is meant, and how to say it."""
    for hole, word in found.items():
        if hole not in meant:
            yield (
                f"{word} is refused: {REASONS[hole]}; if it is meant, say so by {hole} in"
                " spec.postgres.allowInsecure"
            )
