"""The cluster's own certificate authority, and the certificate of its instances.

Made once, renewed in time, in steps that leave no two instances without a common authority: a
mounted Secret reaches the pods one by one, within a minute or two. So a new authority is first only
trusted, and signs once everybody has had time to hear of it; the former one stays trusted until its
last certificate is out of use.
"""

from __future__ import annotations

import logging
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pgcluster.api import names
from pgcluster.api.errors import RetryError
from pgcluster.api.models import PgCluster
from pgcluster.controller.apply import Applier
from pgcluster.controller.observe import Observed
from pgcluster.kube.client import KubeClient, Manifest
from pgcluster.kube.errors import Conflict
from pgcluster.kube.resources import SECRETS
from pgcluster.render.secrets import secret

log = logging.getLogger(__name__)

CA_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(days=90)
# How long until every pod has read a changed Secret: the kubelet's sync period and its cache are a
# minute each, and a node may have been cut off.
SPREAD = timedelta(hours=1)
# The clocks of the nodes differ.
_BACKDATED = timedelta(minutes=5)
# Somebody who deletes the authority again and again must not grow the bundle for ever.
_TRUSTED_AT_MOST = 4


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key; the key shows in no representation."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"Pair({self.certificate.subject.rfc4514_string()})"

    def data(self) -> dict[str, str]:
        """As a Secret has it."""
        return {
            names.CERTIFICATE_KEY: _pem(self.certificate),
            names.PRIVATE_KEY_KEY: self.key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ).decode(),
        }


