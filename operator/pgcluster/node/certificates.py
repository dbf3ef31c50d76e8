"""This instance's certificates for PostgreSQL: from their mounts to where postgres and libpq look.

PostgreSQL takes a private key only from a file that nobody else can read, which a mounted Secret's
is not, and a renewal must never leave a key beside the certificate of another. So key and
certificate go into one file each, which is put in place by one rename once OpenSSL has taken it.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable
from pathlib import Path

from pgcluster.api import names
from pgcluster.api.errors import RetryError

log = logging.getLogger(__name__)


class Certificates:
    """The certificate that clients see, the one by which other servers know this instance as role
    `repmgr`, and the authorities that both sides believe."""

    def __init__(
        self,
        *,
        server: Path = Path(names.SERVER_DIR),
        client: Path = Path(names.CLIENT_DIR),
        server_pem: Path = Path(names.SERVER_PEM),
        client_pem: Path = Path(names.CLIENT_PEM),
        ca_pem: Path = Path(names.CA_PEM),
    ) -> None:
        self._pairs = ((server, server_pem), (client, client_pem))
        self._authorities = (server, ca_pem)
        self._state: object = None
        self._complaint = ""

    @property
    def mounted(self) -> bool:
        """Whether this pod was made to have certificates: by an operator that makes them."""
        return all(source.is_dir() for source, _ in self._pairs)

    @property
    def complete(self) -> bool:
        """Whether everything is in place."""
        targets = [*(target for _, target in self._pairs), self._authorities[1]]
        return all(target.exists() for target in targets)

    def require(self) -> None:
        """RetryError where something is missing: postgres would not start."""
        self.refresh()
        if not self.complete:
            raise RetryError(f"the certificates are not there: {self._complaint or 'not mounted'}")

    def refresh(self) -> bool:
        """Take what is mounted now; True where that was news, and postgres should reload."""
        if not self.mounted:
            return False
        try:
            state = [_state(source) for source, _ in self._pairs]
            if state == self._state and self.complete:
                return False
            changed = [_take_pair(source, target) for source, target in self._pairs]
            changed.append(_take_authorities(*self._authorities))
        except (OSError, ValueError) as error:
            self._complain(f"the certificates of postgres cannot be taken: {error}")
            return False
        self._state, self._complaint = state, ""
        if any(changed):
            log.info("the certificates of postgres were taken")
        return any(changed)

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            log.warning("%s; what there is stays", complaint)
        self._complaint = complaint


def _at_one_moment(source: Path) -> Path:
    """The kubelet swaps one link for all files of a Secret: behind it they fit together."""
    behind = (source / "..data").resolve()
    return behind if behind.is_dir() else source


def _state(source: Path) -> tuple[object, ...]:
    """What changes with the content: a link's swap in the path, a write in place in the stamp."""
    directory = _at_one_moment(source)
    stats = [(directory / key).stat() for key in (names.CERTIFICATE_KEY, names.CA_BUNDLE_KEY)]
    return (str(directory), *((stat.st_mtime_ns, stat.st_ino) for stat in stats))


def _take_pair(source: Path, target: Path) -> bool:
    directory = _at_one_moment(source)
    key, certificate = (
        (directory / name).read_text() for name in (names.PRIVATE_KEY_KEY, names.CERTIFICATE_KEY)
    )

    def check(path: Path) -> None:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path)

    return _replace(target, key.rstrip("\n") + "\n" + certificate, check)


def _take_authorities(source: Path, target: Path) -> bool:
    def check(path: Path) -> None:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)

    return _replace(target, (_at_one_moment(source) / names.CA_BUNDLE_KEY).read_text(), check)


def _replace(target: Path, content: str, check: Callable[[Path], None]) -> bool:
    """One rename, to what OpenSSL takes (ssl.SSLError is an OSError); False where it was so."""
    if target.exists() and target.read_text() == content:
        return False
    aside = target.with_name(f".{target.name}.new")
    aside.unlink(missing_ok=True)
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(content)
    check(aside)
    os.replace(aside, target)
    return True
