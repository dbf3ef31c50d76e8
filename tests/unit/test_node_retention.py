"""Slots as there are standbys, WAL that they hold back, and what a standby still finds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgcluster.api.config import ClusterConfig
from pgcluster.api.wal import Lsn
from pgcluster.node.retention import Slot, Stock, find, segment

GIB = 1 << 30
CONFIG = ClusterConfig(
    name="shop", namespace="prod", uid="u", instances=3, max_slot_wal_keep_size_bytes=4 * GIB
)
ONE, TWO = Slot("repmgr_slot_2", active=True), Slot("repmgr_slot_3", active=True)


def test_slots_of_standbys_that_stream_are_fine() -> None:
    found = find([ONE, TWO, Slot("somebodys", active=False)], CONFIG, me="shop-0")
    assert (found.stale, found.invalid, found.lost, found.retained) == ((), (), (), {})


@pytest.mark.parametrize("name", ["repmgr_slot_1", "repmgr_slot_4"])
def test_slots_of_nobody_and_of_the_primary_itself_are_stale(name: str) -> None:
    assert find([ONE, Slot(name, active=False)], CONFIG, me="shop-0").stale == (name,)
    assert find([ONE, Slot(name, active=True)], CONFIG, me="shop-0").stale == ()


def test_a_standbys_invalidated_slot_is_renewed_and_told_until_it_streams_again() -> None:
    away = Slot("repmgr_slot_3", active=False, status="lost", retained_bytes=None)
    first = find([ONE, away], CONFIG, me="shop-0")
    assert (first.invalid, first.lost) == (("repmgr_slot_3",), ("shop-2",))
    renewed = Slot("repmgr_slot_3", active=False, status="", retained_bytes=None)
    second = find([ONE, renewed], CONFIG, me="shop-0")
    assert (second.invalid, second.lost) == ((), ("shop-2",))
    trying = Slot("repmgr_slot_3", active=True, status="", retained_bytes=None)
    assert find([ONE, trying], CONFIG, me="shop-0").lost == ("shop-2",), "it fails at once"
    cloned = Slot("repmgr_slot_3", active=True, status="", retained_bytes=None, streams=True)
    assert find([ONE, cloned], CONFIG, me="shop-0").lost == ()
    merely_away = Slot("repmgr_slot_3", active=False, status="extended", retained_bytes=GIB)
    assert find([ONE, merely_away], CONFIG, me="shop-0").lost == ()


@pytest.mark.parametrize(
    ("limit", "retained", "told"),
    [
        (4 * GIB, 2 * GIB - 1, {}),
        (4 * GIB, 3 * GIB, {"repmgr_slot_3": 2 * GIB}),
        (None, 15 * GIB, {}),
        (None, 40 * GIB, {"repmgr_slot_3": 32 * GIB}),
        (4 * GIB, None, {}),
    ],
)
def test_a_slot_that_holds_back_much_is_told(
    limit: int | None, retained: int | None, told: dict[str, int]
) -> None:
    config = CONFIG.model_copy(update={"max_slot_wal_keep_size_bytes": limit})
    slot = Slot("repmgr_slot_3", active=False, retained_bytes=retained)
    assert find([ONE, slot], config, me="shop-0").retained == told


def test_a_strangers_slot_that_holds_back_much_is_told_too() -> None:
    logical = Slot("debezium", active=False, retained_bytes=4 * GIB)
    assert find([logical], CONFIG, me="shop-0").retained == {"debezium": 4 * GIB}


def test_what_a_standby_needs_is_there_or_gone() -> None:
    stock = Stock("0000000000000005", 16 << 20)
    assert stock.lacks(Lsn.parse("0/4FFFFFF"))
    assert not stock.lacks(Lsn.parse("0/5000000"))
    assert not Stock("00000001000000FF", 16 << 20).lacks(Lsn.parse("2/0"))


@given(st.integers(0, (1 << 64) - 1), st.sampled_from([1 << 20, 1 << 24, 1 << 30]))
def test_names_of_wal_files_sort_as_their_positions_do(value: int, size: int) -> None:
    name = segment(Lsn(value), size)
    assert len(name) == 16
    assert int(name[:8], 16) * ((1 << 32) // size) + int(name[8:], 16) == value // size
