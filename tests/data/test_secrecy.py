"""What a real server writes into its log of the statements that carry passwords."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgcluster.api.config import UserConfig
from pgcluster.postgres import local, roles, takeover
from tests.data.servers import Postgres

pytestmark = pytest.mark.timeout(120)
# Everything that a person who looks for slow or wrong statements may switch on.
TALKATIVE = {
    "log_statement": "all",
    "log_min_duration_statement": "0",
    "log_min_error_statement": "debug5",
    "log_transaction_sample_rate": "1",
    "log_duration": "on",
}


@pytest.fixture
def talkative(primary: Postgres, monkeypatch: pytest.MonkeyPatch) -> Postgres:
    """A server that logs every statement, and the agent's way to it."""

    def conninfo(database: str) -> str:
        return f"host={primary.data.parent} port={primary.port} user=postgres dbname={database}"

    monkeypatch.setattr(roles, "socket_conninfo", conninfo)
    monkeypatch.setattr(local, "socket_conninfo", conninfo)
    for name, value in TALKATIVE.items():
        primary.query(f"ALTER SYSTEM SET {name} = '{value}'")
    primary.query("SELECT pg_reload_conf()")
    return primary


def log_of(server: Postgres) -> str:
    return Path(server.data.parent / "log").read_text()


async def test_no_password_and_no_verifier_gets_into_the_log(talkative: Postgres) -> None:
    talkative.query("CREATE ROLE tried PASSWORD 'seen in the log'")
    assert "seen in the log" in log_of(talkative), "the server logs what others ask of it"
    users = [UserConfig(name="reader"), UserConfig(name="writer")]
    passwords = {"reader": "one password", "writer": "another password"}
    assert await roles.ensure_declared(users, [], passwords) == {}
    # Again with a change, and where the server refuses.
    passwords["reader"] = "a third password"
    talkative.query("ALTER ROLE postgres SET default_transaction_read_only = on")
    failed = await roles.ensure_declared(users, [], passwords)
    assert "read-only transaction" in failed["user reader"]
    log = log_of(talkative)
    assert "SCRAM-SHA-256$" not in log
    assert not [password for password in passwords.values() if password in log]


async def test_an_import_is_as_silent(talkative: Postgres) -> None:
    async with await takeover.connect() as connection:
        await connection.execute("CREATE ROLE taken PASSWORD 'SCRAM-SHA-256$4096:c2FsdA==$a:b'")
    assert "taken" not in log_of(talkative)
