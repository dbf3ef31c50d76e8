"""When a pooler that leaves tells its pgbouncer to end, and how it hears that it is to leave."""

from __future__ import annotations

import threading
from pathlib import Path

from pgcluster.pooler.drain import LEAVE_S, PAUSED_S, Door, end


def ends(age_s: float, *, clients: int = 1, paused: bool = False, timeout_s: float = 60) -> str:
    return end(
        since_s=100.0, timeout_s=timeout_s, clients=clients, paused=paused, now_s=100.0 + age_s
    )


def test_nobody_is_refused_before_the_nodes_know_that_it_left() -> None:
    assert not ends(LEAVE_S - 0.1, clients=0)
    assert not ends(LEAVE_S - 0.1, timeout_s=0)
    assert ends(LEAVE_S, clients=0) == "its last client has left"
    assert ends(LEAVE_S, timeout_s=0) == "1 clients are left after 3 s"


def test_clients_have_their_time() -> None:
    assert not ends(59.9)
    assert ends(60)


def test_clients_that_wait_for_a_primary_are_not_closed_at_once() -> None:
    assert not ends(60, paused=True)
    assert ends(60 + PAUSED_S, paused=True)
    assert ends(LEAVE_S, clients=0, paused=True)


def test_the_hook_blocks_until_it_is_let_go(tmp_path: Path) -> None:
    door = Door(tmp_path / "leave")
    assert not door.asked(), "there is no pipe yet"
    door.install()
    door.install()
    assert not door.asked()
    ended = threading.Event()

    def hook() -> None:
        (tmp_path / "leave").read_bytes()
        ended.set()

    threading.Thread(target=hook, daemon=True).start()
    for _ in range(500):
        if door.asked():
            break
        ended.wait(0.01)
    assert door.asked()
    assert not ended.is_set()
    door.let_go()
    assert ended.wait(2)
    assert not door.asked()
    door.let_go()
    # pgbouncer was started again, and is ended again.
    assert (tmp_path / "leave").is_fifo()
