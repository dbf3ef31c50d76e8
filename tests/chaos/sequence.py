"""Does a sequence of faults to a world, and looks after each for what must be true."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.faults import Faults, Heal, MissedError
from tests.chaos.history import History, now
from tests.chaos.outcome import Outcome, by_kind, lines
from tests.chaos.plan import Fault, Step
from tests.e2e import nodes
from tests.e2e.kubectl import KubectlError
from tests.e2e.waiting import eventually, pause
from tests.e2e.world import World

SETTLED_WITHIN_S = 180.0
# An application may notice a fault this long after its end, such as by a connection that died.
ERRORS_UNTIL_S = 30.0
# With no fault on, nothing but the load of the machine holds a write up.
QUIET_GAP_S = 5.0
# A client remembers each acknowledged row, and compares all of them after each step.
RENEW_CLIENT_AFTER_STEPS = 12
CLIENT_TABLE = "pgcluster_client"


class BrokenError(Exception):
    """Something that must be true was not."""


@dataclass(slots=True)
class Report:
    """What has been done and seen, kept in a file after each step."""

    path: Path
    about: dict[str, Any]
    outcomes: list[Outcome] = field(default_factory=list)
    broken: str | None = None

    def write(self) -> None:
        """Write the file anew."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        document = {
            **self.about,
            "faults": sum(len(outcome.faults) for outcome in self.outcomes),
            "broken": self.broken,
            "by_kind": by_kind(self.outcomes),
            "steps": [asdict(outcome) for outcome in self.outcomes],
        }
        self.path.write_text(json.dumps(document, indent=1) + "\n")

    def lines(self) -> list[str]:
        """The figures by kind, as a terminal shows them."""
        return lines(by_kind(self.outcomes))


