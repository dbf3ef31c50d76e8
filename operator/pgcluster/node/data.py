"""The data directory: made, cloned aside, swapped, never wiped before its replacement is whole.

Every step may be cut off at any line. A directory becomes `pgdata` by one rename after it is
complete; what stood there is moved aside and removed only once its successor is in service.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig
from pgcluster.api.errors import RetryError
from pgcluster.node import cloning
from pgcluster.node.files import write_atomically
from pgcluster.node.space import place_for_clone
from pgcluster.postgres.local import size_bytes
from pgcluster.proc import run
from pgcluster.render import repmgr as render_repmgr
from pgcluster.repmgr import Repmgr

log = logging.getLogger(__name__)

_CLONE_CONF = Path(names.RUN) / "repmgr-clone.conf"
_PROGRESS_EVERY_S = 2.0
_SEGMENT = re.compile("([0-9A-F]{8})[0-9A-F]{16}")
# What is written while the clone is made comes on top of it.
_CLONE_WAL_BYTES = 64 << 20


class DataDirectories:
    """`pgdata` on the instance's volume and the directories that stand in for it meanwhile."""

    def __init__(self, config: Callable[[], ClusterConfig], instance: str) -> None:
        self._config = config
        self._instance = instance
        self.volume = Path(names.VOLUME)
        self.current = Path(names.PGDATA)
        self._new = self.volume / "pgdata.new"
        self._aside = self.volume / "pgdata.old"

    @property
    def standby_signal(self) -> Path:
        """The file that makes postgres start as a standby."""
        return self.current / "standby.signal"

    async def initdb(self) -> None:
        """Make the cluster's first data directory."""
        config = self._config()
        await self._clear(self._new)
        arguments = [
            f"{render_repmgr.bindir(config.postgres_major)}/initdb",
            f"--pgdata={self._new}",
            "--username=postgres",
            f"--encoding={config.initdb.encoding}",
            f"--locale={config.initdb.locale}",
            "--auth-local=peer",
            "--auth-host=scram-sha-256",
            "--no-instructions",
        ]
        if config.initdb.data_checksums:
            arguments.append("--data-checksums")
        if waldir := await self._fresh_waldir():
            arguments.append(f"--waldir={waldir}")
        result = await run(arguments, deadline_s=600)
        if result.status != 0:
            raise RetryError(f"initdb failed: {result.last_line}", delay_s=5)
        self._swap_in()

    async def clone(self, host: str, *, progress: Callable[[str | None], None]) -> None:
        """Clone the server on `host` aside and swap it in when it is complete."""
        async with cloning.turn(
            render_repmgr.conninfo(host, self._config()), at_once=self._config().max_clones
        ):
            await self._clone(host, progress)
        self._swap_in()

    async def _clone(self, host: str, progress: Callable[[str | None], None]) -> None:
        config = self._config()
        await self._clear(self._new)
        await self._make_room(host)
        content = render_repmgr.repmgr_conf(
            config, instance=self._instance, data_directory=str(self._new)
        )
        options = cloning.options(config, await self._fresh_waldir())
        if options:
            content += f"pg_basebackup_options='{options}'\n"
        write_atomically(_CLONE_CONF, content)
        repmgr = Repmgr(render_repmgr.bindir(config.postgres_major), config=str(_CLONE_CONF))
        watching = asyncio.create_task(self._watch_progress(progress))
        try:
            result = await repmgr.standby_clone(render_repmgr.conninfo(host, config))
        finally:
            watching.cancel()
            progress(None)
        if result.status != 0:
            raise RetryError(f"repmgr standby clone failed: {result.last_line}", delay_s=3)

    async def remove_aside(self) -> None:
        """Remove what a clone replaced; to be called once the clone streams."""
        if self._aside.exists():
            await asyncio.to_thread(shutil.rmtree, self._aside, ignore_errors=True)
            await asyncio.to_thread(self._remove_stray_waldirs)

    def use_up_timelines(self, end: int) -> None:
        """Have the next promotion begin timeline `end`, and none below it.

        PostgreSQL takes the first number of which it finds no history file, and does not read what
        it finds. An empty one is nobody's history: a standby that looks for a newer timeline to
        follow refuses it. Source: findNewestTimeLine, rescanLatestTimeLine.
        """
        for number in range(2, end):
            with contextlib.suppress(FileExistsError):
                flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
                os.close(os.open(self._history(number), flags, 0o600))
        _sync(self.current / "pg_wal")

    def tell_timelines(self, first: int, end: int) -> None:
        """After the promotion to timeline `end`: the used up ones from `first` on have its history.

        repmgr asks a primary where the timeline after a standby's own has branched off; for one
        that was used up that is where the one that was begun has.
        """
        history = self._history(end).read_text()
        for number in range(first, end):
            if not self._history(number).read_bytes():
                write_atomically(self._history(number), history)

    def newest_timeline(self) -> int:
        """The highest timeline of which there is WAL here, 0 for none.

        A standby that starts without its upstream knows its timeline from its last restartpoint
        only, and what it received since may be of a newer one: others would take it for less than
        it has. WAL is kept under its timeline's number, and so is what is recycled for it.
        """
        found = (_SEGMENT.fullmatch(path.name) for path in (self.current / "pg_wal").glob("*"))
        return max((int(match[1], 16) for match in found if match), default=0)

    def _history(self, timeline: int) -> Path:
        return self.current / "pg_wal" / f"{timeline:08X}.history"

    def put_standby_signal(self) -> None:
        """Make sure that the next start is not that of a primary; RetryError on a full volume."""
        try:
            self.standby_signal.touch()
        except OSError as error:
            raise RetryError(f"standby.signal cannot be written: {error.strerror}") from error
        _sync(self.current)

    def remove_standby_signal(self) -> None:
        """Let the next start be that of a primary."""
        self.standby_signal.unlink(missing_ok=True)
        _sync(self.current)

    async def _make_room(self, host: str) -> None:
        """See to it that a clone fits; RetryError with what to do where it cannot."""
        needed = await size_bytes(render_repmgr.conninfo(host, self._config()))
        if needed is None:
            return
        needed += needed // 20 + _CLONE_WAL_BYTES
        found = os.statvfs(self.volume)
        free = found.f_bavail * found.f_frsize
        stale = [path for path in (self._aside, self.current) if path.exists()]
        old = sum([await asyncio.to_thread(_size_bytes, path) for path in stale])
        match place_for_clone(needed, free, old):
            case "nowhere":
                raise RetryError(
                    f"a clone needs {needed >> 20} MiB and the volume has room for"
                    f" {(free + old) >> 20}: grow spec.storage.size",
                    delay_s=30,
                )
            case "instead":
                log.warning("no room for a clone aside: it replaces what is on the volume")
                for path in stale:
                    await self._clear(path)

    def _swap_in(self) -> None:
        if self.current.exists():
            # An older one aside is from an earlier swap whose result is now being replaced.
            if self._aside.exists():
                shutil.rmtree(self._aside)
            self.current.rename(self._aside)
        self._new.rename(self.current)
        _sync(self.volume)

    async def _clear(self, path: Path) -> None:
        if path.exists():
            await asyncio.to_thread(shutil.rmtree, path)

    async def _fresh_waldir(self) -> Path | None:
        if not self._config().wal_volume:
            return None
        await asyncio.to_thread(self._remove_stray_waldirs)
        taken = {path.name for path in Path(names.WAL_VOLUME).iterdir()}
        number = next(n for n in range(len(taken) + 1) if f"pg_wal-{n}" not in taken)
        return Path(names.WAL_VOLUME) / f"pg_wal-{number}"

    def _remove_stray_waldirs(self) -> None:
        """Remove WAL directories that no data directory points at."""
        used = set()
        for directory in (self.current, self._aside, self._new):
            with contextlib.suppress(OSError):
                used.add(Path(os.readlink(directory / "pg_wal")))
        root = Path(names.WAL_VOLUME)
        if root.exists():
            for path in root.glob("pg_wal-*"):
                if path not in used:
                    shutil.rmtree(path, ignore_errors=True)

    async def _watch_progress(self, progress: Callable[[str | None], None]) -> None:
        while True:
            size = await asyncio.to_thread(_size_bytes, self._new)
            progress(f"clone: {size >> 20} MiB received")
            await asyncio.sleep(_PROGRESS_EVERY_S)


def _size_bytes(directory: Path) -> int:
    total = 0
    for root, _, files in os.walk(directory):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(root, name)).st_size
    return total


def _sync(directory: Path) -> None:
    """Make renames in `directory` survive a crash of the machine."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
