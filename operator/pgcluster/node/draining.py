"""When the pools hold their clients: from what the primary's server shows. Pure.

A pooler acknowledges an announcement in the question that its agent asks the primary, as a comment
of the epoch, which stands in `pg_stat_activity`: no request to the API server, and nothing that
could be lost between the two.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import LiteralString

from pgcluster.api import names
from pgcluster.node.hearing import Pooler

# A pooler that has not acknowledged by then is of an earlier version, or has just been lost.
ACKNOWLEDGE_S = 1.0
# A transaction that still runs then is cut by the stop.
DRAIN_S = 5.0

CONNECTIONS: LiteralString = """
SELECT application_name AS application, host(client_addr) AS address, coalesce(state, '') AS state,
       CASE WHEN usename = %s THEN right(query, 200) ELSE '' END AS query
FROM pg_stat_activity
WHERE backend_type = 'client backend' AND client_addr IS NOT NULL
      AND (usename = %s OR host(client_addr) = ANY(%s))
"""


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection of a pooler's pod; `query` is that of its agent's, or the last before it."""

    application: str
    address: str
    state: str
    query: str = ""

    @property
    def busy(self) -> bool:
        """Whether a stop would cut a transaction."""
        return self.state not in ("idle", "disabled", "")


def acknowledgement(epoch: int) -> str:
    """What a pooler's question carries while it holds its clients in this epoch."""
    return f"/* paused {epoch} */"


def undrained(
    poolers: Collection[Pooler],
    connections: Iterable[Connection],
    *,
    epoch: int,
    waited_s: float,
) -> str | None:
    """Why not to stop yet, given the poolers that are heard; None where it is time.

    One that is mute cannot acknowledge, but what its pgbouncer does is seen. One that does not
    acknowledge in time has not paused, so that its transactions would never end.
    """
    seen = tuple(connections)
    agents = {names.pooler_application(pooler.pod): pooler.pod for pooler in poolers}
    told = acknowledgement(epoch)
    acknowledged = {agents.get(each.application) for each in seen if told in each.query}
    late = sorted(
        pooler.pod for pooler in poolers if not pooler.mute and pooler.pod not in acknowledged
    )
    if late and waited_s < ACKNOWLEDGE_S:
        return f"{late[0]} has not acknowledged yet"
    addresses = {pooler.address for pooler in poolers if pooler.pod not in late}
    busy = sum(
        each.busy and each.address in addresses and each.application not in agents for each in seen
    )
    if busy and waited_s < DRAIN_S:
        return f"{busy} connections of the pools are in a transaction"
    return None
