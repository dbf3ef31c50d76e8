"""`kubectl pgcluster logs`: the lines of all parts of a cluster, merged by time."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import heapq
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pgcluster.api import names
from pgcluster.cli import outside
from pgcluster.cli.terms import DONE, Refused, coloured, paint, say, warn
from pgcluster.controller.observe import Key
from pgcluster.kube.client import KubeClient, Manifest
from pgcluster.kube.resources import PODS

# A line of one part may come this much later than a newer one of another.
_REORDER_S = 0.5
_LONGEST_LINE = 1 << 20
_STEP_S = 0.1
# Fields of our JSON lines that have a place of their own in what is shown.
_SHOWN = ("ts", "level", "logger", "msg", "cluster", "pod", "exception")
_TONES = {"error": "bad", "critical": "bad", "warning": "busy", "debug": "quiet"}


@dataclass(frozen=True, slots=True)
class Part:
    """One container of one pod; only its lines with `about` in them, where given."""

    namespace: str
    pod: str
    container: str
    about: str | None = None

    @property
    def name(self) -> str:
        """As it stands before each line."""
        return self.pod if self.container == "postgres" else f"{self.pod}/{self.container}"


@dataclass(frozen=True, slots=True, order=True)
class Line:
    """One line: when the kubelet had it, from whom, and what it says."""

    at: str
    part: str
    text: str = field(compare=False)


async def run(client: KubeClient, key: Key, options: argparse.Namespace) -> int:
    """Show the logs of the instances and poolers, and of the operator where asked for."""
    await outside.body_of(client, key)
    selector = f"{names.LABEL_CLUSTER}={key.name}"
    pods, _ = await client.list(PODS, key.namespace, labels=selector)
    parts = list(parts_of(pods, component=options.component))
    if options.operator is not None:
        selector = f"app.kubernetes.io/name={names.MANAGED_BY}"
        found, _ = await client.list(PODS, options.operator, labels=selector)
        parts += parts_of(found, about=f'"cluster": "{key}"')
    if not parts:
        raise Refused("there is no pod whose log could be shown")
    flags = ["--timestamps", f"--since={options.since}"] if options.since else ["--timestamps"]
    if options.tail is not None:
        flags.append(f"--tail={options.tail}")
    if options.previous:
        flags.append("--previous")
    show = _raw if options.raw else _readable
    if options.follow:
        await _follow(key, options, parts, [*flags, "--follow"], show)
    else:
        told = await asyncio.gather(*(_whole(key, options, part, flags) for part in parts))
        for line in heapq.merge(*told):
            say(show(line))
    return DONE


def parts_of(
    pods: Iterable[Manifest], *, component: str | None = None, about: str | None = None
) -> Iterator[Part]:
    """The containers that have said something. Pure."""
    for pod in pods:
        metadata, status = pod["metadata"], pod.get("status") or {}
        if component not in (None, (metadata.get("labels") or {}).get(names.LABEL_COMPONENT)):
            continue
        for kind in ("initContainerStatuses", "containerStatuses"):
            for container in status.get(kind) or ():
                if "waiting" not in (container.get("state") or {}) or container.get("restartCount"):
                    yield Part(metadata["namespace"], metadata["name"], container["name"], about)


def parsed(part: Part, text: str) -> Line | None:
    """One line as `kubectl logs --timestamps` has it; None for one that is not asked for. Pure."""
    at, _, said = text.rstrip("\n").partition(" ")
    if part.about is not None and part.about not in said:
        return None
    return Line(_sortable(at), part.name, said)


def _sortable(at: str) -> str:
    """RFC 3339 with nine digits: the kubelet leaves out trailing zeros, and text sorts by place."""
    whole, _, fraction = at.removesuffix("Z").partition(".")
    return f"{whole}.{fraction.ljust(9, '0')[:9]}Z"


def _raw(line: Line) -> str:
    return f"{line.at} {line.part} {line.text}"


def _readable(line: Line) -> str:
    return readable(line, colours=coloured())


def readable(line: Line, *, colours: bool) -> str:
    """Our JSON lines as a sentence with what belongs to it; others as they are. Pure."""
    told, level, more = line.text, "", ""
    document = _document(line.text)
    if document is not None:
        told, level = str(document["msg"]), str(document.get("level") or "")
        rest = {name: value for name, value in document.items() if name not in _SHOWN}
        more = "".join(f" {name}={value}" for name, value in rest.items())
        if trace := document.get("exception"):
            more += f"\n{trace}"
    clock = line.at[11:23]
    shout = f"{level.upper()}: " if level not in ("", "info", "debug") else ""
    return (
        f"{paint(clock, 'quiet', on=colours)} {paint(line.part, 'strong', on=colours)}"
        f" {paint(shout + told, _TONES.get(level), on=colours)}"
        f"{paint(more, 'quiet', on=colours)}"
    )


def _document(text: str) -> Mapping[str, Any] | None:
    if not text.startswith("{"):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) and "msg" in found else None


# --- reading ----------------------------------------------------------------------------------
def _command(
    key: Key, options: argparse.Namespace, part: Part, flags: Iterable[str]
) -> tuple[str, ...]:
    kubectl = outside.kubectl(Key(part.namespace, key.name), options)
    return (*kubectl, "logs", part.pod, f"--container={part.container}", *flags)


async def _whole(
    key: Key, options: argparse.Namespace, part: Part, flags: Iterable[str]
) -> list[Line]:
    process = await asyncio.create_subprocess_exec(
        *_command(key, options, part, flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, error = await process.communicate()
    if process.returncode:
        # One that has just gone, or has no previous container, hides none of the others.
        warn(f"{part.name}: {error.decode(errors='replace').strip()}")
    lines = output.decode(errors="replace").splitlines()
    # Stable: lines of one moment stay as they were said.
    return sorted(found for text in lines if (found := parsed(part, text)) is not None)


class _Merge:
    """Lines that have come, held for a moment so that older ones of other parts come first."""

    def __init__(self) -> None:
        self._held: list[tuple[Line, int, float]] = []
        self._count = 0

    def put(self, line: Line, now_s: float) -> None:
        self._count += 1
        heapq.heappush(self._held, (line, self._count, now_s))

    def due(self, now_s: float) -> Iterator[Line]:
        """The oldest first, each once it has been held for long enough."""
        while self._held and self._held[0][2] <= now_s - _REORDER_S:
            yield heapq.heappop(self._held)[0]


async def _follow(
    key: Key, options: argparse.Namespace, parts: Iterable[Part], flags: Iterable[str], show: Any
) -> None:
    merge = _Merge()
    readers = [
        asyncio.create_task(_read(merge, part, _command(key, options, part, flags)))
        for part in parts
    ]
    try:
        while not all(reader.done() for reader in readers):
            await asyncio.sleep(_STEP_S)
            for line in merge.due(time.monotonic()):
                say(show(line))
        for line in merge.due(float("inf")):
            say(show(line))
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def _read(merge: _Merge, part: Part, command: tuple[str, ...]) -> None:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdout=asyncio.subprocess.PIPE,
        limit=_LONGEST_LINE,
    )
    assert process.stdout is not None  # noqa: S101 # it is a pipe
    try:
        async for text in process.stdout:
            if (line := parsed(part, text.decode(errors="replace"))) is not None:
                merge.put(line, time.monotonic())
        warn(f"{part.name}: its log has ended")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
