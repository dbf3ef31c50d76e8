"""The other instances: where they are, what they have, and what this one tells about itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from pgcluster.api import names
from pgcluster.api.errors import RetryError
from pgcluster.api.reports import InstanceReport
from pgcluster.api.wal import Lsn, WalPoint
from pgcluster.clock import monotonic_s
from pgcluster.kube.client import KubeClient
from pgcluster.kube.errors import Unavailable
from pgcluster.kube.resources import PODS
from pgcluster.node.peers import Peers
from pgcluster.topology import pods, quorum
from pgcluster.topology.election import Candidate
from pgcluster.topology.lease import LeaseRecord, Mark
from pgcluster.topology.pods import reads, report_of

log = logging.getLogger(__name__)

_ASK_S = 0.5
# An agent that answers with this knows what to do as a planned successor.
FOLLOWS_PLANS = "followsPlans"
_FAILSAFE_S = 1.0
# A write without an answer may take effect until then, and undo what was written after it.
_UNSURE_S = 30.0


@dataclass(frozen=True, slots=True)
class Status:
    """What an agent answers to `/status`, as far as a planned hand-over asks."""

    candidate: Candidate
    follows_plans: bool
    disk_full: bool


class Members:
    """Pods of this cluster's instances, each watched by its name.

    RBAC cannot restrict a watch by label, but it can by name, so this sees no pod of anybody else.
    """

    def __init__(
        self,
        client: KubeClient,
        peers: Peers,
        *,
        cluster: str,
        namespace: str,
        me: str,
        changed: asyncio.Event,
    ) -> None:
        self._client = client
        self._peers = peers
        self._cluster = cluster
        self._namespace = namespace
        self._me = me
        self._pods: dict[str, dict[str, Any]] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}
        # Addresses by another agent's word, of pods that the API has not shown.
        self._told: dict[str, str] = {}
        self._changed = changed

    def follow(self, instances: int) -> None:
        """Watch exactly the pods of `instances` instances from now on."""
        wanted = {names.pod(self._cluster, ordinal) for ordinal in range(instances)}
        for pod in sorted(wanted - self._watches.keys()):
            self._watches[pod] = asyncio.create_task(self._watch(pod), name=f"watch-{pod}")
        for pod in self._watches.keys() - wanted:
            self._watches.pop(pod).cancel()
            self._pods.pop(pod, None)

    def addresses(self) -> dict[str, str]:
        """Pod name → address of each instance that has one."""
        seen = {
            pod: address
            for pod, manifest in self._pods.items()
            if (address := (manifest.get("status") or {}).get("podIP"))
        }
        return {**self._told, **seen}

    def reports(self) -> dict[str, InstanceReport]:
        """What each instance last reported on its pod."""
        found = {pod: report_of(manifest) for pod, manifest in self._pods.items()}
        return {pod: report for pod, report in found.items() if report is not None}

    def readable(self, streaming: Collection[str] | None, *, staying: int) -> tuple[str, ...]:
        """Addresses of the standbys that clients may read from, in the order of their names.

        `streaming` are the pods that this primary sends WAL to; None while it cannot tell. Those
        past the first `staying` are about to be removed.
        """
        return tuple(
            address
            for pod, address in sorted(self.addresses().items())
            if pod != self._me
            and names.ordinal(pod) < staying
            and reads(self._pods[pod], streaming)
        )

    def labelled_primary(self) -> list[str]:
        """Pods that carry the primary's label."""
        return [
            pod
            for pod, manifest in self._pods.items()
            if (manifest["metadata"].get("labels") or {}).get(names.LABEL_ROLE)
            == names.ROLE_PRIMARY
        ]

    def leaving(self, pod: str) -> bool:
        """Whether the pod is being deleted."""
        manifest = self._pods.get(pod)
        return manifest is not None and "deletionTimestamp" in manifest["metadata"]

    def ended(self, pod: str, container: str, *, for_good: bool) -> bool:
        """Whether a container is known to have ended (topology/pods.py says what that takes)."""
        manifest = self._pods.get(pod)
        return manifest is not None and pods.ended(manifest, container, for_good=for_good)

    async def candidates(self, *, without: str = "") -> dict[str, Candidate]:
        """Ask every other instance's agent what it has; whoever does not answer is absent.

        `without` is not asked: a lost node would only be waited for.
        """
        others = {pod: ip for pod, ip in self.addresses().items() if pod not in (self._me, without)}
        answers = await asyncio.gather(*(self._ask(address) for address in others.values()))
        return {
            pod: answer for pod, answer in zip(others, answers, strict=True) if answer is not None
        }

    async def statuses(self, only: str | None = None) -> dict[str, Status | None]:
        """Ask every other instance's agent, or `only` one; None for whoever does not answer."""
        others = {
            pod: ip
            for pod, ip in self.addresses().items()
            if pod != self._me and only in (None, pod)
        }
        answers = await asyncio.gather(*(self._status(address) for address in others.values()))
        return dict(zip(others, answers, strict=True))

    async def request(
        self, pod: str, path: str, body: Mapping[str, Any], *, deadline_s: float
    ) -> Mapping[str, Any]:
        """Ask something else of one other instance's agent; RetryError where it has no answer."""
        address = self.addresses().get(pod)
        if address is None:
            raise RetryError(f"nobody knows where {pod} is")
        return await self._peers.ask(address, path, body=body, deadline_s=deadline_s)

    async def acknowledge(self, record: LeaseRecord, instances: int) -> bool:
        """Ask every other instance to acknowledge this holder of the Lease; whether all do."""
        wanted = {names.pod(self._cluster, n) for n in range(instances)} - {self._me}
        addresses = self.addresses()
        if unknown := wanted - addresses.keys():
            log.warning("nobody knows where %s is, so it acknowledges nothing", min(unknown))
            return False
        document = failsafe_document(record)
        document["addresses"] = addresses
        answers = await asyncio.gather(
            *(self._acknowledged(pod, addresses[pod], document) for pod in sorted(wanted))
        )
        return all(answers)

    def learn(self, addresses: Mapping[str, str]) -> None:
        """Where instances are by another agent's word, as long as the API has not told."""
        for pod in self._watches.keys() - self._pods.keys():
            if address := addresses.get(pod):
                self._told[pod] = address

    async def _status(self, address: str) -> Status | None:
        try:
            told = await self._peers.ask(address, "/status", deadline_s=_ASK_S)
            report = told.get("report") or {}
            return Status(
                parse_candidate(told), bool(told.get(FOLLOWS_PLANS)), bool(report.get("disk_full"))
            )
        except (RetryError, ValueError) as error:
            log.debug("no status: %s", error)
            return None

    async def _ask(self, address: str) -> Candidate | None:
        try:
            return parse_candidate(await self._peers.ask(address, "/status", deadline_s=_ASK_S))
        except (RetryError, ValueError) as error:
            log.debug("no candidate: %s", error)
            return None

    async def _acknowledged(self, pod: str, address: str, document: Mapping[str, Any]) -> bool:
        try:
            answer = await self._peers.ask(
                address, "/failsafe", body=document, deadline_s=_FAILSAFE_S
            )
        except RetryError as error:
            log.warning("%s does not acknowledge this primary: %s", pod, error)
            return False
        if refusal := answer.get("refused"):
            log.warning("%s does not acknowledge this primary: %s", pod, refusal)
        return answer.get("refused") is None

    async def close(self) -> None:
        """Stop watching."""
        for task in self._watches.values():
            task.cancel()
        await asyncio.gather(*self._watches.values(), return_exceptions=True)

    async def _watch(self, pod: str) -> None:
        async for event in self._client.watch(PODS, self._namespace, name=pod):
            if event.type == "SYNC":
                self._set(pod, event.items[0] if event.items else None)
            elif event.type in ("ADDED", "MODIFIED"):
                self._set(pod, event.object)
            elif event.type == "DELETED":
                self._set(pod, None)

    def _set(self, pod: str, manifest: dict[str, Any] | None) -> None:
        self._told.pop(pod, None)
        if manifest is None:
            self._pods.pop(pod, None)
        else:
            self._pods[pod] = manifest
        self._changed.set()


