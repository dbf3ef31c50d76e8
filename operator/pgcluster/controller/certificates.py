"""The cluster's own certificate authorities, and the certificates of its instances and pools.

Made once, renewed in time, in steps that leave no two instances without a common authority: a
mounted Secret reaches the pods one by one, within a minute or two. So a new authority is first only
trusted, and signs once everybody has had time to hear of it; the former one stays trusted until its
last certificate is out of use.
"""

from __future__ import annotations

import contextlib
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
from pgcluster.controller.apply import Applier, owned_by
from pgcluster.controller.observe import Observed
from pgcluster.kube.client import KubeClient, Manifest
from pgcluster.kube.errors import Conflict
from pgcluster.kube.resources import SECRETS
from pgcluster.render.secrets import published, secret

log = logging.getLogger(__name__)

CA_LIFE = timedelta(days=3650)
LEAF_LIFE = timedelta(days=90)
# How long until every pod has read a changed Secret: the kubelet's sync period and its cache are a
# minute each, and a node may have been cut off.
SPREAD = timedelta(hours=1)
# The clocks of the nodes differ.
_BACKDATED = timedelta(minutes=5)
# Who makes what the pools show.
OPERATOR, USER, CERT_MANAGER = "operator", "user", "cert-manager"
_SHOWN = (names.CERTIFICATE_KEY, names.PRIVATE_KEY_KEY, names.CA_BUNDLE_KEY)
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
class Profile:
    """What a certificate proves: names of hosts, a role (its common name), and to whom."""

    common_name: str
    hosts: tuple[str, ...] = ()
    server: bool = True
    client: bool = False

    @property
    def usages(self) -> tuple[x509.ObjectIdentifier, ...]:
        """Whether it is shown by a server, by a client, or both."""
        return (ExtendedKeyUsageOID.SERVER_AUTH,) * self.server + (
            ExtendedKeyUsageOID.CLIENT_AUTH,
        ) * self.client


