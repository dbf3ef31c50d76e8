"""A23 and A32: the primary's node is cut off from everything, with clients on it."""

from __future__ import annotations

from tests.e2e import nodes
from tests.e2e.observing import Client, Reader
from tests.e2e.ordeal import Ordeals
from tests.e2e.report import Report
from tests.e2e.waiting import pause


def cut_the_primary_off(
    ordeals: Ordeals, reader: Reader, image: str, report: Report, *, lasts_s: float, may_lose: bool
) -> None:
    """The client on the lost node writes straight to its old primary, for as long as that does."""
    shop = ordeals.cluster
    name = f"{shop.name}: primary's node cut off"
    ordeal = ordeals.begin(name)
    old = ordeal.primary
    node, address = shop.node_of(old), shop.address_of(old)
    inside = Client(shop, image, host=address, node=node, writers=2)
    reads = reader.mark()
    cut_at = str(ordeals.client.ask("/mark?name=cut")["at"])
    with nodes.cut_off(node):
        ordeal.writes_again()
        told_s = shop.condition_says(f"InstancesNotReady.*{old}", within=60)
        report.measured(f"{name}: status, after the writes", told_s, "s")
        pause(lasts_s - ordeals.client.stats("cut")["seconds"])
        assert shop.holder() != old
    outcome = ordeal.ended(may_lose=may_lose)
    assert outcome.after != old
    assert outcome.gap_s < 25, outcome.counted
    # All nodes have the machine's clock, so their times can be compared.
    last = str(inside.stats()["last_acknowledged"])[11:23]
    first = ordeals.watcher.first_write(ordeal.seen, outcome.after)
    report.measured(
        f"{name}: cut, its last write, the first write elsewhere", [cut_at, last, first]
    )
    assert last < first, f"{old} acknowledged at {last}, {outcome.after} at {first}"
    inside.stop()
    seen = reader.stats(reads)
    report.measured(f"{name}: longest gap of reads", seen["longest_gap_s"], "s")
    assert f"{address} primary" not in seen["servers"], seen
    assert seen["oldest_s"] < 30, seen
