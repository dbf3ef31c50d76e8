"""make chaos: a seeded random sequence of faults, until one breaks what must be true.

    python -m tests.chaos [--faults 200] [--seed N] [--groups process,pod,pooler,control,node]

Writes build/chaos/SEED/report.json, and history.log beside it where an invariant broke.
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from typing import Any

from tests.bench import surroundings
from tests.chaos.plan import CATALOGUE, GROUPS, plan
from tests.chaos.sequence import BrokenError, Chaos, Report, say
from tests.e2e import diagnostics
from tests.e2e.world import world

BUILD = surroundings.ROOT / "build" / "chaos"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="make chaos", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--seed", type=int, help="the same sequence again; else a new one")
    parser.add_argument("--groups", default=",".join(GROUPS), help="which kinds of faults")
    parser.add_argument("--without", default="", help="kinds to leave out: node-freeze,api-stop")
    parser.add_argument("--synchronous", choices=["none", "quorum"], default="none")
    parser.add_argument("--keep", action="store_true", help="leave the namespace")
    parser.add_argument("--plan", action="store_true", help="only print the sequence")
    options = parser.parse_args()
    groups = options.groups.split(",")
    if unknown := set(groups) - set(GROUPS):
        parser.error(f"no such group: {', '.join(sorted(unknown))}; there are {', '.join(GROUPS)}")
    seed = secrets.randbelow(1_000_000) if options.seed is None else options.seed
    without = [kind for kind in options.without.split(",") if kind]
    if unknown := set(without) - {kind.name for kind in CATALOGUE}:
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")
    steps = plan(seed, options.faults, groups, without)
    if options.plan:
        for step in steps:
            for fault in step.faults:
                print(
                    f"{fault.number:>4} +{fault.starts_s:6.1f} s {fault.lasts_s:5.1f} s"
                    f"  {fault.kind.title}"
                )
        return
    spec: dict[str, Any] = {}
    if options.synchronous != "none":
        spec["replication"] = {"synchronous": {"mode": options.synchronous}}
    about = {"seed": seed, "groups": groups, "without": without, "synchronous": options.synchronous}
    about |= {"commit": surroundings.commit(), "machine": surroundings.machine()}
    report = Report(BUILD / str(seed) / "report.json", about)
    say(f"seed {seed}; again by: make chaos FAULTS={options.faults} SEED={seed}")
    started_s = time.monotonic()
    broken = None
    with world("chaos", keep=options.keep, **spec) as around:
        try:
            Chaos(around, report, quorum=options.synchronous == "quorum").run(steps)
        except BrokenError as error:
            broken = error
            diagnostics.collect(around.cluster.kubectl, f"chaos-{seed}")
    say("\n".join(["", *report.lines(), "", f"report: {report.path}"]))
    done = sum(len(outcome.faults) for outcome in report.outcomes)
    took = (time.monotonic() - started_s) / 60
    say(f"seed {seed}: {done} faults in {took:.0f} min, " + ("BROKEN" if broken else "all held"))
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
