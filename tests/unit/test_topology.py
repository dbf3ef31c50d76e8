"""The Lease as an observer sees it, and the election of last resort."""

from __future__ import annotations

import itertools

from pgcluster.api import names
from pgcluster.api.reports import InstanceReport
from pgcluster.api.wal import Lsn, WalPoint
from pgcluster.topology import quorum
from pgcluster.topology.election import Candidate, Elected, NoElection, Rules, elect
from pgcluster.topology.lease import LeaseRecord, LeaseView, Mark
from pgcluster.topology.pods import ended, reads, report_of
from pgcluster.topology.quorum import Quorum

MANIFEST = {
    "metadata": {
        "annotations": {
            names.ANNOTATION_SYSTEM_ID: "7001",
            names.ANNOTATION_TIMELINE: "4",
            names.ANNOTATION_WAL_POSITION: "1/A0",
        }
    },
    "spec": {
        "holderIdentity": "shop-2",
        "leaseTransitions": 9,
        "leaseDurationSeconds": 6,
        "renewTime": "2026-01-01T00:00:00.000000Z",
    },
}


def candidate(timeline: int, lsn: int, *, system: str = "7001", barred: bool = False) -> Candidate:
    return Candidate(system, WalPoint(timeline, Lsn(lsn)), barred)


def run(candidates: dict[str, Candidate], *, members: int = 3, mark: Mark | None = None) -> object:
    return elect(candidates, Rules(members, mark or Mark("7001", None), 100))


def test_a_lease_is_parsed_with_its_mark() -> None:
    record = LeaseRecord.parse(MANIFEST, default_duration_s=1)
    assert (record.holder, record.epoch, record.duration_s) == ("shop-2", 9, 6.0)
    assert record.mark == Mark("7001", WalPoint(4, Lsn.parse("1/A0")))


def test_an_empty_or_broken_lease_records_nothing() -> None:
    for recorded in ({}, {names.ANNOTATION_TIMELINE: "x", names.ANNOTATION_WAL_POSITION: "0/0"}):
        record = LeaseRecord.parse({"metadata": {"annotations": recorded}}, default_duration_s=5)
        assert record == LeaseRecord("", 0, 5.0, "", Mark(None, None))
    record = LeaseRecord.parse(
        {"metadata": {"annotations": {names.ANNOTATION_SYNCHRONOUS: "{"}}}, default_duration_s=5
    )
    assert record.quorums is None


def test_only_a_change_moves_the_observers_clock() -> None:
    record = LeaseRecord.parse(MANIFEST, default_duration_s=1)
    view = LeaseView(record, 100.0)
    assert view.next(record, 105.0) is view
    assert view.expired(106.1)
    assert not view.expired(106.0)
    renewed = LeaseRecord.parse(
        {**MANIFEST, "spec": {**MANIFEST["spec"], "renewTime": "later"}}, default_duration_s=1
    )
    assert not view.next(renewed, 106.0).expired(107.0)


def test_the_most_advanced_of_a_majority_wins() -> None:
    chosen = run({"shop-0": candidate(1, 900), "shop-2": candidate(2, 10)})
    assert isinstance(chosen, Elected)
    assert chosen.pod == "shop-2"


def test_among_equals_the_lowest_ordinal_wins_whoever_asks() -> None:
    everybody = {pod: candidate(1, 5) for pod in ("shop-10", "shop-2", "shop-1")}
    for order in itertools.permutations(everybody):
        chosen = run({pod: everybody[pod] for pod in order})
        assert isinstance(chosen, Elected)
        assert chosen.pod == "shop-1"


def test_among_equals_whoever_has_the_lease_by_name_comes_first() -> None:
    equal = {pod: candidate(1, 5) for pod in ("shop-0", "shop-1", "shop-2")}
    rules = Rules(3, Mark("7001", None), 100, holder="shop-2")
    chosen = elect(equal, rules)
    assert isinstance(chosen, Elected)
    assert chosen.pod == "shop-2"
    chosen = elect({**equal, "shop-1": candidate(1, 6)}, rules)
    assert isinstance(chosen, Elected)
    assert chosen.pod == "shop-1", "only among equals"


def test_a_minority_elects_nobody() -> None:
    assert isinstance(run({"shop-0": candidate(1, 1)}), NoElection)
    assert isinstance(run({"shop-0": candidate(1, 1)}, members=5), NoElection)
    for members in (1, 2):
        # Of two, one is never a majority: there the Lease and the mark decide alone.
        assert isinstance(run({"shop-0": candidate(1, 1)}, members=members), Elected)


def test_an_instance_that_is_still_reading_its_wal_is_waited_for_a_while() -> None:
    seen = {
        "shop-0": candidate(1, 5),
        "shop-1": candidate(1, 6),
        "shop-2": Candidate("7001", WalPoint(1, Lsn(1)), exact=False),
    }
    rules = Rules(3, Mark("7001", None), 100)
    assert isinstance(elect(seen, rules, patient=True), NoElection)
    chosen = elect(seen, rules)
    assert isinstance(chosen, Elected)
    assert chosen.pod == "shop-1"


def test_any_commit_quorum_meets_any_election_quorum() -> None:
    pods = [f"shop-{n}" for n in range(5)]
    for size in range(2, 6):
        members = tuple(pods[1:size])
        for standbys in range(1, len(members) + 1):
            rule = Quorum(standbys, members)
            for seen in range(len(members) + 1):
                for visible in itertools.combinations(members, seen):
                    met = all(
                        set(acknowledged) & set(visible)
                        for acknowledged in itertools.combinations(members, standbys)
                    )
                    assert (rule.unproven(visible) is None) == met


