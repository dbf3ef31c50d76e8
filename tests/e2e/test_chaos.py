"""A short sequence of `make chaos`: what must be true after faults that nobody chose."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.plan import plan
from tests.chaos.sequence import Chaos
from tests.chaos.sequence import Report as ChaosReport
from tests.e2e.cluster import Cluster
from tests.e2e.observing import Client, Watcher
from tests.e2e.report import BUILD, Report
from tests.e2e.world import World

pytestmark = pytest.mark.disturbs

# One that has an overlap, and faults of primary, standby and pooler.
SEED = 7
FAULTS = 5


def test_five_faults_of_a_seed_break_nothing(
    shop: Cluster, client: Client, watcher: Watcher, report: Report
) -> None:
    folder: Path = BUILD / "chaos"
    kept = ChaosReport(folder / "report.json", {"seed": SEED})
    world = World(shop, client, watcher)
    Chaos(world, kept).run(plan(SEED, FAULTS, ["process", "pod", "pooler"]))
    for outcome in kept.outcomes:
        report.measured(f"chaos, {outcome.label}: longest gap", outcome.gap_s, "s")
