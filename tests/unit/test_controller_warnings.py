"""What the reports say becomes a condition that names the instance and what to do."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pgcluster.controller import warnings
from tests.unit.test_controller_status import READY, WELL, condition, instance, observed, told

GIB = 1 << 30


def primary(**report: Any) -> Any:
    return instance(0, "primary", **report)


def standby(**report: Any) -> Any:
    return instance(1, **report)


@pytest.mark.parametrize(
    ("pods", "reason", "words"),
    [
        (
            (primary(), standby(disk_full=True, disk_used_percent=95)),
            "DiskFull",
            ["shop-1", "95 %", "spec.storage.size"],
        ),
        (
            (primary(disk_used_percent=85), standby(disk_used_percent=80)),
            "DiskNearlyFull",
            ["shop-0", "85 %", "spec.storage.size"],
        ),
        (
            (primary(lost_standbys=("shop-2",)), standby()),
            "StandbyLostWal",
            ["shop-2", "cloned anew", "maxSlotWalKeepSize"],
        ),
        (
            (primary(), standby(lost_wal="the WAL after 0/5 is gone")),
            "StandbyLostWal",
            ["shop-1"],
        ),
        (
            (primary(retained_wal_bytes={"repmgr_slot_3": 2 * GIB}), standby()),
            "WalRetained",
            ["repmgr_slot_3", "shop-2", "2 GiB", "shop-0"],
        ),
        (
            (primary(retained_wal_bytes={"debezium": GIB // 2}), standby()),
            "WalRetained",
            ["debezium", "512 MiB", "drop it"],
        ),
        (
            (primary(repmgrd_paused=True), standby(repmgrd_paused=True)),
            "RepmgrdPaused",
            ["shop-0, shop-1", "kubectl exec shop-0 -- repmgr service unpause"],
        ),
        ((primary(repmgrd=False), standby()), "RepmgrdDown", ["shop-0", "kubectl logs shop-0"]),
    ],
)
def test_each_trouble_has_its_condition(
    pods: tuple[Any, ...], reason: str, words: list[str]
) -> None:
    found = warnings.find(pods)
    assert [warning.reason for warning in found] == [reason]
    status = told(observed(*pods, status=READY))
    assert condition(status, "Degraded") == ("True", reason)
    message = next(c.message for c in status.conditions if c.type == "Degraded")
    assert [word for word in words if word not in message] == []
    assert condition(status, "Ready") == ("True", "AllReady")
    assert status.summary == "Degraded"


def test_all_is_well() -> None:
    assert warnings.find([primary(disk_used_percent=80), standby()]) == ()


def test_what_a_dead_agent_last_said_is_no_warning() -> None:
    left = standby(disk_full=True)
    gone = {**left.manifest, "status": {"containerStatuses": []}}
    assert warnings.find([primary(), dataclasses.replace(left, manifest=gone)]) == ()


def test_one_that_is_not_in_its_role_need_not_have_repmgrd() -> None:
    assert warnings.find([primary(), standby(ready=False, repmgrd=False)]) == ()


def test_a_primary_that_may_not_write_is_not_ready_and_only_the_world_helps() -> None:
    pods = (primary(disk_full=True, disk_used_percent=95), standby())
    status = told(observed(*pods, status=READY))
    assert condition(status, "Ready") == ("False", "DiskFull")
    assert condition(status, "Stalled") == ("True", "DiskFull")
    assert condition(status, "Degraded") == ("True", "DiskFull")
    assert condition(status, "Progressing")[0] == "False"
    assert (status.summary, status.primary) == ("DiskFull", "shop-0")


def test_a_primary_that_cannot_start_for_a_full_disk_is_told_by_that_name() -> None:
    down = instance(0, None, ready=False, state="starting", disk_full=True, disk_used_percent=100)
    status = told(observed(down, standby(ready=False), status=READY))
    assert condition(status, "Ready") == ("False", "DiskFull")
    assert "shop-0" in next(c.message for c in status.conditions if c.type == "Ready")
    assert status.summary == "DiskFull"


def test_a_lost_standby_explains_why_an_instance_is_missing() -> None:
    away = instance(1, None, ready=False, state="cloning", lost_wal="the WAL after 0/5 is gone")
    status = told(observed(primary(lost_standbys=("shop-1",)), away, status=READY))
    assert condition(status, "Degraded") == ("True", "StandbyLostWal")
    message = next(c.message for c in status.conditions if c.type == "Degraded")
    assert message.startswith("1 of 2 instances are ready")
    assert message.count("shop-1 was away for too long") == 1


def test_slower_troubles_do_not_hide_what_is_missing() -> None:
    pods = (primary(disk_used_percent=90), standby(ready=False))
    status = told(observed(*pods, status=READY))
    assert condition(status, "Degraded") == ("True", "InstancesNotReady")
    message = next(c.message for c in status.conditions if c.type == "Degraded")
    assert "90 % full" in message


def test_the_rows_show_it() -> None:
    row = told(observed(primary(disk_used_percent=40, repmgrd_paused=True), WELL[1])).members[0]
    assert (row.disk_used_percent, row.repmgrd_paused) == (40, True)


def test_commits_that_wait_for_fewer_standbys_than_they_should_are_told() -> None:
    found = warnings.find([primary(synchronous_missing=1, synchronous="")])
    assert [each.reason for each in found] == ["SynchronousStandbysMissing"]
    assert "no standby" in found[0].message
    found = warnings.find([primary(failsafe=True)])
    assert [each.reason for each in found] == ["Failsafe"]
