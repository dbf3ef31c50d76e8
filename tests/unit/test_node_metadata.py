"""What the primary changes in repmgr's table, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig
from pgcluster.node.metadata import Correct, NodeRow, Remove, Walsender, plan
from pgcluster.render.repmgr import conninfo

CONFIG = ClusterConfig(name="shop", namespace="prod", uid="u", instances=3)


def row(ordinal: int, type_: str = "standby", upstream: int | None = 1, **other: Any) -> NodeRow:
    pod = f"shop-{ordinal}"
    known = NodeRow(
        node_id=ordinal + 1,
        name=pod,
        type=type_,
        active=True,
        conninfo=conninfo(names.pod_host(pod, "shop", "prod"), CONFIG),
        upstream=upstream,
    )
    return replace(known, **other)


PRIMARY = row(0, "primary", None)


def sends(ordinal: int, state: str = "streaming") -> Walsender:
    return Walsender(f"repmgr_slot_{ordinal + 1}", f"shop-{ordinal}", state)


def steps(
    *rows: NodeRow, to: tuple[Walsender, ...] = (), config: ClusterConfig = CONFIG
) -> tuple[Remove | Correct, ...]:
    return plan([PRIMARY, *rows], to, config, me="shop-0")


def test_what_is_right_is_left_alone() -> None:
    assert steps(row(1), row(2), to=(sends(1), sends(2))) == ()


def test_rows_of_instances_that_are_no_more_are_removed() -> None:
    gone = [row(3), row(4, "primary", None, active=False), row(0, node_id=1000, name="stranger")]
    assert steps(row(1), *gone, to=(sends(1),)) == (Remove(4), Remove(5), Remove(1000))


def test_an_instance_on_its_way_out_keeps_its_row_while_it_is_connected() -> None:
    assert steps(row(3), to=(sends(3),)) == ()


def test_a_primary_that_is_to_be_scaled_away_keeps_its_own_row() -> None:
    one = CONFIG.model_copy(update={"instances": 1})
    rows = [row(0, upstream=3), row(1, upstream=3), row(2, "primary", None)]
    assert plan(rows, (sends(0), sends(1)), one, me="shop-2") == ()
    assert plan(rows, (sends(0),), one, me="shop-2") == (Remove(2),)


def test_an_inactive_row_of_a_streaming_standby_becomes_active() -> None:
    assert steps(row(1, active=False), to=(sends(1),)) == (Correct(row(1), ("active",)),)


@pytest.mark.parametrize("state", ["startup", "catchup", "backup"])
def test_one_that_does_not_stream_yet_is_not_made_active(state: str) -> None:
    assert steps(row(1, active=False), to=(sends(1, state),)) == ()


@pytest.mark.parametrize(
    ("wrong", "columns"),
    [
        ({"conninfo": "host=elsewhere"}, ("conninfo",)),
        ({"upstream": 3}, ("upstream",)),
        ({"upstream": None, "type_": "primary"}, ("type", "upstream")),
        ({"location": "berlin"}, ("location",)),
        ({"name": "somebody"}, ("name",)),
    ],
)
def test_a_wrong_row_of_a_streaming_standby_is_corrected(
    wrong: dict[str, Any], columns: tuple[str, ...]
) -> None:
    assert steps(row(1, **wrong), to=(sends(1),)) == (Correct(row(1), columns),)


def test_a_former_primary_that_is_down_is_inactive_and_stays_a_primary() -> None:
    left = row(1, "primary", None, active=False)
    assert steps(left) == ()
    assert steps(row(1, "primary", None)) == (Correct(left, ("active",)),)


def test_a_standby_that_is_away_keeps_its_place_but_not_an_upstream_that_is_no_more() -> None:
    assert steps(row(1, upstream=3, active=False)) == ()
    assert steps(row(1, upstream=5)) == (Correct(row(1), ("upstream",)),)


def test_a_walsender_without_a_slot_is_known_by_its_name() -> None:
    other = (Walsender("", "shop-1", "streaming"), Walsender("", "pg_receivewal", "streaming"))
    assert steps(row(1, active=False), to=other) == (Correct(row(1), ("active",)),)


def test_the_primarys_own_row_is_its_registrations() -> None:
    assert plan([row(0, active=False)], (), CONFIG, me="shop-0") == ()
    moved = row(0, "primary", None, conninfo="host=elsewhere")
    assert plan([moved], (), CONFIG, me="shop-0") == (Correct(PRIMARY, ("conninfo",)),)
