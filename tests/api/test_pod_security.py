"""The pods of a cluster and of the operator before the Pod Security admission of an API server."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml

from pgcluster.api import names
from pgcluster.api.models import PgCluster
from pgcluster.render import cluster as render
from tests.e2e.kubectl import Kubectl, KubectlError

DEPLOYMENT = Path(__file__).parents[2] / "deploy" / "operator" / "deployment.yaml"
IMAGES = render.Images(postgres="example/postgres:17", pgbouncer="example/pgbouncer:1")
SPECS: dict[str, dict[str, Any]] = {
    "smallest": {"instances": 1, "storage": {"size": "1Gi"}},
    "more": {
        "instances": 3,
        "storage": {"size": "1Gi", "walSize": "1Gi"},
        "postgres": {"resources": {"requests": {"cpu": "1"}}},
        "pgbouncer": {"instances": 3, "parameters": {"pkt_buf": "8192"}},
        "scheduling": {"tolerations": [{"operator": "Exists"}], "nodeSelector": {"a": "b"}},
        "inheritedMetadata": {"annotations": {"a": "b"}},
    },
}


def pods() -> dict[str, dict[str, Any]]:
    """Every pod that the operator makes, and its own, by what it is of."""
    found = {}
    for name, spec in SPECS.items():
        metadata = {"name": "shop", "namespace": "test", "uid": "u"}
        made = render.manifests(
            PgCluster.parse({"metadata": metadata, "spec": spec}),
            images=IMAGES,
            system_identifier=None,
        )
        for manifest in made:
            if manifest["kind"] in ("StatefulSet", "Deployment"):
                found[f"{name} {manifest['kind']}"] = _pod(manifest)
    found["operator"] = _pod(yaml.safe_load(DEPLOYMENT.read_text()))
    return found


def _pod(workload: dict[str, Any]) -> dict[str, Any]:
    """The pod of a workload, with a volume for each claim, as its controller would make it."""
    spec = deepcopy(workload["spec"]["template"]["spec"])
    spec["volumes"] += [
        {"name": claim["metadata"]["name"], "persistentVolumeClaim": {"claimName": "any"}}
        for claim in workload["spec"].get("volumeClaimTemplates", ())
    ]
    # Which account it is makes no difference to the standard; `default` may be late in coming.
    spec["serviceAccountName"] = "any"
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tried"}, "spec": spec}


PODS = pods()


@pytest.fixture(scope="module")
def namespace(restricted: Kubectl) -> Kubectl:
    restricted.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "any"}},
    )
    return restricted


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
def test_every_pod_is_let_into_a_restricted_namespace(
    namespace: Kubectl, pod: dict[str, Any]
) -> None:
    namespace.apply(pod, dry_run=True)


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
def test_what_makes_it_restricted_is_needed(namespace: Kubectl, pod: dict[str, Any]) -> None:
    """The namespace would refuse the same pod without one of these."""
    loosened = []
    for path in (("seccompProfile",), ("runAsNonRoot",)):
        changed = deepcopy(pod)
        del changed["spec"]["securityContext"][path[0]]
        loosened.append(changed)
    for field in ("allowPrivilegeEscalation", "capabilities"):
        changed = deepcopy(pod)
        del changed["spec"]["containers"][0]["securityContext"][field]
        loosened.append(changed)
    for changed in loosened:
        with pytest.raises(KubectlError, match="violates PodSecurity"):
            namespace.apply(changed, dry_run=True)


def test_an_account_gives_its_token_to_no_pod_that_does_not_ask(restricted: Kubectl) -> None:
    """The standard says nothing of tokens; the admission of ServiceAccounts adds them."""
    for name, pod in PODS.items():
        text = restricted.run(
            *("create", "--dry-run=server", "-o", "yaml", "-f", "-"), stdin=yaml.safe_dump(pod)
        )
        volumes = [volume["name"] for volume in yaml.safe_load(text)["spec"]["volumes"]]
        added = [volume for volume in volumes if volume.startswith("kube-api-access")]
        assert len(added) == (1 if name == "operator" else 0), f"{name}: {volumes}"
        assert ("api-access" in volumes) is (name != "operator"), f"{name}: {volumes}"


def test_the_namespace_of_the_operator_enforces_the_standard() -> None:
    document = yaml.safe_load((DEPLOYMENT.parent / "namespace.yaml").read_text())
    labels = document["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert PODS["operator"]["spec"]["securityContext"]["runAsUser"] == names.UID_OPERATOR
