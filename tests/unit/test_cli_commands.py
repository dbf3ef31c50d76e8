"""The plugin's other commands: what they ask for, what they become, and when they refuse."""

from __future__ import annotations

import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pgcluster.api import names
from pgcluster.cli import asking, following, kubectl, outside, reaching, terms
from pgcluster.controller.observe import InstancePod
from pgcluster.kube.client import WatchEvent
from pgcluster.kube.errors import Forbidden
from pgcluster.kube.resources import DEPLOYMENTS, EVENTS, LEASES, PGCLUSTERS, PODS
from tests.unit.fakekube import FakeKube
from tests.unit.test_cli_kubectl import carry_out, world

STATUS = {
    "summary": "Ready",
    "primary": "shop-0",
    "readyInstances": 3,
    "conditions": [
        {
            "type": "Ready",
            "status": "True",
            "reason": "AllReady",
            "message": "shop-0 is the primary and all is there",
            "lastTransitionTime": "2026-05-01T09:00:00Z",
        }
    ],
}


async def run(kube: FakeKube, *words: str) -> terms.Ending:
    return await carry_out(kube, kubectl.parse(words))


def body(kube: FakeKube) -> dict[str, Any]:
    found = kube.find(PGCLUSTERS, "shop")
    assert found is not None
    return found


