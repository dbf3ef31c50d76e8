"""The authority of a cluster and its instances' certificate: made, renewed, overlapping."""

from __future__ import annotations

from base64 import b64decode, b64encode
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID

from pgcluster.api import names
from pgcluster.api.errors import RetryError
from pgcluster.controller.certificates import CA_LIFE, LEAF_LIFE, SPREAD, Certificates, due, plan
from pgcluster.controller.metrics import Metrics
from pgcluster.controller.observe import Key
from pgcluster.controller.prerequisites import Catalog
from pgcluster.controller.reconcile import Reconciler
from pgcluster.kube.client import KubeClient
from pgcluster.kube.errors import Conflict
from pgcluster.kube.resources import PGCLUSTERS, SECRETS, STORAGE_CLASSES
from tests.unit.fakekube import FakeKube

NOW = datetime(2026, 5, 1, 9, 0, tzinfo=UTC)
NAME = names.peer_name("shop", "test")
NOTHING: dict[str, str] = {}


def at(now: datetime, before: Certificates | None = None, *, name: str = NAME) -> Certificates:
    """What is planned at a moment, from what stood there before."""
    ca, peers = (before.ca, before.peers) if before else (NOTHING, NOTHING)
    return plan(ca, peers, cluster="shop", name=name, now=now)


def authority(found: Certificates) -> x509.Certificate:
    return x509.load_pem_x509_certificate(found.ca["tls.crt"].encode())


def leaf(found: Certificates) -> x509.Certificate:
    return x509.load_pem_x509_certificate(found.peers["tls.crt"].encode())


def trusted(found: Certificates) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(found.peers["ca.crt"].encode())


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
        assert (again.ca, again.peers, again.reason) == (made.ca, made.peers, "")


def test_the_certificate_is_renewed_when_a_third_of_its_life_is_left() -> None:
    made = at(NOW)
    renewed = at(NOW + timedelta(days=61), made)
    assert renewed.ca == made.ca
    assert leaf(renewed) != leaf(made)
    assert signed(renewed, authority(made))
    assert "certificate of the instances" in renewed.reason


def test_a_new_authority_is_trusted_first_and_signs_when_everybody_knows_it() -> None:
    made = at(NOW)
    day = NOW + CA_LIFE * 2 / 3 + timedelta(days=2)
    made = Certificates(ca=made.ca, peers=at(day - timedelta(days=10), made).peers)
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
    again = plan(NOTHING, made.peers, cluster="shop", name=NAME, now=NOW + timedelta(days=1))
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
        made = plan(NOTHING, made.peers, cluster="shop", name=NAME, now=now)
    assert len(trusted(made)) <= 4
    assert first in trusted(made)
    assert signed(made, first)


@pytest.mark.parametrize("key", ["tls.crt", "tls.key"])
@pytest.mark.parametrize("content", [None, "", "no PEM", "other"])
def test_a_certificate_that_makes_no_sense_is_made_anew(key: str, content: str | None) -> None:
    made = at(NOW)
    peers = dict(made.peers)
    if content is None:
        del peers[key]
    else:
        peers[key] = at(NOW).peers[key] if content == "other" else content
    again = plan(made.ca, peers, cluster="shop", name=NAME, now=NOW)
    assert again.ca == made.ca
    assert signed(again, authority(made))
    assert leaf(again) != leaf(made)


def test_an_authority_that_makes_no_sense_is_made_anew() -> None:
    made = at(NOW)
    for ca in ({"tls.crt": "x", "tls.key": "y"}, dict(made.peers)):
        again = plan(ca, made.peers, cluster="shop", name=NAME, now=NOW)
        assert authority(again) != authority(made)


def test_a_damaged_bundle_is_mended() -> None:
    made = at(NOW)
    again = plan(made.ca, {**made.peers, "ca.crt": ""}, cluster="shop", name=NAME, now=NOW)
    assert again.peers == made.peers


def test_a_certificate_for_another_cluster_is_made_anew() -> None:
    made = at(NOW, name=names.peer_name("other", "test"))
    assert leaf(at(NOW, made)) != leaf(made)


def test_a_stranger_in_the_bundle_does_not_become_a_signer() -> None:
    made, stranger = at(NOW), at(NOW)
    peers = {**stranger.peers, "ca.crt": made.peers["ca.crt"]}
    again = plan(made.ca, peers, cluster="shop", name=NAME, now=NOW)
    assert signed(again, authority(made))


def test_a_private_key_shows_in_no_representation() -> None:
    made = at(NOW)
    assert "PRIVATE KEY" in made.ca["tls.key"]
    assert "PRIVATE" not in repr(made)


# --- by the reconciliation --------------------------------------------------------------------


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
    for secret in (names.secret_ca("shop"), names.secret_peers("shop")):
        assert order.index(f"secrets/{secret}") < order.index("statefulsets/shop")
        made = kube.find(SECRETS, secret)
        assert made
        assert made["metadata"]["labels"][names.LABEL_CLUSTER] == "shop"
        assert made["metadata"]["ownerReferences"][0]["name"] == "shop"
    assert set((kube.find(SECRETS, "shop-ca") or {})["data"]) == {"tls.crt", "tls.key"}
    peers = (kube.find(SECRETS, "shop-peers") or {})["data"]
    assert set(peers) == {"ca.crt", "tls.crt", "tls.key"}


async def test_they_are_written_again_only_when_one_is_due(kube: FakeKube) -> None:
    today = Today()
    await reconcile(kube, today)
    assert await reconcile(kube, today) == []
    before = text(kube, "shop-peers", "tls.crt")
    today.now = NOW + timedelta(days=61)
    assert await reconcile(kube, today) == ["update secrets/shop-peers"]
    assert text(kube, "shop-peers", "tls.crt") != before
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