@dataclass(frozen=True, slots=True)
class Certificates:
    """What the two Secrets should hold, and why that is not what they hold now, if so."""

    ca: Mapping[str, str] = field(repr=False)
    peers: Mapping[str, str] = field(repr=False)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The Secrets to have, and why they are not as they were, if so."""

    manifests: tuple[Manifest, ...] = field(repr=False)
    reason: str = ""


def plan(
    ca: Mapping[str, str], peers: Mapping[str, str], *, cluster: str, name: str, now: datetime
) -> Certificates:
    """What the Secrets should hold, from what they hold (empty where there is none). Pure but
    for the new keys.

    `name` is what the leaf proves; `now` has a time zone. A Secret whose content makes no sense
    counts as absent.
    """
    reasons = []
    authority, leaf = _pair(ca), _pair(peers)
    if authority is None or not _is_authority(authority) or due(authority.certificate, now):
        reasons.append("a new certificate authority")
        authority = _issue_authority(cluster, now)
    trusted = [authority.certificate, *_former(peers, authority.certificate, now)]
    signer = None if leaf is None else _signer(leaf.certificate, trusted)
    if leaf is None or signer is None or not _proves(leaf, name) or due(leaf.certificate, now):
        reasons.append("a new certificate of the instances")
        leaf = _issue_leaf(authority, name, now)
    elif signer != authority.certificate and _age(authority.certificate, now) >= SPREAD:
        reasons.append("a new certificate of the instances, of the authority that is now known")
        leaf = _issue_leaf(authority, name, now)
    elif signer == authority.certificate and _age(leaf.certificate, now) >= SPREAD:
        if len(trusted) > 1:
            reasons.append("the former authority is trusted no longer")
        trusted = [authority.certificate]
    bundle = "".join(_pem(certificate) for certificate in trusted)
    if bundle != peers.get(names.CA_BUNDLE_KEY) and not reasons:
        reasons.append("the bundle of authorities was not right")
    return Certificates(
        ca=authority.data(),
        peers={names.CA_BUNDLE_KEY: bundle, **leaf.data()},
        reason=", ".join(reasons),
    )


def due(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether a third of its life, or less, is left."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return end - now <= (end - begin) / 3 or now < begin


def wanted(observed: Observed, cluster: PgCluster, now: datetime) -> Wanted:
    """Both Secrets as they should be, the authority first."""
    ca, peers = names.secret_ca(cluster.name), names.secret_peers(cluster.name)
    planned = plan(
        _content(observed.child(SECRETS, ca)),
        _content(observed.child(SECRETS, peers)),
        cluster=cluster.name,
        name=names.peer_name(cluster.name, cluster.namespace),
        now=now,
    )
    manifests = (
        secret(cluster, ca, dict(planned.ca)),
        secret(cluster, peers, dict(planned.peers)),
    )
    return Wanted(manifests, planned.reason)


async def write(client: KubeClient, applier: Applier, wanted: Wanted) -> None:
    """Make or renew what differs.

    With the version that was read, so that of two operators one starts over (RetryError).
    """
    for manifest in wanted.manifests:
        live = applier.live(manifest)
        if live is None:
            await applier.create(manifest)
        elif _content(live) != manifest["stringData"]:
            await _renew(client, live, manifest["stringData"])
    if wanted.reason:
        log.info("certificates: %s", wanted.reason)


async def _renew(client: KubeClient, live: Manifest, content: Mapping[str, str]) -> None:
    data = {key: b64encode(value.encode()).decode() for key, value in content.items()}
    try:
        await client.replace(SECRETS, {**live, "data": data})
    except Conflict as error:
        raise RetryError("the certificates changed meanwhile", delay_s=0.5) from error


def _content(manifest: Mapping[str, object] | None) -> dict[str, str]:
    """The text of a Secret; what cannot be decoded is as good as absent."""
    found = {}
    data = (manifest or {}).get("data")
    for key, value in (data if isinstance(data, Mapping) else {}).items():
        try:
            found[str(key)] = b64decode(value).decode()
        except ValueError:
            continue
    return found


# --- reading certificates ---------------------------------------------------------------------


def _pair(content: Mapping[str, str]) -> Pair | None:
    """Certificate and key that belong together; None where there are none."""
    try:
        certificate = x509.load_pem_x509_certificate(content[names.CERTIFICATE_KEY].encode())
        key = serialization.load_pem_private_key(
            content[names.PRIVATE_KEY_KEY].encode(), password=None
        )
    except (KeyError, ValueError, TypeError):
        return None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        return None
    return Pair(certificate, key) if certificate.public_key() == key.public_key() else None


def _is_authority(pair: Pair) -> bool:
    try:
        constraints = pair.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except x509.ExtensionNotFound:
        return False
    return constraints.value.ca


def _proves(leaf: Pair, name: str) -> bool:
    try:
        found = leaf.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return False
    return found.value.get_values_for_type(x509.DNSName) == [name]


def _former(
    peers: Mapping[str, str], current: x509.Certificate, now: datetime
) -> list[x509.Certificate]:
    """Authorities of the bundle that are not the current one and have not expired."""
    try:
        bundle = x509.load_pem_x509_certificates(peers[names.CA_BUNDLE_KEY].encode())
    except (KeyError, ValueError):
        return []
    found = [one for one in bundle if one != current and one.not_valid_after_utc > now]
    leaf = _pair(peers)
    signer = None if leaf is None else _signer(leaf.certificate, found)
    # The signer of the certificate in use is the one that must not be lost.
    found.sort(key=lambda one: (one == signer, one.not_valid_before_utc), reverse=True)
    return found[: _TRUSTED_AT_MOST - 1]


def _signer(
    leaf: x509.Certificate, authorities: Iterable[x509.Certificate]
) -> x509.Certificate | None:
    for authority in authorities:
        try:
            leaf.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            continue
        return authority
    return None


def _age(certificate: x509.Certificate, now: datetime) -> timedelta:
    return now - (certificate.not_valid_before_utc + _BACKDATED)


# --- making certificates ----------------------------------------------------------------------


def _issue_authority(cluster: str, now: datetime) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    serial = x509.random_serial_number()
    # Unlike any former one, so that a chain is built with the right one.
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{cluster} {serial:040x}"[:57])])
    certificate = (
        _builder(subject, subject, key.public_key(), serial, now, CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Pair(certificate, key)


def _issue_leaf(authority: Pair, name: str, now: datetime) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "peers")])
    issuer = authority.certificate.subject
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    certificate = (
        _builder(subject, issuer, key.public_key(), x509.random_serial_number(), now, LEAF_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(signer, critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(
            x509.ExtendedKeyUsage(
                [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
            ),
            critical=False,
        )
        .sign(authority.key, hashes.SHA256())
    )
    return Pair(certificate, key)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    serial: int,
    now: datetime,
    life: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
