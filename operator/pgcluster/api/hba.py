"""Lines of pg_hba.conf as a user writes them. Pure.

Source: PostgreSQL, "The pg_hba.conf File".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

_TYPES = ("local", "host", "hostssl", "hostnossl", "hostgssenc", "hostnogssenc")
# A word of pg_hba.conf: bare or in quotes, and a list goes on after a comma.
_WORD = re.compile(r'(?:"[^"]*"|,\s*|[^\s",])+')
# One wrong line, and postgres does not start: so what PostgreSQL would say is said here.
_METHODS = frozenset(
    {"cert", "gss", "ident", "ldap", "md5", "pam", "password", "peer", "radius", "reject"}
    | {"scram-sha-256", "trust"}
)


@dataclass(frozen=True, slots=True)
class Line:
    """A line that PostgreSQL would understand, its words without quotes."""

    type: str
    users: tuple[str, ...]
    method: str
    options: tuple[str, ...]


def parse(line: str) -> Line:
    """A line of pg_hba.conf; ValueError that says what is wrong with it."""
    if any(character in line for character in "\r\n\0"):
        raise ValueError("a line must not contain a line break")
    if line.endswith("\\"):
        raise ValueError("a line must not end in a backslash: it would swallow the line behind it")
    words = _WORD.findall(line.split("#", 1)[0])
    if not words or words[0] not in _TYPES:
        raise ValueError(f"must start with one of {', '.join(_TYPES)}")
    local = words[0] == "local"
    rest = [word.replace('"', "") for word in words[3:]]
    if not local and rest:
        address = rest.pop(0)
        if "/" in address:
            if not is_network(address):
                raise ValueError(f"{address} is no network such as 10.0.0.0/8")
        elif _is_address(address) and not (rest and _is_address(rest.pop(0))):
            raise ValueError(f"address {address} wants a prefix length, such as {address}/32")
    if not rest:
        raise ValueError("wants type, database, user, address and method")
    method = rest[0]
    if method not in _METHODS:
        raise ValueError(f"method {method} is none of {', '.join(sorted(_METHODS))}")
    if (
        (method == "peer" and not local)
        or (method == "gss" and local)
        or (method == "cert" and words[0] != "hostssl")
    ):
        raise ValueError(f"method {method} does not go with {words[0]}")
    users = tuple(word.strip().replace('"', "") for word in words[2].split(","))
    return Line(words[0], users, method, tuple(rest[1:]))


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def is_network(text: str) -> bool:
    """Whether a text is an address with the length of its prefix."""
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True
