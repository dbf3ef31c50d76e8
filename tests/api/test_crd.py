"""The CRD as a real API server understands it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from pgcluster.api import names
from pgcluster.kube.client import KubeClient
from pgcluster.kube.errors import Conflict
from pgcluster.kube.resources import PGCLUSTERS
from tests.e2e.kubectl import Kubectl, KubectlError
from tests.e2e.waiting import eventually

CRD = Path(__file__).parents[2] / "crds" / f"{names.PLURAL}.{names.GROUP}.yaml"
MINIMAL: dict[str, Any] = {
    "apiVersion": names.API_VERSION,
    "kind": names.KIND,
    "metadata": {"name": "shop"},
    # paused: an operator that runs beside these tests leaves the objects alone
    "spec": {"instances": 3, "storage": {"size": "10Gi"}, "paused": True},
}


def with_spec(changes: dict[str, Any]) -> dict[str, Any]:
    """The minimal manifest with `path: value` set in its spec."""
    manifest = deepcopy(MINIMAL)
    for path, value in changes.items():
        node = manifest["spec"]
        *parents, last = path.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return manifest


@pytest.fixture(scope="module")
def kubectl() -> Iterator[Kubectl]:
    everywhere = Kubectl()
    everywhere.run("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    everywhere.run("wait", "--for=condition=Established", "-f", str(CRD), "--timeout=30s")
    namespace = Kubectl(f"api-{secrets.token_hex(2)}")
    everywhere.run("create", "namespace", namespace.namespace)
    yield namespace
    everywhere.run("delete", "namespace", namespace.namespace, "--wait=false")


def refusal(kubectl: Kubectl, manifest: dict[str, Any]) -> str:
    """What the API server says to `manifest`; the test fails where it takes it."""
    with pytest.raises(KubectlError) as caught:
        kubectl.apply(manifest, dry_run=True)
    return caught.value.stderr


def test_the_crd_is_structural_and_established(kubectl: Kubectl) -> None:
    status = kubectl.json("get", "crd", f"{names.PLURAL}.{names.GROUP}")["status"]
    conditions = {c["type"]: c["status"] for c in status["conditions"]}
    assert conditions["Established"] == "True"
    assert conditions.get("NonStructuralSchema", "False") == "False"


def test_instances_and_storage_size_alone_are_accepted(kubectl: Kubectl) -> None:
    manifest = with_spec({})
    del manifest["spec"]["paused"]
    kubectl.apply(manifest, dry_run=True)


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("instances", 0, "spec.instances"),
        ("pgbouncer", {"drainTimeout": "61m"}, "spec.pgbouncer.drainTimeout must be at most 1h"),
        ("instances", 10, "spec.instances"),
        ("instances", "three", "spec.instances"),
        ("image", "with space", "spec.image"),
        ("postgres.version", 9, "spec.postgres.version"),
        ("postgres.parameters", {"work_mem": 4}, "spec.postgres.parameters.work_mem"),
        ("postgres.parameters", {"work_mem": "1\nport=2"}, "spec.postgres.parameters.work_mem"),
        ("postgres.parameters", {"Bad-Name": "1"}, "parameter's name"),
        ("postgres.hba", ["host all all all md5\nhost all all all trust"], "spec.postgres.hba[0]"),
        ("postgres.hba", "host", "spec.postgres.hba"),
        ("postgres.allowInsecure", ["everything"], "spec.postgres.allowInsecure[0]"),
        ("networkPolicy.enabled", "yes", "spec.networkPolicy.enabled"),
        ("networkPolicy.poolClients", [{}], "spec.networkPolicy.poolClients[0]"),
        (
            "networkPolicy.directClients",
            [{"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}],
            "a peer has namespaceSelector, podSelector or both, or else ipBlock",
        ),
        (
            "networkPolicy.metricsClients",
            [{"ipBlock": {"cidr": "ten"}}],
            "spec.networkPolicy.metricsClients[0].ipBlock.cidr",
        ),
        ("postgres.initdb.encoding", "UTF 8; rm", "spec.postgres.initdb.encoding"),
        ("postgres.initdb.locale", "$(id)", "spec.postgres.initdb.locale"),
        ("postgres.initdb.dataChecksums", "yes", "spec.postgres.initdb.dataChecksums"),
        ("postgres.resources", 1, "spec.postgres.resources"),
        ("storage.size", "huge", "spec.storage.size"),
        ("storage.size", -1, "spec.storage.size"),
        ("storage.className", "No Such", "spec.storage.className"),
        ("storage.walSize", "1 Gi", "spec.storage.walSize"),
        ("replication.maxSlotWalKeepSize", "x", "spec.replication.maxSlotWalKeepSize"),
        ("failover.automatic", "perhaps", "spec.failover.automatic"),
        ("tls.minVersion", "1.1", "spec.tls.minVersion"),
        ("tls.minVersion", 1.3, "spec.tls.minVersion"),
        ("tls.clients", "allow", "spec.tls.clients"),
        ("tls.secretName", "No Such", "spec.tls.secretName"),
        ("tls.dnsNames", ["not a name"], "spec.tls.dnsNames[0]"),
        ("tls.issuerRef", {"kind": "Issuer"}, "spec.tls.issuerRef"),
        (
            "tls",
            {"secretName": "mine", "issuerRef": {"name": "ours"}},
            "spec.tls.secretName and spec.tls.issuerRef exclude one another",
        ),
        ("failover.onCrash", "panic", "spec.failover.onCrash"),
        ("failover.maximumLag", "16 MB", "spec.failover.maximumLag"),
        ("failover.lease.duration", "6", "spec.failover.lease.duration"),
        ("failover.lease.duration", "2s", "spec.failover.lease"),
        ("failover.lease.renewDeadline", "7s", "spec.failover.lease.renewDeadline"),
        ("failover.lease.renewInterval", "5s", "spec.failover.lease.renewInterval"),
        ("failover.lease.renewInterval", "0s", "renewInterval must be at least 200ms"),
        ("databases", [{"name": "a"}, {"name": "a"}], "spec.databases[1]"),
        ("databases", [{"name": "repmgr"}], "spec.databases"),
        ("databases", [{"name": "app_ro"}], "spec.databases"),
        ("databases", [{"name": "a", "owner": "repmgr"}], "must not name as owner"),
        ("databases", [{"name": "a", "owner": "pg_monitor"}], "must not name as owner"),
        ("databases", [{"name": "a\nb"}], "spec.databases[0].name"),
        ("databases", [{"owner": "a"}], "spec.databases[0]"),
        ("databases", [{"name": "a", "extensions": ["x y"]}], "spec.databases[0].extensions[0]"),
        ("users", [{"name": "postgres"}], "spec.users"),
        ("users", [{"name": "pg_monitor"}], "spec.users must not name"),
        ("users", [{"name": "u'; DROP"}], "spec.users[0].name"),
        ("users", [{"name": "x" * 64}], "spec.users[0].name"),
        ("users", [{"name": "u", "passwordSecret": {}}], "spec.users[0].passwordSecret"),
        ("users", [{"name": "u", "memberOf": "v"}], "spec.users[0].memberOf"),
        ("pgbouncer.instances", -1, "spec.pgbouncer.instances"),
        ("pgbouncer.image", "", "spec.pgbouncer.image"),
        ("pgbouncer.poolMode", "fast", "spec.pgbouncer.poolMode"),
        ("pgbouncer.readOnlyPool", 1, "spec.pgbouncer.readOnlyPool"),
        ("pgbouncer.parameters", {"a": "b\nc"}, "spec.pgbouncer.parameters.a"),
        ("pgbouncer.resources", [], "spec.pgbouncer.resources"),
        ("scheduling.affinity", "near", "spec.scheduling.affinity"),
        ("scheduling.tolerations", [1], "spec.scheduling.tolerations[0]"),
        ("scheduling.topologySpreadConstraints", {}, "spec.scheduling.topologySpreadConstraints"),
        ("scheduling.nodeSelector", {"a": 1}, "spec.scheduling.nodeSelector.a"),
        ("scheduling.priorityClassName", "", "spec.scheduling.priorityClassName"),
        ("inheritedMetadata.labels", {"a": []}, "spec.inheritedMetadata.labels.a"),
        ("inheritedMetadata.annotations", 1, "spec.inheritedMetadata.annotations"),
        ("bootstrap.import", {"source": {}}, "must name either a cluster or a host"),
        (
            "bootstrap.import",
            {"source": {"cluster": "a", "host": "b", "passwordSecret": {"name": "s"}}},
            "must name either a cluster or a host",
        ),
        ("bootstrap.import", {"source": {"host": "db"}}, "passwordSecret is needed with a host"),
        ("bootstrap.import", {"source": {"cluster": "a", "port": 5}}, "port goes with a host"),
        (
            "bootstrap.import",
            {"source": {"cluster": "a", "sslMode": "verify-full"}},
            "caSecret is needed",
        ),
        (
            "bootstrap.import",
            {"source": {"cluster": "a"}, "databases": ["repmgr"]},
            "must not name a database that every cluster has",
        ),
        ("bootstrap.import", {"source": {"cluster": "a"}, "jobs": 0}, "spec.bootstrap.import.jobs"),
        ("paused", "true", "spec.paused"),
        ("instanses", 3, "instanses"),
    ],
)
def test_each_wrong_field_is_named(kubectl: Kubectl, path: str, value: Any, says: str) -> None:
    assert says in refusal(kubectl, with_spec({path: value}))


@pytest.mark.parametrize("missing", ["instances", "storage"])
def test_what_is_required_is_asked_for(kubectl: Kubectl, missing: str) -> None:
    manifest = with_spec({})
    del manifest["spec"][missing]
    assert missing in refusal(kubectl, manifest)


@pytest.mark.parametrize("name", ["x" * 63, "x" * 41, "1shop", "shop.eu"])
def test_a_name_that_services_cannot_have_is_refused(kubectl: Kubectl, name: str) -> None:
    manifest = with_spec({})
    manifest["metadata"]["name"] = name
    assert "metadata.name must" in refusal(kubectl, manifest)


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ({}, {"storage.size": "9Gi"}, "spec.storage.size cannot shrink"),
        ({}, {"storage.className": "fast"}, "spec.storage.className is fixed"),
        ({"storage.className": "a"}, {"storage.className": "b"}, "spec.storage.className is fixed"),
        ({}, {"storage.walSize": "1Gi"}, "spec.storage.walSize can be set only"),
        ({"storage.walSize": "2Gi"}, {"storage.walSize": "1Gi"}, "walSize cannot shrink"),
        ({}, {"postgres.initdb.encoding": "LATIN1"}, "spec.postgres.initdb is fixed"),
        (
            {"postgres.initdb.encoding": "UTF8"},
            {"postgres.initdb.encoding": "LATIN1"},
            "spec.postgres.initdb is fixed",
        ),
        ({}, {"postgres.version": 18}, "spec.postgres.version cannot change"),
        (
            {"postgres.version": 17},
            {"postgres.version": 15},
            "spec.bootstrap.import.source.cluster",
        ),
        ({}, {"bootstrap.import.source.cluster": "a"}, "spec.bootstrap.import can be set only"),
        (
            {"bootstrap.import.source.cluster": "a"},
            {"bootstrap.import.source.cluster": None},
            "can be removed only then",
        ),
    ],
)
def test_what_cannot_change_is_refused(
    kubectl: Kubectl, before: dict[str, Any], after: dict[str, Any], says: str
) -> None:
    name = f"fixed-{secrets.token_hex(3)}"
    manifest = with_spec(before)
    manifest["metadata"]["name"] = name
    kubectl.apply(manifest)
    wanted = {path: value for path, value in {**before, **after}.items() if value is not None}
    changed = with_spec(wanted)
    changed["metadata"]["name"] = name
    assert says in refusal(kubectl, changed)
    kubectl.delete("pgcluster", name)


def test_what_may_change_is_accepted(kubectl: Kubectl) -> None:
    manifest = with_spec({"postgres.version": 17})
    manifest["metadata"]["name"] = "grows"
    kubectl.apply(manifest)
    for changes in (
        {"storage.size": "11Gi"},
        {"storage.size": "1Ti", "instances": 5, "postgres.version": 17},
        {"storage.size": "1Ti", "instances": 1, "postgres.parameters": {"work_mem": "8MB"}},
    ):
        changed = with_spec(changes)
        changed["metadata"]["name"] = "grows"
        kubectl.apply(changed)
    kubectl.delete("pgcluster", "grows")


def test_an_import_can_be_corrected_until_it_is_complete(kubectl: Kubectl) -> None:
    def wants(source: str) -> dict[str, Any]:
        manifest = with_spec({"bootstrap.import.source.cluster": source, "paused": True})
        manifest["metadata"]["name"] = "takes"
        return manifest

    assert "must be another cluster" in refusal(kubectl, wants("takes"))
    kubectl.apply(wants("misspelt"))
    kubectl.apply(wants("old"))
    done = {"status": {"importedAt": "2026-05-01T10:00:00Z"}}

    def fixed() -> bool:
        kubectl.run(
            *("patch", "pgc", "takes", "--subresource=status", "--type=merge"),
            *("-p", json.dumps(done)),
        )
        try:
            kubectl.apply(wants("another"), dry_run=True)
        except KubectlError as error:
            return "fixed once the import is complete" in error.stderr
        return False

    # An operator that runs beside this writes what it knows.
    eventually(fixed, within=60, every=0.3, what="a complete import is fixed")
    kubectl.delete("pgcluster", "takes")


def test_status_and_spec_are_written_apart_and_scale_works(kubectl: Kubectl) -> None:
    manifest = with_spec({})
    manifest["metadata"]["name"] = "apart"
    manifest["status"] = {"primary": "nobody"}
    kubectl.apply(manifest)
    made = kubectl.json("get", "pgc", "apart")
    assert made.get("status", {}).get("primary") != "nobody"
    status = {"status": {"primary": "apart-1", "summary": "Ready", "readyInstances": 3}}

    def shown() -> bool:
        kubectl.run(
            *("patch", "pgc", "apart", "--subresource=status", "--type=merge"),
            *("-p", json.dumps(status)),
        )
        row = kubectl.run("get", "pgc", "apart", "--no-headers").split()
        return row[:5] == ["apart", "3", "3", "apart-1", "Ready"]

    # An operator that runs beside this writes what it sees, now and then in between.
    eventually(shown, within=60, every=0.3, what="the status as it was written")
    kubectl.run("scale", "pgc", "apart", "--replicas=5")
    assert kubectl.json("get", "pgc", "apart")["spec"]["instances"] == 5
    kubectl.delete("pgcluster", "apart")


def test_applying_the_same_again_changes_nothing(kubectl: Kubectl) -> None:
    manifest = json.dumps({**MINIMAL, "metadata": {"name": "same"}})

    def version() -> str:
        return str(kubectl.json("get", "pgc", "same")["metadata"]["resourceVersion"])

    def apply() -> None:
        kubectl.run("apply", "--server-side", "-f", "-", stdin=manifest)

    def nothing_changes() -> bool:
        before = version()
        apply()
        return version() == before

    apply()
    # An operator that runs beside this writes the status, which changes the version once or twice.
    eventually(nothing_changes, within=20, what="an apply that changes nothing")
    kubectl.delete("pgcluster", "same")


def test_explain_describes_every_field(kubectl: Kubectl) -> None:
    assert "FIELDS" in kubectl.run("explain", "pgc.spec")
    for field in ("spec.failover.lease.duration", "spec.users.passwordSecret", "status.members"):
        text = kubectl.run("explain", f"pgc.{field}")
        assert "DESCRIPTION" in text
        assert "<empty>" not in text


async def test_what_was_decided_on_an_older_object_is_not_written(kubectl: Kubectl) -> None:
    """The operator's status, and the plugin's forced promotion: neither over what came after."""
    kubectl.apply(MINIMAL)
    client = await KubeClient.connect()
    try:
        read = await client.get(PGCLUSTERS, "shop", kubectl.namespace)
        assert read is not None
        kubectl.run("annotate", "pgcluster", "shop", "changed=meanwhile", "--overwrite")
        metadata = {
            key: read["metadata"][key] for key in ("name", "namespace", "uid", "resourceVersion")
        }
        with pytest.raises(Conflict):
            await client.apply(
                PGCLUSTERS,
                {"metadata": metadata, "status": {"summary": "Ready"}},
                manager=names.MANAGER_STATUS,
                subresource="status",
            )
        patch = {"metadata": {"resourceVersion": metadata["resourceVersion"]}}
        with pytest.raises(Conflict):
            await client.merge_patch(PGCLUSTERS, "shop", kubectl.namespace, patch)
    finally:
        await client.close()
        kubectl.delete("pgcluster", "shop")
