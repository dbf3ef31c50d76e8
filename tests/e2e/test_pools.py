"""Changes of the pools that no client notices: settings, a rollout, databases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pgcluster.api import names
from pgcluster.render.pgbouncer import content_hash
from tests.e2e.cluster import Cluster, describe, manifest
from tests.e2e.kubectl import Kubectl
from tests.e2e.observing import Client
from tests.e2e.report import Report
from tests.e2e.waiting import eventually

# Longer than the writers use a connection, so that none is left to be closed.
DRAIN = "8s"
LIFETIME_S = 2.0


def spec(**pools: Any) -> dict[str, Any]:
    """A lone instance behind two poolers: it is they that change here."""
    return {
        "instances": 1,
        "pgbouncer": {
            "instances": 2,
            "drainTimeout": DRAIN,
            "resources": {"requests": {"cpu": "10m"}},
            **pools,
        },
    }


@pytest.fixture(scope="module")
def pooled(own_namespace: Kubectl) -> Cluster:
    """A cluster whose pools are changed."""
    cluster = Cluster(own_namespace, "pooled")
    cluster.apply(manifest("pooled", **spec()))
    return cluster


@pytest.fixture(scope="module")
def writers(pooled: Cluster, operator_image: str) -> Iterator[Client]:
    """Writers that replace each connection after some seconds, as an application's pool does."""
    client = Client(pooled, operator_image, lifetime_s=LIFETIME_S)
    yield client
    client.assert_nothing_lost()
    client.stop()


def unharmed(writers: Client, mark: str, name: str, report: Report) -> None:
    """Nobody got an error since the mark."""
    writers.writes_again(mark, within=30)
    seen = writers.stats(mark)
    report.measured(f"{name}: errors of 8 writers", seen["errors"])
    report.measured(
        f"{name}: longest gap of one writer", max(seen["longest_gap_per_writer_s"]), "s"
    )
    assert seen["errors"] == 0, seen["errors_by_text"]


def change(pooled: Cluster, **changes: Any) -> None:
    """Apply it with something changed."""
    pooled.kubectl.apply(manifest(pooled.name, **{**spec(), **changes}))


def all_have(pooled: Cluster, key: str, value: str) -> None:
    """Wait until the rendered settings have a value, and every pooler reports just those."""

    def there() -> bool:
        name = names.config_map_pgbouncer(pooled.name)
        ini = pooled.kubectl.json("get", "configmap", name)["data"][names.PGBOUNCER_TLS_INI_KEY]
        assert f"\n{key} = {value}\n" in ini, ini
        status = pooled.status()
        hashes = {row.get("settingsHash") for row in status["poolers"]}
        assert hashes == {content_hash(ini)}, describe(status)
        return True

    eventually(there, within=60, what=f"all poolers have {key} = {value}")


def test_settings_reach_every_pooler_and_no_client_notices(
    pooled: Cluster, writers: Client, report: Report
) -> None:
    before, mark = pooled.poolers(), writers.mark()
    change(pooled, **spec(parameters={"default_pool_size": "30"}))
    all_have(pooled, "default_pool_size", "30")
    assert pooled.poolers() == before
    unharmed(writers, mark, "pool settings changed", report)


def test_settings_that_pgbouncer_does_not_take_stop_at_the_first_pooler(
    pooled: Cluster, writers: Client, report: Report
) -> None:
    mark = writers.mark()
    first, second = sorted(pooled.poolers())
    change(pooled, **spec(parameters={"default_pool_size": "lots"}))
    pooled.condition_says(f"PoolSettingsRefused.*{first} .*default_pool_size")

    def told() -> bool:
        rows = {row["pod"]: row for row in pooled.status()["poolers"]}
        assert f"{first} did not take" in rows[second].get("reason", ""), rows
        assert all(row["ready"] for row in rows.values()), rows
        return True

    eventually(told, within=30, what=f"{second} says that it waits")
    change(pooled)
    all_have(pooled, "default_pool_size", "25")
    unharmed(writers, mark, "pool settings refused", report)


def test_a_rollout_of_the_poolers_costs_no_client_a_transaction(
    pooled: Cluster, writers: Client, report: Report
) -> None:
    before, mark = set(pooled.poolers()), writers.mark()
    change(pooled, **spec(resources={"requests": {"cpu": "20m"}}))

    def replaced() -> bool:
        present = {pod["metadata"]["name"] for pod in pooled.pods(names.COMPONENT_PGBOUNCER)}
        assert not present & before, present
        return True

    eventually(replaced, within=150, what="every pooler was replaced, and the old ones are gone")
    pooled.wait_ready()
    unharmed(writers, mark, "poolers rolled", report)


def test_a_database_comes_and_goes(pooled: Cluster, writers: Client, report: Report) -> None:
    mark = writers.mark()

    def entries(*, wanted: bool) -> None:
        def right() -> bool:
            name = names.config_map_pgbouncer(pooled.name)
            section = pooled.kubectl.json("get", "configmap", name)["data"][names.DATABASES_KEY]
            assert ("\nmore = " in section) is wanted, section
            for row in pooled.status()["poolers"]:
                assert row["appliedHash"] == content_hash(section), row
            return True

        eventually(right, within=150, what=f"the poolers have database more: {wanted}")

    app = {"name": "app", "owner": "app"}
    change(pooled, databases=[app, {"name": "more", "owner": "app"}])
    entries(wanted=True)
    change(pooled, databases=[app])
    entries(wanted=False)
    unharmed(writers, mark, "database added and removed", report)
