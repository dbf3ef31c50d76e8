"""Where a pooler's agent is: its pod from the environment, its paths and ports by default ours."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pgcluster.api import names
from pgcluster.api.errors import FatalError


@dataclass(frozen=True, slots=True)
class Settings:
    """This pooler's place in the world."""

    cluster: str
    namespace: str
    pod: str
    # By which servers see the pod's connections; None where nobody says.
    address: str | None = None
    # How long clients may stay once the pod is told to leave.
    drain_s: float = 60.0
    # Shared with pgbouncer: its files and its socket.
    directory: Path = Path(names.PGBOUNCER_DIR)
    secrets: Path = Path(names.SECRETS_DIR) / "pooler"
    certificates: Path = Path(names.POOL_TLS_DIR)
    pgbouncer_port: int = names.PORT_PGBOUNCER
    agent_port: int = names.PORT_AGENT

    @classmethod
    def from_environment(cls) -> Settings:
        """Read the environment; FatalError names what is missing."""
        try:
            return cls(
                cluster=os.environ["PGCLUSTER_NAME"],
                namespace=os.environ["PGCLUSTER_NAMESPACE"],
                pod=os.environ["POD_NAME"],
                address=os.environ["POD_IP"],
                drain_s=float(os.environ.get("PGCLUSTER_DRAIN_S", "60")),
            )
        except KeyError as error:
            raise FatalError(f"environment variable {error} is not set") from error
