"""How a pooler leaves: its clients go on until they leave by themselves, or their time is over.

The pod has left its Services, and pgbouncer is not told yet: it still takes a client that has not
heard that, and it can be paused and repointed like any other. In the end those left are closed
between two transactions.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from pgcluster.clock import monotonic_s

# Nodes hear within this that a pod has left its Services.
LEAVE_S = 3.0
# Clients that wait for a primary would be closed by the shutdown: it waits for them, this long.
PAUSED_S = 20.0


def end(*, since_s: float, timeout_s: float, clients: int, paused: bool, now_s: float) -> str:
    """Why pgbouncer is to end now; empty while its clients go on. Pure."""
    age_s = now_s - since_s
    if age_s < LEAVE_S:
        return ""
    if not clients:
        return "its last client has left"
    last_s = max(timeout_s, LEAVE_S)
    if age_s < last_s or (paused and age_s < last_s + PAUSED_S):
        return ""
    return f"{clients} clients are left after {age_s:.0f} s"


class Door:
    """The pipe that the container's preStop hook reads: it blocks until the writer closes it.

    So the kubelet's wish to end pgbouncer is seen here, and waits until this agent lets go, or is
    no more. No port is open to anybody for that.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: int | None = None
        self.since_s = 0.0

    def install(self) -> None:
        """Make the pipe."""
        with contextlib.suppress(FileExistsError):
            os.mkfifo(self._path, 0o600)

    def asked(self) -> bool:
        """Whether pgbouncer is to leave."""
        if self._writer is None:
            try:
                self._writer = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)
            except OSError:
                # Nobody reads.
                return False
            self.since_s = monotonic_s()
        return True

    def let_go(self) -> None:
        """Let the hook, and with it the kubelet, go on."""
        if self._writer is not None:
            os.close(self._writer)
            self._writer = None
            # A new one: what the kubelet ended for another reason than the pod's deletion is
            # started again, and is let go again.
            self._path.unlink(missing_ok=True)
            self.install()
