"""What to do with a pgbouncer, from what is known of it and of its primary. Pure.

Two rules stand above all others:

* Clients wait rather than fail. As soon as the primary is in doubt every database that needs it
  is paused; pgbouncer's `query_wait_timeout` bounds the wait and gives the clients their error.
  No pause ends because of its age alone: to send clients to a dead primary would only turn their
  waiting into failing.
* A pool is never left paused. If the primary that it points at says that it is one, the pool runs,
  whatever the API server says or does not say, unless a Lease of a higher epoch is known to be held
  by another instance.

A pause is what pgbouncer says it is (SHOW DATABASES), never what the agent remembers, so that a new
agent finishes what a killed one began.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from pgcluster.pgbouncer.rows import Database, Server, Waiting
from pgcluster.render.pgbouncer import AUTH_DATABASE, NOWHERE, Header, Section
from pgcluster.topology.lease import LeaseRecord

# A server that answers, but not us, is believed to be what the Lease and the file say after this.
MUTE_S = 3.0
# Transactions that still run on a former primary this long after the repointing are cut off. None of
# them can commit: whoever stopped in order has ended them, so it is frozen, and it has lost the
# right to write. TCP notices a lost node by itself, but for a frozen one its kernel answers.
STUCK_S = 0.5
# What pgbouncer did not accept is tried again after this.
RETRY_S = 5.0
# A newer databases section that cannot be applied makes a pooler unready after this.
LATE_S = 3.0
# Logins wait this long at most for the pools that they lead to.
LOGINS_WAIT_S = 1.0


@dataclass(frozen=True, slots=True)
class Offer:
    """A databases section: its text, the text's hash, and what it says."""

    text: str
    content_hash: str
    section: Section


ProbeState = Literal[
    "unknown",  # no answer yet, of either kind
    "primary",  # connected, and it said that it is not in recovery
    "standby",  # connected, and it said that it is in recovery
    "lost",  # the connection ended, or was refused, or nobody answered in time
    "mute",  # it accepts connections, but not ours: wrong password, too many clients
]


