"""Volumes: which grow, which go, and which never do."""

from __future__ import annotations

from typing import Any

import pytest

from pgcluster.api import names
from pgcluster.api.models import PgCluster
from pgcluster.api.reports import InstanceReport
from pgcluster.controller import volumes
from pgcluster.controller.observe import InstancePod, Observed

EXPANDS = {"fast": {"allowVolumeExpansion": True}, "local": {}}


def claim(name: str, *, size: str = "1Gi", class_: str = "fast", **more: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "uid": f"uid of {name}", **more.pop("metadata", {})},
        "spec": {"storageClassName": class_, "resources": {"requests": {"storage": size}}},
        **more,
    }


def template(**sizes: str) -> dict[str, Any]:
    return {
        "spec": {
            "volumeClaimTemplates": [
                {
                    "metadata": {"name": name},
                    "spec": {"resources": {"requests": {"storage": size}}},
                }
                for name, size in sizes.items()
            ]
        }
    }


def grow(*claims: dict[str, Any], instances: int = 3, **sizes: str) -> volumes.Growths:
    wanted = template(**(sizes or {"data": "2Gi"}))
    return volumes.to_grow(wanted, claims, EXPANDS, cluster="shop", instances=instances)


def test_a_claim_that_asks_for_less_than_the_spec_is_to_grow() -> None:
    found = grow(claim("data-shop-0"), claim("data-shop-1", size="3Gi"), claim("wal-shop-0"))
    assert found == volumes.Growths((volumes.Growth("data-shop-0", "2Gi"),))
    both = grow(claim("data-shop-0"), claim("wal-shop-0"), data="2Gi", wal="4Gi")
    assert both.growths[1] == volumes.Growth("wal-shop-0", "4Gi")


def test_only_the_claims_of_instances_that_are_there_grow() -> None:
    others = ("data-shop-x-0", "data-shop-01x", "data-other-0", "logs-shop-0")
    assert grow(claim("data-shop-3"), *(claim(name) for name in others)) == volumes.Growths()


def test_a_class_that_cannot_is_told_with_what_to_do() -> None:
    found = grow(claim("data-shop-0", class_="local"), claim("data-shop-1", class_="unknown"))
    assert found.growths == (volumes.Growth("data-shop-1", "2Gi"),), "the API server is asked"
    told = volumes.advice(found.refused)
    for word in (
        "spec.storage.size",
        "data-shop-0",
        "local",
        "allowVolumeExpansion",
        "one instance",
    ):
        assert word in told
    assert "spec.storage.walSize" in volumes.advice(["wal-shop-0: no"])


def test_a_growth_that_is_not_at_its_end_is_told() -> None:
    waits = {"conditions": [{"type": "FileSystemResizePending", "status": "True"}]}
    (told,) = grow(claim("data-shop-0", size="2Gi", status=waits)).pending
    assert "shop-0" in told
    (told,) = grow(
        claim("data-shop-0", size="2Gi", status={"capacity": {"storage": "1Gi"}})
    ).pending
    assert "1Gi" in told
    done = {"capacity": {"storage": "2Gi"}}
    assert grow(claim("data-shop-0", size="2Gi", status=done)) == volumes.Growths()


def test_the_stateful_set_is_made_anew_only_for_larger_volumes() -> None:
    live = template(data="2Gi")
    assert volumes.outgrown(template(data="3Gi"), live)
    assert not volumes.outgrown(template(data="2048Mi"), live)
    assert not volumes.outgrown(template(data="1Gi"), live)
    assert not volumes.outgrown(template(data="3Gi"), None)


# --- deletion -------------------------------------------------------------------------------------
def observed(*ordinals: int, holder: str = "shop-0", writer: str = "shop-0") -> Observed:
    def pod(ordinal: int) -> InstancePod:
        name = f"shop-{ordinal}"
        role = "primary" if name == holder else "standby"
        report = InstanceReport.model_validate({"pod": name, "state": "running", "role": role})
        running = {"containerStatuses": [{"state": {"running": {}}}]}
        return InstancePod(name, {"metadata": {"name": name}, "status": running}, report)

    return Observed(
        cluster={"metadata": {"name": "shop", "namespace": "test", "uid": "u"}},
        children={
            ("Lease", "shop-primary"): {
                "metadata": {"annotations": {names.ANNOTATION_WRITER: writer}},
                "spec": {"holderIdentity": holder},
            }
        },
        pods=tuple(pod(ordinal) for ordinal in ordinals),
    )


