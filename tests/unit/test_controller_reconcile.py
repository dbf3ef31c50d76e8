"""The reconciliation against an API in memory: what it writes, what it leaves alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig
from pgcluster.api.errors import PgClusterError, RetryError
from pgcluster.api.reports import InstanceReport, PoolerReport
from pgcluster.controller.metrics import Metrics
from pgcluster.controller.observe import Key
from pgcluster.controller.prerequisites import Catalog
from pgcluster.controller.reconcile import Reconciler
from pgcluster.kube.client import KubeClient
from pgcluster.kube.errors import Forbidden
from pgcluster.kube.resources import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    LEASES,
    NETWORK_POLICIES,
    PGCLUSTERS,
    PODS,
    PVCS,
    SECRETS,
    SERVICES,
    STATEFUL_SETS,
    STORAGE_CLASSES,
    Resource,
)
from pgcluster.render.pgbouncer import content_hash, parse_header
from tests.unit.fakekube import FakeKube

SHOP = Key("test", "shop")
CATALOG = Catalog(postgres={"17": "pg:17"}, pgbouncer="pgb:1")


class Clock:
    """A clock that stands still until it is told otherwise."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def kube() -> FakeKube:
    """A cluster with a default StorageClass and the PgCluster `shop`."""
    kube = FakeKube()
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    kube.put(STORAGE_CLASSES, {"metadata": {"name": "standard", "annotations": default}})
    want(kube)
    return kube


def want(kube: FakeKube, name: str = "shop", **spec: Any) -> None:
    """Apply a PgCluster as a user would."""
    body = {"instances": 2, "storage": {"size": "1Gi"}, "pgbouncer": {"instances": 1}, **spec}
    known = kube.find(PGCLUSTERS, name) or {}
    metadata = {"name": name, "namespace": "test", **known.get("metadata", {})}
    metadata["generation"] = metadata.get("generation", 0) + 1
    status = {"status": known["status"]} if "status" in known else {}
    kube.put(PGCLUSTERS, {"metadata": metadata, "spec": body, **status})


def reconciler(kube: FakeKube, clock: Clock | None = None) -> Reconciler:
    """A new operator: nothing is remembered."""
    client = cast(KubeClient, kube)
    return Reconciler(client, Metrics(), CATALOG, identity="test", clock=clock or Clock())


async def reconcile(kube: FakeKube, key: Key = SHOP) -> list[str]:
    """One reconciliation by a new operator; the writes that it took."""
    before = len(kube.writes)
    await reconciler(kube)(key)
    return kube.writes[before:]


def run(kube: FakeKube, *, primary: str = "shop-0", epoch: int = 1, instances: int = 2) -> None:
    """Let instances and one pooler run, as the kubelet and the agents would have it."""
    lease = kube.find(LEASES, "shop-primary")
    assert lease is not None
    lease["spec"] = {"holderIdentity": primary, "leaseTransitions": epoch}
    lease["metadata"].setdefault("annotations", {})[names.ANNOTATION_SYSTEM_ID] = "77"
    for ordinal in range(instances):
        name = f"shop-{ordinal}"
        report = InstanceReport(
            pod=name,
            state="running",
            role="primary" if name == primary else "standby",
            ready=True,
            upstream=None if name == primary else primary,
            streaming=("shop-0", "shop-1", "shop-2") if name == primary else None,
            timeline=epoch,
        )
        note = {names.ANNOTATION_INSTANCE: report.model_dump_json()}
        kube.put(PODS, pod(name, names.COMPONENT_POSTGRES, f"10.0.0.{ordinal}", note))
    kube.put(PODS, pod("pool-1", names.COMPONENT_PGBOUNCER, "10.0.1.1", {}))
    reports = kube.find(CONFIG_MAPS, "shop-poolers")
    assert reports is not None
    applied = content_hash(section(kube))
    told = PoolerReport(
        pod="pool-1", ready=True, primary=primary, epoch=epoch, applied_hash=applied
    )
    reports.setdefault("data", {})["pool-1"] = told.model_dump_json()


def pod(name: str, component: str, address: str, annotations: dict[str, str]) -> dict[str, Any]:
    of_template = (
        {names.LABEL_SERVING: names.SERVING} if component == names.COMPONENT_PGBOUNCER else {}
    )
    return {
        "metadata": {
            "name": name,
            "namespace": "test",
            "labels": {
                names.LABEL_CLUSTER: "shop",
                names.LABEL_COMPONENT: component,
                **of_template,
            },
            "annotations": annotations,
        },
        "spec": {"nodeName": "worker"},
        "status": {
            "podIP": address,
            "conditions": [{"type": "Ready", "status": "True"}],
            "containerStatuses": [{"name": "main", "state": {"running": {}}}],
        },
    }


def condition(kube: FakeKube, kind: str, name: str = "shop") -> dict[str, Any]:
    body = kube.find(PGCLUSTERS, name)
    assert body is not None
    return next(x for x in body["status"]["conditions"] if x["type"] == kind)


