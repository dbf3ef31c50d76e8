"""The init of a node: process 1 of its PID namespace. node.py starts it, with nothing imported.

It waits for its orders on standard input (so that a half-started node does nothing, and ends when
`up` is interrupted), mounts the node's own disk, then keeps the node's services running as systemd
would. When it is killed the kernel kills all else in the node: that is the node's power switch.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

RESTART_DELAY_S = 1.0
POLL_S = 0.25


class Condition(TypedDict):
    argv: list[str]
    expect: str


@dataclass
class Supervised:
    name: str
    argv: list[str]
    after: Condition | None
    process: subprocess.Popen[bytes] | None = None
    not_before: float = 0.0


def main() -> None:
    orders = json.loads(sys.stdin.read() or "null")
    if orders is None:
        sys.exit("no orders: `localkube up` was interrupted")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    socket.sethostname(orders["hostname"])
    mount_disk(orders["disk"])
    for key, value in orders["sysctls"].items():
        Path("/proc/sys", key).write_text(value)
    services = [Supervised(**service) for service in orders["services"]]
    logs = Path(orders["logs"])
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "booted").touch()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    while True:
        for service in services:
            if service.process is None and time.monotonic() >= service.not_before:
                start(service, logs)
        signal.sigtimedwait({signal.SIGCHLD}, POLL_S)
        reap(services)


def mount_disk(disk: dict[str, str]) -> None:
    """Give the node its own /var/lib and /var/log, which last, and /run, which a reboot clears."""
    # Sorted backwards: the sources are below the host's /var/lib, so that one is covered last.
    for target, source in sorted(disk.items(), reverse=True):
        subprocess.run(["mount", "--bind", source, target], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"], check=True)
    Path("/run/lock").mkdir(mode=0o1777)
    # The kubelet needs its volumes' mounts to reach into containers. The namespace began as
    # private, so nothing of this reaches the host.
    subprocess.run(["mount", "--make-rshared", "/"], check=True)


def start(service: Supervised, logs: Path) -> None:
    service.not_before = time.monotonic() + RESTART_DELAY_S
    if service.after is not None and not holds(service.after):
        service.not_before = time.monotonic() + POLL_S
        return
    with (logs / f"{service.name}.log").open("ab") as log:
        service.process = subprocess.Popen(
            service.argv,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD}),
        )
    say(f"{service.name}: started")


def holds(condition: Condition) -> bool:
    argv = condition["argv"]
    try:
        result = subprocess.run(argv, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return condition["expect"] in result.stdout


def reap(services: list[Supervised]) -> None:
    """Collect the dead: services, which start again, and orphans, which are init's children."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        for service in services:
            if service.process is not None and service.process.pid == pid:
                service.process.returncode = os.waitstatus_to_exitcode(status)
                say(f"{service.name}: ended with {service.process.returncode}, starts again")
                service.process = None


def say(line: str) -> None:
    print(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), line, flush=True)


if __name__ == "__main__":
    main()
