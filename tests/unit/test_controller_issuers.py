"""The pools' certificate where the user or cert-manager makes it; and when clear text ends."""

from __future__ import annotations

import json
from base64 import b64decode
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from pgcluster.api import conditions, names
from pgcluster.api.reports import InstanceReport
from pgcluster.controller import status
from pgcluster.controller.certificates import Profile, plan
from pgcluster.controller.issuers import judge
from pgcluster.controller.metrics import Metrics
from pgcluster.controller.observe import observe
from pgcluster.controller.reconcile import Reconciler, Result
from pgcluster.kube.client import KubeClient, Manifest
from pgcluster.kube.errors import Forbidden, NotFound
from pgcluster.kube.resources import CERTIFICATES, CONFIG_MAPS, PODS, SECRETS
from tests.unit.fakekube import FakeKube
from tests.unit.test_controller_reconcile import CATALOG, SHOP, kube, pod, run, want

__all__ = ["kube"]  # the fixture

NOW = datetime(2026, 5, 1, 9, 0, tzinfo=UTC)


def theirs(now: datetime = NOW) -> dict[str, str]:
    """A certificate of somebody else's authority, as a Secret has it."""
    profiles = {"theirs": Profile("theirs", ("db.example.com",))}
    return dict(plan({}, {}, profiles, cluster="theirs", now=now).leaves["theirs"])


def put(kube: FakeKube, name: str, content: Mapping[str, str]) -> None:
    """As the user, or cert-manager, writes it."""
    known = (kube.find(SECRETS, name) or {}).get("metadata") or {}
    metadata = {**known, "name": name, "namespace": "test"}
    kube.put(SECRETS, {"metadata": metadata, "stringData": dict(content)})


def shown(kube: FakeKube) -> dict[str, str]:
    """What the poolers mount."""
    data = (kube.find(SECRETS, "shop-pool-tls") or {})["data"]
    return {key: b64decode(value).decode() for key, value in data.items()}


def told(kube: FakeKube) -> str:
    """Whom the applications are told to believe."""
    return b64decode((kube.find(SECRETS, "shop-app") or {})["data"]["ca.crt"]).decode()


async def reconcile(kube: FakeKube, now: datetime = NOW) -> Result | None:
    client = cast(KubeClient, kube)
    return await Reconciler(client, Metrics(), CATALOG, identity="test", today=lambda: now)(SHOP)


async def degraded(kube: FakeKube) -> tuple[str, str]:
    """Reason and message of the condition."""
    observed = await observe(cast(KubeClient, kube), SHOP)
    assert observed
    found = {each.type: each for each in status.known_status(observed).conditions}
    return found[conditions.DEGRADED].reason, found[conditions.DEGRADED].message


async def ready(kube: FakeKube, **spec: Any) -> None:
    """A cluster that serves."""
    want(kube, **spec)
    await reconcile(kube)
    run(kube)
    for ordinal in range(2):
        found = kube.find(PODS, f"shop-{ordinal}")
        assert found
        notes = found["metadata"]["annotations"]
        report = InstanceReport.model_validate_json(notes[names.ANNOTATION_INSTANCE])
        well = report.model_copy(update={"repmgrd": True, "tls": True})
        notes[names.ANNOTATION_INSTANCE] = well.model_dump_json()
    await reconcile(kube)


# --- what is of use ---------------------------------------------------------------------------


def test_a_certificate_with_its_key_is_taken_as_it_is() -> None:
    made = theirs()
    assert judge({**made, "more": "x"}, secret="mine", now=NOW) == made
    public = {key: value for key, value in made.items() if key != "ca.crt"}
    assert judge(public, secret="mine", now=NOW) == {**public, "ca.crt": ""}


def locked() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.BestAvailableEncryption(b"secret")
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, form
    ).decode()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tls.crt": None}, "no key tls.crt"),
        ({"tls.key": None}, "no key tls.key"),
        ({"tls.crt": "x"}, "tls.crt of Secret mine is no certificate"),
        ({"tls.key": "x"}, "tls.key of Secret mine is no private key"),
        ({"tls.key": locked()}, "or is locked"),
        ({"tls.key": theirs()["tls.key"]}, "is not the key of its certificate"),
        ({"ca.crt": "x"}, "ca.crt of Secret mine is no certificate"),
    ],
)
def test_what_is_of_no_use_is_told_by_its_key(change: dict[str, str | None], said: str) -> None:
    content = {key: value for key, value in {**theirs(), **change}.items() if value is not None}
    found = judge(content, secret="mine", now=NOW)
    assert isinstance(found, str)
    assert said in found
    assert "PRIVATE" not in found


@pytest.mark.parametrize("made", [NOW - timedelta(days=100), NOW + timedelta(days=1)])
def test_a_certificate_that_is_not_valid_now_is_of_no_use(made: datetime) -> None:
    found = judge(theirs(made), secret="mine", now=NOW)
    assert isinstance(found, str)
    assert "is valid from" in found


