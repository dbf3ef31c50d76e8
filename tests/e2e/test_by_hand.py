"""A person types repmgr's commands, as before there was an operator (S9, S11)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pgcluster.api import names
from tests.e2e.cluster import Cluster
from tests.e2e.ordeal import Ordeals
from tests.e2e.waiting import eventually

pytestmark = pytest.mark.disturbs


def test_a_promotion_that_is_typed_while_the_primary_serves_is_refused(ordeals: Ordeals) -> None:
    shop = ordeals.cluster
    ordeal = ordeals.begin("promotion typed while the primary serves")
    standby = next(pod for pod in shop.instances() if pod != ordeal.primary)
    # repmgr's own look at the primary, and what asks nobody but the gate.
    for command in (
        ["repmgr", "standby", "promote"],
        ["repmgr", "standby", "promote", "--force"],
        ["pgcluster-event", "promote"],
    ):
        result = shop.exec(standby, *command, check=False)
        said = result.stdout + result.stderr
        assert result.returncode != 0, f"{command}: {said}"
        assert ordeal.primary in said, f"{command} does not tell who is the primary: {said}"
    outcome = ordeal.ended()
    assert outcome.after == outcome.before
    assert outcome.counted["errors"] == 0, outcome.counted


@pytest.fixture
def by_hand(shop: Cluster) -> Iterator[None]:
    """Nobody takes over by himself."""
    shop.change({"failover": {"automatic": False}})
    yield
    shop.change({"failover": {"automatic": None}})


@pytest.mark.usefixtures("by_hand")
def test_stop_promote_and_rejoin_may_be_typed(ordeals: Ordeals) -> None:
    shop = ordeals.cluster
    ordeal = ordeals.begin("stopped, promoted and rejoined by hand")
    old = ordeal.primary
    new, sibling = (pod for pod in shop.instances() if pod != old)
    _typed(shop, old, "node", "service", "--action=stop", "--checkpoint")
    shop.condition_says("NoPrimary|FailingOver", within=30)
    assert not shop.serves_as_primary(new)
    _typed(shop, new, "standby", "promote")
    assert shop.serves_as_primary(new)
    ordeal.writes_again()
    eventually(lambda: _upstream(shop, sibling) == new, within=60, what=f"{sibling} follows {new}")
    host = names.pod_host(new, shop.name, shop.kubectl.namespace)
    conninfo = f"host={host} user={names.ROLE_REPMGR} dbname={names.DB_REPMGR}"
    _typed(shop, old, "node", "rejoin", "--force-rewind", "-d", conninfo)
    outcome = ordeal.ended()
    assert outcome.after == new
    assert _upstream(shop, old) == new


def _typed(shop: Cluster, pod: str, *command: str) -> None:
    result = shop.repmgr(pod, *command)
    said = f"repmgr {' '.join(command)} in {pod}: {result.stdout}{result.stderr}"
    assert result.returncode == 0, said


def _upstream(shop: Cluster, pod: str) -> str:
    """The instance that a standby receives WAL from right now."""
    query = "SELECT sender_host FROM pg_stat_wal_receiver WHERE status = 'streaming'"
    return shop.value(pod, query).partition(".")[0]
