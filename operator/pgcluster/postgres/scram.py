"""SCRAM-SHA-256 verifiers computed here, so that no clear text reaches the server or its log.

Source: RFC 5803, and PostgreSQL's scram_build_secret().
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets

# PostgreSQL's own default (SCRAM_SHA_256_DEFAULT_ITERATIONS).
ITERATIONS = 4096
_VERIFIER = re.compile(
    r"SCRAM-SHA-256\$(?P<iterations>\d+):(?P<salt>[^$]+)\$(?P<stored>[^:]+):(?P<server>.+)"
)


def verifier(password: str, *, salt: bytes | None = None, iterations: int = ITERATIONS) -> str:
    """The verifier of `password`, with a new random salt unless one is given."""
    salt = secrets.token_bytes(16) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    client = hmac.digest(salted, b"Client Key", "sha256")
    stored = hashlib.sha256(client).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")

    def text(raw: bytes) -> str:
        return base64.b64encode(raw).decode()

    return f"SCRAM-SHA-256${iterations}:{text(salt)}${text(stored)}:{text(server)}"


def is_verifier(stored: str) -> bool:
    """Whether a role can log in by it where SCRAM is asked for; an MD5 hash is none."""
    return _VERIFIER.fullmatch(stored) is not None


def matches(password: str, stored: str | None) -> bool:
    """Whether `stored`, as in pg_authid.rolpassword, is a verifier of `password`.

    An unchanged password must keep its verifier: a new salt would invalidate the SCRAM keys that
    every pool holds.
    """
    found = _VERIFIER.fullmatch(stored or "")
    if found is None or stored is None:
        return False
    again = verifier(
        password, salt=base64.b64decode(found["salt"]), iterations=int(found["iterations"])
    )
    return hmac.compare_digest(again, stored)
