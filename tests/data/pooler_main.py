"""The real pooler agent as a process, with a file in the place of the Kubernetes API.

What the API does is not what these tests are about: the file says what a ConfigMap and a Lease
would. `{"data": {...}, "lease": {...} | null, "api": true}`; the report goes to the file beside it.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from pgcluster.api import logs
from pgcluster.api.reports import PoolerReport
from pgcluster.kube.errors import Unavailable
from pgcluster.pooler.agent import Agent
from pgcluster.pooler.settings import Settings
from pgcluster.pooler.source import Listener
from pgcluster.topology.lease import LeaseRecord, Mark


class FileSource:
    """Looks at the file `every_s`."""

    def __init__(self, path: Path, every_s: float) -> None:
        self._path = path
        self._every_s = every_s

    async def follow(self, listener: Listener) -> None:
        seen = None
        while True:
            state = self._state()
            if state != seen:
                seen = state
                if state.get("api", True):
                    listener.files_seen(state.get("data", {}))
                    listener.lease_seen(_record(state))
                elif not state.get("hangs"):
                    listener.api_lost()
            await asyncio.sleep(self._every_s)

    async def lease(self) -> LeaseRecord | None:
        state = self._state()
        if not state.get("api", True):
            raise Unavailable(0, "Unreachable", "the API server does not answer")
        return _record(state)

    async def report(self, report: PoolerReport) -> None:
        if not self._state().get("api", True):
            raise Unavailable(0, "Unreachable", "the API server does not answer")
        path = self._path.with_name("report.json")
        aside = path.with_suffix(".new")
        aside.write_text(report.model_dump_json())
        aside.rename(path)

    async def reports(self) -> dict[str, PoolerReport]:
        return {
            pod: PoolerReport.model_validate(report)
            for pod, report in self._state().get("reports", {}).items()
        }

    def _state(self) -> dict:
        return json.loads(self._path.read_text())


def _record(state: dict) -> LeaseRecord | None:
    lease = state.get("lease")
    if lease is None:
        return None
    return LeaseRecord(
        holder=lease["holder"],
        epoch=lease["epoch"],
        duration_s=lease.get("duration_s", 6.0),
        renew_time=str(lease.get("renew_time", "")),
        mark=Mark(None, None),
        pausing=bool(lease.get("pausing")),
        successor=lease.get("successor"),
    )


def main() -> None:
    """Arguments: directory, pgbouncer's port, the agent's port, seconds between two looks."""
    directory, pgbouncer_port, agent_port, every_s = sys.argv[1:]
    logs.configure(cluster="default/shop")
    settings = Settings(
        cluster="shop",
        namespace="default",
        pod="shop-pgbouncer-0",
        address="127.0.0.1",
        directory=Path(directory) / "run",
        secrets=Path(directory) / "secrets",
        certificates=Path(directory) / "certificates",
        pgbouncer_port=int(pgbouncer_port),
        agent_port=int(agent_port),
        drain_s=3.5,
    )
    source = FileSource(Path(directory) / "api.json", float(every_s))
    asyncio.run(Agent(settings, source).run())


if __name__ == "__main__":
    main()
