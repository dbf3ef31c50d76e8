"""The authority of a cluster and its instances' certificate: made, renewed, overlapping."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from pgcluster.api import names
from pgcluster.api.errors import RetryError
from pgcluster.controller.certificates import (
    CA_LIFE,
    LEAF_LIFE,
    SPREAD,
    Certificates,
    Profile,
    due,
    internal,
    plan,
)
from pgcluster.controller.metrics import Metrics
from pgcluster.controller.observe import Key
from pgcluster.controller.prerequisites import Catalog
from pgcluster.controller.reconcile import Reconciler
from pgcluster.kube.client import KubeClient
from pgcluster.kube.errors import Conflict
from pgcluster.kube.resources import PGCLUSTERS, SECRETS, STORAGE_CLASSES
from tests.unit.fakekube import FakeKube

NOW = datetime(2026, 5, 1, 9, 0, tzinfo=UTC)
SECRET = names.secret_peers("shop")
NAME = names.peer_name("shop", "test")
NOTHING: dict[str, str] = {}


def at(now: datetime, before: Certificates | None = None, *, name: str = NAME) -> Certificates:
    """What is planned at a moment, from what stood there before."""
    return planned(
        before.ca if before else NOTHING, peers(before) if before else NOTHING, now, name
    )


def planned(
    ca: Mapping[str, str], held: Mapping[str, str], now: datetime, name: str = NAME
) -> Certificates:
    """What is planned from the content of the two Secrets."""
    profiles = {SECRET: Profile("peers", (name,), client=True)}
    return plan(ca, {SECRET: held}, profiles, cluster="shop", now=now)


def peers(found: Certificates) -> Mapping[str, str]:
    return found.leaves[SECRET]


def authority(found: Certificates) -> x509.Certificate:
    return x509.load_pem_x509_certificate(found.ca["tls.crt"].encode())


def leaf(found: Certificates) -> x509.Certificate:
    return x509.load_pem_x509_certificate(peers(found)["tls.crt"].encode())


def trusted(found: Certificates) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(peers(found)["ca.crt"].encode())


def signed(found: Certificates, by: x509.Certificate) -> bool:
    try:
        leaf(found).verify_directly_issued_by(by)
    except Exception:
        return False
    return True


def test_at_first_an_authority_and_a_certificate_that_it_signs_are_made() -> None:
    made = at(NOW)
    assert signed(made, authority(made))
    assert trusted(made) == [authority(made)]
    assert isinstance(authority(made).public_key(), ec.EllipticCurvePublicKey)
    assert authority(made).not_valid_after_utc == NOW + CA_LIFE
    assert leaf(made).not_valid_after_utc == NOW + LEAF_LIFE
    extensions = leaf(made).extensions
    alternative = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternative.get_values_for_type(x509.DNSName) == [NAME]
    assert set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    }
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_what_is_right_stays_to_the_byte() -> None:
    made = at(NOW)
    for later in (timedelta(), SPREAD, timedelta(days=59)):
        again = at(NOW + later, made)
        assert (again.ca, peers(again), again.reason) == (made.ca, peers(made), "")


def test_the_certificate_is_renewed_when_a_third_of_its_life_is_left() -> None:
    made = at(NOW)
    renewed = at(NOW + timedelta(days=61), made)
    assert renewed.ca == made.ca
    assert leaf(renewed) != leaf(made)
    assert signed(renewed, authority(made))
    assert renewed.reason == f"a new certificate in {SECRET}"


def test_a_new_authority_is_trusted_first_and_signs_when_everybody_knows_it() -> None:
    made = at(NOW)
    day = NOW + CA_LIFE * 2 / 3 + timedelta(days=2)
    made = Certificates(made.ca, at(day - timedelta(days=10), made).leaves)
    assert due(authority(made), day)
    first = at(day, made)
    assert authority(first) != authority(made)
    assert trusted(first) == [authority(first), authority(made)]
    assert leaf(first) == leaf(made), "signed by the new one, the pods would not believe it yet"
    soon = at(day + SPREAD / 2, first)
    assert soon.reason == ""
    second = at(day + SPREAD, first)
    assert signed(second, authority(first))
    assert trusted(second) == [authority(first), authority(made)], "old certificates are in use"
    third = at(day + 2 * SPREAD, second)
    assert trusted(third) == [authority(first)]
    assert leaf(third) == leaf(second)
    assert at(day + 2 * SPREAD, third).reason == ""


def test_a_lost_authority_is_replaced_without_a_cut() -> None:
    made = at(NOW)
    again = planned(NOTHING, peers(made), NOW + timedelta(days=1))
    assert trusted(again) == [authority(again), authority(made)]
    assert leaf(again) == leaf(made)


def test_both_secrets_gone_cut_the_former_ones_off() -> None:
    made, again = at(NOW), at(NOW)
    assert trusted(again) == [authority(again)]
    assert not signed(made, authority(again))


def test_an_authority_that_is_deleted_again_and_again_does_not_grow_the_bundle() -> None:
    made = at(NOW)
    first = authority(made)
    for minute in range(1, 10):
        now = NOW + timedelta(minutes=minute)
        made = planned(NOTHING, peers(made), now)
    assert len(trusted(made)) <= 4
    assert first in trusted(made)
    assert signed(made, first)


@pytest.mark.parametrize("key", ["tls.crt", "tls.key"])
@pytest.mark.parametrize("content", [None, "", "no PEM", "other"])
def test_a_certificate_that_makes_no_sense_is_made_anew(key: str, content: str | None) -> None:
    made = at(NOW)
    content_of = dict(peers(made))
    if content is None:
        del content_of[key]
    else:
        content_of[key] = peers(at(NOW))[key] if content == "other" else content
    again = planned(made.ca, content_of, NOW)
    assert again.ca == made.ca
    assert signed(again, authority(made))
    assert leaf(again) != leaf(made)


def test_an_authority_that_makes_no_sense_is_made_anew() -> None:
    made = at(NOW)
    for ca in ({"tls.crt": "x", "tls.key": "y"}, dict(peers(made))):
        again = planned(ca, peers(made), NOW)
        assert authority(again) != authority(made)


def test_a_damaged_bundle_is_mended() -> None:
    made = at(NOW)
    again = planned(made.ca, {**peers(made), "ca.crt": ""}, NOW)
    assert peers(again) == peers(made)


def test_a_certificate_for_another_cluster_is_made_anew() -> None:
    made = at(NOW, name=names.peer_name("other", "test"))
    assert leaf(at(NOW, made)) != leaf(made)


def test_a_stranger_in_the_bundle_does_not_become_a_signer() -> None:
    made, stranger = at(NOW), at(NOW)
    mixed = {**peers(stranger), "ca.crt": peers(made)["ca.crt"]}
    again = planned(made.ca, mixed, NOW)
    assert signed(again, authority(made))


def test_a_private_key_shows_in_no_representation() -> None:
    made = at(NOW)
    assert "PRIVATE KEY" in made.ca["tls.key"]
    assert "PRIVATE" not in repr(made)


# --- several certificates of one authority ----------------------------------------------------


def all_of_them(now: datetime, before: Certificates | None = None) -> Certificates:
    """The instances' certificates as they are really made."""
    held = before.leaves if before else {}
    ca = before.ca if before else NOTHING
    return plan(ca, held, internal("shop", "test"), cluster="shop", now=now)


