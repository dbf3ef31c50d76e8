"""Agents among themselves over real TLS on loopback: who is answered, who is not, and `ssh`."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pgcluster.api import names
from pgcluster.api.errors import RetryError
from pgcluster.controller.certificates import SPREAD, Certificates, Profile, plan
from pgcluster.node import ssh
from pgcluster.node.peers import ANSWER_BYTES, REQUEST_BYTES, Credentials, Handler, Peers, serve
from tests.data.servers import free_port

HOST = "127.77.0.3"
SHOP = names.peer_name("shop", "test")
NOW = datetime.now(UTC)
SECRET = names.secret_peers("shop")

Start = Callable[..., Awaitable[int]]


def issue(before: Certificates | None = None, *, name: str = SHOP, now: datetime = NOW) -> Any:
    """The two Secrets as the operator makes or renews them."""
    held = before.leaves if before else {}
    return planned(before.ca if before else {}, held, name=name, now=now)


def planned(
    ca: Mapping[str, str],
    held: Mapping[str, Mapping[str, str]],
    *,
    name: str = SHOP,
    now: datetime = NOW,
) -> Certificates:
    """What is made of what there is."""
    profiles = {SECRET: Profile("peers", (name,), client=True)}
    return plan(ca, held, profiles, cluster="shop", now=now)


def content(made: Certificates) -> Mapping[str, str]:
    """What the instances mount."""
    return made.leaves[SECRET]


def mount(directory: Path, data: Mapping[str, str]) -> Path:
    """Put a Secret's files there as the kubelet does: a folder, and one link that is swapped."""
    directory.mkdir(exist_ok=True)
    version = directory / f"..{len(list(directory.iterdir()))}"
    version.mkdir()
    for key, value in data.items():
        (version / key).write_text(value)
    link = directory / "..tmp"
    link.symlink_to(version.name)
    os.replace(link, directory / "..data")
    for key in data:
        if not (directory / key).is_symlink():
            (directory / key).symlink_to(f"..data/{key}")
    return directory


@pytest.fixture
def mine(tmp_path: Path) -> Certificates:
    """The cluster's own, mounted in folder `shop`."""
    made: Certificates = issue()
    mount(tmp_path / "shop", content(made))
    return made


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Starts servers that end with the test."""
    runners: list[web.AppRunner] = []

    async def run(
        directory: Path, handlers: Mapping[tuple[str, str], Handler] | None = None
    ) -> int:
        port = free_port()
        credentials = Credentials(SHOP, directory)
        runners.append(
            await serve(handlers or {("GET", "/status"): hello}, credentials, host=HOST, port=port)
        )
        return port

    yield run
    for runner in runners:
        await runner.cleanup()


async def hello(_: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"hello": "peer"}


async def echo(body: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"said": body}


async def ask(directory: Path, port: int, path: str = "/status", **more: Any) -> Mapping[str, Any]:
    """Ask once, with a connection of its own."""
    peers = Peers(Credentials(SHOP, directory), port=port)
    try:
        return await peers.ask(HOST, path, deadline_s=5, **more)
    finally:
        await peers.close()


async def test_a_peer_of_the_same_cluster_is_answered(
    tmp_path: Path, mine: Certificates, start: Start
) -> None:
    port = await start(tmp_path / "shop", {("GET", "/status"): hello, ("POST", "/echo"): echo})
    assert await ask(tmp_path / "shop", port) == {"hello": "peer"}
    assert await ask(tmp_path / "shop", port, "/echo", body={"a": 1}) == {"said": {"a": 1}}
    assert await ask(tmp_path / "shop", port, "/echo", body={}) == {"said": {}}


async def test_many_questions_use_one_connection(
    tmp_path: Path, mine: Certificates, start: Start
) -> None:
    port = await start(tmp_path / "shop")
    peers = Peers(Credentials(SHOP, tmp_path / "shop"), port=port)
    try:
        await peers.ask(HOST, "/status", deadline_s=5)
        started_s = asyncio.get_running_loop().time()
        for _ in range(20):
            await peers.ask(HOST, "/status")
        assert asyncio.get_running_loop().time() - started_s < 2
    finally:
        await peers.close()


async def test_unknown_paths_and_methods_are_not_found(
    tmp_path: Path, mine: Certificates, start: Start
) -> None:
    port = await start(tmp_path / "shop")
    with pytest.raises(RetryError, match="404"):
        await ask(tmp_path / "shop", port, "/livez")
    with pytest.raises(RetryError, match="405"):
        await ask(tmp_path / "shop", port, "/status", body={})


# --- strangers --------------------------------------------------------------------------------


async def refused(port: int, context: ssl.SSLContext) -> None:
    """A stranger that believes the server gets the end of the connection, and never an answer.

    With TLS 1.3 its own half of the handshake may be over before the server refuses.
    """
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(
                HOST, port, ssl=context, server_hostname=SHOP
            )
            try:
                writer.write(b"GET /status HTTP/1.0\r\n\r\n")
                await writer.drain()
                assert await reader.read() == b""
            finally:
                writer.close()
    except (ssl.SSLError, ConnectionError):
        return


def believing(certificates: Certificates) -> ssl.SSLContext:
    """Believes the server, so that only the server's own check can refuse."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=content(certificates)["ca.crt"])
    return context


