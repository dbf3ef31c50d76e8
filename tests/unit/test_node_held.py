"""An instance whose postgres is kept down: it does not start, but a holder of the Lease does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pgcluster.api.config import ClusterConfig
from pgcluster.node import stopped
from pgcluster.node.cloning import options
from pgcluster.node.handover import Handover
from pgcluster.node.instance import Instance
from pgcluster.node.metrics import Metrics
from pgcluster.node.restart import Restart
from pgcluster.node.running import Running
from pgcluster.node.start import Decision, StartFacts, Wait
from pgcluster.node.stopped import Stopped
from pgcluster.postgres.local import Observation
from pgcluster.topology.lease import LeaseRecord, LeaseView, Mark

CONFIG = ClusterConfig(name="shop", namespace="prod", uid="u", instances=3)


def test_who_is_held_and_who_is_not() -> None:
    worked_on = CONFIG.model_copy(update={"maintenance": ("shop-2",)})
    assert "spec.maintenance" in str(worked_on.held("shop-2"))
    assert worked_on.held("shop-1") is None
    asleep = CONFIG.model_copy(update={"hibernation": "shop-1"})
    assert "shop-1" in str(asleep.held("shop-0"))
    assert asleep.held("shop-1") is None
    assert CONFIG.held("shop-0") is None


def test_those_about_to_be_removed_do_not_stay() -> None:
    assert CONFIG.staying == 3
    assert CONFIG.model_copy(update={"remaining": 1}).staying == 1
    assert CONFIG.model_copy(update={"remaining": 5}).staying == 3


class Shell:
    """The parts of an instance that the stopped half of its loop touches before the table."""

    def __init__(self, *, holder: str, holding: bool = False) -> None:
        self.me = "shop-2"
        self.in_service = False
        self.hands_off_until_s = 0.0
        self.config = CONFIG.model_copy(update={"maintenance": ("shop-2",)})
        record = LeaseRecord(holder, 1, 6.0, "", Mark("7001", None))
        self.lease = SimpleNamespace(view=LeaseView(record, 0.0), holding=lambda: holding)
        self.lease.release = self.release
        self.server = SimpleNamespace(control=self.control)
        self.standing = SimpleNamespace(reason="")
        self.said: list[str] = []

    async def control(self) -> None:
        """No data directory: it does not matter here."""

    async def release(self) -> None:
        """The table has said to wait."""

    def rest(self, control: object) -> None:
        """postgres does not run."""

    def say(self, state: str, reason: str) -> None:
        self.said.append(state)


@pytest.mark.parametrize(
    ("holder", "holding", "held"),
    [("shop-0", False, True), ("", False, True), ("shop-2", False, False), ("shop-0", True, False)],
)
async def test_postgres_stays_down_unless_the_lease_is_this_instances(
    monkeypatch: pytest.MonkeyPatch, holder: str, holding: bool, held: bool
) -> None:
    asked: list[Any] = []

    def decide(facts: StartFacts) -> Decision:
        asked.append(facts)
        return Wait("the table was asked")

    async def facts(_: Stopped) -> Any:
        return SimpleNamespace(lease=None)

    monkeypatch.setattr(stopped, "decide_start", decide)
    monkeypatch.setattr(Stopped, "_facts", facts)
    shell = Shell(holder=holder, holding=holding)
    await Stopped(cast(Instance, shell)).cycle()
    assert (shell.said == ["maintenance"]) == held
    assert bool(asked) != held


def test_a_clone_has_the_pace_that_the_spec_says() -> None:
    assert options(CONFIG, None) == ""
    slow = CONFIG.model_copy(update={"clone_max_rate_bytes": 50 << 20})
    assert options(slow, None) == "--max-rate=51200"
    assert options(slow, Path("/wal/pg_wal-1")) == "--waldir=/wal/pg_wal-1 --max-rate=51200"


class Standby(Shell):
    """And those that the running half touches for a standby before it looks at the Lease."""

    def __init__(self, *, holding: bool) -> None:
        super().__init__(holder="shop-0", holding=holding)
        self.promotion = SimpleNamespace(under_way=False)
        self.server = SimpleNamespace(fence=SimpleNamespace(disarm=lambda: None))
        self.importing = self

    async def watch(self) -> None:
        """There is nothing to import."""

    async def hold(self, reason: str) -> None:
        """Keep postgres down."""
        self.said.append(reason)


@pytest.mark.parametrize("holding", [False, True])
async def test_a_running_standby_stops_when_it_is_held_unless_it_is_to_be_promoted(
    monkeypatch: pytest.MonkeyPatch, *, holding: bool
) -> None:
    async def promote(_: Running, now_s: float) -> float:
        return now_s

    monkeypatch.setattr(Running, "_promote_when_due", promote)
    shell = Standby(holding=holding)
    running = Running(
        cast(Instance, shell), cast(Handover, None), cast(Restart, None), cast(Metrics, None)
    )
    await running._standby(cast(Observation, None))
    assert bool(shell.said) != holding