def cluster(instances: int = 1, *, hibernated: bool = False, **storage: str) -> PgCluster:
    spec = {"instances": instances, "storage": {"size": "1Gi", **storage}, "hibernated": hibernated}
    return PgCluster.parse({"metadata": {"name": "shop", "uid": "u"}, "spec": spec})


def stateful_set(replicas: int, *, there: int | None = None, seen: int = 2) -> dict[str, Any]:
    status = {"observedGeneration": seen, "replicas": replicas if there is None else there}
    return {"metadata": {"generation": 2}, "spec": {"replicas": replicas}, "status": status}


CLAIMS = tuple(claim(f"data-shop-{n}") for n in range(3))
DELETE = {"whenScaled": "Delete"}


def deleted(
    seen: Observed, asked: PgCluster, live: dict[str, Any] | None, *, instances: int = 1
) -> list[str]:
    found = volumes.to_delete(seen, asked, CLAIMS, live, instances=instances)
    return [each["metadata"]["name"] for each in found]


def test_volumes_of_removed_instances_go_where_the_spec_says_so() -> None:
    assert deleted(observed(0), cluster(**DELETE), stateful_set(1)) == [
        "data-shop-1",
        "data-shop-2",
    ]
    assert deleted(observed(0), cluster(), stateful_set(1)) == []


@pytest.mark.parametrize(
    ("seen", "asked", "live", "instances"),
    [
        pytest.param(observed(0), cluster(**DELETE), None, 1, id="made anew"),
        pytest.param(observed(0), cluster(3, **DELETE), stateful_set(1), 1, id="to come back"),
        pytest.param(observed(0), cluster(**DELETE), stateful_set(1), 3, id="still counted"),
        pytest.param(observed(0), cluster(**DELETE), stateful_set(3), 1, id="not removed yet"),
        pytest.param(observed(0), cluster(**DELETE), stateful_set(1, there=3), 1, id="going"),
        pytest.param(observed(0), cluster(**DELETE), stateful_set(1, seen=1), 1, id="not seen"),
        pytest.param(observed(0, 1, 2), cluster(**DELETE), stateful_set(1), 1, id="pods there"),
        pytest.param(observed(), cluster(**DELETE), stateful_set(1), 1, id="no primary"),
        pytest.param(observed(), cluster(**DELETE), stateful_set(0), 0, id="no replicas"),
        pytest.param(
            observed(0), cluster(hibernated=True, **DELETE), stateful_set(1), 1, id="asleep"
        ),
    ],
)
def test_no_volume_goes_in_doubt(
    seen: Observed, asked: PgCluster, live: dict[str, Any] | None, instances: int
) -> None:
    assert deleted(seen, asked, live, instances=instances) == []


def test_the_volume_of_the_last_writer_stays() -> None:
    seen = observed(0, writer="shop-2")
    assert deleted(seen, cluster(**DELETE), stateful_set(1)) == ["data-shop-1"]


def test_volumes_go_with_the_pgcluster_where_the_spec_says_so() -> None:
    other = {"kind": "Backup", "uid": "x"}
    mine = claim("data-shop-0", metadata={"ownerReferences": [other], "resourceVersion": "5"})
    strange = claim("data-other-0")
    goes = cluster(whenDeleted="Delete")
    (change,) = volumes.to_own(observed(0), goes, (mine, strange))
    assert (change.claim, change.version) == ("data-shop-0", "5")
    assert [each["uid"] for each in change.owners] == ["x", "u"]
    mine["metadata"]["ownerReferences"] = list(change.owners)
    assert volumes.to_own(observed(0), goes, (mine,)) == ()
    (back,) = volumes.to_own(observed(0), cluster(), (mine,))
    assert back.owners == (other,)
