"""repmgr's commands as the agent runs them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from pgcluster.api import names
from pgcluster.proc import Result, run

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Repmgr:
    """repmgr of one PostgreSQL major version, with the configuration of this instance."""

    bindir: str
    config: str = names.REPMGR_CONF

    def daemon(self) -> list[str]:
        """repmgrd in the foreground; without a pid file, none can be stale."""
        return [
            f"{self.bindir}/repmgrd",
            f"--config-file={self.config}",
            "--daemonize=false",
            "--no-pid-file",
        ]

    async def primary_register(self) -> Result:
        """Make this instance's row that of the primary."""
        return await self._run("primary", "register", "--force", deadline_s=60)

    async def standby_register(self, upstream: str) -> Result:
        """Make this instance's row that of a standby of `upstream` (a pod's name)."""
        return await self._run(
            "standby",
            "register",
            "--force",
            f"--upstream-node-id={names.node_id(upstream)}",
            deadline_s=60,
        )

    async def standby_unregister(self, node_id: int) -> Result:
        """Forget the standby with this node id, which need not be there any more."""
        return await self._run("standby", "unregister", f"--node-id={node_id}", deadline_s=60)

    async def standby_clone(self, conninfo: str) -> Result:
        """Copy the server at `conninfo` into the data directory that the configuration names.

        Without a deadline worth the name: a clone takes as long as the data is large.
        """
        return await self._run(
            f"--dbname={conninfo}",
            "standby",
            "clone",
            "--fast-checkpoint",
            deadline_s=7 * 24 * 3600,
        )

    async def standby_follow(self, upstream: str) -> Result:
        """Stream from `upstream` (a pod's name) from now on; the server keeps running."""
        return await self._run(
            "standby", "follow", f"--upstream-node-id={names.node_id(upstream)}", deadline_s=90
        )

    async def standby_promote(self) -> Result:
        """Promote this instance, through the gate."""
        return await self._run("standby", "promote", deadline_s=180)

    async def rehearse_switchover(self, *, within_s: float) -> Result:
        """Whether this instance could become the primary in order; changes nothing."""
        return await self._run(
            *("standby", "switchover", "--siblings-follow", "--dry-run"), deadline_s=within_s
        )

    async def node_rejoin(self, upstream_conninfo: str) -> Result:
        """Attach this stopped server to the primary, rewinding it where histories have parted.

        Not waited for by repmgr itself: whether the server streams afterwards is seen by the
        agent's own eyes.
        """
        return await self._run(
            "--no-wait",
            f"--dbname={upstream_conninfo}",
            "node",
            "rejoin",
            "--force-rewind",
            deadline_s=3600,
        )

    async def _run(self, *arguments: str, deadline_s: float) -> Result:
        command = [f"{self.bindir}/repmgr", f"--config-file={self.config}", *arguments]
        result = await run(command, deadline_s=deadline_s)
        shown = " ".join(a for a in arguments if not a.startswith("--"))
        log.info("repmgr %s ended with status %d", shown, result.status)
        level = logging.DEBUG if result.status == 0 else logging.WARNING
        for line in result.output.splitlines():
            log.log(level, "repmgr: %s", line)
        return result


def refusal(result: Result) -> str:
    """Why repmgr refuses, from what it prints: its last error, else its last line. Pure."""
    lines = [line.strip() for line in result.output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or [result.last_line])[-1].removeprefix("ERROR:").strip()
