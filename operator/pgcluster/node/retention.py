"""WAL that is kept for standbys: slots as there are standbys, and what becomes of a lost one.

A standby that is away holds WAL back on the primary up to `max_slot_wal_keep_size`. Past that
PostgreSQL invalidates its slot, the WAL goes, and the standby has to be cloned anew: it finds that
out by itself, and clones itself. Source: PostgreSQL, "pg_replication_slots", wal_status.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import LiteralString

import psycopg
from prometheus_client import CollectorRegistry, Gauge
from psycopg.rows import dict_row

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig
from pgcluster.api.wal import Lsn
from pgcluster.postgres.local import LocalPostgres
from pgcluster.render.postgres import slot_limit_bytes

log = logging.getLogger(__name__)

# Where no limit is set, this much held back by one slot is told.
_MUCH_BYTES = 16 << 30
_ASK_DEADLINE_S = 3

_SLOTS: LiteralString = """
SELECT s.slot_name AS name, s.active, coalesce(s.wal_status, '') AS status,
       pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)::bigint AS retained,
       coalesce(r.state = 'streaming', false) AS streams
FROM pg_replication_slots AS s LEFT JOIN pg_stat_replication AS r ON r.pid = s.active_pid
"""


@dataclass(frozen=True, slots=True)
class Slot:
    """A replication slot of the primary; `retained_bytes` is None where it reserves no WAL.

    A standby whose WAL is gone makes its slot active for a moment each time that it tries, so
    `streams` is what says that it is back.
    """

    name: str
    active: bool
    status: str = "reserved"
    retained_bytes: int | None = 0
    streams: bool = False

    @property
    def ours(self) -> bool:
        """Whether repmgr made it, for an instance."""
        return self.name.startswith("repmgr_slot_")

    @property
    def reserves(self) -> bool:
        """Whether it holds WAL back at all."""
        return self.retained_bytes is not None


@dataclass(frozen=True, slots=True)
class Findings:
    """What is to be done about the slots of a primary, and what people should know."""

    # Of instances that are no more.
    stale: tuple[str, ...] = ()
    # Invalidated: useless, and in the way of the clone that makes up for it.
    invalid: tuple[str, ...] = ()
    # Pods of standbys that are away and whose slot reserves nothing: it was invalidated.
    lost: tuple[str, ...] = ()
    # Slot → WAL that it holds back; only much of it.
    retained: Mapping[str, int] = field(default_factory=dict)


def find(slots: Iterable[Slot], config: ClusterConfig, *, me: str) -> Findings:
    """What the primary `me` sees in its slots. Pure."""
    standbys = {
        names.slot(pod): pod
        for ordinal in range(config.instances)
        if (pod := names.pod(config.name, ordinal)) != me
    }
    known = list(slots)
    stale = tuple(s.name for s in known if s.ours and not s.active and s.name not in standbys)
    invalid = tuple(
        s.name for s in known if s.name in standbys and not s.active and s.status == "lost"
    )
    # repmgr makes slots that reserve at once; only a renewed one does not.
    lost = tuple(
        sorted(
            standbys[s.name]
            for s in known
            if s.name in standbys and not s.streams and (s.name in invalid or not s.reserves)
        )
    )
    limit = slot_limit_bytes(config)
    much = _MUCH_BYTES if limit is None else limit // 2
    retained = {
        s.name: _power_of_two(s.retained_bytes)
        for s in known
        if s.retained_bytes and s.retained_bytes >= much and s.status != "lost"
    }
    return Findings(stale, invalid, lost, retained)


def _power_of_two(value: int) -> int:
    """Rounded down, so that a report changes only when the matter does."""
    return 1 << (value.bit_length() - 1)


class Retention:
    """The primary's duty; `local` is its own server."""

    def __init__(
        self,
        local: LocalPostgres,
        config: Callable[[], ClusterConfig],
        *,
        me: str,
        registry: CollectorRegistry | None = None,
    ) -> None:
        self._local = local
        self._config = config
        self._me = me
        self.findings = Findings()
        self._retained = Gauge(
            "pgcluster_instance_slot_retained_bytes",
            "WAL that a replication slot of this primary holds back",
            ["slot"],
            registry=registry,
        )

    def forget(self) -> None:
        """The role has changed: what was found as a primary is another one's matter now."""
        self.findings = Findings()
        self._retained.clear()

    async def see_to(self) -> None:
        """Look at the slots once, drop what is stale, renew what is invalid; RetryError as usual.

        A renewed slot reserves nothing until its standby is there: it only stands for it.
        """
        slots = [
            Slot(row["name"], row["active"], row["status"], row["retained"], row["streams"])
            for row in await self._local.query(_SLOTS)
        ]
        self.findings = find(slots, self._config(), me=self._me)
        self._retained.clear()
        for slot in slots:
            self._retained.labels(slot.name).set(slot.retained_bytes or 0)
        for name in (*self.findings.stale, *self.findings.invalid):
            await self._local.query("SELECT pg_drop_replication_slot(%s)", name)
        for name in self.findings.stale:
            log.info("dropped a stale slot", extra={"slot": name})
        for name in self.findings.invalid:
            await self._local.query("SELECT pg_create_physical_replication_slot(%s)", name)
            log.warning("renewed a slot that was invalidated", extra={"slot": name})


# --- the standby's side ---------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Stock:
    """The WAL that a primary still has: the first of its files by number, without the timeline."""

    oldest: str
    segment_bytes: int

    def lacks(self, position: Lsn) -> bool:
        """Whether WAL from this position on is no longer complete. Pure.

        A walreceiver asks for the whole segment of its position.
        """
        return segment(position, self.segment_bytes) < self.oldest


def segment(position: Lsn, segment_bytes: int) -> str:
    """The last 16 characters of the name of the WAL file with this position.

    Source: PostgreSQL, xlog_internal.h, XLogFileName.
    """
    number = position.value // segment_bytes
    per_log = (1 << 32) // segment_bytes
    return f"{number // per_log:08X}{number % per_log:08X}"


_STOCK: LiteralString = """
SELECT (SELECT min(right(name, 16)) FROM pg_ls_waldir() WHERE name ~ '^[0-9A-F]{24}$') AS oldest,
       (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_segment_size') AS segment
"""


async def wal_gone(conninfo: str, position: Lsn) -> str | None:
    """Why a standby at this position cannot be served by that primary any more, as a sentence.

    None where it can, and where the primary cannot be asked. The walreceiver's own error would say
    the same ("requested WAL segment … has already been removed"), but only the log has that; and a
    `repmgr node rejoin`, which finds no divergence, would start the standby again and again.
    """
    try:
        async with await psycopg.AsyncConnection.connect(
            conninfo, autocommit=True, row_factory=dict_row, connect_timeout=_ASK_DEADLINE_S
        ) as connection:
            await connection.execute(f"SET statement_timeout = '{_ASK_DEADLINE_S}s'".encode())
            row = await (await connection.execute(_STOCK)).fetchone()
    except (psycopg.Error, OSError):
        return None
    if row is None or not row["oldest"]:
        return None
    stock = Stock(row["oldest"], int(row["segment"]))
    if not stock.lacks(position):
        return None
    return f"the WAL after {position} that it needs is gone from the primary"