def certificate(found: Certificates, secret: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(found.leaves[secret]["tls.crt"].encode())


def usage(found: x509.Certificate) -> set[x509.ObjectIdentifier]:
    return set(found.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)


def test_a_server_has_every_name_that_it_is_reached_by_and_a_client_has_a_role() -> None:
    made = all_of_them(NOW)
    server = certificate(made, "shop-server")
    hosts = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {
        "*.shop-nodes.test.svc",
        "shop-primary",
        "shop-primary.test.svc.cluster.local",
        "shop.test",
        "shop-ro.test.svc",
    } <= set(hosts.get_values_for_type(x509.DNSName))
    assert usage(server) == {ExtendedKeyUsageOID.SERVER_AUTH}
    client = certificate(made, "shop-replication")
    assert client.subject.rfc4514_string() == "CN=repmgr"
    assert usage(client) == {ExtendedKeyUsageOID.CLIENT_AUTH}


def test_no_certificate_but_one_passes_for_the_role_of_the_instances() -> None:
    made = all_of_them(NOW)
    named = {secret: certificate(made, secret).subject.rfc4514_string() for secret in made.leaves}
    assert [secret for secret, name in named.items() if name == "CN=repmgr"] == ["shop-replication"]


def test_a_former_authority_is_believed_until_the_last_certificate_of_it_is_out_of_use() -> None:
    made = all_of_them(NOW - timedelta(days=30))
    first = plan(NOTHING, made.leaves, internal("shop", "test"), cluster="shop", now=NOW)
    assert {name: leaf["tls.crt"] for name, leaf in first.leaves.items()} == {
        name: leaf["tls.crt"] for name, leaf in made.leaves.items()
    }
    # One Secret was written, and the operator ended before the others.
    second = all_of_them(NOW + SPREAD, first)
    part = {**first.leaves, "shop-server": second.leaves["shop-server"]}
    later = all_of_them(NOW + 3 * SPREAD, Certificates(first.ca, part))
    assert len({leaf["ca.crt"] for leaf in later.leaves.values()}) == 1
    for believed in (authority(made), authority(first)):
        assert believed in x509.load_pem_x509_certificates(later.bundle.encode())
    last = all_of_them(NOW + 4 * SPREAD, later)
    assert x509.load_pem_x509_certificates(last.bundle.encode()) == [authority(first)]
    assert all_of_them(NOW + 4 * SPREAD, last).reason == ""


def test_a_deleted_certificate_is_made_by_the_present_authority() -> None:
    made = all_of_them(NOW)
    held = {name: leaf for name, leaf in made.leaves.items() if name != "shop-server"}
    found = all_of_them(NOW + timedelta(days=1), Certificates(made.ca, held))
    assert found.reason == "a new certificate in shop-server"
    certificate(found, "shop-server").verify_directly_issued_by(authority(made))


@pytest.mark.parametrize("other", ["shop-server", "shop-replication", "shop-peers"])
def test_a_certificate_in_the_wrong_secret_is_replaced(other: str) -> None:
    made = all_of_them(NOW)
    for secret in made.leaves.keys() - {other}:
        held = {**made.leaves, secret: made.leaves[other]}
        found = all_of_them(NOW, Certificates(made.ca, held))
        assert found.reason == f"a new certificate in {secret}"


# --- by the reconciliation --------------------------------------------------------------------


SECRETS_MADE = [
    f"shop-{each}" for each in ("ca", "pool-ca", "peers", "server", "replication", "pool-tls")
]


class Today:
    now = NOW

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def kube() -> FakeKube:
    kube = FakeKube()
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    kube.put(STORAGE_CLASSES, {"metadata": {"name": "standard", "annotations": default}})
    spec = {"instances": 2, "storage": {"size": "1Gi"}}
    kube.put(PGCLUSTERS, {"metadata": {"name": "shop", "namespace": "test"}, "spec": spec})
    return kube


async def reconcile(kube: FakeKube, today: Today) -> list[str]:
    """One reconciliation; the writes of Secrets that it took."""
    before = len(kube.writes)
    catalog = Catalog(postgres={"17": "pg:17"}, pgbouncer="pgb:1")
    reconciler = Reconciler(
        cast(KubeClient, kube), Metrics(), catalog, identity="test", today=today
    )
    await reconciler(Key("test", "shop"))
    return [write for write in kube.writes[before:] if " secrets/" in write]


def text(kube: FakeKube, secret: str, key: str) -> str:
    return b64decode((kube.find(SECRETS, secret) or {})["data"][key]).decode()


async def test_the_secrets_are_there_before_the_pods_that_mount_one(kube: FakeKube) -> None:
    await reconcile(kube, Today())
    order = [write.split()[1] for write in kube.writes]
    for secret in SECRETS_MADE:
        assert order.index(f"secrets/{secret}") < order.index("statefulsets/shop")
        made = kube.find(SECRETS, secret)
        assert made
        assert made["metadata"]["labels"][names.LABEL_CLUSTER] == "shop"
        assert made["metadata"]["ownerReferences"][0]["name"] == "shop"
    assert set((kube.find(SECRETS, "shop-ca") or {})["data"]) == {"tls.crt", "tls.key"}
    for secret in ("shop-peers", "shop-server", "shop-replication"):
        assert set((kube.find(SECRETS, secret) or {})["data"]) == {"ca.crt", "tls.crt", "tls.key"}
    pools = (kube.find(SECRETS, "shop-pool-tls") or {})["data"]
    assert {"ca.crt", "server-ca.crt", "tls.crt", "tls.key"} <= set(pools)
    assert pools["server-ca.crt"] == (kube.find(SECRETS, "shop-server") or {})["data"]["ca.crt"]
    assert pools["ca.crt"] != pools["server-ca.crt"], "a pooler must not pass for an instance"


async def test_they_are_written_again_only_when_one_is_due(kube: FakeKube) -> None:
    today = Today()
    await reconcile(kube, today)
    assert await reconcile(kube, today) == []
    before = text(kube, "shop-peers", "tls.crt")
    today.now = NOW + timedelta(days=61)
    assert await reconcile(kube, today) == [
        f"update secrets/shop-{each}" for each in ("peers", "server", "replication", "pool-tls")
    ]
    assert text(kube, "shop-peers", "tls.crt") != before
    assert await reconcile(kube, today) == []


async def test_applications_are_told_of_new_authorities_by_their_secret(kube: FakeKube) -> None:
    today = Today()
    await reconcile(kube, today)
    authorities = {text(kube, f"shop-{each}", "tls.crt") for each in ("ca", "pool-ca")}
    told = text(kube, "shop-app", "ca.crt")
    assert all(authority in told for authority in authorities)
    before = {key: text(kube, "shop-app", key) for key in ("password", "uri", "pgpass")}
    secret = kube.find(SECRETS, "shop-app")
    assert secret
    secret["data"]["theirs"] = b64encode(b"\xff\x00").decode()
    del kube.objects[(SECRETS.plural, "test", "shop-pool-ca")]
    assert "update secrets/shop-app" in await reconcile(kube, today)
    told = text(kube, "shop-app", "ca.crt")
    assert all(authority in told for authority in authorities), "their certificates are in use"
    assert text(kube, "shop-pool-ca", "tls.crt") in told
    assert {key: text(kube, "shop-app", key) for key in before} == before
    kept = (kube.find(SECRETS, "shop-app") or {})["data"]
    assert kept["theirs"] == b64encode(b"\xff\x00").decode()
    assert await reconcile(kube, today) == []


async def test_what_does_not_belong_into_a_secret_goes_once(kube: FakeKube) -> None:
    today = Today()
    await reconcile(kube, today)
    for each in ("server", "pool-tls"):
        secret = kube.find(SECRETS, f"shop-{each}")
        assert secret
        secret["data"]["more"] = b64encode(b"x").decode()
    assert await reconcile(kube, today) == [
        "update secrets/shop-server",
        "update secrets/shop-pool-tls",
    ]
    assert await reconcile(kube, today) == []


async def test_a_renewal_keeps_what_others_wrote_on_the_secret(kube: FakeKube) -> None:
    today = Today()
    await reconcile(kube, today)
    secret = kube.find(SECRETS, "shop-peers")
    assert secret
    secret["metadata"]["annotations"] = {"theirs": "stays"}
    secret["data"]["tls.crt"] = b64encode(b"damaged").decode()
    await reconcile(kube, today)
    renewed = kube.find(SECRETS, "shop-peers")
    assert renewed
    assert renewed["metadata"]["annotations"] == {"theirs": "stays"}


async def test_of_two_operators_one_starts_over(
    kube: FakeKube, monkeypatch: pytest.MonkeyPatch
) -> None:
    today = Today()
    await reconcile(kube, today)
    today.now = NOW + timedelta(days=61)

    async def changed(*_: object) -> None:
        raise Conflict(409, "Conflict", "it has changed")

    monkeypatch.setattr(kube, "replace", changed)
    with pytest.raises(RetryError, match="changed meanwhile"):
        await reconcile(kube, today)


async def test_no_key_is_logged(kube: FakeKube, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    today = Today()
    await reconcile(kube, today)
    today.now = NOW + timedelta(days=61)
    await reconcile(kube, today)
    assert "certificate" in caplog.text
    assert "PRIVATE" not in caplog.text
    assert (kube.find(SECRETS, "shop-peers") or {})["data"]["tls.key"][:40] not in caplog.text


async def test_a_secret_of_somebody_else_is_left_alone(kube: FakeKube) -> None:
    theirs = {"metadata": {"name": "shop-ca", "namespace": "test"}, "stringData": {"tls.crt": "x"}}
    kube.put(SECRETS, theirs)
    assert await reconcile(kube, Today()) == []
    assert text(kube, "shop-ca", "tls.crt") == "x"