def without_primary(kube: FakeKube) -> None:
    lease = kube.find(LEASES, "shop-primary")
    assert lease is not None
    lease["spec"] = {"holderIdentity": "", "leaseTransitions": 5}


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubectl on the PATH that says what it was asked for; a real process."""
    made = tmp_path / "kubectl"
    made.write_text('#!/bin/sh\necho "$@"\n')
    made.chmod(made.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return made


# --- looking ----------------------------------------------------------------------------------
async def test_status_is_the_cluster_on_a_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(world(**STATUS), "status", "shop") == terms.DONE
    told = capsys.readouterr().out
    assert "test/shop  Ready" in told
    assert "shop-0 is the primary and all is there" in told
    assert "\x1b" not in told, "no colours where nobody looks at a terminal"


@pytest.mark.parametrize(("format_", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
async def test_status_as_a_document_is_the_object_without_its_managers(
    format_: str, read: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    kube = world(**STATUS)
    body(kube)["metadata"]["managedFields"] = [{"manager": "argocd"}]
    await run(kube, "status", "shop", "-o", format_)
    document = read(capsys.readouterr().out)
    assert document["kind"] == "PgCluster"
    assert document["status"]["primary"] == "shop-0"
    assert "managedFields" not in document["metadata"]


async def test_watching_shows_each_change_once_and_ends_with_the_cluster(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kube = world(**STATUS)
    first = body(kube)
    second = json.loads(json.dumps(first))
    second["metadata"]["resourceVersion"] = "later"
    second["status"]["summary"] = "FailingOver"

    async def watch(*_: Any, **__: Any) -> AsyncIterator[WatchEvent]:
        yield WatchEvent("SYNC", items=[first])
        yield WatchEvent("LOST")
        yield WatchEvent("SYNC", items=[first])
        yield WatchEvent("MODIFIED", object=second)
        yield WatchEvent("DELETED", object=second)

    kube.watch = watch  # type: ignore[attr-defined] # as much of a watch as is used
    with pytest.raises(terms.Refused, match="there is no PgCluster shop"):
        await run(kube, "status", "shop", "--watch")
    told = capsys.readouterr().out
    assert told.count("test/shop  Ready") == 1
    assert told.count("test/shop  FailingOver") == 1


async def test_a_cluster_that_is_not_there_is_told_by_each_command() -> None:
    for words in (["status"], ["events"], ["logs"], ["restart"], ["psql"]):
        with pytest.raises(terms.Refused, match="there is no PgCluster shop in namespace test"):
            await run(FakeKube(), *words, "shop")


async def test_a_status_of_another_version_is_told_and_no_riddle() -> None:
    with pytest.raises(terms.Refused, match="the status of shop is of another version"):
        await run(world(members="none"), "status", "shop")


async def test_the_list_is_of_one_namespace_or_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    kube = world(**STATUS)
    kube.put(PGCLUSTERS, {"metadata": {"name": "new", "namespace": "other"}, "spec": {}})
    await run(kube, "list")
    here = capsys.readouterr().out
    assert "shop" in here
    assert "new" not in here
    await run(kube, "list", "-A")
    assert "other       new" in capsys.readouterr().out
    await run(FakeKube(), "list")
    assert capsys.readouterr().out == "there is no PgCluster in namespace test\n"


def event(name: str, kind: str, regarding: str, at: str, reason: str) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": "test"},
        "eventTime": at,
        "type": "Normal",
        "reason": reason,
        "note": "it did",
        "regarding": {"kind": kind, "name": regarding},
    }


async def test_events_are_those_of_the_cluster_and_its_parts_by_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kube = world()
    about = [
        ("a", "PgCluster", "shop", "2026-05-01T09:02:00.000000Z", "Third"),
        ("b", "Pod", "shop-1", "2026-05-01T09:01:00.000000Z", "Second"),
        ("c", "PersistentVolumeClaim", "data-shop-0", "2026-05-01T09:00:00.000000Z", "First"),
        ("d", "Pod", "shop-eu-0", "2026-05-01T09:00:00.000000Z", "Foreign"),
        ("e", "Pod", "workshop-0", "2026-05-01T09:00:00.000000Z", "Foreign"),
        ("f", "Pod", "shop-pgbouncer-7d9-x2", "2026-05-01T09:03:00.000000Z", "Fourth"),
    ]
    for one in about:
        kube.put(EVENTS, event(*one))
    await run(kube, "events", "shop")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines[1:]] == ["First", "Second", "Third", "Fourth"]


async def test_the_version_is_told_also_to_those_who_may_see_no_operator(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kube = FakeKube()
    kube.put(
        DEPLOYMENTS,
        {
            "metadata": {
                "name": "op",
                "namespace": "pg",
                "labels": {"app.kubernetes.io/name": names.MANAGED_BY},
            },
            "spec": {"replicas": 2, "template": {"spec": {"containers": [{"image": "op:1"}]}}},
            "status": {"readyReplicas": 1},
        },
    )
    assert await run(kube, "version") == terms.DONE
    assert "operator pg/op: op:1, 1 of 2 replicas ready" in capsys.readouterr().out

    async def refuse(*_: Any, **__: Any) -> Any:
        raise Forbidden(403, "Forbidden", "no")

    kube.list = refuse  # type: ignore[method-assign] # somebody without the right
    assert await run(kube, "version") == terms.DONE
    assert "you may not list Deployments" in capsys.readouterr().out


# --- asking -----------------------------------------------------------------------------------
async def test_a_restart_is_an_annotation_and_refused_while_nothing_would_come_of_it() -> None:
    kube = world()
    assert await run(kube, "restart", "shop", "--no-wait") == terms.DONE
    first = body(kube)["metadata"]["annotations"][names.ANNOTATION_RESTART]
    await run(kube, "restart", "shop", "--no-wait")
    assert body(kube)["metadata"]["annotations"][names.ANNOTATION_RESTART] != first
    for field in ("paused", "hibernated"):
        kube = world()
        body(kube)["spec"][field] = True
        with pytest.raises(terms.Refused, match=field):
            await run(kube, "restart", "shop")
        assert "annotations" not in body(kube)["metadata"]


def restarted(value: str, *, ready: bool = True) -> InstancePod:
    manifest = {
        "metadata": {"name": "shop-0", "annotations": {names.ANNOTATION_RESTART: value}},
        "status": {"conditions": [{"type": "Ready", "status": "True" if ready else "False"}]},
    }
    return InstancePod("shop-0", manifest, None)


def test_a_restart_is_over_when_each_pod_is_of_this_request_and_ready() -> None:
    done = asking.all_restarted
    assert done((restarted("b"), restarted("b")), "b", wanted=2)
    assert not done((restarted("b"), restarted("a")), "b", wanted=2)
    assert not done((restarted("b"), restarted("b", ready=False)), "b", wanted=2)
    assert not done((restarted("b"),), "b", wanted=2)


async def test_waiting_for_a_restart_ends_well_or_with_why_it_stopped(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kube = world(**STATUS)
    patch = kube.merge_patch

    async def and_done(*about: Any, **more: Any) -> Any:
        """The operator's part, at once."""
        answer = await patch(*about, **more)
        value = body(kube)["metadata"]["annotations"][names.ANNOTATION_RESTART]
        for ordinal in range(3):
            pod = kube.find(PODS, f"shop-{ordinal}")
            assert pod is not None
            pod["metadata"]["annotations"][names.ANNOTATION_RESTART] = value
        return answer

    kube.merge_patch = and_done  # type: ignore[method-assign] # the operator beside it
    assert await run(kube, "restart", "shop") == terms.DONE
    assert "all 3 instances have been restarted" in capsys.readouterr().out

    stuck = world()
    patch = stuck.merge_patch

    async def and_stopped(*about: Any, **more: Any) -> Any:
        answer = await patch(*about, **more)
        found = body(stuck)
        found["status"]["restart"] = found["metadata"]["annotations"][names.ANNOTATION_RESTART]
        found["status"]["conditions"] = [
            {
                "type": "Progressing",
                "status": "False",
                "reason": "RolloutStopped",
                "message": "shop-2 does not come back",
                "lastTransitionTime": "2026-05-01T09:00:00Z",
            }
        ]
        return answer

    stuck.merge_patch = and_stopped  # type: ignore[method-assign] # likewise
    assert await run(stuck, "restart", "shop") == terms.REFUSED
    assert "shop-2 does not come back" in capsys.readouterr().err


