"""make bench: each case RUNS times, each run at a random moment of a seed.

    python -m tests.bench [--runs 20] [--seed 1] [--append] [--synchronous quorum] [--writers 64]
                          [--data 2048] [CASE …]
    python -m tests.bench --table         the tables of docs/performance.md, from build/bench

Writes build/bench/CASE.json after every run, so that one that is cut off keeps those that it has
finished; `--append` goes on from there.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench import surroundings, table
from tests.bench.cases import CASES, Case
from tests.bench.record import CaseFile, Run, phases, summary
from tests.e2e import nodes
from tests.e2e.waiting import eventually, pause
from tests.e2e.world import WRITERS, World, world

BUILD = surroundings.ROOT / "build" / "bench"
SETTLED_WITHIN_S = 240.0
WRITES_WITHIN_S = 90.0
# Long enough for a checkpoint or an autovacuum to fall on either side of the fault.
WAIT_UP_TO_S = 3.0
PHASES_WITHIN_S = 15.0


class Bench:
    """The runs of one case after the other, on one cluster."""

    def __init__(self, around: World, *, seed: int) -> None:
        self._world = around
        self._seed = seed

    def run(self, case: Case, file: CaseFile, runs: int) -> None:
        """Run `case` until its file has `runs` runs."""
        self._crashes_end_in(case.on_crash)
        self._world.renew_client()
        verified = self._world.client.verified()
        for number in range(len(file.runs) + 1, runs + 1):
            run, verified = self._once(case, number, verified)
            file.add(run)
            print(line(case, run), flush=True)

    def _once(
        self, case: Case, number: int, verified: dict[str, Any]
    ) -> tuple[Run, dict[str, Any]]:
        around, cluster = self._world, self._world.cluster
        chance = random.Random(f"{self._seed}/{case.name}/{number}")  # noqa: S311 # no secret
        before = around.settled(within=SETTLED_WITHIN_S)
        epoch = int(cluster.status().get("epoch") or 0)
        duals = len(around.watcher.stats()["two_primaries"])
        beside = self._poolers_beside(before)
        waited_s = chance.uniform(0, WAIT_UP_TO_S)
        pause(waited_s)
        load = surroundings.load()
        mark = around.client.ask(f"/mark?name={case.name}-{number}")
        started_s = time.monotonic()
        heal = case.hurt(around, before)
        try:
            around.writes_flow(mark["mark"], within=WRITES_WITHIN_S)
        finally:
            heal()
        after = around.settled(within=SETTLED_WITHIN_S)
        settled_s = time.monotonic() - started_s
        counted = around.client.stats(mark["mark"])
        found = around.client.verified()
        seen = around.watcher.stats()
        run = Run(
            number=number,
            began=mark["at"],
            waited_s=round(waited_s, 3),
            old_primary=before,
            new_primary=after,
            gap_ms=round(1000 * counted["longest_gap_s"]),
            gap_per_writer_ms=[round(1000 * gap) for gap in counted["longest_gap_per_writer_s"]],
            errors=counted["errors"],
            writers_with_an_error=len(counted["writers_with_an_error"]),
            errors_by_text=counted["errors_by_text"],
            lost=found["lost"] - verified["lost"],
            doubled=found["doubled"] - verified["doubled"],
            dual=len(seen["two_primaries"]) - duals,
            settled_s=round(settled_s, 1),
            poolers_beside=beside,
            load=load,
            phases=self._phases(epoch, counted["longest_gap_began"]),
        )
        return run, found

    def _phases(self, epoch: int, stopped_at: str) -> dict[str, int | None]:
        """The phases of the first change of primary since `epoch`; empty where there was none."""
        status = self._world.cluster.status()
        if int(status.get("epoch") or 0) == epoch:
            return {}

        def told() -> dict[str, Any]:
            records = self._world.cluster.status().get("failovers", [])
            newer = [record for record in records if record["epoch"] > epoch]
            first: dict[str, Any] = newer[-1] if newer else {}
            assert first.get("resumedMs") is not None, records
            return first

        try:
            return phases(
                eventually(told, within=PHASES_WITHIN_S, what="the failover's phases"),
                stopped_at=stopped_at,
            )
        except AssertionError as missing:
            print(f"    {missing}", flush=True)
            return {}

    def _poolers_beside(self, primary: str) -> int:
        pods = self._world.cluster.pods() + self._world.cluster.pods("pgbouncer")
        node = {pod["metadata"]["name"]: pod["spec"].get("nodeName") for pod in pods}
        return sum(node[pooler] == node[primary] for pooler in self._world.cluster.poolers())

    def _crashes_end_in(self, action: str) -> None:
        cluster = self._world.cluster
        patch = {"spec": {"failover": {"onCrash": action}}}
        cluster.kubectl.patch("pgcluster", cluster.name, patch)
        self._world.settled(within=SETTLED_WITHIN_S)


def line(case: Case, run: Run) -> str:
    """A run as the terminal shows it."""
    steps = " ".join(f"{name}={ms}" for name, ms in run.phases.items())
    return (
        f"  {case.name} {run.number}: gap {run.gap_ms} ms, errors {run.errors} of"
        f" {run.writers_with_an_error} writers, {run.old_primary} → {run.new_primary},"
        f" lost {run.lost}, dual {run.dual}, settled {run.settled_s} s {steps}"
    )


def figures(file: CaseFile) -> str:
    """A case's summary as the terminal shows it."""
    found = summary(file.runs)
    rows = {name: found[name] for name in ("gap_ms", "gap_of_a_writer_ms", "errors")}
    rows |= {"writers_with_an_error": found["writers_with_an_error"]}
    rows |= {f"phase {name} ms": value for name, value in found["phases_ms"].items()}
    lines = [f"{file.about['case']}: {found['runs']} runs, {found['failovers']} failovers"]
    lines += [
        f"  {name:<28} p50 {value['p50']:>8} p95 {value['p95']:>8} max {value['max']:>8}"
        for name, value in rows.items()
        if value["p50"] is not None
    ]
    return "\n".join([*lines, f"  lost {found['lost']}, two primaries {found['dual']}"])