def candidate_document(
    candidate: Candidate, report: InstanceReport, extra: Mapping[str, Any]
) -> Mapping[str, Any]:
    """What an agent answers to `/status`."""
    point = candidate.point
    return {
        "candidate": {
            "systemIdentifier": candidate.system_identifier,
            "timeline": point.timeline if point else None,
            "lsn": str(point.lsn) if point else None,
            "barred": candidate.barred,
            "exact": candidate.exact,
        },
        "report": report.model_dump(mode="json"),
        **extra,
    }


def parse_candidate(document: Mapping[str, Any]) -> Candidate:
    """Read another agent's answer; ValueError where it makes no sense."""
    fields = document.get("candidate") or {}
    timeline, lsn = fields.get("timeline"), fields.get("lsn")
    point = WalPoint(int(timeline), Lsn.parse(lsn)) if timeline and lsn else None
    return Candidate(
        system_identifier=fields.get("systemIdentifier"),
        point=point,
        barred=bool(fields.get("barred")),
        # An older agent, which does not tell, may have more than it says.
        exact=bool(fields.get("exact")),
    )


def failsafe_document(record: LeaseRecord) -> dict[str, Any]:
    """What a holder of the Lease tells the other agents while the API server is away."""
    point = record.mark.point
    return {
        "holder": record.holder,
        "epoch": record.epoch,
        "durationSeconds": record.duration_s,
        "systemIdentifier": record.mark.system_identifier,
        "timeline": point.timeline if point else None,
        "lsn": str(point.lsn) if point else None,
        "synchronous": quorum.dump(record.quorums or ()),
        "container": record.container,
        "uid": record.uid,
    }


