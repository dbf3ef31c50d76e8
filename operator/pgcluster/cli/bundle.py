"""The archive that `kubectl pgcluster report` makes: bounded, and without secrets.

Everything that goes in goes through one door, which takes the secrets out; what could not be had
stands in the archive by its name and the reason.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import tarfile
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from pgcluster.api.errors import PgClusterError
from pgcluster.cli.documents import document
from pgcluster.cli.redacting import Redactor
from pgcluster.cli.terms import Refused

LARGEST_PART = 4 << 20
LARGEST = 200 << 20
_AT_A_TIME = 6
# What an object of an odd shape raises: it must not cost all the others.
_ODD = (ValueError, KeyError, TypeError, AttributeError)
_CUT = "[cut: only the end is here]\n"


class Bundle:
    """Files under one folder, held in memory until they are written."""

    def __init__(self, name: str, redactor: Redactor, *, largest: int = LARGEST) -> None:
        self.name = name
        self.redactor = redactor
        self.missing: dict[str, str] = {}
        self._files: dict[str, bytes] = {}
        self._left = largest
        self._slots = asyncio.Semaphore(_AT_A_TIME)
        self._parts: dict[asyncio.Task[None], str] = {}

    @property
    def files(self) -> tuple[str, ...]:
        """What is in it."""
        return tuple(sorted(self._files))

    # --- what goes in -------------------------------------------------------------------------
    def text(self, path: str, text: str, *, cut: bool = False) -> None:
        """Add a text; `cut`: something stood before it, of which its first line is a part."""
        if cut:
            self._put(path, _CUT + self.redactor.text(text.partition("\n")[2]))
            return
        self._put(path, self.redactor.text(text))

    def object(self, path: str, found: Any) -> None:
        """Add an object of the API as YAML."""
        cleaned = document(self.redactor.manifest(found), "yaml")
        self._put(path, self.redactor.known(cleaned) + "\n")

    def _put(self, path: str, text: str) -> None:
        data = text.encode(errors="replace")
        if len(data) > LARGEST_PART:
            data = _CUT.encode() + data[-LARGEST_PART:].partition(b"\n")[2]
        if len(data) > self._left:
            self.missing[path] = "the archive is large enough already"
            return
        self._left -= len(data)
        self._files[path] = data

    # --- collecting ---------------------------------------------------------------------------
    def part(self, path: str, made: Callable[[], Awaitable[None]]) -> None:
        """Collect something beside the others; where that fails, the archive says so."""
        self._parts[asyncio.create_task(self._guarded(path, made))] = path

    async def _guarded(self, path: str, made: Callable[[], Awaitable[None]]) -> None:
        async with self._slots:
            try:
                await made()
            except TimeoutError:
                self.missing[path] = "no answer in time"
            except (Refused, PgClusterError, OSError, *_ODD) as error:
                told = str(error) or type(error).__name__
                self.missing[path] = self.redactor.text(told)

    async def collected(self, *, deadline_s: float) -> None:
        """Wait for all parts, those that parts have begun too, until a monotonic moment."""
        while pending := [task for task in self._parts if not task.done()]:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                break
            await asyncio.wait(pending, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
        late = [task for task in self._parts if not task.done()]
        for task in late:
            self.missing[self._parts[task]] = "the time was over"
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        for task in self._parts:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    def progress(self) -> tuple[int, int]:
        """How many parts are done, and of how many."""
        return sum(task.done() for task in self._parts), len(self._parts)

    # --- the archive --------------------------------------------------------------------------
    def write(self, path: Path) -> int:
        """Write it whole or not at all, for its owner alone; returns its size."""
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with (
                os.fdopen(handle, "wb") as file,
                tarfile.open(fileobj=file, mode="w:gz") as archive,
            ):
                for name in self.files:
                    archive.addfile(*self._entry(name))
            size = Path(temporary).stat().st_size
            Path(temporary).replace(path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(temporary).unlink()
            raise
        return size

    def _entry(self, name: str) -> tuple[tarfile.TarInfo, io.BytesIO]:
        data = self._files[name]
        entry = tarfile.TarInfo(f"{self.name}/{name}")
        entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
        return entry, io.BytesIO(data)
