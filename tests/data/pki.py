"""Certificates as the operator makes them, in folders as the kubelet mounts them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pgcluster.api import names
from pgcluster.controller.certificates import LEAF_LIFE, Certificates, Profile, internal, plan
from tests.data.servers import own

CLUSTER, NAMESPACE = "shop", "default"
POOL = names.secret_pool_tls(CLUSTER)
SERVER = names.secret_server(CLUSTER)
CLIENT = names.secret_replication(CLUSTER)
OF_INSTANCES = internal(CLUSTER, NAMESPACE)
OF_POOLS = {POOL: Profile(CLUSTER, names.pool_hosts(CLUSTER, NAMESPACE))}


def issue(
    profiles: Mapping[str, Profile],
    *,
    by: Mapping[str, str] | None = None,
    now: datetime | None = None,
) -> Certificates:
    """New certificates, of the authority `by` or of a new one, as if it were `now`."""
    return plan(by or {}, {}, profiles, cluster=CLUSTER, now=now or datetime.now(UTC))


def expired() -> datetime:
    """A moment from which a certificate made then has run out by now, and its authority has not."""
    return datetime.now(UTC) - LEAF_LIFE - timedelta(minutes=1)


def mount(folder: Path, content: Mapping[str, str]) -> Path:
    """Have a Secret's content in a folder, all of it at one moment: by one link, as the kubelet."""
    folder.mkdir(exist_ok=True)
    own(folder)
    version = folder / f"..{datetime.now(UTC).timestamp()}"
    version.mkdir()
    for key, text in content.items():
        (version / key).write_text(text)
        (version / key).chmod(0o440)
        own(version / key)
    own(version)
    link = folder / "..data"
    former = link.resolve() if link.exists() else None
    aside = folder / "..data.new"
    aside.symlink_to(version.name)
    aside.rename(link)
    if former is not None:
        shutil.rmtree(former)
    return folder
