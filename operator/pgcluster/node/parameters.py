"""Which parameters this instance runs with: those of the spec, or the last that postgres took.

A value that postgres cannot parse would keep the next start from succeeding, whenever and wherever
that is. So postgres itself is asked before anything is written, and where a start fails after a
change, the parameters of the last good start come back. What is refused is reported by name, and
the instance goes on with the former parameters until the spec changes.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig
from pgcluster.node.files import write_atomically
from pgcluster.postgres.local import LocalPostgres, Observation
from pgcluster.proc import run
from pgcluster.render import postgres as render_postgres
from pgcluster.render import repmgr as render_repmgr

log = logging.getLogger(__name__)

_TRIAL_S = 10.0
_QUOTED = re.compile(r'"([^"]+)"')


class Parameters:
    """The parameters in force; `directory` is where the data lives."""

    def __init__(
        self,
        instance: str,
        directory: Callable[[], Path],
        *,
        good: Path = Path(names.GOOD_PARAMETERS),
        trial: Path = Path(names.TRIAL_CONF),
        command: Callable[[list[str]], list[str]] = list,
    ) -> None:
        self._instance = instance
        self._directory = directory
        self._good_file = good
        self._trial_file = trial
        self._command = command
        self._told: ClusterConfig | None = None
        self._in_force: dict[str, str] | None = None
        # Those of the last start of this container that succeeded.
        self._good: dict[str, str] | None = None
        # pg_conf_load_time() before the reload that is being waited for.
        self._before_reload: str | None = None
        self._checked = False
        # What the WAL that this standby follows demands; empty for a primary.
        self.floor: Mapping[str, int] = {}
        self.refused: dict[str, str] = {}
        self.overridden: dict[str, str] = {}
        # ClusterConfig.settings, once they are loaded or refused.
        self.loaded: str | None = None

    # --- a change of the spec -----------------------------------------------------------------

    def news(self, config: ClusterConfig) -> bool:
        """Whether this is another configuration than the last that was adopted."""
        return config != self._told

    async def adopt(self, config: ClusterConfig) -> ClusterConfig:
        """The configuration to go on with: as told, or with the former parameters."""
        if self._told is None or config.parameters != self._told.parameters:
            self.refused = await self._trial(config)
            if self.refused:
                log.warning("parameters are refused: %s", "; ".join(self.refused.values()))
            former = self._in_force or self._read_good()
            use_former = bool(self.refused) and former is not None
            self._in_force = former if use_former else config.parameters
        # `loaded` stays what it was: it names the former parameters until these are looked up.
        self._told = config
        self._checked = False
        return config.model_copy(update={"parameters": self._in_force})

    async def _trial(self, config: ClusterConfig) -> dict[str, str]:
        """Ask postgres whether it can parse them: parameter → why not."""
        directory = self._directory()
        if not (directory / "PG_VERSION").exists():
            return {}
        content = render_postgres.postgresql_conf(config, instance=self._instance)
        write_atomically(self._trial_file, content)
        result = await run(
            self._command(
                [
                    f"{render_repmgr.bindir(config.postgres_major)}/postgres",
                    "-D",
                    str(directory),
                    "-c",
                    f"config_file={self._trial_file}",
                    "-C",
                    "data_directory",
                ]
            ),
            deadline_s=_TRIAL_S,
            env={**os.environ, "LC_ALL": "C"},
            cwd="/",
        )
        return complaints(result.output, config.parameters) if result.status else {}

    # --- starts -------------------------------------------------------------------------------

    def started(self, config: ClusterConfig) -> None:
        """postgres has started with these, so that it would again."""
        self._before_reload = None
        if self._good != config.parameters:
            self._good = dict(config.parameters)
            with contextlib.suppress(OSError):  # the volume may be full
                write_atomically(self._good_file, json.dumps(self._good, sort_keys=True))

    def fall_back(self, config: ClusterConfig) -> ClusterConfig | None:
        """What to start with after a start that failed; None where there is nothing better."""
        good = self._good or self._read_good()
        if good is None or good == config.parameters or self._told is None:
            return None
        changed = sorted(
            name
            for name in good.keys() | config.parameters.keys()
            if good.get(name) != config.parameters.get(name)
        )
        for name in changed:
            tried, former = config.parameters.get(name), good.get(name)
            self.refused[name] = (
                f"postgres does not start with {_said(name, tried)}; it runs with"
                f" {_said(name, former)}"
            )
        log.warning("back to the former parameters: %s", "; ".join(self.refused.values()))
        self._in_force = good
        return config.model_copy(update={"parameters": good})

    def _read_good(self) -> dict[str, str] | None:
        try:
            found = json.loads(self._good_file.read_text())
        except (OSError, ValueError):
            return None
        return {str(name): str(value) for name, value in found.items()}

    # --- reloads ------------------------------------------------------------------------------

    def reloading(self, observed: Observation | None) -> None:
        """postgres was just told to reload."""
        self._before_reload = observed.loaded if observed else None
        self._checked = False

    async def see(self, observed: Observation, local: LocalPostgres) -> None:
        """Once a reload is through, look whether all of it took effect, in pg_settings itself."""
        if self._before_reload is not None and observed.loaded == self._before_reload:
            return
        self._before_reload = None
        if self._checked or self._told is None:
            return
        await self._verify(local)
        self._checked = True
        self.loaded = self._told.settings or None

    async def _verify(self, local: LocalPostgres) -> None:
        rows = await local.query(
            "SELECT f.name, f.error,"
            " (SELECT s.sourcefile FROM pg_settings AS s WHERE s.name = f.name) AS source"
            " FROM pg_file_settings AS f"
            " WHERE f.name = ANY(%s) AND f.sourcefile = current_setting('config_file')"
            " AND NOT f.applied AND f.name NOT IN"
            " (SELECT name FROM pg_settings WHERE pending_restart)",
            list(self._in_force or ()),
        )
        self.overridden = {
            row["name"]: f"{row['source'] or 'another setting'} has the last word"
            for row in rows
            if row["error"] is None
        }
        for row in rows:
            if row["error"] is not None:
                self.refused[row["name"]] = f"{row['name']}: {row['error']}"


def complaints(output: str, parameters: Mapping[str, str]) -> dict[str, str]:
    """What postgres says of a configuration file: parameter → its own words. Pure.

    Nothing where it failed for another reason than the file, which says nothing of the file.
    """
    if "contains errors" not in output:
        return {}
    found: dict[str, str] = {}
    for line in output.splitlines():
        _, level, text = line.partition("LOG:  ")
        named = next((name for name in _QUOTED.findall(text) if name in parameters), None)
        if level and named is not None:
            found[named] = re.sub(r' in file "[^"]*" line \d+', "", text).strip()
    # Else it says no to something that it does not name.
    return found or {"postgresql.conf": output.strip().splitlines()[-1]}


def _said(name: str, value: str | None) -> str:
    return f"{name} = {value}" if value is not None else f"{name} not set"
