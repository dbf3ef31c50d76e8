"""pgbouncer's files on disk: written whole or not at all.

A private key and its certificate are one file, so that pgbouncer never reads one without the other.

pgbouncer disconnects the clients of every database that is missing from a file, so a reader must
never see half of one.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Callable
from pathlib import Path

from pgcluster.api import names
from pgcluster.api.errors import RetryError
from pgcluster.pooler.decide import Offer
from pgcluster.render.pgbouncer import content_hash, parse_section, userlist

_INI = Path(names.PGBOUNCER_INI).name
_DATABASES = Path(names.PGBOUNCER_DATABASES).name
_USERLIST = Path(names.PGBOUNCER_USERLIST).name
_PEM = Path(names.PGBOUNCER_PEM).name
_SERVER_CA = Path(names.PGBOUNCER_SERVER_CA).name


class Files:
    """The files of one pgbouncer, and the Secrets that its user list and certificates are of."""

    def __init__(
        self, directory: Path, secrets: Path, certificates: Path = Path(names.POOL_TLS_DIR)
    ) -> None:
        self._directory = directory
        self._secrets = secrets
        self._certificates = certificates

    def complete(self) -> bool:
        """Whether pgbouncer can start."""
        return all((self._directory / name).exists() for name in (_INI, _DATABASES, _USERLIST))

    def settings(self) -> str | None:
        """The settings on disk."""
        return _read(self._directory / _INI)

    def write_settings(self, text: str) -> None:
        """Replace the settings."""
        _write(self._directory / _INI, text)

    def databases(self) -> Offer | None:
        """The databases section on disk; None where there is none that can be read."""
        text = _read(self._directory / _DATABASES)
        if text is None:
            return None
        with contextlib.suppress(ValueError):
            return offer(text)
        return None

    def write_databases(self, text: str) -> None:
        """Replace the databases section."""
        _write(self._directory / _DATABASES, text)

    def password(self, key: str) -> str | None:
        """A password from the mounted Secret; None while it is not there."""
        return _read(self._secrets / key)

    def write_userlist(self) -> bool:
        """Make the user list from the Secret; whether it changed. RetryError: no Secret yet."""
        users = {
            names.ROLE_POOLER: self.password("auth-password"),
            names.PGBOUNCER_ADMIN: self.password("admin-password"),
            names.PGBOUNCER_STATS: self.password("stats-password"),
        }
        present = {user: password for user, password in users.items() if password}
        if len(present) < len(users):
            missing = ", ".join(sorted(users.keys() - present.keys()))
            raise RetryError(f"the Secret with the passwords of {missing} is not mounted")
        text = userlist(present)
        if text == _read(self._directory / _USERLIST):
            return False
        _write(self._directory / _USERLIST, text)
        return True

    def write_certificates(self) -> bool:
        """Take the mounted certificate, and whom to believe; whether that was news.

        RetryError while they are not there or make no sense; what there was stays.
        """
        if not self._certificates.is_dir():
            # Of an operator that knows no TLS, as are its settings.
            return False
        mounted = (self._certificates / "..data").resolve()
        if not mounted.is_dir():
            mounted = self._certificates
        try:
            key, certificate, authorities = (
                (mounted / name).read_text()
                for name in (names.PRIVATE_KEY_KEY, names.CERTIFICATE_KEY, names.SERVER_CA_KEY)
            )
        except OSError as error:
            raise RetryError(f"the pools' certificate is not mounted: {error}") from error
        wanted = {_PEM: key.rstrip("\n") + "\n" + certificate, _SERVER_CA: authorities}
        changed = {
            name: text for name, text in wanted.items() if text != _read(self._directory / name)
        }
        for name, text in changed.items():
            try:
                _write(self._directory / name, text, check=_CHECKS[name])
            except (OSError, ValueError) as error:
                raise RetryError(f"the pools' certificate cannot be used: {error}") from error
        return bool(changed)


def offer(text: str) -> Offer:
    """A databases section with what it says; ValueError where it cannot be read."""
    return Offer(text, content_hash(text), parse_section(text))


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _check_pair(path: Path) -> None:
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path)


def _check_authorities(path: Path) -> None:
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)


_CHECKS = {_PEM: _check_pair, _SERVER_CA: _check_authorities}


def _write(path: Path, text: str, *, check: Callable[[Path], None] = lambda path: None) -> None:
    """By rename, readable by the owner only, and on disk when it returns; `check` may object."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    try:
        check(aside)
    except BaseException:
        aside.unlink()
        raise
    aside.rename(path)