async def ready_cluster(kube: FakeKube) -> None:
    await reconcile(kube)
    run(kube)
    clock = Clock()
    operator = reconciler(kube, clock)
    await operator(SHOP)
    clock.now_s += 10
    await operator(SHOP)
    assert condition(kube, "Ready")["status"] == "True"


# --- the ordinary life ------------------------------------------------------------------------
async def test_a_second_look_writes_nothing(kube: FakeKube) -> None:
    first = await reconcile(kube)
    assert any("statefulsets/shop" in write for write in first)
    assert await reconcile(kube) == []


async def test_a_cluster_at_rest_costs_no_write_after_a_restart_of_the_operator(
    kube: FakeKube,
) -> None:
    await ready_cluster(kube)
    assert await reconcile(kube) == []
    assert kube.find(PGCLUSTERS, "shop")["status"]["primary"] == "shop-0"  # type: ignore[index]


async def test_nothing_but_the_status_of_the_pgcluster_is_ever_written(kube: FakeKube) -> None:
    await ready_cluster(kube)
    touched = {write for write in kube.writes if "pgclusters/" in write}
    assert touched == {"apply/status pgclusters/shop"}


async def test_it_ends_the_same_wherever_it_is_cut_off(kube: FakeKube) -> None:
    whole = FakeKube()
    whole.objects.update(kube.objects)
    writes = await reconcile(whole)
    for number in range(len(writes)):
        cut = FakeKube()
        cut.objects.update(kube.objects)
        cut.dies_after = number
        with contextlib.suppress(PgClusterError):
            await reconciler(cut)(SHOP)
        cut.dies_after = None
        await reconcile(cut)
        assert await reconcile(cut) == [], f"cut off after write {number}"
        assert cut.names("events") == whole.names("events"), f"cut off after write {number}"


async def test_passwords_are_made_once(kube: FakeKube) -> None:
    await reconcile(kube)
    before = kube.find(SECRETS, "shop-app")
    await reconcile(kube)
    assert kube.find(SECRETS, "shop-app") == before
    del kube.objects["secrets", "test", "shop-repmgr"]
    assert await reconcile(kube) == ["create secrets/shop-repmgr"]


async def test_drift_is_repaired_and_what_others_added_is_left(kube: FakeKube) -> None:
    await reconcile(kube)
    service = kube.find(SERVICES, "shop")
    assert service is not None
    service["metadata"]["labels"]["theirs"] = "1"
    service["spec"]["clusterIP"] = "10.96.0.7"
    assert await reconcile(kube) == []
    service["spec"]["ports"][0]["port"] = 1
    assert await reconcile(kube) == ["apply services/shop"]
    repaired = kube.find(SERVICES, "shop")
    assert repaired is not None
    assert repaired["spec"]["ports"][0]["port"] == names.PORT_PGBOUNCER
    assert repaired["metadata"]["labels"]["theirs"] == "1"


async def test_what_is_not_wanted_any_more_is_deleted(kube: FakeKube) -> None:
    await reconcile(kube)
    assert kube.find(DEPLOYMENTS, "shop-pgbouncer")
    want(kube, pgbouncer={"instances": 0})
    writes = await reconcile(kube)
    assert "delete deployments/shop-pgbouncer" in writes
    assert kube.find(STATEFUL_SETS, "shop")
    assert await reconcile(kube) == []


async def test_network_policies_come_and_go_with_the_spec(kube: FakeKube) -> None:
    await reconcile(kube)
    assert not [name for name in kube.names() if name.startswith("networkpolicies/")]
    want(kube, networkPolicy={"enabled": True})
    await reconcile(kube)
    made = [name for name in kube.names() if name.startswith("networkpolicies/")]
    assert made == ["networkpolicies/shop", "networkpolicies/shop-pgbouncer"]
    want(kube, networkPolicy={"enabled": False})
    await reconcile(kube)
    assert not [name for name in kube.names() if name.startswith("networkpolicies/")]


async def test_without_the_right_to_network_policies_all_else_is_made(kube: FakeKube) -> None:
    """An upgrade of the operator whose Role is still the former one."""

    class Former(FakeKube):
        async def list(self, resource: Resource, *about: Any, **more: Any) -> Any:
            if resource is NETWORK_POLICIES:
                raise Forbidden(403, "Forbidden", "networkpolicies is forbidden")
            return await super().list(resource, *about, **more)

    former = Former()
    former.objects = kube.objects
    await reconcile(former)
    assert kube.find(STATEFUL_SETS, "shop") is not None


async def test_a_deleted_cluster_is_left_to_the_garbage_collector(kube: FakeKube) -> None:
    await reconcile(kube)
    body = kube.find(PGCLUSTERS, "shop")
    assert body is not None
    body["metadata"]["deletionTimestamp"] = "2026-05-01T10:00:00Z"
    del kube.objects["services", "test", "shop"]
    assert await reconcile(kube) == []
    del kube.objects["pgclusters", "test", "shop"]
    assert await reconciler(kube)(SHOP) is None


