"""The Secrets, made once and never changed behind the user's back."""

from __future__ import annotations

import secrets as randomness
from collections.abc import Callable, Mapping
from urllib.parse import quote, quote_plus

from pgcluster.api import names
from pgcluster.api.models import PgCluster, users
from pgcluster.render.metadata import Manifest, metadata
from pgcluster.render.services import has_read_only_pool

_BYTES = 24
_URIS = frozenset({"uri", "jdbc-uri", "ro-uri", "ro-jdbc-uri"})


def _token() -> str:
    return randomness.token_urlsafe(_BYTES)


def manifests(
    cluster: PgCluster, token: Callable[[], str] = _token, *, trust: str = ""
) -> list[Manifest]:
    """All Secrets of a cluster with new passwords; to be created only where they do not exist.

    `trust`: the authorities that clients are to believe.
    """
    pooler = {"auth-password": token(), "admin-password": token(), "stats-password": token()}
    return [
        secret(cluster, names.secret_repmgr(cluster.name), {"password": token()}),
        secret(cluster, names.secret_pooler(cluster.name), pooler),
        secret(cluster, names.secret_app(cluster.name), application(cluster, token(), trust)),
    ]


def application(cluster: PgCluster, password: str, trust: str = "") -> dict[str, str]:
    """What an application needs to connect through the pool, in each form that one may want.

    Where the spec names another Secret for the role, its password is not in here, for the two would
    differ: the URIs then leave it to the client.
    """
    database = cluster.spec.application
    known = password if _is_ours(cluster, database.owner) else None
    port = str(names.PORT_POSTGRES)
    host = _host(names.service_pool(cluster.name), cluster)
    made = {
        "username": database.owner,
        "host": host,
        "port": port,
        "dbname": database.name,
        **_uris("", host, port, database.name, database.owner, known),
        **({names.CA_BUNDLE_KEY: trust} if trust else {}),
    }
    if known is not None:
        made["password"] = known
        made["pgpass"] = _pgpass(host, port, "*", database.owner, known)
    if has_read_only_pool(cluster):
        read_only = database.name + names.READ_ONLY_SUFFIX
        host = _host(names.service_read_only(cluster.name), cluster)
        made["ro-dbname"] = read_only
        made |= _uris("ro-", host, port, read_only, database.owner, known)
    return {key: _with_tls(key, value, cluster) for key, value in made.items()}


def published(held: Mapping[str, str], cluster: PgCluster, trust: str) -> dict[str, str]:
    """What Secret `<cluster>-app` is to hold of what it holds: the rest is the user's, too.

    The authorities are those of today; of a URI only whether it demands TLS follows the spec.
    """
    kept = {key: _with_tls(key, value, cluster) for key, value in held.items()}
    return kept | ({names.CA_BUNDLE_KEY: trust} if trust else {})


def _with_tls(key: str, value: str, cluster: PgCluster) -> str:
    """A URI with the demand for TLS; anything else as it is.

    `verify-full` would want a file with the authorities, which whoever takes the URI alone lacks.
    Who has written that himself keeps it.
    """
    if key not in _URIS:
        return value
    base, _, query = value.partition("?")
    parts = [part for part in query.split("&") if part]
    if any(part.startswith("sslmode=verify-") for part in parts):
        return value
    others = [part for part in parts if not part.startswith("sslmode=")]
    return f"{base}?{'&'.join([*others, f'sslmode={cluster.spec.tls.clients}'])}"


def _is_ours(cluster: PgCluster, role: str) -> bool:
    """Whether a role takes its password from Secret `<cluster>-app`."""
    sources = {user.name: user.password_secret for user in users(cluster)}
    source = sources.get(role)
    return source is not None and source.name == names.secret_app(cluster.name)


def _host(service: str, cluster: PgCluster) -> str:
    return f"{service}.{cluster.namespace}.svc"


def _uris(
    prefix: str, host: str, port: str, database: str, user: str, password: str | None
) -> dict[str, str]:
    login, query = quote(user, safe=""), f"user={quote_plus(user)}"
    if password is not None:
        login += f":{quote(password, safe='')}"
        query += f"&password={quote_plus(password)}"
    path = quote(database, safe="")
    return {
        f"{prefix}uri": f"postgresql://{login}@{host}:{port}/{path}",
        f"{prefix}jdbc-uri": f"jdbc:postgresql://{host}:{port}/{path}?{query}",
    }


def _pgpass(*parts: str) -> str:
    """A line of libpq's password file: colons and backslashes inside a part are escaped."""
    return ":".join(part.replace("\\", "\\\\").replace(":", "\\:") for part in parts) + "\n"


def secret(cluster: PgCluster, name: str, data: dict[str, str]) -> Manifest:
    """A Secret of the cluster with these texts."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata(cluster, name),
        "type": "Opaque",
        "stringData": data,
    }
