"""The other instances: where they are, what they have, and what this one tells about itself."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

import aiohttp

from pgcluster.api import names
from pgcluster.api.reports import InstanceReport
from pgcluster.api.wal import Lsn, WalPoint
from pgcluster.kube.client import KubeClient
from pgcluster.kube.resources import PODS
from pgcluster.topology.election import Candidate
from pgcluster.topology.pods import reads, report_of

log = logging.getLogger(__name__)

_ASK_DEADLINE_S = 1.0


class Members:
    """Pods of this cluster's instances, each watched by its name.

    RBAC cannot restrict a watch by label, but it can by name, so this sees no pod of anybody else.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        cluster: str,
        namespace: str,
        me: str,
        changed: asyncio.Event,
    ) -> None:
        self._client = client
        self._cluster = cluster
        self._namespace = namespace
        self._me = me
        self._pods: dict[str, dict[str, Any]] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._changed = changed

    def follow(self, instances: int) -> None:
        """Watch exactly the pods of `instances` instances from now on."""
        wanted = {names.pod(self._cluster, ordinal) for ordinal in range(instances)}
        for pod in wanted - self._watches.keys():
            self._watches[pod] = asyncio.create_task(self._watch(pod), name=f"watch-{pod}")
        for pod in self._watches.keys() - wanted:
            self._watches.pop(pod).cancel()
            self._pods.pop(pod, None)

    def addresses(self) -> dict[str, str]:
        """Pod name → address of each instance that has one."""
        return {
            pod: address
            for pod, manifest in self._pods.items()
            if (address := (manifest.get("status") or {}).get("podIP"))
        }

    def reports(self) -> dict[str, InstanceReport]:
        """What each instance last reported on its pod."""
        found = {pod: report_of(manifest) for pod, manifest in self._pods.items()}
        return {pod: report for pod, report in found.items() if report is not None}

    def readable(self, streaming: Collection[str] | None) -> tuple[str, ...]:
        """Addresses of the standbys that clients may read from, in the order of their names.

        `streaming` are the pods that this primary sends WAL to; None while it cannot tell.
        """
        return tuple(
            address
            for pod, address in sorted(self.addresses().items())
            if pod != self._me and reads(self._pods[pod], streaming)
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

    async def candidates(self) -> dict[str, Candidate]:
        """Ask every other instance's agent what it has; whoever does not answer is absent."""
        others = {pod: ip for pod, ip in self.addresses().items() if pod != self._me}
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=_ASK_DEADLINE_S)
        ) as session:
            answers = await asyncio.gather(
                *(_ask(session, ip) for ip in others.values()), return_exceptions=True
            )
        return {
            pod: answer
            for pod, answer in zip(others, answers, strict=True)
            if isinstance(answer, Candidate)
        }

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
        if manifest is None:
            self._pods.pop(pod, None)
        else:
            self._pods[pod] = manifest
        self._changed.set()


async def _ask(session: aiohttp.ClientSession, address: str) -> Candidate:
    async with session.get(f"http://{address}:{names.PORT_AGENT}/status") as response:
        response.raise_for_status()
        return parse_candidate(await response.json())


def candidate_document(
    candidate: Candidate, report: InstanceReport, extra: Mapping[str, Any]
) -> str:
    """What an agent answers to `/status`."""
    point = candidate.point
    return json.dumps(
        {
            "candidate": {
                "systemIdentifier": candidate.system_identifier,
                "timeline": point.timeline if point else None,
                "lsn": str(point.lsn) if point else None,
                "barred": candidate.barred,
            },
            "report": report.model_dump(mode="json"),
            **extra,
        }
    )


def parse_candidate(document: Mapping[str, Any]) -> Candidate:
    """Read another agent's answer; ValueError where it makes no sense."""
    fields = document.get("candidate") or {}
    timeline, lsn = fields.get("timeline"), fields.get("lsn")
    point = WalPoint(int(timeline), Lsn.parse(lsn)) if timeline and lsn else None
    return Candidate(
        system_identifier=fields.get("systemIdentifier"),
        point=point,
        barred=bool(fields.get("barred")),
    )


class Reporter:
    """Writes this instance's report and role label on its own pod, on change only."""

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

    async def write(self) -> None:
        """Bring the pod's annotation and label up to date; raises what the API answers."""
        report = self._report()
        wanted = (report.model_dump_json(exclude_none=True), report.role)
        if wanted == self._written:
            return
        await patch_pod(
            self._client,
            self._namespace,
            self._me,
            labels={names.LABEL_ROLE: report.role},
            annotations={names.ANNOTATION_INSTANCE: wanted[0]},
        )
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
