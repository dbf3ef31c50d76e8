"""The executable `ssh`: the forms in which repmgr calls it, and what it makes of an answer."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pgcluster.api import names
from pgcluster.node import ssh


@pytest.mark.parametrize(
    ("arguments", "host", "command", "connect_s"),
    [
        (
            ["-o", "Batchmode=yes", "-q", "-o", "ConnectTimeout=3", "n1", "/bin/true"],
            "n1",
            "/bin/true",
            3.0,
        ),
        # test_ssh_connection() with --remote-user
        (["-o", "Batchmode=yes", "-q", "n1", "-l", "postgres", "/bin/true"], "n1", "/bin/true", 10),
        (["-o", "Batchmode=yes", "-q", "postgres@n1", "test", "-f", "/x"], "n1", "test -f /x", 10),
        (["-q", "-oConnectTimeout=7", "n1", "repmgr", "-l", "x"], "n1", "repmgr -l x", 7),
        (["-qo", "ConnectTimeout 7", "n1", "a b  c"], "n1", "a b  c", 7),
        (["-lpostgres", "-p", "22", "--", "n1", "a"], "n1", "a", 10),
    ],
)
def test_the_forms_of_repmgr_are_understood(
    arguments: list[str], host: str, command: str, connect_s: float
) -> None:
    assert ssh.parse(arguments) == (host, command, connect_s)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["n1"],
        ["-q", "n1"],
        ["-L", "1:a:2", "n1", "a"],
        ["-R", "1:a:2", "n1", "a"],
        ["-D", "1080", "n1", "a"],
        ["n1", "-l", "root", "a"],
        ["root@n1", "a"],
        ["-o"],
        ["-o", "ConnectTimeout=soon", "n1", "a"],
    ],
)
def test_what_has_no_meaning_here_is_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert ssh.main(arguments) == 255
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("ssh: ")
    assert told.err.count("\n") == 1


def test_it_asks_for_the_name_that_the_operator_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCLUSTER_NAME", "shop")
    monkeypatch.setenv("PGCLUSTER_NAMESPACE", "test")
    assert ssh.peer_name() == names.peer_name("shop", "test")


def test_its_defaults_are_those_of_the_pods() -> None:
    assert ssh._DIRECTORY == names.PEERS_DIR
    assert ssh._PORT == names.PORT_PEER


@pytest.mark.parametrize(
    ("received", "words"),
    [
        (b"", "no sense"),
        (b"HTTP/1.0 200 OK\r\n\r\n[]", "no sense"),
        (b"HTTP/1.0 200 OK\r\n\r\nhtml", "no sense"),
        (b'HTTP/1.0 403 Forbidden\r\n\r\n{"error": "not you"}', "not you"),
        (b"HTTP/1.0 500 Oh\r\n\r\n{}", "500"),
        (b"x" * (1024 * 1024 + 1), "too long"),
    ],
)
def test_a_strange_answer_is_told(received: bytes, words: str) -> None:
    with pytest.raises(ssh.Wrong, match=words):
        ssh.read(received)


def test_it_starts_without_heavy_imports() -> None:
    told = subprocess.run(
        [sys.executable, "-ISX", "importtime", ssh.__file__],
        capture_output=True,
        text=True,
        timeout=30,
    )
    imported = {line.rpartition("|")[2].strip() for line in told.stderr.splitlines()}
    assert "ssl" in imported
    assert not imported & {"asyncio", "http.client", "email", "logging", "pydantic", "aiohttp"}
