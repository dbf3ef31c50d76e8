"""The Lease that is the right to write, as the operator makes it once. Pure."""

from __future__ import annotations

from pgcluster.api import names
from pgcluster.api.models import PgCluster
from pgcluster.render.metadata import Manifest, metadata


def manifest(
    cluster: PgCluster,
    *,
    system_identifier: str | None,
    timeline: int | None,
    epoch: int | None,
    primary: str | None = None,
) -> Manifest:
    """A Lease that nobody holds yet, or in place of one that was deleted.

    What is known of the data goes along, so that a Lease which was deleted comes back with its
    mark: no instance runs initdb again, and none of an older timeline takes over. Its epoch goes
    on too, or the poolers would take the next primary for an older one. It names the known primary,
    which may still be writing: others wait as long as for any holder.
    """
    made = metadata(cluster, names.primary_lease(cluster.name))
    mark = {}
    if system_identifier is not None:
        mark[names.ANNOTATION_SYSTEM_ID] = system_identifier
        if timeline is not None:
            mark[names.ANNOTATION_TIMELINE] = str(timeline)
            mark[names.ANNOTATION_WAL_POSITION] = "0/0"
    if mark:
        made["annotations"] = {**made.get("annotations", {}), **mark}
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": made,
        "spec": {
            "holderIdentity": (primary or "") if system_identifier is not None else "",
            "leaseTransitions": epoch or 0,
        },
    }
