"""What the operator's environment says."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass

import pgcluster
from pgcluster.api import names
from pgcluster.api.errors import FatalError
from pgcluster.controller.prerequisites import Catalog

# Majors that deploy/images has a suite of Debian for, with repmgr.
_MAJORS = ("15", "17")


@dataclass(frozen=True, slots=True)
class Settings:
    """`namespaces` is empty where the operator serves all of them."""

    namespaces: tuple[str, ...]
    catalog: Catalog
    identity: str
    namespace: str

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Settings:
        """Read the variables that deploy/operator sets; FatalError for one that makes no sense."""
        version = pgcluster.__version__
        text = environment.get("PGCLUSTER_POSTGRES_IMAGES")
        images = {major: f"{names.IMAGES}/postgres:{major}-{version}" for major in _MAJORS}
        if text:
            try:
                images = {str(major): str(image) for major, image in json.loads(text).items()}
            except (ValueError, AttributeError) as error:
                raise FatalError(
                    'PGCLUSTER_POSTGRES_IMAGES must be JSON such as {"17": "image"}'
                ) from error
        return cls(
            namespaces=tuple(environment.get("PGCLUSTER_NAMESPACES", "").replace(",", " ").split()),
            catalog=Catalog(
                postgres=images,
                pgbouncer=environment.get("PGCLUSTER_PGBOUNCER_IMAGE")
                or f"{names.IMAGES}/pgbouncer:{version}",
            ),
            identity=environment.get("POD_NAME") or socket.gethostname(),
            namespace=environment.get("POD_NAMESPACE") or "pgcluster-system",
        )
