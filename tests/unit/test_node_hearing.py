"""Who is silent, from what a server shows of its clients."""

from __future__ import annotations

from pgcluster.api import names
from pgcluster.api.reports import PoolerReport
from pgcluster.node.hearing import ATTACH_WITHIN_S, Attachment, Backend, Hearing, Pooler
from pgcluster.node.poolers import registered

A, B = Pooler("shop-pgbouncer-5d8f-aa", "10.0.0.1"), Pooler("shop-pgbouncer-5d8f-bb", "10.0.0.2")


class World:
    """Two poolers whose agents ask once a second, and the clock of the one that listens."""

    def __init__(self, *, primary: bool = True) -> None:
        self.hearing = Hearing()
        self.now_s = 100.0
        self.asked = 0
        self.primary = primary
        self.poolers: tuple[Pooler, ...] = (A, B)
        self.speaking = {A, B}
        self.last: dict[Pooler, Backend] = {}
        self.more: list[Backend] = []

    def look(self, *, after_s: float = 1.0) -> tuple[str, ...]:
        self.now_s += after_s
        self.asked += 1
        for pooler in self.speaking:
            number = 1 if pooler is A else 2
            application = names.pooler_application(pooler.pod)
            self.last[pooler] = Backend(number, application, pooler.address, f"at {self.asked}")
        backends = [*self.last.values(), *self.more]
        return self.hearing.look(self.now_s, self.poolers, backends, primary=self.primary)

    def after(self, seconds: int) -> tuple[str, ...]:
        for _ in range(seconds):
            silent = self.look()
        return silent


def test_a_pooler_is_silent_when_it_has_not_asked_for_four_seconds_and_heard_when_it_asks() -> None:
    world = World()
    assert world.after(10) == ()
    world.speaking.remove(B)
    assert world.after(3) == ()
    assert world.after(1) == (B.pod,)
    world.speaking.add(B)
    assert world.look() == ()


def test_connections_that_end_are_no_sign_of_life_but_new_ones_are() -> None:
    world = World()
    world.more = [Backend(pid, "", B.address, "long ago") for pid in range(10, 15)]
    world.after(2)
    world.speaking.remove(B)
    for _ in range(4):
        world.more.pop()
        silent = world.look()
    assert silent == (B.pod,)
    world.more.append(Backend(99, "", B.address, "long ago"))
    assert world.look() == ()


def test_what_pgbouncer_does_for_its_clients_is_heard_while_its_agent_restarts() -> None:
    world = World()
    world.speaking.remove(B)
    for number in range(10):
        world.more = [Backend(50, "app", B.address, f"query {number}")]
        assert world.look() == ()


def test_one_behind_a_network_that_hides_its_address_is_known_by_its_name() -> None:
    world = World()
    world.poolers = (A, Pooler(B.pod, "192.168.7.7"))
    assert world.after(10) == ()


def test_one_that_is_refused_is_there_all_the_same() -> None:
    world = World()
    world.speaking.remove(B)
    world.poolers = (A, Pooler(B.pod, B.address, mute=True))
    assert world.after(10) == ()


def test_one_that_has_just_registered_gets_its_time() -> None:
    world = World()
    world.speaking.remove(B)
    world.poolers = (A,)
    world.after(10)
    world.poolers = (A, B)
    assert world.after(4) == ()
    assert world.after(1) == (B.pod,)
    world.poolers = (A,)
    assert world.look() == ()


def test_a_pause_of_the_listener_proves_nothing() -> None:
    world = World()
    world.speaking.clear()
    assert world.after(2) == ()
    assert world.look(after_s=60.0) == ()
    assert world.after(2) == (A.pod, B.pod)


def test_a_listener_that_is_slow_notices_later() -> None:
    world = World()
    world.look()
    world.speaking.remove(B)
    assert world.look(after_s=3.0) == ()
    assert world.look(after_s=3.0) == ()
    assert world.look(after_s=3.0) == (B.pod,)


def test_a_new_primary_knows_at_once_who_went_down_with_its_predecessor() -> None:
    world = World(primary=False)
    world.after(5)
    world.speaking.remove(B)
    world.after(7)
    world.primary = True
    assert world.look() == (B.pod,)


def test_a_new_primary_that_heard_nobody_before_waits_to_be_found() -> None:
    world = World(primary=False)
    world.speaking.clear()
    world.after(60)
    world.primary = True
    assert world.after(4) == ()
    world.speaking.add(A)
    assert world.look() == (B.pod,)


def test_a_pooler_of_a_version_without_an_address_is_not_judged() -> None:
    told = [PoolerReport(pod="old"), PoolerReport(pod="new", address="10.0.0.9", mute=True)]
    data = {report.pod: report.model_dump_json() for report in told}
    assert registered({"data": {**data, "broken": "{"}}) == (Pooler("new", "10.0.0.9", True),)
    assert registered({}) == ()


def test_the_names_of_connections_tell_poolers_apart_though_their_clusters_name_is_long() -> None:
    first = names.pooler_application(f"{'x' * 40}-pgbouncer-7c5ddbdf54-abcde")
    assert first == "pgcluster-pooler 7c5ddbdf54-abcde"


def test_a_new_primary_waits_for_its_standbys_before_it_says_who_is_missing() -> None:
    attachment = Attachment()
    assert attachment.look(100.0, ()) is None
    assert attachment.look(100.0 + ATTACH_WITHIN_S - 0.1, ["shop-1"]) is None
    assert attachment.look(100.0 + ATTACH_WITHIN_S, ["shop-2", "shop-1"]) == ("shop-1", "shop-2")
    assert attachment.look(120.0, ()) == ()
    attachment.forget()
    assert attachment.look(130.0, ()) is None
