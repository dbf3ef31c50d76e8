"""What repmgr finds as `ssh`: carries one of its commands to a peer's agent, by mutual TLS.

Installed on the PATH of the image before any other ssh. Imports nothing but the standard library's
lighter parts, and not http.client, because repmgr starts it up to a dozen times in a switchover.

Usage: ssh [-q] [-o NAME=VALUE]… [USER@]HOST [-l USER] COMMAND…
Exit status: the command's; 126 where the peer refuses it, 255 where the peer was not reached.
"""

import json
import os
import socket
import ssl
import sys

_DIRECTORY = os.environ.get("PGCLUSTER_PEERS_DIR", "/etc/pgcluster/secrets/peers")
_PORT = int(os.environ.get("PGCLUSTER_PEER_PORT", "8009"))
_USER = "postgres"
_CONNECT_S = 10.0
# The peer's agent gives each command a deadline; this is longer than the longest.
_ANSWER_S = 3700.0
_ANSWER_BYTES = 1024 * 1024

_FLAGS = "46AaCgKkMNnqsTtVvXxYy"
_WITH_VALUE = "oliFp"


class Wrong(Exception):
    """What is told in one sentence, with status 255."""


def parse(arguments: list[str]) -> tuple[str, str, float]:
    """Host, command and connect timeout; as in OpenSSH, options may follow the host, too."""
    host = ""
    connect_s = _CONNECT_S
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--":
            continue
        if not word.startswith("-"):
            if host:
                rest.insert(0, word)
                break
            user, at, host = word.rpartition("@")
            if at:
                _check_user(user)
            continue
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter in _WITH_VALUE:
                if not letters and not rest:
                    raise Wrong(f"option -{letter} has no value")
                value = letters or rest.pop(0)
                letters = ""
                if letter == "l":
                    _check_user(value)
                elif letter == "o":
                    connect_s = _option(value, connect_s)
            elif letter not in _FLAGS:
                raise Wrong(f"option -{letter} has no meaning here: only repmgr's commands are run")
    if not host:
        raise Wrong("usage: ssh [-q] [-o NAME=VALUE]... [USER@]HOST [-l USER] COMMAND...")
    if not rest:
        raise Wrong("there is no shell to log in to, only repmgr's own commands are run")
    return host, " ".join(rest), connect_s


def _check_user(user: str) -> None:
    if user != _USER:
        raise Wrong(f"commands are run as {_USER}, not as {user}")


def _option(text: str, connect_s: float) -> float:
    """The connect timeout after an option `Name=Value` or `Name Value`; others have no meaning."""
    name, _, value = text.replace("=", " ", 1).strip().partition(" ")
    if name.lower() != "connecttimeout":
        return connect_s
    try:
        return max(float(int(value)), 1.0)
    except ValueError:
        raise Wrong(f"ConnectTimeout={value} is not a number of seconds") from None


def context() -> ssl.SSLContext:
    """The cluster's authority and this instance's certificate, as mounted."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.hostname_checks_common_name = False
    made.load_verify_locations(cafile=_DIRECTORY + "/ca.crt")
    made.load_cert_chain(_DIRECTORY + "/tls.crt", _DIRECTORY + "/tls.key")
    return made


def peer_name() -> str:
    """What the peer's certificate must prove; pgcluster.api.names has the same."""
    try:
        cluster, namespace = os.environ["PGCLUSTER_NAME"], os.environ["PGCLUSTER_NAMESPACE"]
    except KeyError as error:
        raise Wrong(f"environment variable {error} is not set") from None
    return f"peers.{cluster}.{namespace}.pgcluster.dev"


def ask(host: str, command: str, connect_s: float) -> dict[str, object]:
    """The peer's answer; OSError (ssl.SSLError is one) where it is not reached."""
    asking = os.environ.get("POD_NAME", "")
    body = json.dumps({"command": command, "from": asking}).encode()
    head = (
        f"POST /run HTTP/1.0\r\nHost: {peer_name()}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((host, _PORT), timeout=connect_s) as plain:
        # A peer that is lost while it works is noticed.
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in (
            (socket.TCP_KEEPIDLE, 5),
            (socket.TCP_KEEPINTVL, 2),
            (socket.TCP_KEEPCNT, 3),
        ):
            plain.setsockopt(socket.IPPROTO_TCP, option, value)
        with context().wrap_socket(plain, server_hostname=peer_name()) as connection:
            connection.settimeout(_ANSWER_S)
            connection.sendall(head.encode() + body)
            with connection.makefile("rb") as answer:
                received = answer.read(_ANSWER_BYTES + 1)
    return read(received)


def read(received: bytes) -> dict[str, object]:
    """The document of an HTTP answer that ends with the connection."""
    if len(received) > _ANSWER_BYTES:
        raise Wrong("the answer is too long")
    header, _, text = received.partition(b"\r\n\r\n")
    words = header.split(b"\r\n", 1)[0].split(b" ")
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict) or len(words) < 2:
        raise Wrong("the answer makes no sense")
    if words[1] != b"200":
        raise Wrong(str(document.get("error", "")) or f"status {words[1].decode()}")
    return document


def _put(descriptor: int, text: str) -> None:
    """Write everything, or what is still read: repmgr closes the pipe after one line at times."""
    data = text.encode(errors="replace")
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except BrokenPipeError:
        return


def main(arguments: list[str]) -> int:
    """Run one command of repmgr on a peer."""
    try:
        host, command, connect_s = parse(arguments)
    except Wrong as error:
        sys.stderr.write(f"ssh: {error}\n")
        return 255
    try:
        answer = ask(host, command, connect_s)
    except (Wrong, OSError) as error:
        sys.stderr.write(f"ssh: {host}: {error}\n")
        return 255
    _put(1, str(answer.get("output", "")))
    _put(2, str(answer.get("errors", "")))
    status = answer.get("status")
    return status if isinstance(status, int) and 0 <= status <= 255 else 255


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
