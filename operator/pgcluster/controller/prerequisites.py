"""What must be there before anything is made: images, and a class of volumes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pgcluster.api import conditions
from pgcluster.api.errors import BlockedError
from pgcluster.api.models import PgCluster
from pgcluster.controller import status
from pgcluster.controller.observe import Observed
from pgcluster.kube.client import KubeClient
from pgcluster.kube.errors import Forbidden
from pgcluster.kube.resources import STORAGE_CLASSES
from pgcluster.render.cluster import Images

_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"


@dataclass(frozen=True, slots=True)
class Catalog:
    """Images that the operator brings: PostgreSQL major → image, and that of the poolers."""

    postgres: Mapping[str, str]
    pgbouncer: str


def images_of(observed: Observed, cluster: PgCluster, catalog: Catalog) -> Images:
    """The images to run; BlockedError where there is none. Pure.

    Those of a running cluster are pinned by its status: an upgrade of the operator rolls nothing.
    A new value of annotation `pgcluster.dev/restart` chooses them anew.
    """
    known = status.known_status(observed)
    pinned = observed.system_identifier is not None and cluster.restart in (None, known.restart)
    spec = cluster.spec
    version = str(spec.postgres.version)
    postgres = spec.image or (known.image if pinned else None)
    postgres = postgres or catalog.postgres.get(version)
    if postgres is None:
        majors = ", ".join(sorted(catalog.postgres)) or "none"
        raise BlockedError(
            f"spec.postgres.version: this operator brings no image of PostgreSQL {version}"
            f" (it has: {majors}); choose one of these, or name an image in spec.image",
            reason=conditions.INVALID_SPEC,
        )
    pgbouncer = spec.pgbouncer.image or (known.pgbouncer_image if pinned else None)
    return Images(postgres=postgres, pgbouncer=pgbouncer or catalog.pgbouncer)


def newer(cluster: PgCluster, images: Images, catalog: Catalog) -> str | None:
    """The image of the instances that this operator would choose today, where that is another."""
    offered = catalog.postgres.get(str(cluster.spec.postgres.version))
    return offered if cluster.spec.image is None and offered != images.postgres else None


async def check_storage_class(client: KubeClient, cluster: PgCluster) -> None:
    """BlockedError where the volumes could never be made."""
    wanted = cluster.spec.storage.class_name
    try:
        classes, _ = await client.list(STORAGE_CLASSES)
    except Forbidden:
        # An operator for some namespaces only may lack the right to look; then the pod tells.
        return
    found = {item["metadata"]["name"]: item["metadata"] for item in classes}
    if wanted in found:
        return
    if wanted is None and any(
        (metadata.get("annotations") or {}).get(_DEFAULT_CLASS) == "true"
        for metadata in found.values()
    ):
        return
    known = ", ".join(sorted(found)) or "none"
    trouble = (
        f"spec.storage.className: StorageClass {wanted} does not exist"
        if wanted
        else "spec.storage.className is not set and no StorageClass is the default"
    )
    raise BlockedError(
        f"{trouble}; choose one of those that exist ({known}), or make it",
        reason=conditions.STORAGE_CLASS_MISSING,
    )