async def test_a_restart_that_takes_too_long_is_told_and_goes_on() -> None:
    ended = await run(world(), "restart", "shop", "--timeout", "100ms")
    assert ended == terms.TIMED_OUT


async def test_nobody_is_promoted_beside_a_primary_nor_by_a_slip() -> None:
    for words, told in [
        (["shop-0", "--force", "--yes"], "shop-0 is the primary already"),
        (["shop-1", "--force", "--yes"], "use `kubectl pgcluster switchover shop --to shop-1`"),
    ]:
        with pytest.raises(terms.Refused, match=told):
            await run(world(), "promote", "shop", *words)
    for words, told in [
        (["shop-9", "--force", "--yes"], "there is no instance shop-9"),
        (["shop-1", "--yes"], "although commits may be lost"),
        (["shop-1", "--force"], "nothing was changed"),
    ]:
        kube = world()
        without_primary(kube)
        with pytest.raises(terms.Refused, match=told):
            await run(kube, "promote", "shop", *words)
        assert "failover" not in body(kube)["spec"]


async def test_a_forced_promotion_is_for_this_epoch_alone_and_warned_of(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kube = world()
    without_primary(kube)
    ended = await run(kube, "promote", "shop", "shop-1", "--force", "--yes", "--no-wait")
    assert ended == terms.DONE
    assert body(kube)["spec"]["failover"]["forcePromotion"] == {"instance": "shop-1", "epoch": 5}
    assert "lost for good" in capsys.readouterr().err


async def test_a_cluster_that_changed_while_it_was_thought_about_is_looked_at_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kube = world()
    without_primary(kube)
    look = outside.observed

    async def and_changed(*about: Any) -> Any:
        found = await look(*about)
        kube.put(PGCLUSTERS, body(kube))
        return found

    monkeypatch.setattr(outside, "observed", and_changed)
    with pytest.raises(terms.Refused, match="has changed meanwhile"):
        await run(kube, "promote", "shop", "shop-1", "--force", "--yes")


@pytest.mark.parametrize(
    ("holder", "ends"), [("shop-1", terms.DONE), ("shop-2", terms.REFUSED), ("", terms.TIMED_OUT)]
)
async def test_waiting_for_a_promotion_ends_with_who_became_it(holder: str, ends: int) -> None:
    kube = world()
    without_primary(kube)
    patch = kube.merge_patch

    async def and_promoted(*about: Any, **more: Any) -> Any:
        answer = await patch(*about, **more)
        lease = kube.find(LEASES, "shop-primary")
        assert lease is not None
        lease["spec"] = {"holderIdentity": holder, "leaseTransitions": 6}
        if pod := kube.find(PODS, holder):
            report = json.loads(pod["metadata"]["annotations"][names.ANNOTATION_INSTANCE])
            told = json.dumps({**report, "role": "primary"})
            pod["metadata"]["annotations"][names.ANNOTATION_INSTANCE] = told
        return answer

    kube.merge_patch = and_promoted  # type: ignore[method-assign] # the agents beside it
    words = ("--force", "--yes", "--timeout", "100ms")
    assert await run(kube, "promote", "shop", "shop-1", *words) == ends


# --- reaching ---------------------------------------------------------------------------------
async def test_psql_is_that_of_the_primarys_pod(program: Path) -> None:
    words = ("-n", "test", "--context", "prod", "psql", "shop", "--", "-c", "select 1")
    assert await run(world(), *words) == (
        str(program),
        *("--context=prod", "--namespace=test", "exec", "shop-0", "--container=postgres"),
        *("--stdin", "--", "psql", "--host", names.PG_SOCKET_DIR, "--username", "postgres"),
        *("--dbname", "app", "-c", "select 1"),
    )


async def test_psql_may_be_on_a_standby_or_in_another_database(program: Path) -> None:
    standby = await run(world(), "psql", "shop", "--standby", "-d", "repmgr")
    assert isinstance(standby, tuple)
    assert "shop-1" in standby
    assert standby[-1] == "repmgr"
    named = await run(world(), "psql", "shop", "--pod", "shop-2")
    assert isinstance(named, tuple)
    assert "shop-2" in named
    with pytest.raises(terms.Refused, match="there is no instance shop-7 that runs"):
        await run(world(), "psql", "shop", "--pod", "shop-7")


async def test_without_a_primary_repmgr_answers_and_psql_does_not(program: Path) -> None:
    kube = world()
    without_primary(kube)
    asked = await run(kube, "repmgr", "shop", "--", "cluster", "show", "--csv")
    assert isinstance(asked, tuple)
    assert asked[-4:] == ("repmgr", "cluster", "show", "--csv")
    with pytest.raises(terms.Refused, match="no instance is the primary"):
        await run(kube, "psql", "shop")
    with pytest.raises(terms.Refused, match="say which command"):
        await run(kube, "repmgr", "shop")


async def test_without_kubectl_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(terms.Refused, match="there is no kubectl on the PATH"):
        await run(world(), "psql", "shop")


# --- logs -------------------------------------------------------------------------------------
SPEAKING = r"""#!/bin/sh
case "$*" in
*shop-0*) echo '2026-05-01T10:00:00.1Z {"ts":"x","level":"info","logger":"l","msg":"one","n":7}'
          echo '2026-05-01T10:00:00.3Z three';;
*shop-1*) echo '2026-05-01T10:00:00.21Z {"level":"error","msg":"two"}'
          echo '2026-05-01T10:00:00.2000001Z earlier';;
*) echo 'container not found' >&2; exit 1;;
esac
"""


async def test_logs_of_all_parts_are_merged_by_time(
    program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program.write_text(SPEAKING)
    assert await run(world(), "logs", "shop", "--since", "10m", "--tail", "5") == terms.DONE
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [
        "10:00:00.100 shop-0 one n=7",
        "10:00:00.200 shop-1 earlier",
        "10:00:00.210 shop-1 ERROR: two",
        "10:00:00.300 shop-0 three",
    ]
    assert captured.err == "shop-2: container not found\n", "and the others are shown"


async def test_followed_logs_are_merged_too_and_end_with_their_containers(
    program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program.write_text(SPEAKING)
    assert await run(world(), "logs", "shop", "--follow", "--raw") == terms.DONE
    told = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in told if "2026-05" in line] == [
        *("shop-0", "shop-1", "shop-1", "shop-0")
    ]


async def test_logs_may_be_of_one_kind_of_part(
    program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(terms.Refused, match="no pod whose log"):
        await run(world(), "logs", "shop", "--component", "pgbouncer")


def test_of_the_operator_only_what_it_says_of_the_cluster_is_shown() -> None:
    part = following.Part("pg", "op-1", "operator", about='"cluster": "test/shop"')
    mine = '2026-05-01T10:00:00Z {"msg": "status", "cluster": "test/shop"}'
    other = '2026-05-01T10:00:00Z {"msg": "status", "cluster": "test/shop2"}'
    assert following.parsed(part, mine) is not None
    assert following.parsed(part, other) is None


def test_containers_that_never_ran_are_not_asked_for_a_log() -> None:
    pod = {
        "metadata": {"name": "shop-0", "namespace": "test"},
        "status": {
            "initContainerStatuses": [{"name": "agent", "state": {"running": {}}}],
            "containerStatuses": [
                {"name": "new", "state": {"waiting": {}}, "restartCount": 0},
                {"name": "crashing", "state": {"waiting": {}}, "restartCount": 2},
            ],
        },
    }
    assert [part.container for part in following.parts_of([pod])] == ["agent", "crashing"]


def test_a_line_is_shown_in_colours_only_where_there_are_any() -> None:
    line = following.Line("2026-05-01T10:00:00.100000000Z", "shop-0", '{"level":"error","msg":"x"}')
    assert "\x1b[31m" in following.readable(line, colours=True)
    assert "\x1b" not in following.readable(line, colours=False)


# --- how it ends ------------------------------------------------------------------------------
def kubeconfig(folder: Path) -> str:
    """One of an API server that does not answer: nobody listens on port 1."""
    file = folder / "config"
    document = {
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    file.write_text(yaml.safe_dump(document))
    return str(file)


def test_an_api_server_that_does_not_answer_ends_it_with_4(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kubectl.run(["status", "shop", "--kubeconfig", kubeconfig(tmp_path)]) == terms.NO_API
    assert "the API server does not answer" in capsys.readouterr().err


def test_a_kubeconfig_that_is_not_there_is_told_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "missing")
    assert kubectl.run(["status", "shop", "--kubeconfig", missing]) == terms.REFUSED
    assert "the kubeconfig cannot be used" in capsys.readouterr().err


def test_psql_takes_the_place_of_the_plugin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[Any] = []

    async def asked(*_: Any) -> terms.Ending:
        return "/usr/bin/kubectl", "exec"

    def become(program: str, words: Any) -> None:
        became.append((program, words))
        raise SystemExit(0)

    monkeypatch.setattr(reaching, "psql", asked)
    monkeypatch.setattr(kubectl.os, "execv", become)
    with pytest.raises(SystemExit):
        kubectl.run(["psql", "shop", "--kubeconfig", kubeconfig(tmp_path)])
    assert became == [("/usr/bin/kubectl", ("/usr/bin/kubectl", "exec"))]
