"""`kubectl pgcluster`: what it asks for, what it says, and how it ends."""

from __future__ import annotations

import argparse
import json
from typing import Any, cast

import pytest

from pgcluster.api import names
from pgcluster.api.models import PgClusterStatus
from pgcluster.cli import kubectl, terms
from pgcluster.controller.observe import Key
from pgcluster.kube.client import KubeClient
from pgcluster.kube.resources import LEASES, PGCLUSTERS, PODS
from tests.unit.fakekube import FakeKube
from tests.unit.test_controller_rollout import cluster, instance

SHOP = Key("test", "shop")


def world(**status: Any) -> FakeKube:
    kube = FakeKube()
    body = cluster({"systemIdentifier": "7", "epoch": 1, **status})
    kube.put(PGCLUSTERS, body)
    kube.put(
        LEASES,
        {
            "metadata": {"name": "shop-primary", "namespace": "test", "annotations": {}},
            "spec": {"holderIdentity": "shop-0", "leaseTransitions": 1},
        },
    )
    for ordinal in range(3):
        pod = instance(ordinal)
        assert pod.report is not None
        metadata = pod.manifest["metadata"]
        metadata["namespace"] = "test"
        metadata["labels"] |= {
            names.LABEL_CLUSTER: "shop",
            names.LABEL_COMPONENT: names.COMPONENT_POSTGRES,
        }
        metadata["annotations"][names.ANNOTATION_INSTANCE] = pod.report.model_dump_json()
        kube.put(PODS, pod.manifest)
    return kube


def options(*arguments: str) -> argparse.Namespace:
    return kubectl.parse(["switchover", "shop", *arguments])


async def carry_out(kube: FakeKube, given: argparse.Namespace) -> terms.Ending:
    command: terms.Command = given.command
    return await command(cast(KubeClient, kube), SHOP, given)


async def ask(kube: FakeKube, *arguments: str) -> terms.Ending:
    return await carry_out(kube, options(*arguments))


def asked(kube: FakeKube) -> str | None:
    body = kube.find(PGCLUSTERS, "shop")
    assert body is not None
    found: str | None = (body["metadata"].get("annotations") or {}).get(names.ANNOTATION_SWITCHOVER)
    return found


def test_kubectls_own_flags_work_before_and_after_the_command() -> None:
    parse = kubectl.parse
    for words in (["-n", "a", "switchover", "shop"], ["switchover", "shop", "--namespace", "a"]):
        assert parse(words).namespace == "a"
    assert options().to == "any"
    assert options("--timeout", "90s").timeout == 90.0


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["switchover"],
        ["switchover", "shop", "--timeout", "soon"],
        ["status", "shop", "-o", "wide"],
        ["list", "--", "shop"],
        ["promote", "shop"],
    ],
)
def test_a_command_line_that_makes_no_sense_ends_with_2(words: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        kubectl.run(words)
    assert ended.value.code == 2


async def test_a_request_is_an_annotation_that_is_new_each_time() -> None:
    kube = world()
    assert await ask(kube, "--to", "shop-1", "--no-wait") == terms.DONE
    first = asked(kube)
    assert first is not None
    assert first.startswith("shop-1:")
    assert await ask(kube, "--to", "shop-1", "--no-wait") == terms.DONE
    assert asked(kube) != first


@pytest.mark.parametrize(
    ("to", "told"),
    [("shop-9", "there is no standby shop-9"), ("Shop One", "must be the name of an instance")],
)
async def test_what_cannot_be_done_is_refused_before_anything_is_asked(to: str, told: str) -> None:
    kube = world()
    with pytest.raises(terms.Refused, match=told):
        await ask(kube, "--to", to)
    assert asked(kube) is None


async def test_a_cluster_that_is_not_there_and_one_that_is_busy_are_refused() -> None:
    with pytest.raises(terms.Refused, match="there is no PgCluster shop"):
        await ask(FakeKube())
    running = {"request": "any:1", "to": "shop-2", "state": "Running", "epoch": 1}
    with pytest.raises(terms.Refused, match="a switchover to shop-2 is under way"):
        await ask(world(lastSwitchover=running))


async def test_who_is_the_primary_already_has_nothing_to_ask_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kube = world()
    assert await ask(kube, "--to", "shop-0") == terms.DONE
    assert "shop-0 is the primary already" in capsys.readouterr().out
    assert asked(kube) is None


@pytest.mark.parametrize(
    ("state", "ends", "says"),
    [
        ("Succeeded", terms.DONE, "it is: promoted after 200 ms, pools went on after 300 ms"),
        ("Refused", terms.REFUSED, "error: Refused: it is"),
        ("Failed", terms.REFUSED, "error: Failed: it is"),
    ],
)
async def test_waiting_ends_with_what_the_status_says(
    state: str, ends: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kube = world()
    patch = kube.merge_patch

    async def and_done(*about: Any, **more: Any) -> Any:
        """The operator's part, at once."""
        answer = await patch(*about, **more)
        body = kube.find(PGCLUSTERS, "shop")
        assert body is not None
        body["status"] |= json.loads(
            PgClusterStatus.model_validate(
                {
                    "lastSwitchover": {
                        "request": asked(kube),
                        "to": "shop-1",
                        "state": state,
                        "reason": "it is",
                        "epoch": 1,
                    },
                    "lastFailover": {
                        "to": "shop-1",
                        "cause": "switchover",
                        "timeline": 2,
                        "epoch": 2,
                        "promotedMs": 200,
                        "resumedMs": 300,
                    },
                }
            ).model_dump_json(by_alias=True, exclude_none=True)
        )
        return answer

    kube.merge_patch = and_done  # type: ignore[method-assign] # the operator beside it
    assert await ask(kube, "--to", "shop-1") == ends
    captured = capsys.readouterr()
    assert says in captured.out + captured.err


@pytest.mark.parametrize(
    ("state", "told"),
    [(None, "no operator has taken it up yet"), ("Running", "it is still under way")],
)
async def test_what_takes_too_long_is_told_and_goes_on(
    state: str | None, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kube = world()
    patch = kube.merge_patch

    async def and_begun(*about: Any, **more: Any) -> Any:
        answer = await patch(*about, **more)
        body = kube.find(PGCLUSTERS, "shop")
        assert body is not None
        if state is not None:
            body["status"]["lastSwitchover"] = {"request": asked(kube), "state": state}
        return answer

    kube.merge_patch = and_begun  # type: ignore[method-assign] # the operator beside it
    assert await ask(kube, "--to", "shop-1", "--timeout", "100ms") == terms.TIMED_OUT
    assert asked(kube) is not None
    assert told in capsys.readouterr().err