async def test_a_stranger_without_a_certificate_is_refused_in_the_handshake(
    tmp_path: Path, mine: Certificates, start: Start
) -> None:
    port = await start(tmp_path / "shop")
    await refused(port, believing(mine))
    assert await ask(tmp_path / "shop", port) == {"hello": "peer"}


async def test_a_certificate_of_another_authority_is_refused_in_the_handshake(
    tmp_path: Path, mine: Certificates, start: Start
) -> None:
    port = await start(tmp_path / "shop")
    theirs = mount(tmp_path / "theirs", content(issue()))
    context = believing(mine)
    context.load_cert_chain(theirs / "tls.crt", theirs / "tls.key")
    await refused(port, context)


async def test_a_server_of_another_authority_is_not_believed(
    tmp_path: Path, mine: Certificates, start: Start
) -> None:
    port = await start(mount(tmp_path / "theirs", content(issue())))
    with pytest.raises(RetryError, match="verif"):
        await ask(tmp_path / "shop", port)


async def test_the_certificate_must_be_of_this_cluster_on_both_sides(
    tmp_path: Path, mine: Certificates, start: Start
) -> None:
    other = names.peer_name("other", "test")
    # Of the same authority, as if that had been stolen for another name.
    foreign = planned(mine.ca, {}, name=other)
    theirs = mount(tmp_path / "theirs", content(foreign))
    port = await start(tmp_path / "shop")
    with pytest.raises(RetryError, match="not one of this cluster"):
        await ask(theirs, port)
    port = await start(theirs)
    with pytest.raises(RetryError, match=r"(?i)hostname|match|verif"):
        await ask(tmp_path / "shop", port)


async def test_an_expired_certificate_is_refused_on_both_sides(
    tmp_path: Path, start: Start
) -> None:
    old = issue(now=NOW - timedelta(days=91))
    expired = mount(tmp_path / "expired", content(old))
    renewed = issue(old)
    assert renewed.ca == old.ca
    port = await start(mount(tmp_path / "shop", content(renewed)))
    assert await ask(tmp_path / "shop", port)
    with pytest.raises(RetryError):
        await ask(expired, port)
    port = await start(expired)
    with pytest.raises(RetryError, match="expired"):
        await ask(tmp_path / "shop", port)


async def test_plain_http_and_older_tls_get_nowhere(
    tmp_path: Path, mine: Certificates, start: Start
) -> None:
    port = await start(tmp_path / "shop")
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
    try:
        assert b"HTTP/1" not in await asyncio.wait_for(reader.read(), 5)
    except ConnectionError:
        pass
    finally:
        writer.close()
    context = believing(mine)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    directory = tmp_path / "shop"
    context.load_cert_chain(directory / "tls.crt", directory / "tls.key")
    await refused(port, context)


# --- renewal, and no Secret at all ------------------------------------------------------------


