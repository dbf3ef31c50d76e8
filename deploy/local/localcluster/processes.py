"""Telling one's own processes from others: by pid, start time and boot, never by name."""

import json
import os
import signal
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessId:
    pid: int
    start_ticks: int
    boot: str

    @property
    def is_alive(self) -> bool:
        return identify(self.pid) == self

    def kill(self) -> None:
        if self.is_alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def identify(pid: int) -> ProcessId | None:
    """The identity of a live process; None when there is none with this pid, or only a zombie."""
    try:
        # proc_pid_stat(5); the command, in brackets, may itself hold spaces and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    if fields[0] in "ZX":
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ProcessId(pid, int(fields[19]), boot)


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def record(process: ProcessId, file: Path) -> None:
    file.write_text(json.dumps(asdict(process)))


def recorded(file: Path) -> ProcessId | None:
    """The recorded process if it is still the same one and alive."""
    try:
        process = ProcessId(**json.loads(file.read_text()))
    except (FileNotFoundError, ValueError, TypeError):  # never written, or cut short by a crash
        return None
    return process if process.is_alive else None
