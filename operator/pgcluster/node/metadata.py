"""repmgr's table of nodes kept right by the primary, so that no person has to.

Each instance registers itself (duties.py). What none of them can do is left to the primary: rows of
instances that are no more, and rows that somebody's command or a step cut off has left wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import LiteralString

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig
from pgcluster.clock import monotonic_s
from pgcluster.postgres.local import LocalPostgres
from pgcluster.render import repmgr as render_repmgr
from pgcluster.repmgr import Repmgr

log = logging.getLogger(__name__)

_EVERY_S = 3.0
# repmgr's own default, which repmgr.conf leaves as it is: another one makes an instance lose every
# election that it does not share a location in.
_LOCATION = "default"

_ROWS: LiteralString = """
SELECT node_id, node_name, type, active, conninfo, upstream_node_id, location
FROM repmgr.nodes ORDER BY node_id
"""
# A walsender belongs to the instance whose slot it holds; one that streams without a slot is known
# by the name that repmgr gives it.
_WALSENDERS: LiteralString = """
SELECT coalesce(s.slot_name, '') AS slot, r.application_name AS name, r.state
FROM pg_stat_replication AS r LEFT JOIN pg_replication_slots AS s ON s.active_pid = r.pid
"""


@dataclass(frozen=True, slots=True)
class NodeRow:
    """A row of repmgr.nodes, as far as somebody decides by it."""

    node_id: int
    name: str
    type: str
    active: bool
    conninfo: str
    upstream: int | None
    location: str = _LOCATION


@dataclass(frozen=True, slots=True)
class Remove:
    """A row of an instance that is no more."""

    node_id: int


@dataclass(frozen=True, slots=True)
class Correct:
    """A row as it should be; `wrong` names the columns that are not."""

    row: NodeRow
    wrong: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Walsender:
    """Somebody who receives WAL from this primary."""

    slot: str
    name: str
    state: str

    def pod(self, cluster: str) -> str | None:
        """The instance at its other end; None where it is none of this cluster's."""
        for ordinal in range(names.MAX_INSTANCES):
            pod = names.pod(cluster, ordinal)
            if self.slot == names.slot(pod) or (not self.slot and self.name == pod):
                return pod
        return None


def plan(
    rows: Iterable[NodeRow], walsenders: Collection[Walsender], config: ClusterConfig, *, me: str
) -> tuple[Remove | Correct, ...]:
    """What the primary `me` has to change in repmgr's table. Pure.

    An instance that does not stream keeps its state as repmgr left it: whether it counts in an
    election is decided by whether its row is active, and a former primary that is down must stay
    inactive until it has rejoined. Its own row is the primary's registration's, see duties.py.
    """
    found = [(walsender.pod(config.name), walsender.state) for walsender in walsenders]
    connected = {pod for pod, _ in found}
    streaming = {pod for pod, state in found if state == "streaming"}
    steps: list[Remove | Correct] = []
    for row in rows:
        pod = names.pod_of_node_id(config.name, row.node_id)
        # One past the last that is still there is on its way out: it would register itself again,
        # or it is the primary itself, which is not scaled away.
        if not 1 <= row.node_id <= config.instances and pod != me and pod not in connected:
            steps.append(Remove(row.node_id))
            continue
        wanted = replace(
            row,
            name=pod,
            conninfo=render_repmgr.conninfo(
                names.pod_host(pod, config.name, config.namespace), config
            ),
            location=_LOCATION,
        )
        if pod != me:
            wanted = _other(wanted, config, me=me, streams=pod in streaming)
        if wanted != row:
            wrong = tuple(
                column
                for column in NodeRow.__dataclass_fields__
                if getattr(wanted, column) != getattr(row, column)
            )
            steps.append(Correct(wanted, wrong))
    return tuple(steps)


def _other(row: NodeRow, config: ClusterConfig, *, me: str, streams: bool) -> NodeRow:
    if streams:
        return replace(row, type="standby", active=True, upstream=names.node_id(me))
    if row.type == "primary":
        # There is one primary, and it is this one: repmgr refuses to promote or to register while
        # another row says so too.
        return replace(row, active=False, upstream=None)
    if row.upstream is None or (
        not 1 <= row.upstream <= config.instances and row.upstream != names.node_id(me)
    ):
        return replace(row, upstream=names.node_id(me))
    return row


class Metadata:
    """The primary's look at repmgr's table, every few seconds.

    `database` is a connection to repmgr's database, which its owner closes.
    """

    def __init__(
        self,
        database: LocalPostgres,
        config: Callable[[], ClusterConfig],
        repmgr: Callable[[], Repmgr],
        *,
        me: str,
        clock: Callable[[], float] = monotonic_s,
    ) -> None:
        self._database = database
        self._config = config
        self._repmgr = repmgr
        self._me = me
        self._clock = clock
        self._next_s = 0.0

    async def keep(self) -> None:
        """Put right what is wrong, where the last look is long enough ago; RetryError as usual."""
        if self._clock() < self._next_s:
            return
        self._next_s = self._clock() + _EVERY_S
        rows = [
            NodeRow(
                row["node_id"],
                row["node_name"],
                row["type"],
                row["active"],
                row["conninfo"],
                row["upstream_node_id"],
                row["location"],
            )
            for row in await self._database.query(_ROWS)
        ]
        walsenders = [
            Walsender(row["slot"], row["name"], row["state"])
            for row in await self._database.query(_WALSENDERS)
        ]
        for step in plan(rows, walsenders, self._config(), me=self._me):
            if isinstance(step, Remove):
                await self._remove(step.node_id)
            else:
                await self._correct(step)

    async def promoted(self, how: str) -> None:
        """What `repmgr standby promote` does to its tables, after a promotion past it.

        `how` is a sentence for the event.
        """
        me = names.node_id(self._me)
        await self._database.query(
            "UPDATE repmgr.nodes SET active = false"
            " WHERE type = 'primary' AND active AND node_id <> %s",
            me,
        )
        await self._database.query(
            "UPDATE repmgr.nodes SET type = 'primary', active = true, upstream_node_id = NULL"
            " WHERE node_id = %s",
            me,
        )
        await self._database.query(
            "INSERT INTO repmgr.events (node_id, event, successful, details)"
            " VALUES (%s, 'standby_promote', true, %s)",
            me,
            how,
        )

    async def _remove(self, node_id: int) -> None:
        """By repmgr, whose event tells of it; past it where it refuses.

        It refuses a row of a former primary, and knows no way for one that others still name.
        """
        log.info("removing the row of an instance that is no more", extra={"node_id": node_id})
        await self._database.query(
            "UPDATE repmgr.nodes SET upstream_node_id = %s WHERE upstream_node_id = %s"
            " AND node_id <> %s",
            names.node_id(self._me),
            node_id,
            names.node_id(self._me),
        )
        result = await self._repmgr().standby_unregister(node_id)
        if result.status != 0:
            await self._database.query("DELETE FROM repmgr.nodes WHERE node_id = %s", node_id)

    async def _correct(self, step: Correct) -> None:
        row = step.row
        log.info("correcting repmgr's row of %s: %s", row.name, ", ".join(step.wrong))
        await self._database.query(
            "UPDATE repmgr.nodes SET node_name = %s, type = %s, active = %s, conninfo = %s,"
            " upstream_node_id = %s, location = %s WHERE node_id = %s",
            row.name,
            row.type,
            row.active,
            row.conninfo,
            row.upstream,
            row.location,
            row.node_id,
        )
