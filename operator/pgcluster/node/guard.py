"""The fence's other half: a process of its own that kills postgres when its time has run out.

It is told until when postgres may run as the primary, and does nothing else, so that it is there
when the agent is not: blocked, stopped by a signal, or out of memory. After a freeze of the whole
container its first act is to look at the clock. Backends are killed like the postmaster, because
one that merely was to be told would have the time to acknowledge a commit.

Between its waking and its strike a backend may run. Therefore the deadline also stands in a file,
in which each backend looks before it commits and again before it answers (pgcluster_fence.c).

Started as a script, with nothing but the standard library's lightest parts.

Usage: guard.py PGDATA LEASE_FILE, with lines on standard input: `until SECONDS` of CLOCK_BOOTTIME,
or `off`.
The end of standard input while armed is the end of the agent, and ends postgres too.
"""

import contextlib
import mmap
import os
import select
import signal
import sys
import time

_AGAIN_S = 0.05
_GIVE_UP_S = 30.0
WORD = 8  # bytes


def now_s() -> float:
    """The clock of `pgcluster.clock.monotonic_s`, which goes on while a machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def workers(pgdata: str) -> list[int]:
    """Processes of postgres: their working directory is the data directory."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{entry}/cwd") == pgdata:
                    found.append(int(entry))
    return found


def strike(pgdata: str) -> None:
    """Kill all of postgres, and see to it that its next start is not that of a primary."""
    began_s = now_s()
    for attempt in range(int(_GIVE_UP_S / _AGAIN_S)):
        pids = workers(pgdata)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if attempt == 0:
            with contextlib.suppress(OSError):
                os.close(os.open(f"{pgdata}/standby.signal", os.O_CREAT | os.O_WRONLY, 0o600))
        if not pids:
            break
        time.sleep(_AGAIN_S)
    sys.stderr.write(
        '{"level": "WARNING", "logger": "pgcluster.node.guard", "message": "fenced: the Lease was'
        f' not renewed in time, postgres was killed", "took_s": {now_s() - began_s:.3f}}}\n'
    )


def main(pgdata: str, lease_file: str) -> int:
    """Obey standard input until it ends."""
    os.set_blocking(0, False)
    # Written in place: postgres has mapped this very file.
    handle = os.open(lease_file, os.O_CREAT | os.O_RDWR, 0o600)
    os.truncate(handle, WORD)
    shared = mmap.mmap(handle, WORD)
    until_s = None
    rest = b""
    while True:
        timeout_s = None if until_s is None else max(0.0, until_s - now_s())
        ready, _, _ = select.select([0], [], [], timeout_s)
        if ready:
            try:
                text = os.read(0, 65536)
            except BlockingIOError:
                continue
            if not text:
                if until_s is not None:
                    strike(pgdata)
                return 0
            *lines, rest = (rest + text).split(b"\n")
            for line in lines:
                until_s = float(line[6:]) if line.startswith(b"until ") else None
                # Who is not armed may not write at all: a standby that was promoted by hand.
                shared[:] = int((until_s or 0) * 1e9).to_bytes(WORD, sys.byteorder)
        if until_s is not None and now_s() >= until_s:
            strike(pgdata)
            until_s = None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
