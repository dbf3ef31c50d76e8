"""repmgr's own commands, run for a peer: what repmgr sends by `ssh`, and nothing else.

The forms are those of repmgr 5.3 to 5.5 (repmgr-action-standby.c, repmgr-action-cluster.c,
repmgr-client.c: `remote_command`, `test_ssh_connection`). They are taken apart here and run as a
list of arguments; no shell ever sees one.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from pgcluster.api import names
from pgcluster.api.errors import PgClusterError
from pgcluster.proc import Result, run
from pgcluster.render.repmgr import ENCRYPTED

log = logging.getLogger(__name__)

# As a shell says "found, but may not be executed".
REFUSED_STATUS = 126

_COMMAND_CHARACTERS = 4096
_OUTPUT_CHARACTERS = 64 * 1024
# What a shell would act upon. Nothing that repmgr sends has one, not even in quotes.
_SHELL = re.compile(r"[^\x20-\x7e]|[;|&$`<>(){}\[\]*?!#~\\\"]")

_NUMBER = re.compile(r"[1-9][0-9]{0,5}")
_ROLE = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,62}")
_LEVEL = re.compile(r"DEBUG|INFO|NOTICE|WARNING|ERROR|ALERT|CRIT|EMERG")
_FILE_LIST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(,[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_STOP = re.compile(r"stop")
_CONNINFO_VALUE = re.compile(r"[A-Za-z0-9_./:-]*")
_CONNINFO_KEYS = frozenset(
    {
        "host",
        "port",
        "user",
        "dbname",
        "passfile",
        "application_name",
        "fallback_application_name",
        "connect_timeout",
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "tcp_user_timeout",
        "options",
        "replication",
        "client_encoding",
        "sslmode",
    }
)


class RefusedError(PgClusterError):
    """The command is none of repmgr's own."""


@dataclass(frozen=True, slots=True)
class Command:
    """What to run, and how long it may take."""

    arguments: tuple[str, ...]
    deadline_s: float


@dataclass(frozen=True, slots=True)
class _Action:
    """One of repmgr's actions: its deadline and its options, with a value's form where one has it.

    `needs` must all be there: without it the action would be another one.
    """

    deadline_s: float
    options: Mapping[str, re.Pattern[str] | None] = field(default_factory=dict)
    needs: frozenset[str] = frozenset()


_COMMON: Mapping[str, re.Pattern[str] | None] = {
    "--log-level": _LEVEL,
    "--terse": None,
    "--verbose": None,
}
_SHORT = {"-L": "--log-level", "-t": "--terse", "-v": "--verbose", "-d": "--dbname"}
_CSV = frozenset({"--csv"})
_ACTIONS: Mapping[tuple[str, ...], _Action] = {
    (): _Action(10, {"--version": None}, frozenset({"--version"})),
    ("node", "check"): _Action(
        30,
        {
            "--archive-ready": None,
            "--data-directory-config": None,
            "--db-connection": None,
            "--optformat": None,
            "--remote-node-id": _NUMBER,
            "--replication-config-owner": None,
            "--replication-connection": None,
            "--superuser": _ROLE,
        },
    ),
    # A checkpoint and a clean stop take as long as there are dirty buffers.
    ("node", "service"): _Action(
        3600,
        {"--action": _STOP, "--checkpoint": None, "--list-actions": None},
        frozenset({"--action"}),
    ),
    ("node", "status"): _Action(
        30, {"--is-shutdown-cleanly": None}, frozenset({"--is-shutdown-cleanly"})
    ),
    # pg_rewind copies what has changed, and the start afterwards recovers.
    ("node", "rejoin"): _Action(
        3600,
        {
            "--config-files": _FILE_LIST,
            "--dbname": None,
            "--force-rewind": None,
            "--no-wait": None,
        },
        frozenset({"--dbname"}),
    ),
    ("standby", "follow"): _Action(180),
    # It asks every instance, and one that is lost takes its connect_timeout.
    ("cluster", "show"): _Action(60, {"--csv": None}, _CSV),
    ("cluster", "matrix"): _Action(180, {"--csv": None}, _CSV),
}


def parse(command: str, *, bindir: str) -> Command:
    """The program and arguments of one of repmgr's own commands.

    RefusedError says in a sentence what is wrong with any other.
    """
    if len(command) > _COMMAND_CHARACTERS:
        raise RefusedError(f"a command has at most {_COMMAND_CHARACTERS} characters")
    if found := _SHELL.search(command):
        raise RefusedError(f"no command of repmgr has the character {found[0]!r}")
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise RefusedError(f"the command cannot be read: {error}") from error
    if not words:
        raise RefusedError("there is no shell here, only repmgr's own commands")
    if words in (["/bin/true"], ["/usr/bin/true"]):
        return Command(("/bin/true",), 5)
    if words[:2] == ["test", "-f"]:
        _configuration(words[2:3])
        _nothing_more(words[3:])
        return Command(("test", "-f", names.REPMGR_CONF), 5)
    if words[0] != f"{bindir}/repmgr":
        raise RefusedError(f"{words[0]!r} is not run for a peer, only {bindir}/repmgr is")
    if words[1:2] != ["-f"]:
        raise RefusedError("repmgr is run for a peer with `-f` and its configuration file only")
    _configuration(words[2:3])
    return _repmgr(words[3:], program=words[0])