async def test_renewed_certificates_are_taken_without_a_restart(
    tmp_path: Path, mine: Certificates, start: Start
) -> None:
    a, b = tmp_path / "shop", mount(tmp_path / "b", content(mine))
    port = await start(a)
    peers = Peers(Credentials(SHOP, b), port=port)

    async def both_ways() -> None:
        assert await peers.ask(HOST, "/status", deadline_s=5) == {"hello": "peer"}
        assert await ask(a, port) == {"hello": "peer"}

    try:
        await both_ways()
        # A new authority: trusted first, signing later. The pods hear of it one after the other.
        first = planned({}, mine.leaves, now=NOW - SPREAD)
        second = issue(first)
        assert content(second)["tls.crt"] != content(mine)["tls.crt"]
        third = issue(second, now=NOW + SPREAD)
        for step in (first, second, third):
            for directory in (a, b):
                mount(directory, content(step))
                await both_ways()
        # The former authority is out of use now, for connections of the running server, too.
        former = mount(tmp_path / "former", {**content(mine), "ca.crt": content(second)["ca.crt"]})
        with pytest.raises(RetryError):
            await ask(former, port)
        await both_ways()
    finally:
        await peers.close()


async def test_files_that_cannot_be_read_leave_the_former_ones_in_force(
    tmp_path: Path, mine: Certificates, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    port = await start(tmp_path / "shop")
    client = mount(tmp_path / "client", content(mine))
    assert await ask(client, port)
    mount(tmp_path / "shop", {**content(mine), "tls.key": "no key"})
    assert await ask(client, port)
    assert await ask(client, port)
    told = [r for r in caplog.records if "cannot be read" in r.message]
    assert len(told) == 1, "told once"


async def test_without_a_mounted_secret_nobody_is_answered_until_there_is_one(
    tmp_path: Path, mine: Certificates, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    missing = tmp_path / "missing"
    port = await start(missing)
    with pytest.raises(RetryError):
        await ask(tmp_path / "shop", port)
    with pytest.raises(RetryError, match="no certificate"):
        await ask(missing, port)
    assert [r for r in caplog.records if "cannot be read" in r.message]
    mount(missing, content(mine))
    assert await ask(tmp_path / "shop", port) == {"hello": "peer"}
    assert await ask(missing, port) == {"hello": "peer"}


# --- limits -----------------------------------------------------------------------------------


async def test_requests_and_answers_are_limited(
    tmp_path: Path, mine: Certificates, start: Start
) -> None:
    async def long(_: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"long": "x" * (ANSWER_BYTES + 1)}

    port = await start(tmp_path / "shop", {("POST", "/echo"): echo, ("GET", "/long"): long})
    directory = tmp_path / "shop"
    assert await ask(directory, port, "/echo", body={"a": "x" * (REQUEST_BYTES - 100)})
    with pytest.raises(RetryError):
        await ask(directory, port, "/echo", body={"a": "x" * REQUEST_BYTES})
    with pytest.raises(RetryError, match="answer has more"):
        await ask(directory, port, "/long")


async def test_an_answer_without_an_end_is_cut(tmp_path: Path, mine: Certificates) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        # More than is ever read; and a turn for the reader, which shares this loop.
        for _ in range(1000):
            await response.write(b"x" * 65536)
            await asyncio.sleep(0)
        return response

    application = web.Application()
    application.router.add_get("/status", endless)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    context = Credentials(SHOP, tmp_path / "shop").server()
    await web.TCPSite(runner, HOST, port, ssl_context=context).start()
    try:
        with pytest.raises(RetryError, match="answer has more"):
            await ask(tmp_path / "shop", port)
    finally:
        await runner.cleanup()


async def test_a_peer_that_does_not_answer_is_given_up_in_time(
    tmp_path: Path, mine: Certificates, start: Start
) -> None:
    async def slow(_: Mapping[str, Any]) -> Mapping[str, Any]:
        await asyncio.sleep(30)
        return {}

    port = await start(tmp_path / "shop", {("GET", "/status"): slow})
    peers = Peers(Credentials(SHOP, tmp_path / "shop"), port=port)
    loop = asyncio.get_running_loop()
    try:
        for where in (HOST, "127.77.0.99"):
            started_s = loop.time()
            with pytest.raises(RetryError):
                await peers.ask(where, "/status", deadline_s=0.5)
            assert loop.time() - started_s < 3
    finally:
        await peers.close()


async def test_an_error_of_a_handler_is_told_and_an_unexpected_one_is_not(
    tmp_path: Path, mine: Certificates, start: Start
) -> None:
    async def later(_: Mapping[str, Any]) -> Mapping[str, Any]:
        raise RetryError("the instance is being cloned")

    async def broken(_: Mapping[str, Any]) -> Mapping[str, Any]:
        raise KeyError("inside")

    port = await start(tmp_path / "shop", {("GET", "/later"): later, ("GET", "/broken"): broken})
    with pytest.raises(RetryError, match="being cloned"):
        await ask(tmp_path / "shop", port, "/later")
    with pytest.raises(RetryError, match="unexpected") as error:
        await ask(tmp_path / "shop", port, "/broken")
    assert "inside" not in str(error.value)


# --- ssh --------------------------------------------------------------------------------------


async def run_ssh(
    *arguments: str, directory: Path, port: int, cluster: str = "shop"
) -> tuple[int, str, str]:
    """The executable as the image has it: status, output and errors."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-IS",
        ssh.__file__,
        *arguments,
        env={
            "PGCLUSTER_NAME": cluster,
            "PGCLUSTER_NAMESPACE": "test",
            "PGCLUSTER_PEERS_DIR": str(directory),
            "PGCLUSTER_PEER_PORT": str(port),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode or 0, output.decode(), errors.decode()


@pytest.fixture
async def asked(tmp_path: Path, mine: Certificates, start: Start) -> tuple[int, list[str]]:
    """A server that pretends to run commands; its port, and what it was asked."""
    commands: list[str] = []

    async def run(body: Mapping[str, Any]) -> Mapping[str, Any]:
        commands.append(body["command"])
        return {"status": 3, "output": "line 1\nline 2\n", "errors": "told\n"}

    return await start(tmp_path / "shop", {("POST", "/run"): run}), commands


async def test_ssh_brings_back_status_output_and_errors(
    tmp_path: Path, asked: tuple[int, list[str]]
) -> None:
    port, commands = asked
    command = "/usr/lib/postgresql/17/bin/repmgr -f /run/pgcluster/repmgr.conf cluster show --csv"
    options = ["-o", "Batchmode=yes", "-q", "-o", "ConnectTimeout=5"]
    found = await run_ssh(*options, HOST, command, directory=tmp_path / "shop", port=port)
    assert found == (3, "line 1\nline 2\n", "told\n")
    found = await run_ssh(
        *options, f"postgres@{HOST}", *command.split(), directory=tmp_path / "shop", port=port
    )
    assert found[0] == 3
    assert commands == [command, command]


async def test_ssh_tells_in_one_sentence_that_a_peer_is_not_reached(
    tmp_path: Path, mine: Certificates, asked: tuple[int, list[str]]
) -> None:
    port, commands = asked
    shop = tmp_path / "shop"
    theirs = mount(tmp_path / "theirs", content(issue()))
    for arguments in (
        {"directory": shop, "port": free_port()},
        {"directory": tmp_path / "missing", "port": port},
        {"directory": theirs, "port": port},
        {"directory": shop, "port": port, "cluster": "other"},
    ):
        status, output, errors = await run_ssh(HOST, "/bin/true", **arguments)  # type: ignore[arg-type]
        assert status == 255
        assert output == ""
        assert errors.startswith(f"ssh: {HOST}: "), errors
        assert errors.count("\n") == 1
    status, _, errors = await run_ssh("no.such.host.invalid", "x", directory=shop, port=port)
    assert status == 255
    assert errors.startswith("ssh: no.such.host.invalid: ")
    assert commands == []


async def test_ssh_gives_up_on_a_peer_that_never_finishes_the_handshake(
    tmp_path: Path, mine: Certificates
) -> None:
    with socket.create_server((HOST, 0)) as silent:
        port = silent.getsockname()[1]
        status, _, errors = await run_ssh(
            "-o", "ConnectTimeout=1", HOST, "/bin/true", directory=tmp_path / "shop", port=port
        )
    assert status == 255
    assert "timed out" in errors


async def test_ssh_of_a_stranger_is_refused_by_the_server(
    tmp_path: Path, mine: Certificates, asked: tuple[int, list[str]]
) -> None:
    port, commands = asked
    stranger = issue()
    # It believes the server, and has a certificate of its own making.
    directory = mount(
        tmp_path / "stranger", {**content(stranger), "ca.crt": content(mine)["ca.crt"]}
    )
    status, output, errors = await run_ssh(HOST, "/bin/true", directory=directory, port=port)
    assert (status, output) == (255, ""), errors
    assert commands == []
    assert json.dumps(errors)
