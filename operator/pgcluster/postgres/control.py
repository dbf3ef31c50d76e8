"""What a data directory is, read without a running server."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pgcluster.api.errors import FatalError, RetryError
from pgcluster.api.wal import Lsn, WalPoint
from pgcluster.proc import run

# Parameter → how pg_controldata prints it.
_DEMANDS = {
    "max_connections": "max_connections",
    "max_locks_per_transaction": "max_locks_per_xact",
    "max_prepared_transactions": "max_prepared_xacts",
    "max_wal_senders": "max_wal_senders",
    "max_worker_processes": "max_worker_processes",
}


@dataclass(frozen=True, slots=True)
class ControlData:
    """The part of pg_controldata's output that decisions need.

    `point` is the newest position that the control file vouches for: the last checkpoint of a
    former primary, the minimum recovery end of a former standby, whichever is later.
    """

    system_identifier: str
    state: str
    point: WalPoint
    checksums: bool
    # A base backup that has not been started yet: its control file is a copy of its source's.
    backup: bool = False
    # What the primary whose WAL it has run with: a standby does not start with less.
    demands: Mapping[str, int] = field(default_factory=dict)

    @property
    def was_primary(self) -> bool:
        """Whether the directory last ran as a primary."""
        return not self.backup and self.state in (
            "in production",
            "shut down",
            "shutting down",
            "in crash recovery",
        )

    @property
    def clean(self) -> bool:
        """Whether it was shut down in order."""
        return self.state in ("shut down", "shut down in recovery")


def parse(output: str, *, backup: bool = False) -> ControlData:
    """Parse `pg_controldata` in the C locale; FatalError where a field is missing.

    `backup` is whether the directory has a backup_label, which the first start removes.
    """
    fields = dict(re.findall(r"^([^:\n]+):\s+(.*?)\s*$", output, re.MULTILINE))
    try:
        checkpoint = WalPoint(
            int(fields["Latest checkpoint's TimeLineID"]),
            Lsn.parse(fields["Latest checkpoint location"]),
        )
        recovered = WalPoint(
            int(fields["Min recovery ending loc's timeline"]),
            Lsn.parse(fields["Minimum recovery ending location"]),
        )
        return ControlData(
            system_identifier=fields["Database system identifier"],
            state=fields["Database cluster state"],
            point=max(checkpoint, recovered),
            checksums=fields.get("Data page checksum version", "0") != "0",
            backup=backup,
            demands={
                name: int(fields[f"{printed} setting"])
                for name, printed in _DEMANDS.items()
                if f"{printed} setting" in fields
            },
        )
    except (KeyError, ValueError) as error:
        raise FatalError(f"pg_controldata printed something unexpected: {error}") from error


async def read(bindir: str, directory: Path) -> ControlData | None:
    """Control data of `directory`; None where it holds no complete cluster."""
    if not (directory / "PG_VERSION").exists() or not (directory / "global/pg_control").exists():
        return None
    result = await run(
        [f"{bindir}/pg_controldata", "-D", str(directory)],
        deadline_s=10,
        env={**os.environ, "LC_ALL": "C"},
    )
    if result.status != 0:
        raise RetryError(f"pg_controldata failed: {result.last_line}")
    return parse(result.output, backup=(directory / "backup_label").exists())
