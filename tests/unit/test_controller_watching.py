"""What wakes a reconciliation, and what does not."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from pgcluster.api import names
from pgcluster.controller.handlers import Sieve
from pgcluster.controller.leases import LeaseWatch
from pgcluster.controller.observe import Key
from pgcluster.kube.client import KubeClient, WatchEvent


def lease(holder: str = "shop-0", *, epoch: int = 1, renewed: str = "1", uid: str = "u") -> Any:
    return {
        "metadata": {
            "name": "shop-primary",
            "namespace": "test",
            "uid": uid,
            "labels": {names.LABEL_CLUSTER: "shop"},
            "annotations": {names.ANNOTATION_WAL_POSITION: f"0/{renewed}"},
        },
        "spec": {"holderIdentity": holder, "leaseTransitions": epoch, "renewTime": renewed},
    }


def sync(*leases: Any) -> WatchEvent:
    return WatchEvent("SYNC", items=list(leases))


def modified(changed: Any) -> WatchEvent:
    return WatchEvent("MODIFIED", object=changed)


async def woken(*events: WatchEvent) -> list[str]:
    """The clusters that these events wake, in their order."""

    class Client:
        async def watch(self, *_: Any, **__: Any) -> AsyncIterator[WatchEvent]:
            for event in events:
                yield event

    keys: list[Key] = []
    await LeaseWatch(cast(KubeClient, Client()), keys.append).run(None)
    return [str(key) for key in keys]


async def test_a_renewal_wakes_nobody() -> None:
    renewals = [modified(lease(renewed=str(number))) for number in range(5)]
    assert await woken(sync(lease()), *renewals) == ["test/shop"]


@pytest.mark.parametrize(
    "changed", [lease(""), lease("shop-1"), lease(epoch=2), lease(uid="another")]
)
async def test_a_change_of_the_holder_or_of_the_object_does(changed: Any) -> None:
    assert await woken(sync(lease()), modified(changed)) == ["test/shop"] * 2


async def test_a_deletion_is_noticed_also_when_it_fell_into_a_gap() -> None:
    deleted = WatchEvent("DELETED", object=lease())
    assert await woken(sync(lease()), deleted) == ["test/shop"] * 2
    assert await woken(sync(lease()), WatchEvent("LOST"), sync()) == ["test/shop"] * 2
    assert await woken(sync(lease()), WatchEvent("LOST"), sync(lease())) == ["test/shop"]


def pod() -> dict[str, Any]:
    return {
        "kind": "Pod",
        "metadata": {"uid": "p", "annotations": {"a": "1"}, "resourceVersion": "1"},
        "spec": {"nodeName": "worker"},
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": "1"}],
            "containerStatuses": [
                {"name": "postgres", "ready": True, "restartCount": 0, "state": {"running": {}}}
            ],
        },
    }


def changed(manifest: dict[str, Any], *path: Any, to: Any) -> dict[str, Any]:
    made = copy.deepcopy(manifest)
    place = made
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = to
    return made


STATUS_OF_DEPLOYMENT = {"observedGeneration": 2, "replicas": 2}
DEPLOYMENT = {
    "kind": "Deployment",
    "metadata": {"uid": "d", "generation": 2, "annotations": {"revision": "1"}},
    "status": STATUS_OF_DEPLOYMENT,
}
CLUSTER = {"kind": names.KIND, "metadata": {"uid": "c", "generation": 1}, "status": {}}


@pytest.mark.parametrize(
    ("before", "path", "to", "matters"),
    [
        (pod(), ("metadata", "resourceVersion"), "2", False),
        (pod(), ("status", "conditions", 0, "lastProbeTime"), "2", False),
        (pod(), ("metadata", "annotations", "a"), "2", True),
        (pod(), ("status", "conditions", 0, "status"), "False", True),
        (pod(), ("status", "podIP"), "10.0.0.2", True),
        (pod(), ("status", "containerStatuses", 0, "restartCount"), 1, True),
        (
            pod(),
            ("status", "containerStatuses", 0, "state"),
            {"waiting": {"reason": "CrashLoopBackOff"}},
            True,
        ),
        (pod(), ("metadata", "deletionTimestamp"), "2026-05-01T10:00:00Z", True),
        (DEPLOYMENT, ("status", "availableReplicas"), 1, False),
        (DEPLOYMENT, ("status", "updatedReplicas"), 1, True),
        (DEPLOYMENT, ("metadata", "generation"), 3, True),
        (CLUSTER, ("status", "summary"), "Ready", False),
        (CLUSTER, ("metadata", "generation"), 2, True),
    ],
)
def test_of_a_change_only_what_a_reconciliation_looks_at_matters(
    before: dict[str, Any], path: tuple[Any, ...], to: Any, matters: bool
) -> None:
    sieve = Sieve()
    assert sieve.matters(None, before), "what is first seen always does"
    assert sieve.matters("MODIFIED", changed(before, *path, to=to)) is matters


def test_a_deletion_always_matters_and_leaves_nothing_behind() -> None:
    sieve = Sieve()
    sieve.matters(None, pod())
    assert sieve.matters("DELETED", pod())
    assert len(sieve) == 0
    assert sieve.matters("ADDED", pod())
