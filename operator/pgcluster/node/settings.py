"""Where an agent is, from the environment that the StatefulSet gives it."""

from __future__ import annotations

import os
from dataclasses import dataclass

from pgcluster.api.errors import FatalError


@dataclass(frozen=True, slots=True)
class Settings:
    """This instance's place in the world."""

    cluster: str
    namespace: str
    pod: str
    pod_ip: str

    @classmethod
    def from_environment(cls) -> Settings:
        """Read the environment; FatalError names what is missing."""
        try:
            return cls(
                cluster=os.environ["PGCLUSTER_NAME"],
                namespace=os.environ["PGCLUSTER_NAMESPACE"],
                pod=os.environ["POD_NAME"],
                pod_ip=os.environ["POD_IP"],
            )
        except KeyError as error:
            raise FatalError(f"environment variable {error} is not set") from error
