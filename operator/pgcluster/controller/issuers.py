"""The pools' certificate where somebody else makes it: the user, or cert-manager.

What they give is looked at before it is taken. Where it is missing or of no use, the pools go on
with what they have, and the condition says what to do: a mistake in a Secret takes nobody's
service away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from pgcluster.api import conditions, names
from pgcluster.api.models import PgCluster
from pgcluster.controller.apply import difference, owned_by, stamped
from pgcluster.controller.certificates import CERT_MANAGER, OPERATOR, USER, content_of
from pgcluster.controller.observe import Observed
from pgcluster.kube.client import KubeClient, Manifest
from pgcluster.kube.errors import Forbidden, Invalid, NotFound
from pgcluster.kube.resources import CERTIFICATES, SECRETS
from pgcluster.render.certificate import certificate

Trouble = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Offered:
    """Who is to make the pools' certificate, what they have made, and why that is not to be had."""

    issuer: str = OPERATOR
    given: Mapping[str, str] | None = field(default=None, repr=False)
    trouble: Trouble | None = None


def judge(content: Mapping[str, str], *, secret: str, now: datetime) -> Mapping[str, str] | str:
    """The certificate of a Secret, or in a sentence why it is of no use. Pure.

    Its names are the user's own business: clients may know the pools by others.
    """
    certificates, keys = content.get(names.CERTIFICATE_KEY), content.get(names.PRIVATE_KEY_KEY)
    if certificates is None or keys is None:
        missing = names.PRIVATE_KEY_KEY if certificates else names.CERTIFICATE_KEY
        return f"Secret {secret} has no key {missing}"
    try:
        leaf = x509.load_pem_x509_certificates(certificates.encode())[0]
    except ValueError:
        return f"{names.CERTIFICATE_KEY} of Secret {secret} is no certificate in PEM"
    try:
        key = serialization.load_pem_private_key(keys.encode(), password=None)
    except (ValueError, TypeError):
        return f"{names.PRIVATE_KEY_KEY} of Secret {secret} is no private key in PEM, or is locked"
    if key.public_key() != leaf.public_key():
        return f"{names.PRIVATE_KEY_KEY} of Secret {secret} is not the key of its certificate"
    if not leaf.not_valid_before_utc <= now < leaf.not_valid_after_utc:
        return (
            f"the certificate in Secret {secret} is valid from"
            f" {leaf.not_valid_before_utc:%Y-%m-%d %H:%M} to"
            f" {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC only"
        )
    authorities = content.get(names.CA_BUNDLE_KEY, "")
    try:
        if authorities.strip():
            x509.load_pem_x509_certificates(authorities.encode())
    except ValueError:
        return f"{names.CA_BUNDLE_KEY} of Secret {secret} is no certificate in PEM"
    return {
        names.CERTIFICATE_KEY: certificates,
        names.PRIVATE_KEY_KEY: keys,
        names.CA_BUNDLE_KEY: authorities,
    }


async def offered(
    client: KubeClient, observed: Observed, cluster: PgCluster, now: datetime
) -> Offered:
    """What the user or cert-manager gives; asks cert-manager where the spec says so."""
    tls = cluster.spec.tls
    if tls.issuer_ref is None:
        await _withdraw(client, observed)
    if tls.issuer_ref is not None:
        issuer, secret = CERT_MANAGER, names.secret_pool_certificate(cluster.name)
        asked = certificate(cluster, tls.issuer_ref)
        if (trouble := await _ask(client, observed, asked)) is not None:
            return Offered(issuer, trouble=trouble)
    elif tls.secret_name is not None:
        issuer, secret = USER, tls.secret_name
    else:
        return Offered()
    if secret in names.own_secrets(cluster.name):
        # Those of the instances, or an authority, would end up with the poolers.
        told = f"spec.tls.secretName: Secret {secret} is one of the operator's own: name another"
        return Offered(issuer, trouble=(conditions.CERTIFICATE_INVALID, told))
    manifest = await client.get(SECRETS, secret, cluster.namespace)
    if manifest is None:
        return Offered(issuer, trouble=await _missing(client, cluster, secret))
    found = judge(content_of(manifest), secret=secret, now=now)
    if not isinstance(found, str):
        return Offered(issuer, found)
    told = f"{found}; the pools go on with what they have until it is corrected"
    return Offered(issuer, trouble=(conditions.CERTIFICATE_INVALID, told))


async def _withdraw(client: KubeClient, observed: Observed) -> None:
    """Ask cert-manager no more, where that was done for this cluster."""
    key = observed.key
    shown = content_of(observed.child(SECRETS, names.secret_pool_tls(key.name)))
    if shown.get(names.ISSUER_KEY) != CERT_MANAGER:
        return
    name = names.secret_pool_certificate(key.name)
    live = await client.get(CERTIFICATES, name, key.namespace)
    if live is not None and owned_by(live, observed.uid):
        await client.delete(CERTIFICATES, name, key.namespace, uid=live["metadata"]["uid"])


async def _ask(client: KubeClient, observed: Observed, asked: Manifest) -> Trouble | None:
    """Have cert-manager make a certificate; why that cannot be, if so."""
    wanted = stamped(asked)
    name = wanted["metadata"]["name"]
    try:
        live = await client.get(CERTIFICATES, name, observed.key.namespace)
        if live is not None and not owned_by(live, observed.uid):
            return (
                conditions.NAME_CONFLICT,
                f"Certificate {name} is needed but is not the operator's: remove it",
            )
        if live is None or difference(wanted, live):
            await client.apply(CERTIFICATES, wanted, manager=names.MANAGER_OPERATOR)
    except NotFound:
        return (
            conditions.CERT_MANAGER_MISSING,
            "spec.tls.issuerRef: the API server knows no cert-manager.io/v1 Certificate: install"
            " cert-manager, or take issuerRef away",
        )
    except (Invalid, Forbidden) as error:
        return (
            conditions.API_REFUSED,
            f"spec.tls.issuerRef: the API server refuses Certificate {name}: {error}",
        )
    return None


async def _missing(client: KubeClient, cluster: PgCluster, secret: str) -> Trouble:
    if cluster.spec.tls.issuer_ref is None:
        return (
            conditions.CERTIFICATE_MISSING,
            f"spec.tls.secretName: Secret {secret} does not exist: make it, of type"
            " kubernetes.io/tls; the pools go on with what they have until it is there",
        )
    live = await client.get(CERTIFICATES, secret, cluster.namespace)
    return (
        conditions.CERTIFICATE_MISSING,
        f"cert-manager has not made Secret {secret} yet: {_said(live)}; the pools go on with what"
        " they have until it is there",
    )


def _said(live: Mapping[str, Any] | None) -> str:
    """What cert-manager says of a Certificate."""
    told: Manifest = {}
    for condition in ((live or {}).get("status") or {}).get("conditions") or ():
        if condition.get("type") == "Ready":
            told = condition
    return str(told.get("message") or "it says nothing of it").rstrip(".")
