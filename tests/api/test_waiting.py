"""What kubectl's own waiting, scaling and listing make of a PgCluster, on a real API server.

By a CRD of another group, which is the same but for that: an operator that runs beside these tests
would write the status that they write.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from pgcluster.api import names
from pgcluster.api.crd import crd
from pgcluster.controller.status import Outcome
from tests.e2e.kubectl import Kubectl
from tests.unit.test_controller_status import READY, WELL, observed, told

GROUP = f"waiting-{secrets.token_hex(2)}.{names.GROUP}"
KIND = f"{names.PLURAL}.{GROUP}"


@pytest.fixture(scope="module")
def kubectl() -> Iterator[Kubectl]:
    manifest = yaml.safe_load(yaml.safe_dump(crd()))
    manifest["metadata"]["name"] = KIND
    manifest["spec"]["group"] = GROUP
    # Of a category and a short name there is one in a cluster.
    manifest["spec"]["names"] |= {"shortNames": ["pgcw"], "categories": []}
    everywhere = Kubectl()
    everywhere.run("apply", "--server-side", "-f", "-", stdin=json.dumps(manifest))
    everywhere.run("wait", "--for=condition=Established", f"crd/{KIND}", "--timeout=30s")
    namespace = Kubectl(f"api-{secrets.token_hex(2)}")
    everywhere.run("create", "namespace", namespace.namespace)
    yield namespace
    everywhere.run("delete", "crd", KIND, "--wait=false")
    everywhere.run("delete", "namespace", namespace.namespace, "--wait=false")


@pytest.fixture
def name(kubectl: Kubectl) -> str:
    """A new PgCluster that no operator has seen."""
    name = f"w-{secrets.token_hex(3)}"
    manifest = {
        "apiVersion": f"{GROUP}/{names.VERSION}",
        "kind": names.KIND,
        "metadata": {"name": name},
        "spec": {"instances": 3, "storage": {"size": "1Gi"}},
    }
    kubectl.run("create", "-f", "-", stdin=json.dumps(manifest))
    return name


def write(kubectl: Kubectl, name: str, outcome: Outcome, *, generation: int) -> None:
    """The status that the operator would write of a cluster that serves."""
    seen = observed(*WELL, status=READY)
    seen.cluster["metadata"]["generation"] = generation
    status = told(seen, outcome).model_dump(mode="json", by_alias=True, exclude_none=True)
    kubectl.run(
        *("patch", KIND, name, "--subresource=status", "--type=merge"),
        *("-p", json.dumps({"status": status})),
    )


def waits(kubectl: Kubectl, name: str, for_: str) -> bool:
    """Whether `kubectl wait` is still waiting after a second."""
    done = kubectl.completed("wait", f"{KIND}/{name}", f"--for={for_}", "--timeout=1s")
    return done.returncode != 0


def get(kubectl: Kubectl, name: str) -> dict[str, Any]:
    found: dict[str, Any] = kubectl.json("get", KIND, name)
    return found


def test_a_new_object_says_that_nobody_has_looked_at_it(kubectl: Kubectl, name: str) -> None:
    assert get(kubectl, name)["status"] == {"observedGeneration": -1}
    assert waits(kubectl, name, "condition=Ready")


def test_ready_of_an_older_generation_is_no_answer(kubectl: Kubectl, name: str) -> None:
    write(kubectl, name, Outcome(), generation=1)
    assert not waits(kubectl, name, "condition=Ready")
    kubectl.run(
        "patch", KIND, name, "--type=merge", "-p", '{"spec":{"postgres":{"parameters":{"a":"1"}}}}'
    )
    assert get(kubectl, name)["metadata"]["generation"] == 2
    assert waits(kubectl, name, "condition=Ready")
    write(kubectl, name, Outcome(), generation=2)
    assert not waits(kubectl, name, "condition=Ready")


def test_a_change_that_is_under_way_can_be_waited_for(kubectl: Kubectl, name: str) -> None:
    write(kubectl, name, Outcome(applied=True), generation=1)
    assert not waits(kubectl, name, "condition=Ready"), "it serves all the while"
    assert waits(kubectl, name, "condition=Progressing=False")
    assert not waits(kubectl, name, "condition=Reconciling")
    write(kubectl, name, Outcome(), generation=1)
    assert not waits(kubectl, name, "condition=Progressing=False")
    types = [each["type"] for each in get(kubectl, name)["status"]["conditions"]]
    assert "Reconciling" not in types


def test_columns_and_the_scale_subresource_are_those_of_the_status(
    kubectl: Kubectl, name: str
) -> None:
    write(kubectl, name, Outcome(), generation=1)
    head, row = kubectl.run("get", "pgcw", name).splitlines()
    assert head.split() == ["NAME", "INSTANCES", "READY", "PRIMARY", "STATUS", "AGE"]
    assert row.split()[:5] == [name, "3", "2", "shop-0", "Ready"]
    wide = kubectl.run("get", "pgcw", name, "-o", "wide").splitlines()[0].split()
    assert wide[-3:] == ["TIMELINE", "PROGRESS", "MESSAGE"]
    scale = json.loads(
        kubectl.run(
            "get",
            "--raw",
            f"/apis/{GROUP}/{names.VERSION}/namespaces/{kubectl.namespace}"
            f"/{names.PLURAL}/{name}/scale",
        )
    )
    assert scale["spec"]["replicas"] == 3
    assert scale["status"]["replicas"] == 2
    assert names.LABEL_CLUSTER in scale["status"]["selector"]
