"""A primary leaves a node that is about to go, while there is somewhere to go."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from pgcluster.controller import nodes
from pgcluster.controller.observe import InstancePod, Key
from pgcluster.kube.client import KubeClient, WatchEvent
from pgcluster.kube.errors import Forbidden
from tests.unit.test_controller_rollout import instance, observed

NOW = datetime(2026, 5, 1, 10, tzinfo=UTC)


def on(node: str, pod: InstancePod) -> InstancePod:
    pod.manifest["spec"]["nodeName"] = node
    return pod


def three(**third: Any) -> list[InstancePod]:
    return [
        on("a", instance(0)),
        on("b", instance(1)),
        on("c", instance(2, **third)),
    ]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({}, None),
        ({"taints": [{"key": "dedicated", "effect": "NoSchedule"}]}, None),
        ({"taints": [{"key": "DeletionCandidateOfClusterAutoscaler"}]}, None),
        ({"unschedulable": True}, "is cordoned"),
        ({"taints": [{"key": "karpenter.sh/disrupted"}]}, "has the taint karpenter.sh/disrupted"),
    ],
)
def test_a_node_that_is_about_to_go_is_told_by_its_spec(
    spec: dict[str, Any], reason: str | None
) -> None:
    assert nodes.leaving({"metadata": {"name": "a"}, "spec": spec}) == reason


def test_the_primary_leaves_it_for_an_instance_on_another() -> None:
    found = nodes.wish(observed(*three()), {"a": "is cordoned", "b": "is cordoned"})
    assert found is not None
    assert found.cause == "node"
    assert found.avoid == {"shop-0", "shop-1"}
    assert found.reason == "its node a is cordoned"


def test_a_standbys_node_and_an_empty_one_concern_nobody() -> None:
    assert nodes.wish(observed(*three()), {"b": "is cordoned", "z": "is cordoned"}) is None


def test_with_nowhere_to_go_it_stays() -> None:
    going = {"a": "is cordoned", "b": "is cordoned"}
    assert nodes.wish(observed(*three(ready=False)), going) is None
    everything = {**going, "c": "is cordoned"}
    assert nodes.wish(observed(*three()), everything) is None


def test_one_that_was_refused_is_asked_for_again_later_under_another_name() -> None:
    going = {"a": "is cordoned"}
    first = nodes.wish(observed(*three()), going)
    assert first is not None
    record = {"request": first.request, "state": "Refused", "endedAt": "2026-05-01T09:59:55Z"}
    seen = observed(*three(), status={"lastSwitchover": record})
    seen.cluster["status"] = {"lastSwitchover": record}
    later = nodes.wish(seen, going)
    assert later is not None
    assert later.not_before == NOW.replace(second=10)
    assert later.request != first.request


class Api(KubeClient):
    """What the API says of nodes, and of the pods on them."""

    def __init__(self, *events: WatchEvent) -> None:
        self.events = events
        self.asked: list[str] = []

    async def list(self, *about: Any, fields: str = "", **_: Any) -> Any:
        self.asked.append(fields)
        labels = {"pgcluster.dev/cluster": "shop"}
        return [{"metadata": {"namespace": "test", "name": "shop-0", "labels": labels}}], "1"

    async def watch(self, *_: Any, **__: Any) -> Any:
        for event in self.events:
            yield event


def node(name: str, **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "spec": spec}


async def test_only_a_change_wakes_the_clusters_that_are_there() -> None:
    woken: list[Key] = []
    api = Api(
        WatchEvent("SYNC", items=[node("a"), node("b", unschedulable=True)]),
        WatchEvent("MODIFIED", object=node("b", unschedulable=True)),
        WatchEvent("MODIFIED", object=node("a")),
        WatchEvent("MODIFIED", object=node("a", unschedulable=True)),
        WatchEvent("MODIFIED", object=node("b")),
    )
    watch = nodes.NodeWatch(api, woken.append)
    await watch.run()
    assert [field for field in api.asked if field] == ["spec.nodeName=b", "spec.nodeName=a"]
    assert woken == [Key("test", "shop")] * 2
    assert watch.going == {"a": "is cordoned"}


async def test_only_the_namespaces_that_are_looked_after_are_asked_for_pods() -> None:
    """An operator of single namespaces may list pods in no other."""

    class Namespaced(Api):
        async def list(self, *about: Any, fields: str = "", **_: Any) -> Any:
            if fields:
                self.asked.append(about[1])
            return [], "1"

    api = Namespaced(WatchEvent("SYNC", items=[node("a", unschedulable=True)]))
    await nodes.NodeWatch(api, lambda _: None, namespaces=["prod", "stage"]).run()
    assert api.asked == ["prod", "stage"]


async def test_a_node_that_is_gone_after_a_gap_of_the_watch_is_forgotten() -> None:
    api = Api(
        WatchEvent("SYNC", items=[node("a", unschedulable=True)]),
        WatchEvent("SYNC", items=[node("b")]),
    )
    watch = nodes.NodeWatch(api, lambda _: None)
    await watch.run()
    assert watch.going == {}


async def test_without_the_right_to_watch_nodes_it_waits_and_harms_nobody() -> None:
    class Refusing(Api):
        async def list(self, *_: Any, **__: Any) -> Any:
            raise Forbidden(403, "Forbidden", "nodes is forbidden")

    watch = nodes.NodeWatch(Refusing(), lambda _: None)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(watch.run(), 0.1)
    assert watch.going == {}
