"""Writing the rendered configuration where postgres, repmgr and people find it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig
from pgcluster.api.errors import FatalError, RetryError
from pgcluster.render import postgres as render_postgres
from pgcluster.render import repmgr as render_repmgr


def write_atomically(path: Path, content: str, *, mode: int = 0o600) -> bool:
    """Replace `path` by `content` in one step; False where it already was so."""
    if path.exists() and path.read_text() == content:
        return False
    temporary = path.with_name(path.name + ".new")
    temporary.touch(mode=mode)
    temporary.write_text(content)
    temporary.chmod(mode)
    os.replace(temporary, path)
    return True


def read_config(directory: Path = Path(names.CONFIG_DIR)) -> ClusterConfig:
    """The cluster's configuration as mounted when the pod started."""
    try:
        return ClusterConfig.model_validate_json((directory / names.CONFIG_KEY).read_bytes())
    except OSError as error:
        raise RetryError(f"the cluster's configuration is not mounted: {error}") from error
    except ValueError as error:
        raise FatalError(f"the cluster's configuration cannot be read: {error}") from error


def read_secret(folder: str, key: str, *, directory: Path = Path(names.SECRETS_DIR)) -> str:
    """One key of a mounted Secret; RetryError while it is not there."""
    try:
        return (directory / folder / key).read_text().strip()
    except OSError as error:
        raise RetryError(f"Secret {folder}/{key} is not mounted: {error.strerror}") from error


def write_all(
    config: ClusterConfig, instance: str, *, synchronous: str, floor: Mapping[str, int]
) -> bool:
    """Write every configuration file; True where postgres should reload.

    `synchronous` is what the instance's commits wait for when it is the primary, `floor` what the
    WAL that it follows as a standby demands.
    """
    reload_ = False
    settings = render_postgres.postgresql_conf(
        config, instance=instance, synchronous=synchronous, floor=floor
    )
    for path, content in (
        (names.POSTGRESQL_CONF, settings),
        (names.PG_HBA_CONF, render_postgres.pg_hba_conf(config)),
        (names.PG_IDENT_CONF, ""),
    ):
        reload_ |= write_atomically(Path(path), content)
    write_atomically(
        Path(names.PASSFILE), render_repmgr.passfile(read_secret("repmgr", "password"))
    )
    return reload_


def write_repmgr(config: ClusterConfig, instance: str) -> bool:
    """Write repmgr.conf; True where repmgrd should read it again."""
    content = render_repmgr.repmgr_conf(config, instance=instance)
    return write_atomically(Path(names.REPMGR_CONF), content)


def leave_word(container: str, path: Path = Path(names.TERMINATION_LOG)) -> None:
    """Have the kubelet say `container` once this very container has ended, however it does."""
    with contextlib.suppress(OSError):
        path.write_text(container)


def write_hosts(config: ClusterConfig, addresses: Mapping[str, str]) -> bool:
    """Write the hosts file: pod name → address of every instance whose address is known."""
    by_address = {
        address: (names.pod_host(pod, config.name, config.namespace), pod)
        for pod, address in addresses.items()
    }
    return write_atomically(Path(names.HOSTS_FILE), render_repmgr.hosts_file(by_address))
