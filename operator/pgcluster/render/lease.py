"""The Lease that is the right to write, as the operator makes it once. Pure."""

from __future__ import annotations

from pgcluster.api import names
from pgcluster.api.models import PgCluster
from pgcluster.render.metadata import Manifest, manifest


def manifest_(
    cluster: PgCluster, *, system_identifier: str | None = None, timeline: int | None = None
) -> Manifest:
    """A Lease that nobody holds yet.

    What is known of the data goes along, so that a Lease which was deleted comes back with its
    mark: no instance runs initdb again, and none of an older timeline takes over.
    """
    made = manifest(
        cluster,
        api_version="coordination.k8s.io/v1",
        kind="Lease",
        name=names.primary_lease(cluster.name),
        component=names.COMPONENT_POSTGRES,
        spec={},
    )
    mark = {}
    if system_identifier is not None:
        mark[names.ANNOTATION_SYSTEM_ID] = system_identifier
        if timeline is not None:
            mark[names.ANNOTATION_TIMELINE] = str(timeline)
    if mark:
        made["metadata"]["annotations"] = {**made["metadata"].get("annotations", {}), **mark}
    return made
