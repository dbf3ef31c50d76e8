"""The Secrets, made once and never changed behind the user's back."""

from __future__ import annotations

import secrets as randomness
from collections.abc import Callable
from urllib.parse import quote, quote_plus

from pgcluster.api import names
from pgcluster.api.models import PgCluster
from pgcluster.render.metadata import Manifest, metadata

_BYTES = 24


def _token() -> str:
    return randomness.token_urlsafe(_BYTES)


def manifests(cluster: PgCluster, token: Callable[[], str] = _token) -> list[Manifest]:
    """All Secrets of a cluster with new passwords; to be created only where they do not exist."""
    pooler = {"auth-password": token(), "admin-password": token(), "stats-password": token()}
    return [
        _secret(cluster, names.secret_repmgr(cluster.name), {"password": token()}),
        _secret(cluster, names.secret_pooler(cluster.name), pooler),
        _secret(cluster, names.secret_app(cluster.name), application(cluster, token())),
    ]


def application(cluster: PgCluster, password: str) -> dict[str, str]:
    """What an application needs to connect through the pool, in each form that one may want.

    Without poolers it is the primary's own Service.
    """
    pooled = cluster.spec.pgbouncer.instances > 0
    service = names.service_pool if pooled else names.service_primary
    database = cluster.spec.application
    host = f"{service(cluster.name)}.{cluster.namespace}.svc"
    port = str(names.PORT_POSTGRES)
    made = {
        "username": database.owner,
        "password": password,
        "host": host,
        "port": port,
        "dbname": database.name,
        "pgpass": _pgpass(host, port, "*", database.owner, password),
        **_uris("", host, port, database.name, database.owner, password),
    }
    if pooled and cluster.spec.pgbouncer.read_only_pool:
        read_only = database.name + names.READ_ONLY_SUFFIX
        host = f"{names.service_read_only(cluster.name)}.{cluster.namespace}.svc"
        made["ro-dbname"] = read_only
        made |= _uris("ro-", host, port, read_only, database.owner, password)
    return made


def _uris(
    prefix: str, host: str, port: str, database: str, user: str, password: str
) -> dict[str, str]:
    login = f"{quote(user, safe='')}:{quote(password, safe='')}"
    path = quote(database, safe="")
    query = f"user={quote_plus(user)}&password={quote_plus(password)}"
    return {
        f"{prefix}uri": f"postgresql://{login}@{host}:{port}/{path}",
        f"{prefix}jdbc-uri": f"jdbc:postgresql://{host}:{port}/{path}?{query}",
    }


def _pgpass(*parts: str) -> str:
    """A line of libpq's password file: colons and backslashes inside a part are escaped."""
    return ":".join(part.replace("\\", "\\\\").replace(":", "\\:") for part in parts) + "\n"


def _secret(cluster: PgCluster, name: str, data: dict[str, str]) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(cluster, name),
        "type": "Opaque",
        "stringData": data,
    }