async def test_a_lost_lease_comes_back_with_what_is_known_of_the_data(kube: FakeKube) -> None:
    await ready_cluster(kube)
    del kube.objects["leases", "test", "shop-primary"]
    await reconcile(kube)
    lease = kube.find(LEASES, "shop-primary")
    assert lease is not None
    assert lease["metadata"]["annotations"][names.ANNOTATION_SYSTEM_ID] == "77"
    assert lease["spec"]["holderIdentity"] == "shop-0", "it may still be writing"
    assert lease["spec"]["leaseTransitions"] == 1, "poolers never go back to an earlier epoch"


async def test_paused_nothing_is_written_but_the_status(kube: FakeKube) -> None:
    await ready_cluster(kube)
    want(kube, paused=True)
    del kube.objects["services", "test", "shop"]
    assert await reconcile(kube) == ["apply/status pgclusters/shop"]


# --- what cannot be -----------------------------------------------------------------------------
async def test_a_name_that_belongs_to_another_cluster_blocks_before_any_write(
    kube: FakeKube,
) -> None:
    await reconcile(kube)
    want(kube, name="shop-ro")
    before = dict(kube.objects)
    writes = await reconcile(kube, Key("test", "shop-ro"))
    assert {write for write in writes if "events/" not in write} == {
        "apply/status pgclusters/shop-ro"
    }
    assert all(kube.objects[path] == before[path] for path in before if path[2] != "shop-ro")
    told = condition(kube, "Stalled", "shop-ro")
    assert (told["status"], told["reason"]) == ("True", "NameConflict")
    assert "PgCluster shop" in told["message"]


@pytest.mark.parametrize("name", ["shop-1", "shop-1-1"])
async def test_names_that_only_look_alike_do_not_conflict(kube: FakeKube, name: str) -> None:
    await reconcile(kube)
    want(kube, name=name)
    before = {path: item for path, item in kube.objects.items() if path[2].startswith("shop")}
    await reconcile(kube, Key("test", name))
    assert condition(kube, "Stalled", name)["status"] == "False"
    assert await reconcile(kube) == []
    assert all(kube.objects[path] == before[path] for path in before if path[2] != name)


async def test_what_an_earlier_cluster_of_the_name_left_is_waited_for(kube: FakeKube) -> None:
    await reconcile(kube)
    del kube.objects["pgclusters", "test", "shop"]
    want(kube)
    with pytest.raises(PgClusterError, match="still being removed"):
        await reconcile(kube)


@pytest.mark.parametrize(
    ("spec", "reason", "words"),
    [
        ({"storage": {"size": "1Gi", "className": "none-such"}}, "StorageClassMissing", "standard"),
        ({"postgres": {"version": 16}}, "InvalidSpec", "it has: 17"),
        ({"postgres": {"parameters": {"archive_mode": "off"}}}, "InvalidSpec", "archive_mode"),
        ({"instances": "three"}, "InvalidSpec", "instances"),
    ],
)
async def test_a_spec_that_cannot_be_acted_on_is_told_and_makes_nothing(
    kube: FakeKube, spec: dict[str, Any], reason: str, words: str
) -> None:
    want(kube, **spec)
    await reconcile(kube)
    assert kube.names("events") == ["pgclusters/shop", "storageclasses/standard"]
    told = condition(kube, "Ready")
    assert (told["status"], told["reason"]) == ("False", reason)
    assert words in told["message"]
    assert await reconcile(kube) == []


# --- instances and pools ------------------------------------------------------------------------
async def test_the_primary_is_not_scaled_away(kube: FakeKube) -> None:
    want(kube, instances=3)
    await reconcile(kube)
    run(kube, primary="shop-2", instances=3)
    await reconcile(kube)
    want(kube, instances=1)
    await reconcile(kube)
    stateful_set = kube.find(STATEFUL_SETS, "shop")
    assert stateful_set is not None
    assert stateful_set["spec"]["replicas"] == 3
    assert "shop-2" in condition(kube, "Progressing")["message"]
    assert told(kube).remaining == 1
    clock = Clock()
    operator = reconciler(kube, clock)
    for _ in range(3):
        run(kube, primary="shop-0", epoch=2, instances=3)
        await operator(SHOP)
        clock.now_s += 10
    assert kube.find(STATEFUL_SETS, "shop")["spec"]["replicas"] == 1  # type: ignore[index]
    assert (told(kube).instances, told(kube).remaining) == (1, None)


def told(kube: FakeKube) -> ClusterConfig:
    """What the agents are told."""
    found = kube.find(CONFIG_MAPS, "shop-config")
    assert found is not None
    return ClusterConfig.model_validate_json(found["data"][names.CONFIG_KEY])