# --- the user's own Secret --------------------------------------------------------------------


async def test_the_users_certificate_is_shown_and_followed(kube: FakeKube) -> None:
    first, second = theirs(), theirs()
    put(kube, "mine", first)
    await ready(kube, tls={"secretName": "mine"})
    assert {key: shown(kube)[key] for key in first} == first
    assert first["ca.crt"] in told(kube)
    assert shown(kube)["server-ca.crt"] in told(kube), "for those who go past the pools"
    put(kube, "mine", second)
    result = await reconcile(kube)
    assert {key: shown(kube)[key] for key in second} == second
    assert second["ca.crt"] in told(kube)
    assert first["ca.crt"] not in told(kube)
    assert result
    assert (result.again_s or 1000) <= 30, "nobody watches the Secrets of others"
    before = len(kube.writes)
    await reconcile(kube)
    assert [write for write in kube.writes[before:] if "secrets/" in write] == []


async def test_a_missing_secret_is_told_and_the_pools_have_the_operators(kube: FakeKube) -> None:
    await ready(kube, tls={"secretName": "mine"})
    reason, message = await degraded(kube)
    assert reason == conditions.CERTIFICATE_MISSING
    assert "Secret mine does not exist" in message
    assert shown(kube)["issued-by"] == "operator"
    put(kube, "mine", made := theirs())
    await reconcile(kube)
    assert shown(kube)["tls.crt"] == made["tls.crt"]
    assert (await degraded(kube))[0] != conditions.CERTIFICATE_MISSING


@pytest.mark.parametrize("own", ["ca", "pool-ca", "server", "replication", "pool-tls"])
async def test_no_secret_of_the_operators_own_reaches_the_poolers(kube: FakeKube, own: str) -> None:
    await ready(kube)
    before = shown(kube)
    want(kube, tls={"secretName": f"shop-{own}"})
    await reconcile(kube)
    assert (await degraded(kube))[0] == conditions.CERTIFICATE_INVALID
    assert shown(kube) == {**before, "issuer": "user"}


async def test_what_the_user_breaks_or_loses_changes_nothing(kube: FakeKube) -> None:
    put(kube, "mine", made := theirs())
    await ready(kube, tls={"secretName": "mine"})
    put(kube, "mine", {**made, "tls.key": "x"})
    await reconcile(kube)
    assert {key: shown(kube)[key] for key in made} == made
    assert (await degraded(kube))[0] == conditions.CERTIFICATE_INVALID
    del kube.objects[(SECRETS.plural, "test", "mine")]
    await reconcile(kube)
    assert {key: shown(kube)[key] for key in made} == made
    assert (await degraded(kube))[0] == conditions.CERTIFICATE_MISSING


async def test_who_comes_back_to_the_operator_finds_its_authority(kube: FakeKube) -> None:
    await ready(kube)
    authority = (kube.find(SECRETS, "shop-pool-ca") or {})["data"]
    put(kube, "mine", theirs())
    want(kube, tls={"secretName": "mine"})
    await reconcile(kube)
    assert shown(kube)["issued-by"] == "user"
    want(kube)
    await reconcile(kube)
    assert shown(kube)["issued-by"] == "operator"
    assert (kube.find(SECRETS, "shop-pool-ca") or {})["data"] == authority
    assert b64decode(authority["tls.crt"]).decode() in told(kube)


async def test_the_users_certificate_is_in_no_instance(kube: FakeKube) -> None:
    put(kube, "mine", made := theirs())
    await ready(kube, tls={"secretName": "mine"})
    for each in ("server", "peers", "replication"):
        data = (kube.find(SECRETS, f"shop-{each}") or {})["data"]
        assert made["tls.key"] not in [b64decode(value).decode() for value in data.values()]


async def test_further_names_are_in_the_certificates_that_clients_see(kube: FakeKube) -> None:
    await ready(kube)
    before = shown(kube)["tls.crt"]
    want(kube, tls={"dnsNames": ["db.example.com"]})
    await reconcile(kube)
    assert shown(kube)["tls.crt"] != before
    for each in ("pool-tls", "server"):
        data = (kube.find(SECRETS, f"shop-{each}") or {})["data"]
        made = x509.load_pem_x509_certificate(b64decode(data["tls.crt"]))
        found = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert "db.example.com" in found.get_values_for_type(x509.DNSName)


# --- cert-manager -----------------------------------------------------------------------------

ISSUER = {"issuerRef": {"name": "ours", "kind": "ClusterIssuer"}}


