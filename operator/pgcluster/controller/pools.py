"""The pools' databases section: written first by the operator, and repaired when it must be.

The promoted instance's agent writes it, because a failover does not wait for the operator. The same
pure function renders it here, so that normally there is nothing to do. A stale observation must
never overwrite what an agent has written meanwhile: the write carries the version of the ConfigMap
that was read before the Lease and the pods.
"""

from __future__ import annotations

from dataclasses import dataclass

from pgcluster.api import conditions, names
from pgcluster.api.config import ClusterConfig
from pgcluster.api.reports import PoolerReport
from pgcluster.controller.observe import Observed
from pgcluster.controller.warnings import Finding
from pgcluster.kube.client import Manifest
from pgcluster.kube.resources import CONFIG_MAPS, DEPLOYMENTS
from pgcluster.render import pgbouncer as render
from pgcluster.topology.pods import reads


@dataclass(frozen=True, slots=True)
class Repair:
    """A section to write; `urgent` where pools cannot work with what is there."""

    content: str
    urgent: bool
    reason: str


def target(observed: Observed, *, staying: int) -> render.PoolTarget | None:
    """Where the pools are to point; None while no instance is the primary for certain.

    Nobody reads from instances past the first `staying`: they are about to be removed.
    """
    primary = observed.primary
    if primary is None or primary.address is None:
        return None
    report = primary.report
    if report is None or report.timeline is None:
        return None
    if report.importing is not None and report.importing.state != "done":
        # Clients wait at the pools until everything is there.
        return None
    standbys = tuple(
        pod.address
        for pod in observed.pods
        if pod.address
        and pod.name != primary.name
        and names.ordinal(pod.name) < staying
        and reads(pod.manifest, report.streaming)
    )
    return render.PoolTarget(
        primary=primary.name,
        primary_host=primary.address,
        standby_hosts=standbys,
        epoch=observed.epoch,
        timeline=report.timeline,
    )


def repair(observed: Observed, config: ClusterConfig) -> Repair | None:
    """What to write into the section, if anything. Pure."""
    live = observed.child(CONFIG_MAPS, names.config_map_pgbouncer(observed.key.name))
    text = ((live or {}).get("data") or {}).get(names.DATABASES_KEY)
    wanted = target(observed, staying=config.staying)
    if text is None:
        return Repair(render.databases_ini(config, wanted), True, "there is none")
    if wanted is None:
        # Whoever it names was the primary; nothing better is known.
        return None
    header = render.parse_header(text)
    if header is not None and header.epoch > wanted.epoch:
        return None
    content = render.databases_ini(config, wanted)
    if content == text:
        return None
    return Repair(content, False, "it differs from what it should be")


def manifest(observed: Observed, content: str) -> Manifest:
    """The write of a section, refused by the API if the ConfigMap has changed since it was read."""
    name = names.config_map_pgbouncer(observed.key.name)
    live = observed.child(CONFIG_MAPS, name)
    metadata = {"name": name, "namespace": observed.key.namespace}
    if live is not None:
        metadata |= {key: live["metadata"][key] for key in ("uid", "resourceVersion")}
    return {"metadata": metadata, "data": {names.DATABASES_KEY: content}}


def settings_refused(observed: Observed) -> tuple[Finding, ...]:
    """The poolers that did not take the present settings; those behind them keep what they have."""
    wanted = _settings_hashes(observed)
    return tuple(
        Finding(
            conditions.POOL_SETTINGS_REFUSED,
            f"pooler {report.pod} did not take what spec.pgbouncer says, and no pooler after it"
            f" does: {report.settings_reason}; correct or remove it",
        )
        for report in _reports(observed)
        if report.settings_refused in wanted
    )


def under_way(observed: Observed) -> tuple[str, str] | None:
    """What the poolers are being changed to: reason and message; None where nothing changes."""
    live = observed.child(DEPLOYMENTS, names.pgbouncer(observed.key.name))
    if live is not None:
        status, replicas = live.get("status") or {}, int(live["spec"].get("replicas") or 0)
        updated = int(status.get("updatedReplicas") or 0)
        if updated < replicas or int(status.get("replicas") or 0) > updated:
            return (
                conditions.POOLERS_ROLLING,
                f"the poolers are being replaced one by one: {updated} of {replicas} are new",
            )
    wanted, reports = _settings_hashes(observed), _reports(observed)
    late = [report.pod for report in reports if report.settings_hash not in (None, *wanted)]
    if not wanted or not late:
        return None
    return (
        conditions.POOL_SETTINGS,
        f"the poolers take the changed settings one after the other; to come: {', '.join(late)}",
    )


def _settings_hashes(observed: Observed) -> frozenset[str]:
    """Of the present settings: with TLS, and for agents of a version without."""
    live = observed.child(CONFIG_MAPS, names.config_map_pgbouncer(observed.key.name))
    data = (live or {}).get("data") or {}
    texts = (data.get(key) for key in (names.PGBOUNCER_TLS_INI_KEY, names.PGBOUNCER_INI_KEY))
    return frozenset(render.content_hash(text) for text in texts if text)


def _reports(observed: Observed) -> list[PoolerReport]:
    """Of the poolers that stay, by name."""
    staying = {
        pod["metadata"]["name"]
        for pod in observed.pooler_pods
        if "deletionTimestamp" not in pod["metadata"]
    }
    return [report for pod, report in sorted(observed.pooler_reports.items()) if pod in staying]


def gone_poolers(observed: Observed) -> tuple[str, ...]:
    """Keys of the poolers' ConfigMap whose pods are no more."""
    live = observed.child(CONFIG_MAPS, names.config_map_poolers(observed.key.name))
    alive = {pod["metadata"]["name"] for pod in observed.pooler_pods}
    return tuple(sorted(set((live or {}).get("data") or {}) - alive))
