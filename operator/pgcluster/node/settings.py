"""Where an agent is, from the environment that the StatefulSet gives it."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass

from pgcluster.api.errors import FatalError


@dataclass(frozen=True, slots=True)
class Settings:
    """This instance's place in the world."""

    cluster: str
    namespace: str
    pod: str
    pod_ip: str
    # A word for this very container, which the kubelet repeats when it has ended.
    container: str = ""

    @classmethod
    def from_environment(cls) -> Settings:
        """Read the environment; FatalError names what is missing."""
        try:
            return cls(
                cluster=os.environ["PGCLUSTER_NAME"],
                namespace=os.environ["PGCLUSTER_NAMESPACE"],
                pod=os.environ["POD_NAME"],
                pod_ip=os.environ["POD_IP"],
                container=f"pgcluster {secrets.token_hex(8)}",
            )
        except KeyError as error:
            raise FatalError(f"environment variable {error} is not set") from error
