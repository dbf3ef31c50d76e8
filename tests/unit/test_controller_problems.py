"""What a pod's status means, in words that name the pod and what to do."""

from __future__ import annotations

from typing import Any

import pytest

from pgcluster.api import conditions
from pgcluster.controller import problems


def pod(name: str = "shop-0", **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "status": status}


def waiting(reason: str, message: str = "", name: str = "shop-0", **more: Any) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    container = {"name": "postgres", "image": "somewhere/postgres:none", "state": state, **more}
    return pod(name, phase="Pending", containerStatuses=[container])


UNSCHEDULABLE = {
    "type": "PodScheduled",
    "status": "False",
    "reason": "Unschedulable",
    "message": "0/3 nodes are available: 3 Insufficient cpu.",
}
OUT_OF_MEMORY = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}


@pytest.mark.parametrize(
    ("manifest", "reason", "words", "blocks"),
    [
        (
            waiting("ImagePullBackOff", 'Back-off pulling image "x": ErrImagePull: not found'),
            conditions.IMAGE_PULL,
            ["shop-0", "somewhere/postgres:none", "not found", "correct the image"],
            True,
        ),
        (waiting("InvalidImageName"), conditions.IMAGE_PULL, ["somewhere/postgres:none"], True),
        (
            waiting("CreateContainerConfigError", 'secret "x" not found'),
            conditions.CRASH_LOOP,
            ["postgres", "shop-0", 'secret "x" not found'],
            True,
        ),
        (
            waiting("CrashLoopBackOff", lastState={"terminated": {"exitCode": 3}}),
            conditions.CRASH_LOOP,
            ["exit status 3", "kubectl logs shop-0 -c postgres --previous"],
            False,
        ),
        (
            waiting("CrashLoopBackOff", lastState=OUT_OF_MEMORY),
            conditions.CRASH_LOOP,
            ["out of memory"],
            False,
        ),
        (
            pod(phase="Pending", conditions=[UNSCHEDULABLE]),
            conditions.UNSCHEDULABLE,
            ["shop-0", "3 Insufficient cpu", "spec.scheduling"],
            True,
        ),
        (
            pod(phase="Failed", reason="Evicted", message="the node was low on memory"),
            conditions.CRASH_LOOP,
            ["low on memory"],
            False,
        ),
    ],
)
def test_each_trouble_is_told(
    manifest: dict[str, Any], reason: str, words: list[str], blocks: bool
) -> None:
    found = problems.of_pod(manifest)
    assert found is not None
    assert found.reason == reason
    assert found.blocks is blocks
    for word in words:
        assert word in found.message


@pytest.mark.parametrize(
    "manifest",
    [
        pod(phase="Pending"),
        waiting("ContainerCreating"),
        waiting("PodInitializing"),
        pod(containerStatuses=[{"name": "postgres", "state": {"running": {}}, "ready": False}]),
    ],
)
def test_a_pod_on_its_way_is_no_trouble(manifest: dict[str, Any]) -> None:
    assert problems.of_pod(manifest) is None


def test_a_pod_that_is_being_deleted_is_no_trouble() -> None:
    manifest = waiting("ImagePullBackOff")
    manifest["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert problems.of_pod(manifest) is None


def test_the_message_rests_while_the_kubelet_tries_again() -> None:
    """A status that changed with each of the kubelet's phrases would be written for ever."""
    first = problems.of_pod(waiting("ErrImagePull", "not found"))
    later = problems.of_pod(
        waiting("ImagePullBackOff", 'Back-off pulling image "x": ErrImagePull: not found')
    )
    assert first is not None
    assert later is not None
    assert first.message == later.message


def test_the_same_trouble_of_many_pods_is_told_once() -> None:
    found = problems.find(waiting("InvalidImageName", name=f"shop-{n}") for n in range(6))
    text = problems.summary(found)
    assert text.count("somewhere/postgres:none") == 1
    assert text.endswith("(so too: shop-1, shop-2, shop-3 and 2 more)")
