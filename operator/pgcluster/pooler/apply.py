"""Bringing files into force in a running pgbouncer, and going back where it does not accept them.

A file that pgbouncer refuses must not stay: it would keep the next repointing from being loaded,
and pgbouncer from starting. RELOAD tells nothing before 1.25, so what is in force is compared.
"""

from __future__ import annotations

import logging

from pgcluster.api.errors import RetryError
from pgcluster.pgbouncer.admin import Admin
from pgcluster.pgbouncer.link import LinkLost, Refused
from pgcluster.pgbouncer.rows import Setting
from pgcluster.pooler.decide import Offer, compare
from pgcluster.pooler.files import Files
from pgcluster.render.pgbouncer import settings_of

log = logging.getLogger(__name__)


class NotAccepted(RetryError):
    """pgbouncer kept what it had; so do the files."""


class Applier:
    """Writes, RELOADs, verifies."""

    def __init__(self, admin: Admin, files: Files) -> None:
        self._admin = admin
        self._files = files
        # On disk, and pgbouncer has not said yet that it has read them.
        self._certificates_due = False

    async def databases(self, offer: Offer) -> None:
        """Put a databases section in force; NotAccepted where pgbouncer shows another one.

        A pgbouncer that is down reads the file when it starts.
        """
        before = self._files.databases()
        self._files.write_databases(offer.text)
        try:
            await self._reload()
            wrong = compare(offer.section, await self._admin.databases())
        except LinkLost as error:
            log.info("pgbouncer does not answer, it will read the file at its start: %s", error)
            return
        except Refused as refusal:
            wrong = [str(refusal)]
        if wrong:
            if before is not None:
                self._files.write_databases(before.text)
                await self._reload_again()
            raise NotAccepted(f"pgbouncer did not take the databases section: {wrong[0]}")

    async def settings(self, text: str) -> list[str]:
        """Put `pgbouncer.ini` in force; returns the settings that wait for a restart."""
        before = self._files.settings()
        try:
            shown = await self._admin.config()
            if text == before:
                # What pgbouncer was started with, most likely: look before it is told anything.
                wrong, waiting = _compare_settings(settings_of(text), shown)
                if not wrong:
                    return waiting
            await self._try(settings_of(text), shown)
            self._files.write_settings(text)
            await self._reload()
            wrong, waiting = _compare_settings(settings_of(text), await self._admin.config())
        except LinkLost as error:
            log.info("pgbouncer does not answer, it will read the file at its start: %s", error)
            return []
        except Refused as refusal:
            wrong, waiting = [str(refusal)], []
        if wrong:
            if before is not None:
                self._files.write_settings(before)
                await self._reload_again()
            raise NotAccepted(f"pgbouncer did not take the settings: {wrong[0]}")
        return waiting

    async def certificates(self) -> bool:
        """Have new connections use the mounted certificates; whether there was anything to do."""
        self._certificates_due |= self._files.write_certificates()
        if not self._certificates_due:
            return False
        await self._reload()
        self._certificates_due = False
        return True

    async def _try(self, wanted: dict[str, str], shown: dict[str, Setting]) -> None:
        """Set what is to change one by one; NotAccepted at the first that is refused.

        A RELOAD that comes to a wrong line leaves all that stands behind it at pgbouncer's own
        defaults, the pool mode too: its clients would lose what they had prepared.
        """
        changed = {
            key: value
            for key, value in wanted.items()
            if key in shown and shown[key].changeable and not _same(value, shown[key].value)
        }
        tried: list[str] = []
        try:
            for key, value in changed.items():
                tried.append(key)
                await self._admin.set(key, value)
        except Refused as refusal:
            for key in tried[:-1]:
                await self._admin.set(key, shown[key].value)
            raise NotAccepted(
                f"pgbouncer did not take the settings: {tried[-1]}"
                f" may not be {changed[tried[-1]]!r}: {refusal}"
            ) from refusal

    async def users(self) -> bool:
        """Bring the Secret's passwords into force; whether there was anything to do."""
        if not self._files.write_userlist():
            return False
        await self._reload()
        return True

    async def _reload(self) -> None:
        await self._admin.reload()

    async def _reload_again(self) -> None:
        try:
            await self._reload()
        except (LinkLost, Refused) as error:
            log.warning("pgbouncer was not told to go back to its last files: %s", error)


def _compare_settings(
    wanted: dict[str, str], shown: dict[str, Setting]
) -> tuple[list[str], list[str]]:
    wrong, waiting = [], []
    for key, value in sorted(wanted.items()):
        setting = shown.get(key)
        if setting is None:
            wrong.append(f"{key} is unknown to it")
        elif not _same(value, setting.value):
            if setting.changeable:
                wrong.append(f"{key} is {setting.value!r}, not {value!r}")
            else:
                waiting.append(key)
    return wrong, waiting


def _same(wanted: str, shown: str) -> bool:
    if wanted == shown:
        return True
    try:
        return float(wanted) == float(shown)
    except ValueError:
        return wanted.lower() == shown.lower()
