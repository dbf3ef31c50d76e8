"""What repmgr's commands run: carries one request to the agent and its answer back.

Started as a script by repmgr.conf's commands, many times in a failover, so it imports nothing but
the standard library's lightest parts. It is silent: repmgr reads one line and closes the pipe,
and a second line would kill it with SIGPIPE, which repmgr takes for success.

Usage: pgcluster-event gate | promote | event NODE EVENT SUCCESS | service start|stop|restart|reload
PGCLUSTER_ASKED_BY is the instance for whose repmgr a service is stopped.
Exit status: 0 done (gate: promotion allowed), 1 refused or failed, 2 the agent was not reached.
"""

import os
import socket
import sys

_SOCKET = os.environ.get("PGCLUSTER_AGENT_SOCKET", "/run/pgcluster/agent.sock")
# repmgr emits events synchronously, so an event is handed over and not waited for; the gate blocks
# for less than repmgr's primary_notification_timeout, and a start may recover for minutes.
_DEADLINES_S = {"event": 2.0, "gate": 58.0, "promote": 120.0, "service": 3600.0}


def main(arguments: list[str]) -> int:
    """Send `arguments` as NUL-separated words; the answer's first byte is the exit status."""
    if not arguments or arguments[0] not in _DEADLINES_S:
        sys.stderr.write("usage: pgcluster-event gate | promote | event … | service …\n")
        return 2
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_DEADLINES_S[arguments[0]])
            connection.connect(_SOCKET)
            connection.sendall("\0".join(_words(arguments)).encode() + b"\n")
            answer = connection.makefile("rb").read()
    except OSError as error:
        sys.stderr.write(f"pgcluster-event: the node agent does not answer: {error}\n")
        return 2
    status, _, message = answer.partition(b"\n")
    if status != b"0" and message:
        sys.stderr.write(message.decode(errors="replace"))
    return 0 if status == b"0" else 1


def _words(arguments: list[str]) -> list[str]:
    """With the instance whose repmgr asks, where the agent runs this for a peer (remote.py)."""
    asked_by = os.environ.get("PGCLUSTER_ASKED_BY", "")
    return [*arguments, asked_by] if arguments[0] == "service" and asked_by else arguments


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