async def test_a_cluster_sleeps_and_wakes_wherever_the_operator_is_cut_off(kube: FakeKube) -> None:
    await ready_cluster(kube)
    want(kube, hibernated=True)
    kube.objects.pop(("pods", "test", "pool-1"))
    await every_cut(kube)
    assert kube.find(STATEFUL_SETS, "shop")["spec"]["replicas"] == 2  # type: ignore[index]
    assert told(kube).hibernation == "shop-0"
    held = InstanceReport(pod="shop-1", state="maintenance")
    note = {names.ANNOTATION_INSTANCE: held.model_dump_json()}
    kube.put(PODS, pod("shop-1", names.COMPONENT_POSTGRES, "10.0.0.1", note))
    await every_cut(kube)
    assert kube.find(STATEFUL_SETS, "shop")["spec"]["replicas"] == 0  # type: ignore[index]
    assert kube.find(DEPLOYMENTS, "shop-pgbouncer")["spec"]["replicas"] == 0  # type: ignore[index]
    for name in ("shop-0", "shop-1"):
        kube.objects.pop(("pods", "test", name))
    kube.find(LEASES, "shop-primary")["spec"]["holderIdentity"] = ""  # type: ignore[index]
    await reconcile(kube)
    ready = condition(kube, "Ready")
    assert (ready["status"], ready["reason"]) == ("True", "Hibernated")
    assert "shop-0" in ready["message"]
    assert kube.find(PGCLUSTERS, "shop")["status"]["summary"] == "Hibernated"  # type: ignore[index]
    assert await reconcile(kube) == []
    want(kube)
    await every_cut(kube)
    assert kube.find(STATEFUL_SETS, "shop")["spec"]["replicas"] == 2  # type: ignore[index]
    assert kube.find(DEPLOYMENTS, "shop-pgbouncer")["spec"]["replicas"] == 1  # type: ignore[index]
    assert told(kube).hibernation == "shop-0"
    run(kube, epoch=2)
    await reconcile(kube)
    assert told(kube).hibernation is None


async def every_cut(kube: FakeKube) -> None:
    """Reconcile, each time by a new operator that is cut off one write later, to the end."""
    for number in range(4):
        kube.dies_after = len(kube.writes) + number
        with contextlib.suppress(PgClusterError):
            await reconcile(kube)
    kube.dies_after = None
    await reconcile(kube)


async def test_an_instance_in_maintenance_is_told_and_not_missed(kube: FakeKube) -> None:
    await ready_cluster(kube)
    want(kube, maintenance=[{"instance": "shop-1", "reason": "a look at its disk"}])
    await reconcile(kube)
    assert told(kube).maintenance == ("shop-1",)
    held = InstanceReport(pod="shop-1", state="maintenance")
    note = {names.ANNOTATION_INSTANCE: held.model_dump_json()}
    made = pod("shop-1", names.COMPONENT_POSTGRES, "10.0.0.1", note)
    made["status"]["conditions"][0]["status"] = "False"
    kube.put(PODS, made)
    await reconcile(kube)
    assert condition(kube, "Ready")["status"] == "True"
    assert "a look at its disk" in condition(kube, "Maintenance")["message"]
    want(kube)
    await reconcile(kube)
    assert told(kube).maintenance == ()
    assert condition(kube, "Ready")["status"] == "False"


async def test_paused_certificates_are_renewed_all_the_same(kube: FakeKube) -> None:
    await ready_cluster(kube)
    want(kube, paused=True)
    operator = Reconciler(
        cast(KubeClient, kube),
        Metrics(),
        CATALOG,
        identity="test",
        today=lambda: datetime.now(UTC) + timedelta(days=3650),
    )
    before = len(kube.writes)
    await operator(SHOP)
    written = {write.split()[1] for write in kube.writes[before:]}
    renewed = ("app", "ca", "peers", "server", "replication", "pool-ca", "pool-tls")
    assert written == {*(f"secrets/shop-{each}" for each in renewed), "pgclusters/shop"}


async def test_a_running_cluster_keeps_its_image(kube: FakeKube) -> None:
    await ready_cluster(kube)
    newer = Catalog(postgres={"17": "pg:17-next"}, pgbouncer="pgb:2")
    await Reconciler(cast(KubeClient, kube), Metrics(), newer, identity="next")(SHOP)
    assert kube.find(PGCLUSTERS, "shop")["status"]["image"] == "pg:17"  # type: ignore[index]
    told = condition(kube, "Progressing")
    assert (told["status"], told["reason"]) == ("False", "RolloutPending")
    assert "pg:17-next" in told["message"]
    assert await reconcile(kube) == ["apply/status pgclusters/shop"]
    assert await reconcile(kube) == []


async def test_an_image_that_the_spec_names_is_forgotten_with_it(kube: FakeKube) -> None:
    await ready_cluster(kube)
    want(kube, image="pg:wrong")
    await reconcile(kube)
    assert image(kube) == "pg:wrong"
    want(kube)
    await reconcile(kube)
    assert image(kube) == "pg:17"


def image(kube: FakeKube) -> str:
    stateful_set = kube.find(STATEFUL_SETS, "shop")
    assert stateful_set is not None
    return str(stateful_set["spec"]["template"]["spec"]["containers"][0]["image"])


