"""A new cluster's primary takes over the data of another server, before anybody uses the cluster.

Beside the agent's loop, which goes on with everything else. The databases are dumped there and
restored here with the programs of this cluster's version, as PostgreSQL's manual wants it for an
upgrade. What decides whether it is done stands in the database (postgres/takeover.py), so that a
successor of this primary knows it too.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import os
import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psycopg

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig, ImportConfig, ImportSourceConfig
from pgcluster.api.errors import PgClusterError, RetryError
from pgcluster.api.reports import ImportReport
from pgcluster.clock import monotonic_s
from pgcluster.kube.client import KubeClient
from pgcluster.kube.errors import Forbidden
from pgcluster.kube.resources import SECRETS
from pgcluster.node.files import write_atomically
from pgcluster.postgres import local, roles, source, takeover
from pgcluster.postgres.local import LocalPostgres
from pgcluster.postgres.source import Facts, Source
from pgcluster.proc import run
from pgcluster.render import repmgr as render_repmgr

log = logging.getLogger(__name__)

# A failed attempt may have been a burden for the source: the next one waits as long as it took.
_AGAIN_S = 10.0
_AGAIN_AT_MOST_S = 600.0
_PROGRESS_EVERY_S = 2.0
# As long as it takes; what hangs for ever ends with its connection.
_DEADLINE_S = 30 * 24 * 3600.0
_NOTED = 1000


class ImportTrouble(PgClusterError):
    """Why an attempt came to nothing."""


@dataclass(frozen=True, slots=True)
class Step:
    """One program of the work, and what may be said of it."""

    says: str
    arguments: tuple[str, ...]


def dump(bindir: str, conninfo: str, folder: Path, wanted: ImportConfig) -> Step:
    """Dump a database there into files here. Pure.

    Subscriptions would compete with the source's own, and tablespaces are not here.
    """
    arguments = [
        f"{bindir}/pg_dump",
        f"--dbname={conninfo}",
        "--no-password",
        "--format=directory",
        f"--jobs={wanted.jobs}",
        "--compress=1",
        "--no-subscriptions",
        "--no-tablespaces",
        f"--file={folder}",
    ]
    arguments += ["--schema-only"] if wanted.schema_only else []
    arguments += [f"--exclude-schema={pattern}" for pattern in wanted.exclude_schemas]
    arguments += [f"--exclude-table={pattern}" for pattern in wanted.exclude_tables]
    return Step("pg_dump", tuple(arguments))


def restore(bindir: str, conninfo: str, folder: Path, jobs: int) -> Step:
    """Restore these files into a database; the first error ends it. Pure."""
    return Step(
        "pg_restore",
        (
            f"{bindir}/pg_restore",
            f"--dbname={conninfo}",
            "--no-password",
            "--exit-on-error",
            f"--jobs={jobs}",
            str(folder),
        ),
    )


def analyze(bindir: str, conninfo: str, jobs: int) -> Step:
    """Gather statistics, which a dump does not carry. Pure."""
    return Step(
        "vacuumdb",
        (
            f"{bindir}/vacuumdb",
            f"--dbname={conninfo}",
            "--no-password",
            "--analyze-only",
            "--quiet",
            f"--jobs={jobs}",
        ),
    )


def what_hindered(output: str) -> str:
    """The line of a program's output that says why it failed: the first error. Pure.

    What follows, such as the end of its other workers, only follows from that.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for line in lines:
        _, found, told = line.partition("error: ")
        if found:
            return told
    return lines[-1] if lines else "no reason given"


