"""A switchover as people ask for it: by `kubectl pgcluster`, and by an annotation in Git."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pgcluster.api import names
from tests.e2e.cluster import Cluster
from tests.e2e.kubectl import Kubectl
from tests.e2e.ordeal import Ordeals
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.disturbs


def plugin(shop: Cluster, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (
            *(sys.executable, "-m", "pgcluster.cli.kubectl", "switchover", shop.name),
            *("--namespace", shop.kubectl.namespace, *arguments),
        ),
        capture_output=True,
        text=True,
        timeout=240,
        env=dict(os.environ),
        check=False,
    )


def annotate(shop: Cluster, value: str) -> None:
    annotation = f"{names.ANNOTATION_SWITCHOVER}={value}"
    shop.kubectl.run("annotate", "pgcluster", shop.name, annotation, "--overwrite")


def standbys(shop: Cluster) -> list[str]:
    primary = shop.status()["primary"]
    return [pod for pod in shop.instances() if pod != primary]


def test_the_plugin_rehearses_hands_over_and_says_what_cannot_be_done(ordeals: Ordeals) -> None:
    shop = ordeals.cluster
    ordeal = ordeals.begin("kubectl pgcluster switchover")
    target = standbys(shop)[-1]
    epoch = shop.status()["epoch"]
    rehearsed = plugin(shop, "--to", target, "--dry-run")
    assert rehearsed.returncode == 0, rehearsed
    assert f"hands over to {target}" in rehearsed.stdout
    refused = plugin(shop, "--to", "shop-17")
    assert refused.returncode == 1, refused
    assert "there is no standby shop-17" in refused.stderr
    assert shop.status()["epoch"] == epoch, "so far nothing has happened"
    done = plugin(shop, "--to", target)
    assert done.returncode == 0, done
    assert f"{target} is the primary" in done.stdout
    outcome = ordeal.ended()
    assert outcome.after == target
    assert outcome.counted["errors"] == 0, outcome.counted["errors_by_text"]


def test_an_annotation_is_carried_out_once_and_never_again(
    ordeals: Ordeals, system: Kubectl
) -> None:
    shop = ordeals.cluster
    ordeal = ordeals.begin("switchover by an annotation, and an operator that starts anew")
    value = "any:from-git"
    annotate(shop, value)

    def succeeded() -> int:
        record = shop.status().get("lastSwitchover") or {}
        assert (record.get("request"), record.get("state")) == (value, "Succeeded"), record
        return int(shop.status()["epoch"])

    epoch = eventually(succeeded, within=90, what="the switchover succeeds")
    system.run("delete", "pod", "-l", "app.kubernetes.io/name=pgcluster-operator")
    annotate(shop, value)
    annotate(shop, "shop-17:typo")

    def refused() -> bool:
        # It comes after whatever the new operator made of the value before.
        record = shop.status()["lastSwitchover"]
        assert (record["request"], record["state"]) == ("shop-17:typo", "Refused"), record
        return True

    eventually(refused, within=60, what="the next request is refused")
    shop.condition_says("SwitchoverRefused .*no standby shop-17", within=30)
    assert shop.status()["epoch"] == epoch
    by = "(asked for by kubectl-annotate)"
    trail = {(event["reason"], by in event["message"]) for event in shop.events()}
    for reason in ("SwitchoverRequested", "SwitchoverSucceeded", "SwitchoverRefused"):
        assert (reason, True) in trail, trail
    log = system.run("logs", "-l", "app.kubernetes.io/name=pgcluster-operator", "--tail=-1")
    assert "event SwitchoverRefused: request shop-17:typo (asked for by" in log
    outcome = ordeal.ended()
    assert outcome.counted["errors"] == 0, outcome.counted["errors_by_text"]


def test_a_node_that_is_drained_is_left_by_the_primary_first_and_without_an_error(
    ordeals: Ordeals, system: Kubectl
) -> None:
    shop = ordeals.cluster
    ordeal = ordeals.begin("node of the primary drained")
    node = shop.pod(ordeal.primary)["spec"]["nodeName"]
    system.run("cordon", node)
    try:

        def left() -> bool:
            assert shop.status()["primary"] not in (None, ordeal.primary)
            return True

        eventually(left, within=60, what="the primary has left the cordoned node")
        assert shop.status()["lastSwitchover"]["cause"] == "node"
        system.run(
            *("drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=120s"),
            f"--pod-selector={names.LABEL_CLUSTER}={shop.name}",
            timeout_s=150,
        )
    finally:
        system.run("uncordon", node)
    outcome = ordeal.ended()
    assert outcome.counted["errors"] == 0, outcome.counted["errors_by_text"]