def _configuration(words: list[str]) -> None:
    if words not in ([names.REPMGR_CONF], [names.REPMGR_CONF_LINK]):
        told = words[0] if words else "none"
        raise RefusedError(f"the configuration file is {names.REPMGR_CONF}, not {told!r}")


def _nothing_more(words: list[str]) -> None:
    if words:
        raise RefusedError(f"{words[0]!r} is one word too many")


def _repmgr(words: list[str], *, program: str) -> Command:
    options, action_words = _take_apart(words)
    action = _ACTIONS.get(action_words)
    told = " ".join(("repmgr", *action_words))
    if action is None:
        raise RefusedError(f"`{told}` is not run for a peer")
    arguments = []
    for name, value in options:
        known = {**_COMMON, **action.options}
        if name not in known:
            raise RefusedError(f"`{told}` is not run for a peer with {name}")
        form = known[name]
        if name == "--dbname":
            _conninfo(value or "")
        elif (form is None) != (value is None) or (form and not form.fullmatch(value or "")):
            raise RefusedError(f"`{told}` is not run for a peer with {name}={value}")
        arguments.append(name if value is None else f"{name}={value}")
    if missing := sorted(action.needs - {name for name, _ in options}):
        raise RefusedError(f"`{told}` is not run for a peer without {' '.join(missing)}")
    return Command((program, "-f", names.REPMGR_CONF, *arguments, *action_words), action.deadline_s)


def _take_apart(words: list[str]) -> tuple[list[tuple[str, str | None]], tuple[str, ...]]:
    """Options by their long names with their values, and the words of the action."""
    options: list[tuple[str, str | None]] = []
    action = []
    rest = iter(words)
    for word in rest:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            options.append((name, value if equals else None))
        elif word.startswith("-"):
            name = _SHORT.get(word[:2], word[:2])
            if name in ("--log-level", "--dbname"):
                options.append((name, word[2:] or next(rest, "")))
            elif len(word) == 2:
                options.append((name, None))
            else:
                raise RefusedError(f"the option {word!r} is none of those that repmgr sends")
        else:
            action.append(word)
    return options, tuple(action)


def _conninfo(text: str) -> None:
    """RefusedError unless it is the plain connection string of an instance."""
    try:
        parts = shlex.split(text)
    except ValueError as error:
        raise RefusedError(f"the connection string cannot be read: {error}") from error
    for part in parts:
        key, equals, value = part.partition("=")
        if ENCRYPTED.get(key) == value:
            continue
        if not equals or key not in _CONNINFO_KEYS or not _CONNINFO_VALUE.fullmatch(value):
            raise RefusedError(f"{part!r} is no part of an instance's connection string")


class Remote:
    """Runs them; `bindir` is where this instance has repmgr, `instances` who may be asking."""

    def __init__(self, bindir: Callable[[], str], instances: Callable[[], Collection[str]]) -> None:
        self._bindir = bindir
        self._instances = instances

    async def run(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """Run {"command": …, "from": …}; {"status": n, "output": …, "errors": …}, both bounded.

        `from` is the asking instance: a primary that is stopped for it hands over to it.

        A refusal is an answer, too: status 126, and the reason among the errors.
        """
        asked = body.get("command")
        text = asked if isinstance(asked, str) else ""
        try:
            command = parse(text, bindir=self._bindir())
        except RefusedError as error:
            log.warning("a peer's command was refused: %s", error, extra={"command": text[:200]})
            return _answer(Result(REFUSED_STATUS, "", f"refused by the peer's agent: {error}\n"))
        asking = body.get("from")
        asked_by = str(asking) if asking in self._instances() else ""
        environment = {**os.environ, names.ENV_ASKED_BY: asked_by}
        try:
            result = await run(
                command.arguments, deadline_s=command.deadline_s, apart=True, env=environment
            )
        except OSError as error:
            result = Result(127, "", f"{command.arguments[0]}: {error.strerror}\n")
        log.info("ran for a peer: %s: status %d", " ".join(command.arguments), result.status)
        return _answer(result)


def _answer(result: Result) -> Mapping[str, Any]:
    # Ended by a signal: told as a shell would.
    status = result.status if result.status >= 0 else 128 - result.status
    return {
        "status": status,
        "output": result.output[:_OUTPUT_CHARACTERS],
        "errors": result.errors[:_OUTPUT_CHARACTERS],
    }
