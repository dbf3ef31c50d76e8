"""The running half of the agent's loop, where its looks and a promotion overlap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pgcluster.api.wal import Lsn, WalPoint
from pgcluster.node.fence import Fence
from pgcluster.node.promotion import Promotion
from pgcluster.node.running import Running
from pgcluster.node.standing import Standing
from pgcluster.postgres.local import Observation

STANDBY = Observation(True, "7001", WalPoint(1, Lsn(5)), True, None, 0, (), "17.0")


class Instance:
    """A standby; `meanwhile` happens while it looks for its pools."""

    def __init__(self, fence: Fence, meanwhile: Callable[[Instance], None]) -> None:
        self.promotion = SimpleNamespace(under_way=False)
        self.server = SimpleNamespace(fence=fence, local=SimpleNamespace(observe=self._observe))
        self.standing = SimpleNamespace(see=lambda _: None)
        self.synchronous = SimpleNamespace(loaded=lambda _: None)
        view = SimpleNamespace(
            record=SimpleNamespace(holder="shop-0", quorums=(), successor=None),
            free=lambda _: False,
        )
        view.expires_at_s = lambda: 0.0
        self.lease = SimpleNamespace(holding=lambda: False, failsafe_since_s=None, view=view)
        self.parameters = SimpleNamespace(see=self._nothing)
        self.importing = SimpleNamespace(watch=self._nothing)
        self.me = "shop-0"
        self.config = SimpleNamespace(held=lambda _: None)
        self.synchronous.follow = lambda *_: False
        self._meanwhile = meanwhile

    async def _nothing(self, *_: Any) -> None:
        pass

    async def _observe(self) -> Observation:
        return STANDBY

    async def look_around(self, *, primary: bool) -> None:
        assert not primary
        self._meanwhile(self)


def nothing(_: Instance) -> None:
    pass


def promoted(instance: Instance) -> None:
    instance.server.fence.arm(1e9)


def ended(instance: Instance) -> None:
    instance.promotion.under_way = False


@pytest.mark.parametrize(
    ("before", "meanwhile", "disarmed"),
    [
        pytest.param(False, nothing, True, id="nothing has happened"),
        pytest.param(True, nothing, False, id="under way"),
        pytest.param(True, ended, False, id="ended since the look"),
        pytest.param(False, promoted, False, id="began and ended since the look"),
    ],
)
async def test_a_look_from_before_a_promotion_does_not_disarm_its_fence(
    before: bool, meanwhile: Callable[[Instance], None], disarmed: bool, tmp_path: Any
) -> None:
    fence = Fence(lambda: 0.0, tmp_path, tmp_path / "lease")
    fence._process = SimpleNamespace(stdin=None, returncode=None)  # type: ignore[assignment] # a guard that runs
    fence.arm(1e9)
    instance = Instance(fence, meanwhile)
    instance.promotion.under_way = before
    handover = SimpleNamespace(obey=lambda: None)
    metrics = SimpleNamespace(observe=lambda _: None)
    restart = SimpleNamespace(over=instance._nothing)
    await Running(instance, handover, restart, metrics).cycle()  # type: ignore[arg-type] # as much of each as is used
    assert (fence._until_s is None) == disarmed


def test_each_timeline_of_an_epoch_is_news() -> None:
    """One that gets its Lease back after a lost promotion elsewhere begins another one."""
    unused: Any = None
    lease: Any = SimpleNamespace(epoch=3)
    promotion = Promotion(
        me="shop-0",
        config=unused,
        lease=lease,
        members=unused,
        server=unused,
        standing=Standing(),
        leaving=lambda: False,
    )
    for timeline, news in ((1, True), (1, False), (3, True), (3, False)):
        observed = replace(STANDBY, in_recovery=False, point=WalPoint(timeline, Lsn(5)))
        assert promotion.note(observed) == news