async def test_a_new_value_of_the_restart_annotation_takes_the_newer_image(kube: FakeKube) -> None:
    await ready_cluster(kube)
    newer = Catalog(postgres={"17": "pg:17-next"}, pgbouncer="pgb:2")
    operator = Reconciler(cast(KubeClient, kube), Metrics(), newer, identity="next")
    body = kube.find(PGCLUSTERS, "shop")
    assert body is not None
    body["metadata"]["annotations"] = {names.ANNOTATION_RESTART: "monday"}
    await operator(SHOP)
    stateful_set = kube.find(STATEFUL_SETS, "shop")
    assert stateful_set is not None
    template = stateful_set["spec"]["template"]
    assert template["spec"]["containers"][0]["image"] == "pg:17-next"
    assert template["metadata"]["annotations"][names.ANNOTATION_RESTART] == "monday"
    # Its removal, and the next look of an older operator, change nothing any more.
    body = kube.find(PGCLUSTERS, "shop")
    assert body is not None
    assert body["status"]["restart"] == "monday"
    del body["metadata"]["annotations"]
    before = kube.find(STATEFUL_SETS, "shop")
    await reconcile(kube)
    assert kube.find(STATEFUL_SETS, "shop") == before


async def test_an_outdated_standby_is_deleted_once_and_only_while_the_template_rests(
    kube: FakeKube,
) -> None:
    await ready_cluster(kube)
    roll(kube)
    writes = await reconcile(kube)
    assert [write for write in writes if write.startswith("delete")] == ["delete pods/shop-1"]
    told = condition(kube, "Progressing")
    assert (told["status"], told["reason"]) == ("True", "RollingOut")
    assert "0 of 2 instances are up to date" in told["message"]
    # The pod is gone, and nobody else goes before it is back.
    assert not [write for write in await reconcile(kube) if write.startswith("delete")]


async def test_a_template_that_changes_in_this_very_look_is_waited_for(kube: FakeKube) -> None:
    await ready_cluster(kube)
    roll(kube)
    want(kube, postgres={"resources": {"requests": {"cpu": 2}}})
    assert not [write for write in await reconcile(kube) if write.startswith("delete")]


async def test_paused_nobody_is_rolled(kube: FakeKube) -> None:
    await ready_cluster(kube)
    want(kube, paused=True)
    roll(kube)
    assert not [write for write in await reconcile(kube) if write.startswith("delete")]


async def test_a_restart_in_place_is_ordered_by_the_configuration(kube: FakeKube) -> None:
    await ready_cluster(kube)
    stateful_set = kube.find(STATEFUL_SETS, "shop")
    assert stateful_set is not None
    generation = stateful_set["metadata"]["generation"]
    stateful_set["status"] = {"updateRevision": "new", "observedGeneration": generation}
    reports(kube, "shop-1", pending_restart=["shared_buffers"])
    await reconcile(kube)
    order = configured(kube)["restart"]
    assert order["instance"] == "shop-1"
    await reconcile(kube)
    assert configured(kube)["restart"] == order
    reports(kube, "shop-1", pending_restart=[])
    await reconcile(kube)
    assert configured(kube)["restart"] is None


def configured(kube: FakeKube) -> dict[str, Any]:
    config = kube.find(CONFIG_MAPS, "shop-config")
    assert config is not None
    found: dict[str, Any] = json.loads(config["data"][names.CONFIG_KEY])
    return found


def reports(kube: FakeKube, name: str, **changed: Any) -> None:
    """Let the agent of an instance say something else."""
    made = kube.find(PODS, name)
    assert made is not None
    annotations = made["metadata"]["annotations"]
    told = json.loads(annotations[names.ANNOTATION_INSTANCE])
    annotations[names.ANNOTATION_INSTANCE] = json.dumps({**told, **changed})


def roll(kube: FakeKube) -> None:
    """Let every pod be of an earlier template, by the user's doing."""
    stateful_set = kube.find(STATEFUL_SETS, "shop")
    assert stateful_set is not None
    generation = stateful_set["metadata"]["generation"]
    stateful_set["status"] = {"updateRevision": "new", "observedGeneration": generation}
    for ordinal in range(2):
        made = kube.find(PODS, f"shop-{ordinal}")
        assert made is not None
        made["metadata"]["labels"]["controller-revision-hash"] = "old"
        made["metadata"]["annotations"][names.ANNOTATION_INPUTS] = "old"


async def test_for_larger_volumes_the_stateful_set_is_made_anew_around_its_pods(
    kube: FakeKube,
) -> None:
    await ready_cluster(kube)
    want(kube, storage={"size": "2Gi"}, instances=1)
    run(kube, primary="shop-1", epoch=2)
    writes = await reconcile(kube)
    assert "delete/orphan statefulsets/shop" in writes
    writes += await reconcile(kube)
    assert [write for write in writes if write.startswith("delete ")] == []
    stateful_set = kube.find(STATEFUL_SETS, "shop")
    assert stateful_set is not None
    claim = stateful_set["spec"]["volumeClaimTemplates"][0]
    assert claim["spec"]["resources"]["requests"]["storage"] == "2Gi"
    assert stateful_set["spec"]["replicas"] == 2, "the primary is not removed by the way"