@dataclass(frozen=True, slots=True)
class Certificates:
    """What an authority's Secret and those of its certificates should hold, and why that is not
    what they hold now, if so."""

    ca: Mapping[str, str] = field(repr=False)
    leaves: Mapping[str, Mapping[str, str]] = field(repr=False)
    bundle: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The Secrets to have, and why they are not as they were, if so.

    `trust` is what a client needs to believe the pools and the instances.
    """

    manifests: tuple[Manifest, ...] = field(repr=False)
    reason: str = ""
    trust: str = ""


def internal(cluster: str, namespace: str, dns_names: tuple[str, ...] = ()) -> dict[str, Profile]:
    """Secret → what it proves, of those that only instances hold.

    They have an authority of their own: whoever shows a certificate of it is an instance. So
    pgbouncer, which is given addresses and not names, need not compare any name.
    """
    return {
        names.secret_peers(cluster): Profile(
            "peers", (names.peer_name(cluster, namespace),), client=True
        ),
        names.secret_server(cluster): Profile(
            cluster, (*names.server_hosts(cluster, namespace), *dns_names)
        ),
        names.secret_replication(cluster): Profile(names.ROLE_REPMGR, server=False, client=True),
    }


def plan(
    ca: Mapping[str, str],
    held: Mapping[str, Mapping[str, str]],
    profiles: Mapping[str, Profile],
    *,
    cluster: str,
    now: datetime,
) -> Certificates:
    """What an authority's Secret and those of its certificates (by name, as are `profiles`) should
    hold, from what they hold (empty where there is none). Pure but for the new keys.

    `now` has a time zone. A Secret whose content makes no sense counts as absent. All Secrets
    carry the same bundle, and a former authority stays in it until nobody may be using it.
    """
    reasons = []
    authority = _pair(ca)
    if authority is None or not _is_authority(authority) or due(authority.certificate, now):
        reasons.append("a new certificate authority")
        authority = _issue_authority(cluster, now)
    own = authority.certificate
    contents = [held.get(name, {}) for name in profiles]
    trusted = [own, *_former(contents, own, now)]
    leaves: dict[str, Pair] = {}
    settled = True
    for name, profile in profiles.items():
        leaf = _pair(held.get(name, {}))
        signer = None if leaf is None else _signer(leaf.certificate, trusted)
        if (
            leaf is None
            or signer is None
            or not _proves(leaf, profile)
            or due(leaf.certificate, now)
        ):
            reasons.append(f"a new certificate in {name}")
            leaf, signer = _issue_leaf(authority, profile, now), own
        elif signer != own and _age(own, now) >= SPREAD:
            reasons.append(f"a new certificate in {name}, of the authority that is now known")
            leaf, signer = _issue_leaf(authority, profile, now), own
        leaves[name] = leaf
        settled &= signer == own and _age(leaf.certificate, now) >= SPREAD
    if settled and len(trusted) > 1:
        reasons.append("the former authority is trusted no longer")
        trusted = [own]
    bundle = "".join(_pem(certificate) for certificate in trusted)
    made = {secret: {names.CA_BUNDLE_KEY: bundle, **leaf.data()} for secret, leaf in leaves.items()}
    if not reasons and any(content.get(names.CA_BUNDLE_KEY) != bundle for content in contents):
        reasons.append("the bundle of authorities was not right")
    return Certificates(authority.data(), made, bundle, ", ".join(reasons))


def everywhere(observed: Observed) -> bool:
    """Whether no instance is known to be without certificates: of a version that has none.

    One that has said nothing is new, and has them.
    """
    return all(pod.report is None or pod.report.tls for pod in observed.pods)


def due(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether a third of its life, or less, is left."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return end - now <= (end - begin) / 3 or now < begin


def wanted(
    observed: Observed,
    cluster: PgCluster,
    now: datetime,
    *,
    issuer: str = OPERATOR,
    given: Mapping[str, str] | None = None,
) -> Wanted:
    """All Secrets with certificates as they should be, the authorities first.

    `issuer` is who is to make what the pools show, `given` what somebody else has made of that.
    Where there is nothing, what somebody else gave before is not replaced.
    """

    def held(each: str) -> dict[str, str]:
        return content_of(observed.child(SECRETS, each))

    def planned(ca: str, profiles: Mapping[str, Profile]) -> Certificates:
        contents = {each: held(each) for each in profiles}
        return plan(held(ca), contents, profiles, cluster=cluster.name, now=now)

    name, namespace = cluster.name, cluster.namespace
    more = cluster.spec.tls.dns_names
    of_instances = planned(names.secret_ca(name), internal(name, namespace, more))
    shown, authority = names.secret_pool_tls(name), names.secret_pool_ca(name)
    before, made_by = held(shown), issuer
    if given is None and issuer != OPERATOR:
        made_by = before.get(names.ISSUED_BY_KEY, OPERATOR)
        if made_by != OPERATOR:
            given = {key: before.get(key, "") for key in _SHOWN}
    if given is None:
        hosts = (*names.pool_hosts(name, namespace), *more)
        of_pools = planned(authority, {shown: Profile(name, hosts)})
        to_clients = of_pools.leaves[shown]
    else:
        # Kept, and unused: whoever comes back to it finds the authority that clients knew.
        of_pools = planned(authority, {})
        to_clients = given
    contents = {
        names.secret_ca(name): of_instances.ca,
        authority: of_pools.ca,
        **of_instances.leaves,
        # The poolers believe the instances, and have nothing by which to be taken for one.
        shown: {
            **to_clients,
            names.SERVER_CA_KEY: of_instances.bundle,
            names.ISSUER_KEY: issuer,
            names.ISSUED_BY_KEY: made_by,
        },
    }
    return Wanted(
        tuple(secret(cluster, each, dict(content)) for each, content in contents.items()),
        ", ".join(found.reason for found in (of_instances, of_pools) if found.reason),
        _joined(to_clients[names.CA_BUNDLE_KEY], of_instances.bundle),
    )


def _joined(*bundles: str) -> str:
    """Bundles of PEM in one; what is given need not end its last line."""
    return "".join(bundle.rstrip("\n") + "\n" for bundle in bundles if bundle.strip())


async def publish(client: KubeClient, observed: Observed, cluster: PgCluster, trust: str) -> None:
    """Tell applications by Secret `<cluster>-app` whom to believe, where there is one of ours."""
    live = observed.child(SECRETS, names.secret_app(cluster.name))
    if live is None or not owned_by(live, observed.uid):
        return
    held = content_of(live)
    content = published(held, cluster, trust)
    if content != held:
        # A value that is no text is the user's too, and stays.
        others = {key: value for key, value in live["data"].items() if key not in content}
        await _renew(client, live, content, keep=others)


async def write(client: KubeClient, applier: Applier, wanted: Wanted) -> None:
    """Make or renew what differs.

    With the version that was read, so that of two operators one starts over (RetryError).
    """
    for manifest in wanted.manifests:
        live = applier.live(manifest)
        if live is None:
            await applier.create(manifest)
        elif content_of(live) != manifest["stringData"]:
            await _renew(client, live, manifest["stringData"])
    if wanted.reason:
        log.info("certificates: %s", wanted.reason)


async def _renew(
    client: KubeClient,
    live: Manifest,
    content: Mapping[str, str],
    *,
    keep: Mapping[str, str] | None = None,
) -> None:
    """`keep` is what stays beside the content, as the API has it."""
    data = {key: b64encode(value.encode()).decode() for key, value in content.items()}
    try:
        await client.replace(SECRETS, {**live, "data": {**(keep or {}), **data}})
        log.info("wrote Secret %s", live["metadata"]["name"])
    except Conflict as error:
        raise RetryError("the certificates changed meanwhile", delay_s=0.5) from error


def content_of(manifest: Mapping[str, object] | None) -> dict[str, str]:
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


def _proves(leaf: Pair, profile: Profile) -> bool:
    certificate = leaf.certificate
    subject = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if [name.value for name in subject] != [profile.common_name]:
        return False
    hosts: list[str] = []
    usages: set[x509.ObjectIdentifier] = set()
    with contextlib.suppress(x509.ExtensionNotFound):
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        hosts = found.value.get_values_for_type(x509.DNSName)
    with contextlib.suppress(x509.ExtensionNotFound):
        usages = set(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    return hosts == list(profile.hosts) and usages == set(profile.usages)


def _former(
    contents: Iterable[Mapping[str, str]], current: x509.Certificate, now: datetime
) -> list[x509.Certificate]:
    """Authorities of the bundles that are not the current one and have not expired."""
    found: list[x509.Certificate] = []
    leaves: list[Pair] = []
    for content in contents:
        with contextlib.suppress(KeyError, ValueError):
            for one in x509.load_pem_x509_certificates(content[names.CA_BUNDLE_KEY].encode()):
                if one not in (current, *found) and one.not_valid_after_utc > now:
                    found.append(one)
        if (leaf := _pair(content)) is not None:
            leaves.append(leaf)
    signers = [_signer(leaf.certificate, found) for leaf in leaves]
    # The signers of certificates in use are those that must not be lost.
    found.sort(key=lambda one: (one in signers, one.not_valid_before_utc), reverse=True)
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


def _issue_leaf(authority: Pair, profile: Profile, now: datetime) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, profile.common_name)])
    issuer = authority.certificate.subject
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = (
        _builder(subject, issuer, key.public_key(), x509.random_serial_number(), now, LEAF_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(signer, critical=False)
        .add_extension(x509.ExtendedKeyUsage(profile.usages), critical=False)
    )
    if profile.hosts:
        hosts = [x509.DNSName(host) for host in profile.hosts]
        builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
    return Pair(builder.sign(authority.key, hashes.SHA256()), key)


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
