"""`pause`, `resume`, `hibernate`, `wake`, `maintenance` and `reload`."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgcluster.api.models import PgClusterStatus
from pgcluster.cli import inside, keeping, kubectl, reloading, terms
from pgcluster.kube.resources import PGCLUSTERS
from tests.unit.fakekube import FakeKube
from tests.unit.test_cli_kubectl import carry_out, world


async def run(kube: FakeKube, *words: str) -> terms.Ending:
    return await carry_out(kube, kubectl.parse(words))


def spec(kube: FakeKube) -> dict[str, Any]:
    body = kube.find(PGCLUSTERS, "shop")
    assert body is not None
    found: dict[str, Any] = body["spec"]
    return found


def condition(kind: str, status: str, reason: str, message: str = "it is so") -> dict[str, str]:
    return {
        "type": kind,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": "2026-05-01T09:00:00Z",
    }


def answering(kube: FakeKube, status: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """An operator that has told its status when the spec is next looked at."""
    patch = kube.merge_patch

    async def and_told(*about: Any, **more: Any) -> Any:
        changed = await patch(*about, **more)
        body = kube.find(PGCLUSTERS, "shop")
        assert body is not None
        generation = body["metadata"]["generation"]
        body["status"] |= {"observedGeneration": generation, **status(body["spec"])}
        return changed

    kube.merge_patch = and_told  # type: ignore[method-assign]


async def test_pause_and_resume_set_one_field_and_no_other(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kube = world()
    before = dict(spec(kube))
    assert await run(kube, "pause", "shop") == terms.DONE
    assert spec(kube) == {**before, "paused": True}
    assert await run(kube, "pause", "shop") == terms.DONE
    assert "spec.paused is true already" in capsys.readouterr().out
    assert await run(kube, "resume", "shop") == terms.DONE
    assert spec(kube)["paused"] is False


async def test_hibernate_waits_until_it_sleeps_and_wake_until_it_serves(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kube = world()

    def told(spec: dict[str, Any]) -> dict[str, Any]:
        reason = "Hibernated" if spec["hibernated"] else "AllReady"
        return {"conditions": [condition("Ready", "True", reason, f"now {reason}")]}

    answering(kube, told)
    assert await run(kube, "hibernate", "shop") == terms.DONE
    assert "it sleeps: now Hibernated" in capsys.readouterr().out
    assert await run(kube, "wake", "shop") == terms.DONE
    assert "now AllReady" in capsys.readouterr().out
    assert spec(kube)["hibernated"] is False


async def test_what_is_refused_ends_with_1_and_what_takes_long_with_3(
    capsys: pytest.CaptureFixture[str],
) -> None:
    kube = world()
    answering(
        kube,
        lambda _: {
            "conditions": [
                condition("Ready", "True", "AllReady"),
                condition("Progressing", "True", "HibernateRefused", "no primary"),
            ]
        },
    )
    assert await run(kube, "hibernate", "shop") == terms.REFUSED
    assert "no primary; what was asked for stands" in capsys.readouterr().err
    kube = world()
    answering(
        kube, lambda _: {"conditions": [condition("Progressing", "True", "Hibernating", "it goes")]}
    )
    assert await run(kube, "hibernate", "shop", "--timeout", "1s") == terms.TIMED_OUT
    told = capsys.readouterr()
    assert told.out.count("… it goes") == 1, "each step is told once"
    assert "still under way" in told.err


async def test_an_operator_that_is_away_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    kube = world(observedGeneration=-1, conditions=[condition("Ready", "True", "Hibernated")])
    assert await run(kube, "hibernate", "shop", "--timeout", "1s") == terms.TIMED_OUT
    assert "no operator has taken it up yet" in capsys.readouterr().err


async def test_while_the_operator_is_paused_nothing_is_asked_of_it() -> None:
    for words in (["hibernate"], ["wake"], ["maintenance", "shop-1"]):
        kube = world()
        spec(kube)["paused"] = True
        with pytest.raises(terms.Refused, match="resume"):
            await run(kube, words[0], "shop", *words[1:])


async def test_maintenance_names_one_instance_and_keeps_the_others() -> None:
    kube = world()
    spec(kube)["maintenance"] = [{"instance": "shop-0", "reason": "disk"}]
    await run(kube, "maintenance", "shop", "shop-2", "--reason", "a look", "--no-wait")
    assert spec(kube)["maintenance"] == [
        {"instance": "shop-0", "reason": "disk"},
        {"instance": "shop-2", "reason": "a look"},
    ]
    await run(kube, "maintenance", "shop", "shop-0", "--end", "--no-wait")
    assert spec(kube)["maintenance"] == [{"instance": "shop-2", "reason": "a look"}]
    with pytest.raises(terms.Refused, match="does not name shop-1"):
        await run(kube, "maintenance", "shop", "shop-1", "--end")
    with pytest.raises(terms.Refused, match="there is no instance shop-7"):
        await run(kube, "maintenance", "shop", "shop-7")


def test_an_instance_is_left_alone_once_its_postgres_is_down_and_back_once_it_is_ready() -> None:
    def status(state: str, *, ready: bool) -> PgClusterStatus:
        row = {"pod": "shop-1", "state": state, "ready": ready, "role": "standby"}
        return PgClusterStatus.model_validate({"members": [row]})

    alone, back = keeping.left_alone("shop-1"), keeping.back("shop-1")
    assert alone(status("running", ready=True)) is None
    assert "--end" in (alone(status("maintenance", ready=False)) or "")
    assert back(status("maintenance", ready=False)) is None
    assert back(status("running", ready=True)) == "shop-1 is a standby again"
    assert alone(PgClusterStatus()) is None


# --- reload -----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("output", "message", "well"),
    [
        ("loaded\tt\n", "reloaded", True),
        ("loaded\tf\n", "has not read its files", False),
        ("", "has not read its files", False),
        ("loaded\tt\nrestart\tmax_connections\n", "waits for a restart: max_connections", True),
        ("loaded\tt\nwrong\twork_mem\tinvalid\n", "did not take effect: work_mem: invalid", False),
    ],
)
def test_what_an_instance_answers_to_a_reload(output: str, message: str, *, well: bool) -> None:
    told = reloading.instance_told("shop-0", output)
    assert message in told.message
    assert told.well is well


async def test_a_reload_asks_each_pod_and_fails_with_the_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "kubectl"
    program.write_text(
        "#!/bin/sh\ncase $* in *shop-2*) echo 'no such pod' >&2; exit 1;; esac\n"
        "cat >/dev/null; printf 'loaded\\tt\\n'\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert await run(world(), "reload", "shop") == terms.REFUSED
    told = capsys.readouterr()
    assert "shop-0: reloaded" in told.out
    assert "shop-2: no such pod" in told.err
    assert await run(world(), "reload", "shop", "--pod", "shop-1") == terms.DONE
    with pytest.raises(terms.Refused, match="there is no pod nosuch"):
        await run(world(), "reload", "shop", "--pod", "nosuch")


def test_a_script_for_a_pod_is_one_argument_and_needs_nothing_of_the_image_but_psycopg() -> None:
    words = inside.console(("kubectl", "-n", "x"), "pool-1", "SHOW POOLS")
    assert words[-1] == "SHOW POOLS"
    assert "from psycopg import pq" in words[-2]
    assert "import pgcluster" not in words[-2]
    assert "from pgcluster" not in words[-2]