async def test_a_stateful_set_that_is_going_is_waited_for(kube: FakeKube) -> None:
    await ready_cluster(kube)
    going = kube.find(STATEFUL_SETS, "shop")
    assert going is not None
    going["metadata"]["deletionTimestamp"] = "2026-05-01T10:00:00Z"
    with pytest.raises(RetryError):
        await reconcile(kube)


async def test_a_volume_that_cannot_grow_stalls_and_says_what_to_do(kube: FakeKube) -> None:
    await ready_cluster(kube)
    put_claims(kube, ("data-shop-0", "1Gi"))
    want(kube, storage={"size": "2Gi"})
    writes = await reconcile(kube)
    assert [write for write in writes if "claims/" in write] == []
    stalled = condition(kube, "Stalled")
    assert (stalled["status"], stalled["reason"]) == ("True", "VolumeGrowthRefused")
    assert "allowVolumeExpansion" in stalled["message"]


def put_claims(kube: FakeKube, *claims: tuple[str, str]) -> None:
    for name, size in claims:
        labels = {names.LABEL_CLUSTER: "shop"}
        spec = {"storageClassName": "standard", "resources": {"requests": {"storage": size}}}
        metadata = {"name": name, "namespace": "test", "labels": labels}
        kube.put(PVCS, {"metadata": metadata, "spec": spec})


async def test_volumes_of_removed_instances_go_only_where_the_spec_says_so(kube: FakeKube) -> None:
    await ready_cluster(kube)
    put_claims(kube, ("data-shop-1", "1Gi"), ("data-shop-2", "1Gi"))
    live = kube.find(STATEFUL_SETS, "shop")
    assert live is not None
    live["status"] = {"observedGeneration": live["metadata"]["generation"], "replicas": 2}
    assert await reconcile(kube) == []
    want(kube, storage={"size": "1Gi", "whenScaled": "Delete"})
    writes = await reconcile(kube)
    assert [write for write in writes if write.startswith("delete")] == [
        "delete persistentvolumeclaims/data-shop-2"
    ]


async def test_volumes_that_go_with_the_pgcluster_are_its_own(kube: FakeKube) -> None:
    await ready_cluster(kube)
    put_claims(kube, ("data-shop-0", "1Gi"))
    want(kube, storage={"size": "1Gi", "whenDeleted": "Delete"})
    await reconcile(kube)
    claim = kube.find(PVCS, "data-shop-0")
    assert claim is not None
    assert [owner["kind"] for owner in claim["metadata"]["ownerReferences"]] == ["PgCluster"]
    assert await reconcile(kube) == []
    want(kube)
    await reconcile(kube)
    assert not kube.find(PVCS, "data-shop-0")["metadata"]["ownerReferences"]  # type: ignore[index]


def section(kube: FakeKube) -> str:
    found = kube.find(CONFIG_MAPS, "shop-pgbouncer")
    assert found is not None
    return str(found["data"][names.DATABASES_KEY])


async def test_the_pools_section_is_there_before_a_primary_and_then_names_it(
    kube: FakeKube,
) -> None:
    await reconcile(kube)
    assert parse_header(section(kube)) is None
    await ready_cluster(kube)
    header = parse_header(section(kube))
    assert header is not None
    assert (header.primary, header.epoch) == ("shop-0", 1)


async def test_a_wrong_section_is_repaired_but_the_agent_gets_its_chance_first(
    kube: FakeKube,
) -> None:
    await ready_cluster(kube)
    right = section(kube)
    kube.find(CONFIG_MAPS, "shop-pgbouncer")["data"][names.DATABASES_KEY] = "[databases]\n"  # type: ignore[index]
    clock = Clock()
    operator = reconciler(kube, clock)
    result = await operator(SHOP)
    assert section(kube) != right
    assert result is not None
    assert result.again_s is not None
    assert result.again_s < 10
    clock.now_s += 10
    await operator(SHOP)
    assert section(kube) == right


async def test_a_section_of_a_later_epoch_is_left_alone(kube: FakeKube) -> None:
    await ready_cluster(kube)
    later = '; pgcluster {"primary": "shop-1", "epoch": 9, "timeline": 9}\n[databases]\n'
    kube.find(CONFIG_MAPS, "shop-pgbouncer")["data"][names.DATABASES_KEY] = later  # type: ignore[index]
    clock = Clock()
    operator = reconciler(kube, clock)
    for _ in range(2):
        await operator(SHOP)
        clock.now_s += 10
    assert section(kube) == later


async def test_without_a_primary_the_section_stays(kube: FakeKube) -> None:
    await ready_cluster(kube)
    before = section(kube)
    kube.find(LEASES, "shop-primary")["spec"]["holderIdentity"] = ""  # type: ignore[index]
    await reconcile(kube)
    assert section(kube) == before
    assert condition(kube, "Ready")["reason"] == "NoPrimary"


