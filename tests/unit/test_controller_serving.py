"""Which poolers get new clients, as the primary hears them."""

from __future__ import annotations

from typing import Any

from pgcluster.api import names
from pgcluster.api.reports import InstanceReport, PoolerReport
from pgcluster.controller.observe import InstancePod, Observed
from pgcluster.controller.rows import pooler
from pgcluster.controller.serving import FORGET_AFTER_S, changes, silent


def pool(name: str, *, serves: bool = True, ready: bool = True, **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "labels": {names.LABEL_SERVING: names.SERVING} if serves else {},
            **metadata,
        },
        "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]},
    }


def seen(*pods: dict[str, Any], unheard: tuple[str, ...] | None) -> Observed:
    """Poolers, and a primary that does not hear some of them; None: there is no primary."""
    report = InstanceReport(
        pod="shop-0", state="running", role="primary", silent_poolers=unheard or ()
    )
    manifest = {
        "metadata": {"name": "shop-0"},
        "status": {"containerStatuses": [{"name": "postgres", "state": {"running": {}}}]},
    }
    holder = "" if unheard is None else "shop-0"
    return Observed(
        cluster={"metadata": {"name": "shop", "namespace": "test", "uid": "u"}},
        children={
            ("Lease", "shop-primary"): {"spec": {"holderIdentity": holder, "leaseTransitions": 3}}
        },
        pods=(InstancePod("shop-0", manifest, report),),
        pooler_pods=pods,
        pooler_reports={
            pod["metadata"]["name"]: PoolerReport(pod=pod["metadata"]["name"], ready=True, epoch=3)
            for pod in pods
        },
    )


def changed(observed: Observed, *, untold_s: float = 0.0) -> dict[str, bool]:
    return {change.pod: change.serve for change in changes(observed, untold_s=untold_s)}


def test_a_pooler_that_is_not_heard_leaves() -> None:
    world = seen(pool("a"), pool("b"), unheard=("b",))
    assert changed(world) == {"b": False}
    left = seen(pool("a"), pool("b", serves=False), unheard=("b",))
    assert changed(left) == {}
    for either in (world, left):
        row = pooler(either.pooler_pods[1], either)
        assert (row.ready, row.reason) == (False, "shop-0 does not hear it: it gets no new clients")


def test_one_that_is_heard_again_comes_back() -> None:
    assert changed(seen(pool("a"), pool("b", serves=False), unheard=())) == {"b": True}


def test_the_last_one_stays_and_the_others_come_back_when_it_goes() -> None:
    only = seen(pool("a"), unheard=("a",))
    assert changed(only) == {}
    assert "no other pooler is ready" in (pooler(only.pooler_pods[0], only).reason or "")
    assert changed(seen(pool("a"), pool("b"), unheard=("a", "b"))) == {}
    alone = seen(pool("a", ready=False), pool("b", serves=False), unheard=("b",))
    assert changed(alone) == {"b": True}
    going = seen(pool("a", deletionTimestamp="now"), pool("b"), unheard=("b",))
    assert changed(going) == {}


def test_one_that_is_not_ready_is_left_alone() -> None:
    """It gets no clients, and a pod that starts would otherwise lose the label and wait for it."""
    assert changed(seen(pool("a"), pool("b", ready=False), unheard=("b",))) == {}


def test_without_a_primary_what_the_last_one_said_counts_for_a_while() -> None:
    world = seen(pool("a"), pool("b", serves=False), unheard=None)
    assert silent(world) is None
    assert changed(world, untold_s=5.0) == {}
    assert changed(world, untold_s=FORGET_AFTER_S) == {"b": True}
    alone = seen(pool("a", ready=False), pool("b", serves=False), unheard=None)
    assert changed(alone, untold_s=5.0) == {"b": True}
