"""A write that got no answer must not undo, later, what was written after it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pgcluster.api.reports import InstanceReport, PoolerReport
from pgcluster.kube.client import KubeClient
from pgcluster.kube.credentials import Credentials
from pgcluster.kube.errors import Unavailable
from pgcluster.kube.resources import PODS
from pgcluster.node import members
from pgcluster.pooler import reporting


async def test_a_request_that_was_given_up_is_taken_back_from_the_kernel() -> None:
    ends: asyncio.Queue[BaseException | None] = asyncio.Queue()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        except ConnectionError as error:
            ends.put_nowait(error)
        else:
            ends.put_nowait(None)
        finally:
            writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async def nobody() -> None:
        return None

    identity = Credentials(f"http://127.0.0.1:{port}", tls=None, authorization=nobody)
    client = KubeClient(identity, request_timeout_s=0.2)
    try:
        with pytest.raises(Unavailable):
            await client.merge_patch(PODS, "shop-0", "default", {"metadata": {}})
        # An end of the stream in order would be one that the kernel delivers whatever it takes.
        assert isinstance(await asyncio.wait_for(ends.get(), 2), ConnectionResetError)
    finally:
        await client.close()
        server.close()


class Api:
    """Fails the writes that it is told to; what it has is what was written last."""

    def __init__(self) -> None:
        self.fail = 0
        self.has: list[Any] = []

    def write(self, what: Any) -> None:
        if self.fail:
            self.fail -= 1
            raise Unavailable(0, "Unreachable", "no answer")
        self.has.append(what)


class PodApi(KubeClient):
    def __init__(self, api: Api) -> None:
        self.api = api

    async def merge_patch(self, *about: Any, **more: Any) -> dict[str, Any]:
        self.api.write(about[3]["metadata"]["labels"])
        return {}


async def test_an_instances_report_is_written_again_after_a_write_without_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr(members, "monotonic_s", lambda: now[0])
    api = Api()
    reporter = members.Reporter(
        PodApi(api),
        namespace="default",
        me="shop-0",
        report=lambda: InstanceReport(pod="shop-0", state="running", role="standby"),
    )
    api.fail = 1
    with pytest.raises(Unavailable):
        await reporter.write()
    await reporter.write()
    await reporter.write()
    assert len(api.has) == 1
    now[0] += members._UNSURE_S
    await reporter.write()
    await reporter.write()
    assert len(api.has) == 2, "once more, and only once"


async def test_a_poolers_report_is_written_again_after_a_write_without_an_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reporting, "_AFTER_FAILURE_S", 0.01)
    monkeypatch.setattr(reporting, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(reporting, "_UNSURE_S", 0.2)
    api = Api()
    api.fail = 1

    class Source:
        async def follow(self, listener: Any) -> None:
            raise NotImplementedError

        async def lease(self) -> None:
            raise NotImplementedError

        async def report(self, report: PoolerReport) -> None:
            api.write(report)

    reporter = reporting.Reporter(Source(), PoolerReport(pod="pooler-a"))
    task = asyncio.create_task(reporter.run())
    try:
        await asyncio.sleep(0.1)
        assert len(api.has) == 1
        await asyncio.sleep(0.4)
        assert len(api.has) == 2, "once more, and only once"
    finally:
        task.cancel()
