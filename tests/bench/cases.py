"""The cases: what is done to the primary, and what ends it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pgcluster.api import names
from tests.e2e import nodes, processes
from tests.e2e.waiting import eventually
from tests.e2e.world import World

Heal = Callable[[], None]

_HANDED_OVER_WITHIN_S = 60.0


def _nothing() -> None:
    """The fault is over by itself."""


def _kill_postmaster(world: World, primary: str) -> Heal:
    _postgres(world, primary).signal("KILL", processes.POSTMASTER)
    return _nothing


def _kill_container(world: World, primary: str) -> Heal:
    _postgres(world, primary).signal("KILL")
    return _nothing


def _delete_by_force(world: World, primary: str) -> Heal:
    world.cluster.delete_pod(primary, force=True)
    return _nothing


def _delete(world: World, primary: str) -> Heal:
    world.cluster.delete_pod(primary)
    return _wait_for_another(world, primary)


def _switch_over(world: World, primary: str) -> Heal:
    target = next(pod for pod in world.cluster.instances() if pod != primary)
    request = f"{names.GROUP}/switchover={target}:b{time.time_ns()}"
    world.cluster.kubectl.run("annotate", "pgcluster", world.cluster.name, request, "--overwrite")
    return _wait_for_another(world, primary)


def _wait_for_another(world: World, primary: str) -> Heal:
    """What is asked for in order begins a while later; it is over when another is the primary."""

    def other() -> bool:
        return world.cluster.holder() not in ("", primary)

    eventually(other, within=_HANDED_OVER_WITHIN_S, what="another instance is the primary")
    return _nothing


def _switch_node_off(world: World, primary: str) -> Heal:
    node = _postgres(world, primary).node
    nodes.power_off(node)
    return lambda: nodes.power_on(node)


def _cut_node_off(world: World, primary: str) -> Heal:
    node = _postgres(world, primary).node
    nodes.cut(node)
    return lambda: nodes.heal(node)


def _postgres(world: World, pod: str) -> processes.Container:
    found = world.cluster.kubectl.json("get", "pod", pod)
    return processes.containers(found)["postgres"]


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of fault of the primary."""

    name: str
    title: str
    on_crash: str
    hurt: Callable[[World, str], Heal]


CASES = {
    case.name: case
    for case in (
        Case(
            "postmaster-crash-restart",
            "postmaster killed (`kill -9`), `onCrash: restart`",
            "restart",
            _kill_postmaster,
        ),
        Case(
            "postmaster-crash-failover",
            "postmaster killed, `onCrash: failover`",
            "failover",
            _kill_postmaster,
        ),
        Case("container-kill", "first process of the container killed", "restart", _kill_container),
        Case("pod-delete-force", "pod deleted by force", "restart", _delete_by_force),
        Case("pod-delete", "pod deleted in order", "restart", _delete),
        Case("switchover", "switchover by annotation", "restart", _switch_over),
        Case("node-off", "node switched off", "restart", _switch_node_off),
        Case("node-cut", "node cut off", "restart", _cut_node_off),
    )
}