@dataclass(frozen=True, slots=True)
class Probe:
    """What the primary that the pool points at says of itself.

    `since_s` is when `state` began, `confirmed_at_s` when it last said that it is a primary.
    """

    state: ProbeState = "unknown"
    since_s: float = 0.0
    confirmed_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Lease:
    """The Lease as last seen. `current`: the API server answers, so nothing newer is hidden.

    `free_since_s` is when it was seen to be released, or was found expired by asking again.
    """

    record: LeaseRecord | None = None
    current: bool = False
    free_since_s: float | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that a decision rests on. Times are the agent's monotonic clock.

    `wanted` is what the ConfigMap holds, `applied` the file that pgbouncer was started with or has
    loaded, `databases` SHOW DATABASES (None: pgbouncer does not answer).
    """

    now_s: float
    wanted: Offer | None
    applied: Offer | None
    databases: Sequence[Database] | None
    probe: Probe = Probe()
    lease: Lease = Lease()
    servers: Sequence[Server] = ()
    repointed_at_s: float | None = None
    # When the databases were resumed while logins still waited, and SHOW POOLS since then.
    resumed_at_s: float | None = None
    pools: Sequence[Waiting] = ()
    # The last file that pgbouncer did not accept, and when.
    failed: tuple[str, float] | None = None
    # pgbouncer was told to end, and serves its last clients: it cannot be connected to any more.
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Pause:
    """Let the clients of these databases wait; `read_only`: for a standby, not for the primary."""

    databases: tuple[str, ...]
    reason: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class Apply:
    """Write the databases section, RELOAD, verify."""

    offer: Offer
    reason: str


@dataclass(frozen=True, slots=True)
class Resume:
    """Let the clients of these databases go on."""

    databases: tuple[str, ...]
    reason: str
    read_only: bool = False


@dataclass(frozen=True, slots=True)
class CutOff:
    """End transactions of these servers, which are no longer the primary."""

    servers: tuple[Server, ...]
    reason: str


Action = Pause | Apply | Resume | CutOff


def decide(facts: Facts) -> list[Action]:
    """What to do now, in this order; nothing to do is an empty list."""
    offer = acceptable(facts)
    if facts.databases is None:
        # pgbouncer is down. It reads the files when it starts.
        return [Apply(*offer)] if offer else []
    actions: list[Action] = []
    doubt = _doubt(facts)
    moving = _moving(facts, offer[0]) if offer else None
    needed, read_only = _split(facts)
    # PAUSE holds up the connection that it came by, and a pgbouncer that leaves takes no other: it
    # could not be told to resume.
    may_pause = not facts.leaving
    if (reason := doubt or moving) and may_pause and (names := _running(needed)):
        actions.append(Pause(names, reason))
    if offer:
        return [*actions, Apply(*offer)]
    deserted = [database for database in read_only if database.host == NOWHERE]
    served = [database for database in read_only if database.host != NOWHERE]
    if may_pause and (names := _running(deserted)):
        actions.append(Pause(names, "there is no standby to read", read_only=True))
    if names := _waiting(served):
        actions.append(Resume(names, "there are standbys to read", read_only=True))
    if not doubt and (proof := _proof(facts)) and (names := _waiting(needed)):
        actions += _resume(facts, names, proof)
    if stuck := _stuck(facts):
        after_s = facts.now_s - (facts.repointed_at_s or 0.0)
        reason = f"they still run on a former primary {after_s:.0f} s after the repointing"
        actions.append(CutOff(stuck, reason))
    return actions


def acceptable(facts: Facts) -> tuple[Offer, str] | None:
    """The databases section that is to be applied now, and why; None where there is none."""
    wanted, applied = facts.wanted, facts.applied
    if wanted is not None and not _newer_than(facts, wanted):
        wanted = None
    if wanted is None or (applied and wanted.content_hash == applied.content_hash):
        if applied is None or facts.databases is None or not differences(facts):
            return None
        wanted, reason = applied, f"pgbouncer differs from its file: {differences(facts)[0]}"
    elif applied is None:
        reason = "it is the first databases section"
    else:
        reason = _change(applied.section, wanted.section)
    if facts.failed and facts.failed[0] == wanted.content_hash:
        if facts.now_s - facts.failed[1] < RETRY_S:
            return None
        reason += ", after it was not accepted before"
    return wanted, reason


def differences(facts: Facts) -> list[str]:
    """Where SHOW DATABASES shows something else than the applied file says."""
    if facts.applied is None or facts.databases is None:
        return []
    return compare(facts.applied.section, facts.databases)


def compare(section: Section, databases: Iterable[Database]) -> list[str]:
    """Where SHOW DATABASES shows something else than a section says.

    pgbouncer before 1.25 answers RELOAD with OK although it kept the old configuration.
    """
    shown = {database.name: database for database in databases}
    found = []
    for entry in section.entries:
        if entry.name != "*" and entry.name not in shown:
            found.append(f"database {entry.name} is missing")
    for name, database in shown.items():
        expected = section.entry(name)
        if expected and (database.host, database.port) != (expected.host, expected.port):
            found.append(
                f"database {name} is at {database.host}:{database.port},"
                f" not at {expected.host}:{expected.port}"
            )
    return found


def readiness(facts: Facts, *, late_since_s: float | None) -> tuple[bool, str]:
    """Whether new clients may be sent here, and the sentence that says why not.

    A paused pool stays in its Service: its clients wait, while none would mean refused connections.
    `late_since_s` is since when a newer section could not be applied.
    """
    if facts.databases is None:
        return False, "pgbouncer does not answer"
    if facts.applied is None or facts.applied.section.header is None:
        return False, "no primary is known yet"
    if late_since_s is not None and facts.now_s - late_since_s > LATE_S:
        return False, "the current databases section could not be applied"
    return True, _doubt(facts) or ""


def read_write(facts: Facts) -> list[Database]:
    """The databases that need the primary, as pgbouncer shows them."""
    return _split(facts)[0]


def _doubt(facts: Facts) -> str | None:
    """Why the primary that the pool points at may not be one; None where nothing says so."""
    header = facts.applied.section.header if facts.applied else None
    if header is None:
        return "no primary is known"
    if successor := _successor(facts.lease, header):
        return (
            f"the Lease is held by {successor.holder} in epoch {successor.epoch},"
            f" while the databases section is {header.primary}'s of epoch {header.epoch}"
        )
    if facts.probe.state == "lost":
        return f"the primary {header.primary} does not answer"
    if facts.probe.state == "standby":
        return f"{header.primary} is in recovery: it is no primary"
    free_since_s, confirmed_at_s = facts.lease.free_since_s, facts.probe.confirmed_at_s
    if free_since_s is not None and (confirmed_at_s is None or confirmed_at_s <= free_since_s):
        return f"the Lease of the primary {header.primary} was given up or has run out"
    return None


def _successor(lease: Lease, header: Header) -> LeaseRecord | None:
    record = lease.record
    if record is None or not record.holder or record.holder == header.primary:
        return None
    return record if record.epoch > header.epoch else None


def _proof(facts: Facts) -> str | None:
    """Why clients may be sent to the primary."""
    header = facts.applied.section.header if facts.applied else None
    if header is None:
        return None
    if facts.probe.state == "primary":
        return f"{header.primary} answers as the primary"
    if facts.probe.state == "mute" and facts.now_s - facts.probe.since_s >= MUTE_S:
        return f"{header.primary} accepts connections, though not the agent's"
    return None


def _newer_than(facts: Facts, wanted: Offer) -> bool:
    """Whether a section may replace the applied one: never one of a lower epoch.

    But epochs start over when somebody deleted the Lease: what the Lease itself names is right.
    """
    before = facts.applied.section.header if facts.applied else None
    if before is None:
        return True
    after = wanted.section.header
    if after is None:
        return False
    record = facts.lease.record
    named = (
        facts.lease.current
        and record is not None
        and (record.holder, record.epoch) == (after.primary, after.epoch)
    )
    return after.epoch >= before.epoch or named


def _moving(facts: Facts, offer: Offer) -> str | None:
    applied = facts.applied
    after = (offer.section.primary_host, offer.section.primary_port)
    if applied is None:
        return None
    if (applied.section.primary_host, applied.section.primary_port) == after:
        return None
    return f"the pool is being pointed at {_named(offer.section.header)}"


def _resume(facts: Facts, names: Sequence[str], proof: str) -> list[Resume]:
    """Logins last: pgbouncer remembers that it could not connect for a database, and fails each
    query on it until it can. Clients that waited make it try, those who log in would fail.

    Source: pgbouncer, objects.c, check_fast_fail; janitor.c, per_loop_activate.
    """
    if first := tuple(name for name in names if name != AUTH_DATABASE):
        return [Resume(first, proof)]
    resumed_at_s = facts.resumed_at_s
    if resumed_at_s is not None and facts.now_s - resumed_at_s < LOGINS_WAIT_S:
        needed = {database.name for database in read_write(facts)} - set(names)
        if any(p.database in needed and p.clients and not p.servers for p in facts.pools):
            return []
    return [Resume(tuple(names), proof)]


def _split(facts: Facts) -> tuple[list[Database], list[Database]]:
    """The databases that need the primary, and those that need standbys."""
    section = facts.applied.section if facts.applied else None
    needed: list[Database] = []
    read_only: list[Database] = []
    for database in facts.databases or ():
        entry = section.entry(database.name) if section else None
        (read_only if entry and entry.read_only else needed).append(database)
    return needed, read_only


def _running(databases: Iterable[Database]) -> tuple[str, ...]:
    return tuple(database.name for database in databases if not database.paused)


def _waiting(databases: Iterable[Database]) -> tuple[str, ...]:
    return tuple(database.name for database in databases if database.paused)


def _stuck(facts: Facts) -> tuple[Server, ...]:
    """Servers in use that are at another address than their database, too long after a repointing.

    Read-only ones are left alone: a standby that left the list may still finish its queries.
    """
    if facts.repointed_at_s is None or facts.now_s - facts.repointed_at_s < STUCK_S:
        return ()
    hosts = {database.name: database.host for database in _split(facts)[0]}
    return tuple(
        server
        for server in facts.servers
        if server.state == "active"
        and _is_address(hosts.get(server.database, ""))
        and server.address != hosts[server.database]
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _change(before: Section, after: Section) -> str:
    if before.primary_host != after.primary_host or before.header != after.header:
        return f"the databases section now names {_named(after.header)}"
    return f"the databases or standbys behind {_named(after.header)} have changed"


def _named(header: Header | None) -> str:
    return f"{header.primary} of epoch {header.epoch}" if header else "no primary"
