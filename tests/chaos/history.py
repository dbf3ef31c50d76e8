"""What every agent said, merged by time: what to read where an invariant broke."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pgcluster.api import names
from tests.e2e.cluster import Cluster
from tests.e2e.diagnostics import SYSTEM_NAMESPACE
from tests.e2e.kubectl import KubectlError

# The watcher's attempts on standbys, what goes with them, and what postgres tells all day long.
_BORING = re.compile(
    r"checkpoint (starting|complete)|read-only transaction|STATEMENT:|INSERT INTO pgcluster_watch"
    r"|ON CONFLICT \(address\)|login attempt|closing because|command is:|pgcluster-event"
    r"|executing notification command|watch of .* broke off|report was not written|stats: "
    r"|connection (received|authorized)"
    # The watcher at an address that was an instance's and is now a pooler's.
    r"|unsupported startup parameter"
)
SHOWN = 100


@dataclass(frozen=True, slots=True, order=True)
class Line:
    """One line of one container, at the time that its runtime gave it."""

    at: str
    source: str
    text: str

    def __str__(self) -> str:
        return f"{self.at} {self.source} {self.text}"

    @property
    def short(self) -> str:
        """As a terminal shows it: of a JSON line what it says."""
        return f"{self.at[11:23]} {self.source:<32} {_said(self.text)}"

    @property
    def is_of_interest(self) -> bool:
        """Whether it may tell why."""
        continues = self.text[:1] in ("", " ", "\t")
        return not continues and not _BORING.search(self.text)


def _said(text: str) -> str:
    if not text.startswith("{"):
        return text
    try:
        told = json.loads(text)
    except ValueError:
        return text
    more = {
        key: value
        for key, value in told.items()
        if key not in ("ts", "level", "logger", "cluster", "msg")
    }
    level = "" if told.get("level") == "info" else f"{told.get('level')}: "
    return f"{level}{told.get('msg')}" + (f" {json.dumps(more)}" if more else "")


def parse(text: str) -> list[Line]:
    """What `kubectl logs --prefix --timestamps` prints."""
    found = []
    for row in text.splitlines():
        prefix, _, rest = row.partition(" ")
        stamp, _, message = rest.partition(" ")
        if prefix.startswith("[pod/") and stamp[:2] == "20":
            found.append(Line(_same_width(stamp), prefix.strip("[]").partition("/")[2], message))
    return found


def _same_width(stamp: str) -> str:
    """Nanoseconds with all their digits, so that order of text is order of time."""
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    return f"{whole}.{fraction:0<9}Z"


def merged(*parts: Iterable[Line]) -> list[Line]:
    """All lines in the order of time, none twice."""
    return sorted({line for part in parts for line in part})


def now() -> str:
    """This moment as the containers' runtime writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"


class History:
    """The logs since a step began, and what the sequence of faults did meanwhile."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder
        self._since = now()
        self._notes: list[Line] = []
        self._followed: list[tuple[Path, subprocess.Popen[str]]] = []

    def begin(self) -> None:
        """Forget everything before now."""
        self.end()
        self._since = now()
        self._notes = []
        for path, _ in self._followed:
            path.unlink(missing_ok=True)
        self._followed = []

    def end(self) -> None:
        """Let go of the logs that are followed."""
        for _, process in self._followed:
            process.kill()
            process.wait()

    def note(self, text: str) -> None:
        """What was done at this moment."""
        self._notes.append(Line(now(), "chaos", f"==== {text}"))

    def follow(self, pod: str) -> None:
        """Keep what a pod says from now to its end: its log goes with it."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"last-words-{len(self._followed)}-{pod}.log"
        with path.open("w") as file:
            process = self._cluster.kubectl.started(*self._arguments(pod), "-f", stdout=file)
        self._followed.append((path, process))

    def lines(self) -> list[Line]:
        """Everything since the step began."""
        kubectl, system = self._cluster.kubectl, self._cluster.kubectl.within(SYSTEM_NAMESPACE)
        parts = [self._notes]
        selector = f"{names.LABEL_CLUSTER}={self._cluster.name}"
        for where, labels in ((kubectl, selector), (system, "")):
            try:
                pods = [pod["metadata"]["name"] for pod in where.objects("pods", labels)]
            except (KubectlError, subprocess.TimeoutExpired) as error:
                parts.append([Line(now(), "chaos", f"==== no pods of {where.namespace}: {error}")])
                continue
            for pod in pods:
                for more in ([], ["--previous"]):
                    try:
                        output = where.completed(*self._arguments(pod), *more).stdout
                    except subprocess.TimeoutExpired:
                        continue
                    parts.append(parse(output))
        parts += [parse(path.read_text()) for path, _ in self._followed]
        found = merged(*parts)
        return [line for line in found if line.at >= self._since and self._is_ours(line)]

    def _is_ours(self, line: Line) -> bool:
        """Whether a line names no cluster or ours: the operator has others, too."""
        ours = f'"cluster": "{self._cluster.kubectl.namespace}/{self._cluster.name}"'
        return '"cluster": ' not in line.text or ours in line.text

    def write(self) -> tuple[Path, list[str]]:
        """Keep all lines in a file; it, and the last lines of interest."""
        lines = self.lines()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "history.log"
        path.write_text("\n".join(str(line) for line in lines) + "\n")
        return path, [line.short for line in lines if line.is_of_interest][-SHOWN:]

    def _arguments(self, pod: str) -> list[str]:
        # A second earlier: --since-time knows no fractions.
        start = datetime.fromisoformat(self._since[:19]) - timedelta(seconds=1)
        since = f"--since-time={start.isoformat()}Z"
        return ["logs", pod, "--all-containers", "--prefix", "--timestamps", since]