def parse_failsafe(document: Mapping[str, Any]) -> LeaseRecord:
    """Read a holder's word; ValueError, TypeError or KeyError where it makes no sense."""
    timeline, lsn = document.get("timeline"), document.get("lsn")
    point = WalPoint(int(timeline), Lsn.parse(lsn)) if timeline and lsn else None
    return LeaseRecord(
        holder=str(document["holder"]),
        epoch=int(document["epoch"]),
        duration_s=float(document["durationSeconds"]),
        renew_time="",
        mark=Mark(document.get("systemIdentifier"), point),
        quorums=quorum.parse(document.get("synchronous")),
        container=document.get("container"),
        uid=document.get("uid"),
        last_holder=str(document["holder"]),
    )


class Reporter:
    """Writes this instance's report and role label on its own pod, on change, and once more where
    a write that got no answer may have undone it."""

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        me: str,
        report: Callable[[], InstanceReport],
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._me = me
        self._report = report
        self._written: tuple[str, str | None] | None = None
        self._unsure_until_s: float | None = None

    async def write(self) -> None:
        """Bring the pod's annotation and label up to date; raises what the API answers."""
        report = self._report()
        wanted = (report.model_dump_json(exclude_none=True), report.role)
        if self._unsure_until_s is not None and monotonic_s() >= self._unsure_until_s:
            self._unsure_until_s, self._written = None, None
        if wanted == self._written:
            return
        try:
            await patch_pod(
                self._client,
                self._namespace,
                self._me,
                labels={names.LABEL_ROLE: report.role},
                annotations={names.ANNOTATION_INSTANCE: wanted[0]},
            )
        except Unavailable:
            self._unsure_until_s = monotonic_s() + _UNSURE_S
            raise
        self._written = wanted


async def patch_pod(
    client: KubeClient,
    namespace: str,
    pod: str,
    *,
    labels: Mapping[str, str | None],
    annotations: Mapping[str, str | None] | None = None,
) -> None:
    """Merge labels and annotations (None removes one) into a pod's metadata."""
    metadata: dict[str, Any] = {"labels": dict(labels)}
    if annotations:
        metadata["annotations"] = dict(annotations)
    await client.merge_patch(
        PODS, pod, namespace, {"metadata": metadata}, manager=names.MANAGER_NODE
    )