def files_of(folder: Path) -> list[tuple[str, CaseFile]]:
    """Title and file of each case that was measured, in the order of the catalogue."""
    return [
        (case.title, CaseFile.read(folder / f"{case.name}.json"))
        for case in CASES.values()
        if (folder / f"{case.name}.json").exists()
    ]


def opened(path: Path, about: dict[str, Any], *, append: bool) -> CaseFile:
    """The file of a case, with the runs that are there if they are to be kept."""
    if not append or not path.exists():
        return CaseFile(path, about)
    found = CaseFile.read(path)
    compared = ("images", "machine", "writers", "data_mib")
    different = [key for key in compared if found.about.get(key) != about[key]]
    if different:
        sys.exit(f"{path} was measured with other {' and '.join(different)}: not appended to")
    return found


def print_tables(folder: Path) -> None:
    """The tables of docs/performance.md."""
    found = files_of(folder)
    if not found:
        sys.exit(f"nothing in {folder}: run `make bench` first")
    print(table.gaps(found), table.phases(found), table.conditions(found), sep="\n\n")


def folder_of(options: argparse.Namespace) -> Path:
    """Where the figures of these surroundings are."""
    parts = [
        options.synchronous if options.synchronous != "none" else "",
        f"{options.writers}-writers" if options.writers != WRITERS else "",
        f"{options.data}-mib" if options.data else "",
    ]
    return BUILD.joinpath(*(part for part in parts if part))


def measure(options: argparse.Namespace) -> None:
    """All cases that were asked for, on one cluster."""
    spec: dict[str, Any] = {}
    if options.synchronous != "none":
        spec["replication"] = {"synchronous": {"mode": options.synchronous}}
    folder = folder_of(options)
    with world("bench", keep=options.keep, writers=options.writers, **spec) as around:
        primary = around.settled(within=SETTLED_WITHIN_S)
        if options.data:
            around.fill(options.data)
        about = {
            "command": f"make bench RUNS={options.runs} SEED={options.seed}"
            + (f" WRITERS={options.writers}" if options.writers != WRITERS else "")
            + (f" DATA={options.data}" if options.data else ""),
            "commit": surroundings.commit(),
            "machine": surroundings.machine(),
            "versions": surroundings.versions(around, primary),
            "images": surroundings.images(around, primary),
            "synchronous": options.synchronous,
            "writers": options.writers,
            "data_mib": options.data,
            "seed": options.seed,
        }
        bench = Bench(around, seed=options.seed)
        for name in options.cases or CASES:
            path = folder / f"{name}.json"
            file = opened(path, {"case": name, **about}, append=options.append)
            print(f"{name}: runs {len(file.runs) + 1} to {options.runs}", flush=True)
            try:
                bench.run(CASES[name], file, options.runs)
            finally:
                nodes.restore()
            print(figures(file), flush=True)
    print_tables(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--append", action="store_true", help="keep the runs that are there")
    parser.add_argument("--synchronous", choices=["none", "quorum"], default="none")
    parser.add_argument("--writers", type=int, default=WRITERS)
    parser.add_argument("--data", type=int, default=0, metavar="MIB", help="there beforehand")
    parser.add_argument("--keep", action="store_true", help="leave the namespace")
    parser.add_argument("--table", action="store_true", help="only print the tables")
    options = parser.parse_args()
    if unknown := set(options.cases) - CASES.keys():
        parser.error(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    if options.table:
        print_tables(folder_of(options))
    else:
        measure(options)


if __name__ == "__main__":
    main()