async def test_cert_manager_is_asked_and_what_it_makes_is_shown(kube: FakeKube) -> None:
    await ready(kube, tls=ISSUER)
    asked = kube.find(CERTIFICATES, "shop-pool-certificate")
    assert asked
    assert asked["spec"]["issuerRef"] == {
        "group": "cert-manager.io",
        "kind": "ClusterIssuer",
        "name": "ours",
    }
    assert asked["spec"]["secretName"] == "shop-pool-certificate"
    assert {"shop", "shop.test.svc", "shop-ro.test"} <= set(asked["spec"]["dnsNames"])
    assert asked["metadata"]["ownerReferences"][0]["name"] == "shop"
    assert shown(kube)["issued-by"] == "operator"
    asked["status"] = {
        "conditions": [{"type": "Ready", "status": "False", "message": "Issuer ours not found."}]
    }
    await reconcile(kube)
    assert "Issuer ours not found;" in (await degraded(kube))[1]
    put(kube, "shop-pool-certificate", made := theirs())
    await reconcile(kube)
    assert shown(kube)["tls.crt"] == made["tls.crt"]
    assert made["ca.crt"] in told(kube)
    before = len(kube.writes)
    await reconcile(kube)
    assert [write for write in kube.writes[before:] if "certificates/" in write] == []


async def test_a_changed_certificate_is_put_right_and_one_not_wanted_goes(kube: FakeKube) -> None:
    await ready(kube, tls=ISSUER)
    asked = kube.find(CERTIFICATES, "shop-pool-certificate")
    assert asked
    asked["spec"]["dnsNames"] = ["elsewhere"]
    await reconcile(kube)
    asked = kube.find(CERTIFICATES, "shop-pool-certificate")
    assert asked
    assert "shop" in asked["spec"]["dnsNames"]
    want(kube)
    await reconcile(kube)
    assert kube.find(CERTIFICATES, "shop-pool-certificate") is None
    assert shown(kube)["issued-by"] == "operator"


@pytest.mark.parametrize(
    ("error", "reason", "said"),
    [
        (NotFound(404, "NotFound", "no such"), conditions.CERT_MANAGER_MISSING, "install"),
        (Forbidden(403, "Forbidden", "may not"), conditions.API_REFUSED, "may not"),
    ],
)
async def test_a_kubernetes_without_cert_manager_is_told_as_such(
    kube: FakeKube, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str, said: str
) -> None:
    real = kube.apply

    async def apply(resource: Any, manifest: Mapping[str, Any], **more: Any) -> Manifest:
        if resource is CERTIFICATES:
            raise error
        return await real(resource, manifest, **more)

    monkeypatch.setattr(kube, "apply", apply)
    await ready(kube, tls=ISSUER)
    found = await degraded(kube)
    assert found[0] == reason
    assert said in found[1]
    assert kube.find(PODS, "shop-0"), "the cluster itself is made all the same"
    assert shown(kube)["issued-by"] == "operator"


async def test_a_certificate_of_somebody_else_is_left_alone(kube: FakeKube) -> None:
    kube.put(CERTIFICATES, {"metadata": {"name": "shop-pool-certificate", "namespace": "test"}})
    await ready(kube, tls=ISSUER)
    assert (await degraded(kube))[0] == conditions.NAME_CONFLICT
    assert "spec" not in (kube.find(CERTIFICATES, "shop-pool-certificate") or {})


# --- when clear text ends ---------------------------------------------------------------------


def enforced(kube: FakeKube) -> bool:
    """What the agents are told."""
    text = (kube.find(CONFIG_MAPS, "shop-config") or {})["data"][names.CONFIG_KEY]
    found = json.loads(text)["tls"]["enforced"]
    ini = (kube.find(CONFIG_MAPS, "shop-pgbouncer") or {})["data"][names.PGBOUNCER_TLS_INI_KEY]
    assert f"server_tls_sslmode = {'verify-ca' if found else 'prefer'}\n" in ini
    return bool(found)


async def test_a_new_cluster_has_never_spoken_in_clear_text(kube: FakeKube) -> None:
    want(kube)
    await reconcile(kube)
    assert enforced(kube)


async def test_clear_text_ends_when_the_last_instance_has_its_certificates(kube: FakeKube) -> None:
    want(kube)
    await reconcile(kube)
    for have, all_have in (((), False), ((0,), False), ((0, 1), True)):
        for ordinal in range(2):
            # An agent of the version before does not say that it has any.
            report = InstanceReport(pod=f"shop-{ordinal}", state="running", tls=ordinal in have)
            note = {names.ANNOTATION_INSTANCE: report.model_dump_json()}
            name = f"shop-{ordinal}"
            kube.put(PODS, pod(name, names.COMPONENT_POSTGRES, f"10.0.0.{ordinal}", note))
        await reconcile(kube)
        assert enforced(kube) is all_have


async def test_an_instance_that_has_said_nothing_yet_ends_nothing(kube: FakeKube) -> None:
    want(kube)
    await reconcile(kube)
    kube.put(PODS, pod("shop-0", names.COMPONENT_POSTGRES, "10.0.0.1", {}))
    await reconcile(kube)
    assert enforced(kube)