async def test_reports_of_poolers_that_are_gone_are_dropped(kube: FakeKube) -> None:
    await ready_cluster(kube)
    del kube.objects["pods", "test", "pool-1"]
    writes = await reconcile(kube)
    assert "patch configmaps/shop-poolers" in writes
    assert "pool-1" not in kube.find(CONFIG_MAPS, "shop-poolers")["data"]  # type: ignore[index]


def second_pooler(kube: FakeKube) -> None:
    kube.put(PODS, pod("pool-2", names.COMPONENT_PGBOUNCER, "10.0.1.2", {}))
    told = PoolerReport(pod="pool-2", ready=True, primary="shop-0", epoch=1)
    kube.find(CONFIG_MAPS, "shop-poolers")["data"]["pool-2"] = told.model_dump_json()  # type: ignore[index]


def hears_all_but(kube: FakeKube, *silent: str) -> None:
    """What the primary's agent reports."""
    primary = kube.find(PODS, "shop-0")
    assert primary is not None
    annotations = primary["metadata"]["annotations"]
    report = InstanceReport.model_validate_json(annotations[names.ANNOTATION_INSTANCE])
    told = report.model_copy(update={"silent_poolers": silent})
    annotations[names.ANNOTATION_INSTANCE] = told.model_dump_json()


def labels(kube: FakeKube, name: str) -> dict[str, str]:
    found = kube.find(PODS, name)
    assert found is not None
    return dict(found["metadata"]["labels"])


def selector(kube: FakeKube, service: str) -> dict[str, str]:
    found = kube.find(SERVICES, service)
    assert found is not None
    return dict(found["spec"]["selector"])


async def test_a_silent_pooler_leaves_its_services_and_comes_back(kube: FakeKube) -> None:
    await ready_cluster(kube)
    second_pooler(kube)
    want(kube, pgbouncer={"instances": 2})
    for service in ("shop", "shop-ro"):
        assert selector(kube, service).items() <= labels(kube, "pool-2").items()
    hears_all_but(kube, "pool-2")
    assert "patch pods/pool-2" in await reconcile(kube)
    assert names.LABEL_SERVING not in labels(kube, "pool-2")
    assert "pool-2: shop-0 does not hear it" in condition(kube, "Degraded")["message"]
    assert await reconcile(kube) == []
    hears_all_but(kube)
    assert "patch pods/pool-2" in await reconcile(kube)
    assert selector(kube, "shop").items() <= labels(kube, "pool-2").items()


async def test_a_silent_pooler_leaves_though_the_spec_is_wrong_but_not_while_paused(
    kube: FakeKube,
) -> None:
    await ready_cluster(kube)
    second_pooler(kube)
    hears_all_but(kube, "pool-2")
    want(kube, paused=True)
    assert "patch pods/pool-2" not in await reconcile(kube)
    want(kube, postgres={"parameters": {"archive_mode": "off"}})
    assert "patch pods/pool-2" in await reconcile(kube)


async def test_the_services_of_an_earlier_version_lose_no_pooler_at_an_upgrade(
    kube: FakeKube,
) -> None:
    await ready_cluster(kube)
    second_pooler(kube)
    for service in ("shop", "shop-ro"):
        del kube.find(SERVICES, service)["spec"]["selector"][names.LABEL_SERVING]  # type: ignore[index]
    for name in ("pool-1", "pool-2"):
        del kube.find(PODS, name)["metadata"]["labels"][names.LABEL_SERVING]  # type: ignore[index]
    writes = await reconcile(kube)
    assert {"patch pods/pool-1", "patch pods/pool-2"} <= set(writes)
    assert names.LABEL_SERVING not in selector(kube, "shop"), "before anybody has seen the labels"
    assert "apply services/shop" in await reconcile(kube)
    for service in ("shop", "shop-ro"):
        assert selector(kube, service)[names.LABEL_SERVING] == names.SERVING
    assert await reconcile(kube) == []


async def test_a_stuck_pod_of_an_earlier_template_is_replaced(kube: FakeKube) -> None:
    await reconcile(kube)
    stateful_set = kube.find(STATEFUL_SETS, "shop")
    assert stateful_set is not None
    generation = stateful_set["metadata"]["generation"]
    stateful_set["status"] = {"updateRevision": "new", "observedGeneration": generation}
    for ordinal, reason in enumerate(("ImagePullBackOff", "ContainerCreating")):
        made = pod(f"shop-{ordinal}", names.COMPONENT_POSTGRES, "", {})
        made["metadata"]["labels"]["controller-revision-hash"] = "old"
        made["metadata"]["annotations"][names.ANNOTATION_INPUTS] = "old"
        waiting = {"name": "postgres", "state": {"waiting": {"reason": reason}}}
        made["status"] = {"containerStatuses": [waiting]}
        kube.put(PODS, made)
    writes = await reconcile(kube)
    assert [write for write in writes if write.startswith("delete")] == ["delete pods/shop-0"]