class Importing:
    """The import of one instance. Only a primary calls `see_to`; `post` posts an Event."""

    def __init__(
        self,
        client: KubeClient,
        config: Callable[[], ClusterConfig],
        *,
        post: Callable[[str, str, bool], None],
        folder: Path = Path(names.IMPORT_DIR),
        ca_file: Path = Path(names.IMPORT_CA),
    ) -> None:
        self._client = client
        self._config = config
        # Of its own: a question about a large database may take a while.
        self._local = LocalPostgres()
        self._post = post
        self._folder = folder
        self._ca_file = ca_file
        # In memory, like the authority's certificate, and only while a program reads it.
        self._passfile = ca_file.with_name("import.pgpass")
        self._task: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._attempt: ImportConfig | None = None  # what the last or present attempt is about
        self._again_s = 0.0
        self._failure: str | None = None
        self._done_at: str | None = None
        self.progress: str | None = None

    # --- what others ask ----------------------------------------------------------------------

    @property
    def report(self) -> ImportReport | None:
        """How far it is; None where nothing is to be taken over."""
        if self._config().bootstrap_import is None:
            return None
        if self._done_at is not None:
            return ImportReport(state="done", at=self._done_at)
        if self._failure is not None:
            return ImportReport(state="failed", reason=self._failure)
        return ImportReport(state="running")

    @property
    def hinders(self) -> str | None:
        """Why this primary does not serve yet; None where it may."""
        report = self.report
        if report is None or report.state == "done":
            return None
        if report.state == "failed":
            return f"the import has failed: {report.reason}"
        return "importing"

    async def complete(self) -> bool:
        """Whether there is nothing to take over (any more), by the database's own word."""
        if self._config().bootstrap_import is None or self._done_at is not None:
            return True
        if (await self._local.query(takeover.MARKED))[0]["marked"]:
            self._done_at = (await self._local.query(takeover.DONE))[0]["at"]
        return self._done_at is not None

    # --- what a primary does ------------------------------------------------------------------

    async def see_to(self) -> bool:
        """Have it run until it is done; True where it is. To be called again and again."""
        wanted = self._config().bootstrap_import
        if self._task is not None and not self._task.done():
            if wanted == self._attempt:
                return False
            log.info("what is to be imported has changed: beginning anew")
            await self._cancel()
        if await self.complete() or wanted is None:
            self.abandon()
            return True
        if wanted == self._attempt and monotonic_s() < self._again_s:
            return False
        self._attempt = wanted
        self._task = asyncio.create_task(self._run(wanted), name="import")
        return False

    async def watch(self) -> None:
        """What a standby does: know whether it is done, should it become the primary."""
        self.abandon()
        await self.complete()

    def abandon(self) -> None:
        """Not the primary any more, or done: leave nothing at work and nothing lying about."""
        if self._task is not None:
            # It removes its files itself when it ends.
            self._task.cancel()
            self._task = self._attempt = None
        self.progress = self._failure = None
        swept = self._sweeping is None or self._sweeping.done()
        if swept and self._folder.exists():
            self._sweeping = asyncio.create_task(self._sweep(), name="import-sweep")

    async def close(self) -> None:
        """The server is about to stop."""
        await self._cancel()
        self.abandon()
        await self._local.close()

    async def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _sweep(self) -> None:
        await asyncio.to_thread(shutil.rmtree, self._folder, True)

    async def _run(self, wanted: ImportConfig) -> None:
        began_s = monotonic_s()
        trouble: str | None = None
        try:
            await self._import(wanted)
        except (PgClusterError, psycopg.Error, OSError) as error:
            trouble = _sentence(error)
        except Exception as error:
            log.exception("unexpected: please report it")
            trouble = f"unexpected: {error!r}"
        finally:
            self.progress = None
            await self._sweep()
        if trouble is None:
            self._failure = None
            return
        if trouble != self._failure:
            log.warning("the import has failed: %s", trouble)
            self._post("ImportFailed", trouble, False)
        self._failure = trouble
        took_s = monotonic_s() - began_s
        self._again_s = monotonic_s() + min(max(_AGAIN_S, took_s), _AGAIN_AT_MOST_S)

    async def _import(self, wanted: ImportConfig) -> None:
        config = self._config()
        self.progress = "import: looking at the source"
        there = await self._source(wanted.source)
        async with await takeover.connect() as here:
            await takeover.clear(here)
            if taken := await takeover.existing(here, wanted.databases):
                raise ImportTrouble(
                    f"this cluster has a database {', '.join(taken)} already, which stays as it is:"
                    " import into a new cluster, or rename or drop that one"
                )
            facts = await source.look(there, wanted.databases)
            used = {
                database.name: await source.extensions(there, database.name)
                for database in facts.databases
            }
            available = await takeover.available(here)
            if refused := source.refusal(
                facts, wanted.databases, used, available, major=config.postgres_major
            ):
                raise ImportTrouble(refused)
            notes = await self._roles(here, config, wanted, facts)
            temporary = {}
            for number, database in enumerate(facts.databases):
                owner = await takeover.owner_here(here, database)
                temporary[database.name] = name = takeover.temporary(number)
                await takeover.make_database(here, name, owner)
        # What hindered an attempt before did not hinder this one; its copying may take hours.
        self._failure = None
        for number, database in enumerate(facts.databases, 1):
            which = f"import: {database.name} ({number} of {len(facts.databases)})"
            await self._copy(
                which, there, database.name, temporary[database.name], database.size_bytes, wanted
            )
        async with await takeover.connect() as here:
            notes += await takeover.dress(here, facts, temporary, roles=wanted.roles)
            await takeover.finish(here, temporary)
        self._tell(facts, wanted, notes)

    async def _roles(
        self,
        here: takeover.Connection,
        config: ClusterConfig,
        wanted: ImportConfig,
        facts: Facts,
    ) -> list[str]:
        if wanted.roles:
            return await takeover.make_roles(here, facts)
        # What is restored keeps its owners, so those that the spec declares must be there.
        failed = await roles.ensure_declared(config.users, (), {})
        return [f"{name}: {why}" for name, why in failed.items()]

    async def _copy(
        self,
        which: str,
        there: Source,
        database: str,
        temporary: str,
        size_bytes: int,
        wanted: ImportConfig,
    ) -> None:
        bindir = render_repmgr.bindir(self._config().postgres_major)
        here = local.socket_conninfo(temporary)
        await self._sweep()
        self._folder.mkdir(mode=0o700)
        files = self._folder / "dump"

        async def dumped() -> str:
            size = await asyncio.to_thread(_size_bytes, files)
            return f"{which}: dumped {size >> 20} MiB, compressed, of {size_bytes >> 20} MiB"

        async def restored() -> str:
            rows = await self._local.query(
                "SELECT pg_database_size(oid) AS size FROM pg_database WHERE datname = %s",
                temporary,
            )
            size = int(rows[0]["size"]) if rows else 0
            return f"{which}: restored {size >> 20} of {size_bytes >> 20} MiB"

        async def analyzed() -> str:
            return f"{which}: gathering statistics"

        step = dump(bindir, there.conninfo(database), files, wanted)
        write_atomically(self._passfile, there.passfile())
        try:
            environment = {**os.environ, "PGPASSFILE": str(self._passfile)}
            await self._program(step, database, dumped, environment)
        finally:
            self._passfile.unlink(missing_ok=True)
        await self._program(restore(bindir, here, files, wanted.jobs), database, restored)
        await self._program(analyze(bindir, here, wanted.jobs), database, analyzed)

    async def _program(
        self,
        step: Step,
        database: str,
        progress: Callable[[], Awaitable[str]],
        env: dict[str, str] | None = None,
    ) -> None:
        watching = asyncio.create_task(self._watch(progress))
        log.info("%s of database %s", step.says, database)
        try:
            result = await run(step.arguments, deadline_s=_DEADLINE_S, env=env)
        finally:
            watching.cancel()
        if result.status != 0:
            for line in result.output.splitlines():
                log.warning("%s: %s", step.says, line)
            raise ImportTrouble(f"{step.says} of {database}: {what_hindered(result.output)}")

    async def _watch(self, progress: Callable[[], Awaitable[str]]) -> None:
        while True:
            with contextlib.suppress(RetryError):
                self.progress = await progress()
            await asyncio.sleep(_PROGRESS_EVERY_S)

    def _tell(self, facts: Facts, wanted: ImportConfig, notes: Sequence[str]) -> None:
        told = f"took over {', '.join(wanted.databases)} from PostgreSQL {facts.version}"
        self._post("Imported", told, True)
        log.info(told)
        if wanted.roles and (without := source.without_password(facts)):
            notes = [f"roles without a usable password: {', '.join(without)}", *notes]
        for note in notes:
            log.warning("import: %s", note)
        if notes:
            self._post("ImportIncomplete", "; ".join(notes)[:_NOTED], False)

    # --- Secrets ------------------------------------------------------------------------------

    async def _source(self, wanted: ImportSourceConfig) -> Source:
        login = await self._secret(wanted.password_secret)
        if "password" not in login:
            raise ImportTrouble(f"Secret {wanted.password_secret} with key password is missing")
        user = wanted.user or login.get("username")
        if user is None:
            raise ImportTrouble(
                f"spec.bootstrap.import.source.user is not set, and Secret {wanted.password_secret}"
                " has no key username"
            )
        ca_file = None
        if wanted.ca_secret is not None:
            bundle = (await self._secret(wanted.ca_secret)).get(names.CA_BUNDLE_KEY)
            if not bundle:
                raise ImportTrouble(
                    f"Secret {wanted.ca_secret} with key {names.CA_BUNDLE_KEY} is missing"
                )
            write_atomically(self._ca_file, bundle)
            ca_file = str(self._ca_file)
        return Source(
            host=wanted.host,
            port=wanted.port,
            user=user,
            password=login["password"],
            ssl_mode=wanted.ssl_mode,
            ca_file=ca_file,
        )

    async def _secret(self, name: str) -> dict[str, str]:
        try:
            manifest = await self._client.get(SECRETS, name, self._config().namespace)
        except Forbidden:
            # The Role names each Secret, and may be a moment behind the configuration.
            manifest = None
        data = (manifest or {}).get("data") or {}
        return {key: base64.b64decode(value).decode() for key, value in data.items()}


def _size_bytes(folder: Path) -> int:
    total = 0
    for root, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += (Path(root) / name).stat().st_size
    return total


def _sentence(error: BaseException) -> str:
    """One line without what changes from one attempt to the next, so that a status can rest."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
