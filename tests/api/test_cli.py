"""The plugin against a real API server, without any pod."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from pgcluster.api import names
from tests.api.test_crd import CRD, with_spec
from tests.e2e.kubectl import Kubectl, find_kubeconfig, find_program
from tests.e2e.waiting import eventually

FAILOVER = {
    "from": "shop-0",
    "to": "shop-1",
    "cause": "failover",
    "timeline": 2,
    "epoch": 3,
    "detectedAt": "2026-05-01T10:00:00Z",
    "gateMs": 900,
    "promotedMs": 1100,
}


@pytest.fixture(scope="module")
def kubectl() -> Iterator[Kubectl]:
    """A namespace with a PgCluster of which an operator beside makes nothing, paused or not."""
    everywhere = Kubectl()
    everywhere.run("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    everywhere.run("wait", "--for=condition=Established", "-f", str(CRD), "--timeout=30s")
    namespace = Kubectl(f"api-{secrets.token_hex(2)}")
    everywhere.run("create", "namespace", namespace.namespace)
    namespace.apply(with_spec({"storage.className": "no-such-class"}))
    yield namespace
    everywhere.run("delete", "namespace", namespace.namespace, "--wait=false")


def plugin(
    kubectl: Kubectl,
    *words: str,
    status: int = 0,
    program: str = "kubectl",
    where: Path | None = None,
) -> str:
    """Run the plugin, or what completes its command lines, as kubectl would."""
    entry = {"kubectl": "kubectl", "complete": "completing"}[program]
    path = f"{Path(find_program()).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        (
            *(sys.executable, "-c", f"from pgcluster.cli.{entry} import main; main()"),
            *("--namespace", kubectl.namespace, *words),
        ),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "KUBECONFIG": find_kubeconfig(), "PATH": path},
        cwd=where,
        check=False,
    )
    assert done.returncode == status, done
    return done.stdout + done.stderr


def test_fields_of_the_spec_are_set_and_nothing_beside_them(kubectl: Kubectl) -> None:
    def spec() -> dict[str, object]:
        found: dict[str, object] = kubectl.json("get", "pgc", "shop")["spec"]
        return found

    before = spec()
    assert "already" in plugin(kubectl, "pause", "shop")
    kubectl.run("label", "pgc", "shop", "team=a")
    plugin(kubectl, "resume", "shop")
    assert spec() == {**before, "paused": False}
    plugin(kubectl, "pause", "shop")
    assert spec() == before
    managers = kubectl.json("get", "pgc", "shop", "--show-managed-fields")["metadata"]
    assert "kubectl-pgcluster" in [entry["manager"] for entry in managers["managedFields"]]
    told = plugin(kubectl, "hibernate", "shop", status=1)
    assert "resume" in told, "who is paused is not asked for more"


def test_the_history_is_a_table_records_and_a_picture(kubectl: Kubectl) -> None:
    status = {"status": {"failovers": [FAILOVER]}}

    def there() -> bool:
        kubectl.run(
            *("patch", "pgc", "shop", "--subresource=status", "--type=merge"),
            *("-p", json.dumps(status)),
        )
        found = json.loads(plugin(kubectl, "failovers", "shop", "-o", "json"))
        return [record["gateMs"] for record in found] == [900]

    # An operator that runs beside this writes what it sees, now and then in between.
    eventually(there, within=60, every=0.3, what="the history as it was written")
    assert "failover" in plugin(kubectl, "failovers", "shop")
    assert plugin(kubectl, "failovers", "shop", "--svg").startswith("<svg")


def test_lists_are_tables_and_documents(kubectl: Kubectl) -> None:
    assert "shop" in plugin(kubectl, "list")
    found = json.loads(plugin(kubectl, "list", "-o", "json"))
    assert [item["metadata"]["name"] for item in found["items"]] == ["shop"]


def test_another_user_and_a_short_deadline_are_passed_on(kubectl: Kubectl) -> None:
    told = plugin(kubectl, "status", "shop", "--as", "nobody", "--as-group", "a", status=4)
    assert 'User "nobody" cannot get' in told
    plugin(kubectl, "status", "shop", "--request-timeout", "1ms", status=4)


def completes(kubectl: Kubectl, name: str, words: tuple[str, ...]) -> bool:
    return name in plugin(kubectl, *words, program="complete").splitlines()


def test_names_are_completed_from_the_api(kubectl: Kubectl) -> None:
    for words, name in (
        (("status", "sh"), "shop"),
        (("status", "shop", "-n", "api-"), kubectl.namespace),
    ):
        eventually(
            partial(completes, kubectl, name, words),
            within=30,
            what=f"{name}, by an API server that answers at once",
        )


def test_a_report_of_what_has_no_pods_is_made(kubectl: Kubectl, tmp_path: Path) -> None:
    # Of a name that no operator beside makes.
    kubectl.run("create", "secret", "generic", "mine", "--from-literal=password=hunter2-hunter2")
    kubectl.run("label", "secret", "mine", f"{names.LABEL_CLUSTER}=shop")
    kubectl.run("annotate", "pgc", "shop", "note=it is hunter2-hunter2")
    told = plugin(kubectl, "report", "shop", "--file", "r.tar.gz", where=tmp_path)
    assert "wrote" in told
    text = subprocess.run(
        ["tar", "xzOf", tmp_path / "r.tar.gz"], capture_output=True, text=True, check=True
    ).stdout
    assert "kind: PgCluster" in text
    assert "mine: password" in text
    assert "hunter2" not in text