class Chaos:
    """The steps one after the other. `quorum`: nothing acknowledged may be lost, ever."""

    def __init__(self, world: World, report: Report, *, quorum: bool = False) -> None:
        self._world = world
        self._report = report
        self._quorum = quorum
        self._history = History(world.cluster, report.path.parent)
        self._faults = Faults(world.cluster, before_deletion=self._history.follow)
        self._lost = 0
        self._earlier_rows: dict[str, int] = {}
        self._calm = ""

    def run(self, steps: Iterable[Step]) -> None:
        """All of them; BrokenError at the first broken invariant, its history written."""
        try:
            self._primary = self._world.settled(within=SETTLED_WITHIN_S)
            self._timeline = self._world.cluster.status()["timeline"]
            self._lost = self._world.client.verified()["lost"]
            self._calm = self._world.client.mark()
            for count, step in enumerate(steps, start=1):
                self._report.outcomes.append(self._step(step))
                self._report.write()
                if count % RENEW_CLIENT_AFTER_STEPS == 0:
                    self._renew_client()
            self._was_calm()
        except BrokenError as error:
            self._report.broken = str(error)
            self._report.write()
            self._history.note(f"broken: {error}")
            path, last = self._history.write()
            say("\n".join([f"\nBROKEN: {error}", "", *last, "", f"everything: {path}"]))
            raise
        finally:
            self._history.end()
            nodes.restore()

    def _step(self, step: Step) -> Outcome:
        world = self._world
        pause(step.pause_s)
        self._was_calm()
        self._history.begin()
        mark = world.client.mark()
        done = self._hurt(step)
        healed_s = time.monotonic()
        primary = self._settles(healed_s)
        settled_s = time.monotonic() - healed_s
        status = world.cluster.status()
        counted = world.client.stats(mark)
        lost = self._rows_lost()
        seen = world.watcher.stats()
        outcome = Outcome(
            faults=done,
            label=step.label,
            old_primary=self._primary,
            new_primary=primary,
            timelines=(self._timeline, status["timeline"]),
            gap_s=counted["longest_gap_s"],
            gap_of_a_writer_s=max(counted["longest_gap_per_writer_s"]),
            errors=counted["errors"],
            settled_s=round(settled_s, 1),
            lost=lost,
            dual=len(seen["two_primaries"]),
        )
        self._primary, self._timeline = primary, status["timeline"]
        say(
            f"{'':<14}settled after {settled_s:.1f} s: gap {outcome.gap_s:.2f} s, errors"
            f" {outcome.errors}, lost {lost}, {outcome.old_primary} → {primary}, timeline"
            f" {outcome.timelines[0]} → {outcome.timelines[1]}"
        )
        self._is_right(step, outcome, seen)
        return outcome

    # --- the faults -----------------------------------------------------------------------------
    def _hurt(self, step: Step) -> list[dict[str, Any]]:
        """Begin and end each fault at its time; what was done."""
        started_s = time.monotonic()
        heals: dict[int, Heal] = {}
        done = []
        moments = [(fault.starts_s, True, fault) for fault in step.faults]
        moments += [(fault.ends_s, False, fault) for fault in step.faults]
        # A fault that is over at once ends right after its own beginning.
        moments.sort(key=lambda moment: (moment[0], moment[2].number, not moment[1]))
        try:
            for due_s, begins, fault in moments:
                pause(started_s + due_s - time.monotonic())
                if begins:
                    done.append(self._begin(fault, heals))
                elif heal := heals.pop(fault.number, None):
                    self._end(fault, heal)
        finally:
            # Also what could not be ended above.
            nodes.restore()
        self._faults.effected()
        return done

    def _end(self, fault: Fault, heal: Heal) -> None:
        try:
            heal()
        except (nodes.NodeError, KubectlError, subprocess.TimeoutExpired) as error:
            self._tell(f"{'':>4} {fault.kind.name} could not be ended: {error}")
            return
        if fault.lasts_s:
            self._tell(f"{'':>4} {fault.kind.name} is over")

    def _begin(self, fault: Fault, heals: dict[int, Heal]) -> dict[str, Any]:
        kind, began = fault.kind, now()
        row = {"number": fault.number, "kind": kind.name, "role": kind.role, "began": began}
        row |= {"lasts_s": fault.lasts_s, "target": "", "missed": ""}
        lasts = f" for {fault.lasts_s:.1f} s" if fault.lasts_s else ""
        try:
            begun = self._faults.begin(fault)
        except MissedError as reason:
            self._tell(f"{fault.number:>4} {kind.title}: missed, {reason}")
            return row | {"missed": str(reason)}
        heals[fault.number] = begun.heal
        self._tell(f"{fault.number:>4} {kind.title}: {begun.target}{lasts}")
        return row | {"target": begun.target}

    def _tell(self, text: str) -> None:
        self._history.note(text)
        say(f"{now()[11:23]}  {text}")

    # --- what must be true ----------------------------------------------------------------------
    def _settles(self, healed_s: float) -> str:
        """Wait for the end of it all; the primary. From then on there is no excuse for an error."""
        self._calm = ""

        def complete() -> str:
            if not self._calm and time.monotonic() - healed_s > ERRORS_UNTIL_S:
                self._calm = self._world.client.mark()
            return self._world.settled(within=1)

        try:
            primary = eventually(complete, within=SETTLED_WITHIN_S, what="the cluster has settled")
            mark = self._world.client.mark()
            self._world.writes_flow(mark, within=ERRORS_UNTIL_S)
        except AssertionError as error:
            raise BrokenError(f"it does not settle: {error}") from error
        self._calm = self._calm or self._world.client.mark()
        return primary

    def _is_right(self, step: Step, outcome: Outcome, seen: dict[str, Any]) -> None:
        """What must be true of a step that is over."""
        if seen["two_primaries"]:
            raise BrokenError(self._two_primaries(seen["two_primaries"]))
        if outcome.failover and step.keeps_primary:
            raise BrokenError(f"a failover without a reason: {step.label}")
        allowed = outcome.failover and not step.keeps_data and not self._quorum
        if outcome.lost and not allowed:
            raise BrokenError(f"{outcome.lost} acknowledged rows are lost: {step.label}")

    def _two_primaries(self, found: list[dict[str, Any]]) -> str:
        """Who beside whom, and when; every attempt of the watcher goes into a file."""
        path = self._report.path.with_name("two-primaries.json")
        path.write_text(json.dumps(found, indent=1) + "\n")
        pairs = [
            " and ".join(
                f"{reign['instance']} ({reign['address']}) on timeline {reign['timeline']}"
                f" from {reign['from']} to {reign['to']}"
                for reign in pair["reigns"]
            )
            for pair in found
        ]
        return f"two primaries: {'; '.join(pairs)}: {path}"

    def _rows_lost(self) -> int:
        """How many acknowledged rows went missing since the last look."""
        found = self._world.client.verified()
        if found["doubled"]:
            raise BrokenError(f"rows are there twice: {found}")
        counts = self._rows_by_client()
        gone = sum(max(0, count - counts.get(run, 0)) for run, count in self._earlier_rows.items())
        if gone:
            raise BrokenError(f"{gone} rows of earlier clients are gone: an old state is back")
        lost, self._lost = found["lost"] - self._lost, found["lost"]
        return int(lost)

    def _was_calm(self) -> None:
        """No errors and no gap since the last step had settled."""
        counted = self._world.client.stats(self._calm)
        if counted["errors"]:
            raise BrokenError(f"errors with no fault on: {counted['error_details']}")
        if counted["longest_gap_s"] > QUIET_GAP_S:
            raise BrokenError(f"no writes for {counted['longest_gap_s']} s with no fault on")

    def _renew_client(self) -> None:
        """A new client, and a count of the rows of those before it."""
        self._was_calm()
        self._world.renew_client()
        self._earlier_rows = self._rows_by_client()
        # Rows of the new client itself, which wrote meanwhile, are its own to look for.
        self._lost = self._world.client.verified()["lost"]
        self._calm = self._world.client.mark()

    def _rows_by_client(self) -> dict[str, int]:
        sql = f"SELECT run, count(*) FROM {CLIENT_TABLE} GROUP BY run"  # a constant
        rows = self._world.cluster.psql(self._world.cluster.primary(), sql, "app")
        return {run: int(count) for run, count in rows}


def say(text: str) -> None:
    """Tell as it goes, also into a pipe."""
    print(text, flush=True)