async def test_a_volume_that_shall_grow_grows_by_its_claim(kube: FakeKube) -> None:
    await reconcile(kube)
    kube.find(STORAGE_CLASSES, "standard", "")["allowVolumeExpansion"] = True  # type: ignore[index]
    put_claims(kube, ("data-shop-0", "1Gi"), ("data-shop-1", "3Gi"), ("data-shop-x-0", "1Gi"))
    want(kube, storage={"size": "2Gi"})
    writes = await reconcile(kube)
    assert [write for write in writes if "claims/" in write] == [
        "patch persistentvolumeclaims/data-shop-0"
    ]
    claim = kube.find(PVCS, "data-shop-0")
    assert claim is not None
    assert claim["spec"]["resources"]["requests"]["storage"] == "2Gi"
    assert await reconcile(kube) == ["apply statefulsets/shop"], "it makes larger ones from now on"
    assert await reconcile(kube) == []


def asks(kube: FakeKube, value: str) -> None:
    """Annotate the PgCluster as a user would."""
    body = kube.find(PGCLUSTERS, "shop")
    assert body is not None
    body["metadata"].setdefault("annotations", {})[names.ANNOTATION_SWITCHOVER] = value
    kube.put(PGCLUSTERS, body)


def last(kube: FakeKube) -> dict[str, Any]:
    body = kube.find(PGCLUSTERS, "shop")
    assert body is not None
    found: dict[str, Any] = body["status"].get("lastSwitchover") or {}
    return found


async def test_a_switchover_is_done_once_wherever_the_operator_is_cut_off(kube: FakeKube) -> None:
    await ready_cluster(kube)
    asks(kube, "shop-1:monday")
    ordered = set()
    for number in range(12):
        kube.dies_after = len(kube.writes) + number % 4
        with contextlib.suppress(PgClusterError):
            await reconcile(kube)
        kube.dies_after = None
        if (order := told(kube).switchover) is not None:
            ordered.add((order.request, order.target, order.epoch))
            assert last(kube)["state"] == "Running", "nothing is ordered that is not on record"
    assert ordered == {("shop-1:monday", "shop-1", 1)}
    run(kube, primary="shop-1", epoch=2)
    await every_cut(kube)
    assert told(kube).switchover is None
    assert last(kube)["state"] == "Succeeded"
    run(kube, primary="shop-0", epoch=3)
    await every_cut(kube)
    assert told(kube).switchover is None, "the same value is not done again"
    reasons = [body["reason"] for (kind, *_), body in kube.objects.items() if kind == "events"]
    for reason in ("SwitchoverRequested", "SwitchoverSucceeded"):
        assert reasons.count(reason) == 1


async def test_an_operator_that_stood_still_does_not_make_a_done_request_new(
    kube: FakeKube,
) -> None:
    await ready_cluster(kube)
    frozen, thawed = asyncio.Event(), asyncio.Event()

    class Freezing(FakeKube):
        """One replica's view: it stands still before it writes the status."""

        async def apply(self, resource: Any, manifest: Any, **how: Any) -> Any:
            if how.get("subresource") == "status":
                frozen.set()
                await thawed.wait()
            return await super().apply(resource, manifest, **how)

    slow = Freezing()
    slow.__dict__ |= kube.__dict__
    pod_0 = kube.find(PODS, "shop-0")
    assert pod_0 is not None
    pod_0["status"]["conditions"][0]["status"] = "False"
    old = asyncio.create_task(reconciler(slow)(SHOP))
    await frozen.wait()
    pod_0["status"]["conditions"][0]["status"] = "True"
    asks(kube, "any:1")
    await reconcile(kube)
    await reconcile(kube)
    run(kube, primary="shop-1", epoch=2)
    await reconcile(kube)
    assert last(kube)["state"] == "Succeeded"
    thawed.set()
    with pytest.raises(RetryError, match="changed meanwhile"):
        await old
    assert last(kube)["state"] == "Succeeded"
    await reconcile(kube)
    await reconcile(kube)
    assert told(kube).switchover is None


async def test_a_failed_wish_of_its_own_does_not_make_the_operator_look_less_often(
    kube: FakeKube,
) -> None:
    await ready_cluster(kube)
    body = kube.find(PGCLUSTERS, "shop")
    assert body is not None
    record = {"request": "node-x-9", "cause": "node", "state": "Refused", "failures": 9}
    body["status"]["lastSwitchover"] = {**record, "endedAt": "2026-05-01T10:00:00Z"}
    for name in ("shop-0", "shop-1"):
        found = kube.find(PODS, name)
        assert found is not None
        found["spec"]["nodeName"] = name
    pooler = kube.find(PODS, "pool-1")
    assert pooler is not None
    pooler["status"]["conditions"][0]["status"] = "False"
    operator = Reconciler(
        cast(KubeClient, kube),
        Metrics(),
        CATALOG,
        identity="test",
        clock=Clock(),
        today=lambda: datetime(2026, 5, 1, 10, tzinfo=UTC),
        going=lambda: {"shop-0": "is cordoned"},
    )
    result = await operator(SHOP)
    assert result is not None
    assert result.again_s == 15.0
