"""What an instance tells of itself when an election asks."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from pgcluster.api.config import ClusterConfig, TlsConfig
from pgcluster.api.errors import RetryError
from pgcluster.api.wal import Lsn, WalPoint
from pgcluster.node import instance as module
from pgcluster.node.instance import Instance
from pgcluster.node.standing import Standing
from pgcluster.postgres.control import ControlData
from pgcluster.postgres.local import Observation


def observation(lsn: int) -> Observation:
    point = WalPoint(1, Lsn(lsn))
    return Observation(True, "7001", point, True, None, 0, (), "17.0", received=True)


async def silence() -> Observation:
    await asyncio.sleep(3600)
    raise AssertionError


async def no_answer() -> Observation:
    raise RetryError("postgres does not answer")


async def more() -> Observation:
    return observation(9)


class Alone(Instance):
    """As much of an instance as tells what it has; it was last seen to have 5."""

    def __init__(self, *, running: bool, look: Any = no_answer) -> None:
        self.standing = Standing()
        self.standing.see(observation(5))
        self.server = SimpleNamespace(running=running, local=SimpleNamespace(observe=look))  # type: ignore[assignment] # as much of a server as is used
        self.leaving = lambda: False
        self.me = "shop-1"
        self.config = ClusterConfig(name="shop", namespace="test", uid="u", instances=3)
        self.must_rejoin = False


async def test_an_election_hears_what_is_there_now_and_not_what_was_seen_last() -> None:
    told = await Alone(running=True, look=more).candidate_now()
    assert told.point == WalPoint(1, Lsn(9))
    assert told.exact


@pytest.mark.parametrize("look", [no_answer, silence])
async def test_what_was_seen_before_is_the_least_that_there_is(
    look: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.01)
    told = await Alone(running=True, look=look).candidate_now()
    assert told.point == WalPoint(1, Lsn(5))
    assert not told.exact


async def test_a_postgres_that_has_just_ended_may_have_more_than_was_seen() -> None:
    instance = Alone(running=False)
    assert not (await instance.candidate_now()).exact
    end = WalPoint(1, Lsn(9))
    instance.standing.rest(ControlData("7001", "shut down", end, checksums=True, backup=False))
    told = await instance.candidate_now()
    assert told.point == end
    assert told.exact


@pytest.mark.parametrize(("demanded", "fulfilled"), [(170, None), (150, "r1"), (100, "r1")])
def test_a_restart_that_still_has_to_hold_more_has_not_fulfilled_its_order(
    demanded: int, fulfilled: str | None
) -> None:
    instance = Alone(running=False)
    instance.config = instance.config.model_copy(update={"parameters": {"max_connections": "150"}})
    instance.parameters = SimpleNamespace(floor={})  # type: ignore[assignment] # all that is used
    instance.write_configuration = lambda: False  # type: ignore[method-assign] # of no interest
    instance.restarted = "r1"
    point = WalPoint(1, Lsn(5))
    control = ControlData(
        "7001", "in archive recovery", point, True, demands={"max_connections": demanded}
    )
    instance._prepare(control, primary=False)
    assert instance.restarted == fulfilled
    assert instance.parameters.floor == {"max_connections": demanded}


@pytest.mark.parametrize(("mounted", "serves"), [(True, True), (False, False)])
async def test_a_pod_from_before_there_were_certificates_goes_on_without(
    mounted: bool, serves: bool
) -> None:
    async def taken(config: ClusterConfig) -> ClusterConfig:
        return config

    instance = Alone(running=True)
    instance.certificates = SimpleNamespace(mounted=mounted)  # type: ignore[assignment] # all that is used
    instance.parameters = SimpleNamespace(adopt=taken)  # type: ignore[assignment] # all that is used
    await instance.adopt(instance.config.model_copy(update={"tls": TlsConfig()}))
    assert (instance.config.tls is not None) is serves


@pytest.mark.parametrize("news", [True, False])
def test_renewed_certificates_take_a_reload_and_nothing_else(news: bool) -> None:
    did: list[str] = []
    instance = Alone(running=True)
    instance.config = instance.config.model_copy(update={"tls": TlsConfig()})
    instance.certificates = SimpleNamespace(refresh=lambda: news)  # type: ignore[assignment] # all that is used
    instance.reload = lambda: did.append("reload")  # type: ignore[method-assign] # of no interest
    instance.renew_certificates()
    assert did == ["reload"] * news