def test_what_a_primary_has_acknowledged_it_has_itself() -> None:
    rule = Quorum(1, ("shop-1", "shop-2"), "shop-0")
    assert rule.unproven(["shop-1"]) is not None
    assert rule.unproven(["shop-1", "shop-0"]) is None


def test_a_quorum_survives_postgres_and_the_lease() -> None:
    rule = quorum.wanted(2, primary="shop-1", instances=["shop-10", "shop-0", "shop-1", "shop-2"])
    assert rule.setting() == 'ANY 2 ("shop-0", "shop-2", "shop-10")'
    assert quorum.of_setting(rule.setting(), primary="shop-1") == rule
    assert quorum.parse(quorum.dump([rule, Quorum(0)])) == (rule, Quorum(0))
    assert quorum.parse("[{}]") is None
    for other in ("FIRST 1 (a)", ""):
        assert quorum.of_setting(other, primary="shop-1") == Quorum(0)
    assert quorum.wanted(1, primary="shop-0", instances=["shop-0"]).setting() == ""


def test_the_end_of_a_container_is_known_by_its_own_word() -> None:
    def seen(state: dict[str, object], last: str | None = None) -> dict[str, object]:
        status = {"state": state, "lastState": {"terminated": {"message": last}} if last else {}}
        return {"metadata": {}, "status": {"containerStatuses": [status]}}

    gone = {"terminated": {"message": "word 1"}}
    assert ended(seen(gone), "word 1", for_good=False)
    assert not ended(seen(gone), "word 1", for_good=True), "it is being started again"
    assert not ended(seen(gone), "word 2", for_good=False)
    assert ended(seen({"running": {}}, "word 1"), "word 1", for_good=False)
    backing_off = {"waiting": {"reason": "CrashLoopBackOff"}}
    assert ended(seen(backing_off, "word 1"), "word 1", for_good=True)
    assert not ended({"metadata": {}}, "word 1", for_good=False)


def test_barred_and_foreign_instances_count_but_are_not_chosen() -> None:
    chosen = run(
        {
            "shop-0": candidate(9, 9, barred=True),
            "shop-1": candidate(9, 9, system="666"),
            "shop-3": candidate(1, 1),
        },
        members=5,
    )
    assert isinstance(chosen, Elected)
    assert chosen.pod == "shop-3"


def test_instances_that_have_just_been_added_make_no_majority_and_need_none() -> None:
    empty = Candidate(None, None)
    added = {"shop-3": empty, "shop-4": empty}
    alone = run({"shop-0": candidate(1, 1), **added}, members=5)
    assert isinstance(alone, NoElection), "one of three has the data, though three of five answer"
    assert "1 of 3" in alone.reason
    chosen = run({"shop-0": candidate(1, 1), "shop-1": candidate(1, 2), **added}, members=5)
    assert isinstance(chosen, Elected)
    assert chosen.pod == "shop-1"


def test_of_two_agents_with_another_idea_of_the_size_neither_elects_by_a_minority() -> None:
    """Of those that have data, whoever elects has seen more than half, whoever is added."""
    for old, new in ((3, 5), (1, 3), (5, 3)):
        having = {f"shop-{n}": candidate(1, 10 + n) for n in range(old)}
        for seen in range(old + 1):
            for pods in itertools.combinations(having, seen):
                answering = {pod: having[pod] for pod in pods}
                answering |= {f"shop-{n}": Candidate(None, None) for n in range(old, new)}
                if isinstance(run(answering, members=max(old, new)), Elected):
                    assert seen * 2 > old, (old, new, pods)


def test_nobody_below_the_mark_is_chosen_and_the_reason_says_so() -> None:
    mark = Mark("7001", WalPoint(2, Lsn(1000)))
    refused = run({"shop-0": candidate(1, 5000), "shop-1": candidate(2, 899)}, mark=mark)
    assert isinstance(refused, NoElection)
    assert "timeline 1 is below" in refused.reason
    assert "lacks 101 bytes" in refused.reason
    assert isinstance(
        run({"shop-0": candidate(1, 5000), "shop-1": candidate(2, 900)}, mark=mark), Elected
    )


def pod(role: str = "standby", *, ready: bool = True, kubelet: str = "True") -> dict[str, object]:
    report = InstanceReport.model_validate(
        {"pod": "shop-1", "state": "running", "role": role, "ready": ready}
    )
    return {
        "metadata": {
            "name": "shop-1",
            "annotations": {names.ANNOTATION_INSTANCE: report.model_dump_json()},
        },
        "status": {"conditions": [{"type": "Ready", "status": kubelet}]},
    }


def test_clients_read_from_streaming_standbys_only() -> None:
    assert reads(pod())
    assert not reads(pod("primary"))
    assert not reads(pod(ready=False))
    assert not reads(pod(kubelet="False")), "the last word of a lost node"
    assert not reads({"metadata": {}})
    assert reads(pod(), ("shop-1", "shop-2"))
    assert not reads(pod(), ("shop-2",)), "its own word, and the kubelet's, are of before"
    leaving = pod()
    leaving["metadata"] = {**dict(leaving["metadata"]), "deletionTimestamp": "now"}  # type: ignore[call-overload]
    assert not reads(leaving)


def test_a_report_that_makes_no_sense_is_none() -> None:
    broken = {"metadata": {"annotations": {names.ANNOTATION_INSTANCE: "{"}}}
    assert report_of(broken) is None
