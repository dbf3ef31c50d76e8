"""A kubeconfig: the plain one is read here, all others are left to the library."""

from __future__ import annotations

import base64
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pgcluster.kube import credentials, kubeconfig


def pair() -> tuple[str, str]:
    """A certificate of its own signing, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "someone")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return made.public_bytes(serialization.Encoding.PEM).decode(), private.decode()


CERTIFICATE, KEY = pair()


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def write(folder: Path, *, cluster: dict[str, Any], user: dict[str, Any], **context: Any) -> str:
    document = {
        "current-context": "here",
        "contexts": [
            {"name": "here", "context": {"cluster": "c", "user": "u", **context}},
            {"name": "there", "context": {"cluster": "c", "user": "u", "namespace": "far"}},
        ],
        "clusters": [{"name": "c", "cluster": {"server": "https://api:6443/", **cluster}}],
        "users": [{"name": "u", "user": user}],
    }
    file = folder / "config"
    file.write_text(yaml.safe_dump(document))
    return str(file)


def test_certificates_may_stand_in_it_or_beside_it(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(CERTIFICATE)
    (tmp_path / "me.pem").write_text(CERTIFICATE)
    (tmp_path / "me.key").write_text(KEY)
    beside = write(
        tmp_path,
        cluster={"certificate-authority": "ca.pem"},
        user={"client-certificate": "me.pem", "client-key": "me.key"},
    )
    found = kubeconfig.read(beside)
    assert found is not None
    assert found.host == "https://api:6443"
    assert found.tls.verify_mode == ssl.CERT_REQUIRED
    assert found.tls.check_hostname
    assert [ca["serialNumber"] for ca in found.tls.get_ca_certs()] == ["07"], "and no other"
    inside = write(
        tmp_path,
        cluster={"certificate-authority-data": encoded(CERTIFICATE)},
        user={
            "client-certificate-data": encoded(CERTIFICATE),
            "client-key-data": encoded(KEY),
        },
    )
    assert kubeconfig.read(inside) is not None


async def test_a_token_is_the_authorization(tmp_path: Path) -> None:
    file = write(tmp_path, cluster={}, user={"token": "t"})
    identity = await credentials.of_kubeconfig(file)
    assert await identity.authorization() == "Bearer t"


def test_the_namespace_is_that_of_the_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", write(tmp_path, cluster={}, user={}, namespace="shop"))
    assert credentials.namespace() == "shop"
    assert credentials.namespace(context="there") == "far"
    monkeypatch.setenv("KUBECONFIG", write(tmp_path, cluster={}, user={}))
    assert credentials.namespace() == "default"


@pytest.mark.parametrize(
    ("cluster", "user"),
    [
        ({"insecure-skip-tls-verify": True}, {"token": "t"}),
        ({"proxy-url": "http://proxy"}, {"token": "t"}),
        ({"tls-server-name": "other"}, {"token": "t"}),
        ({"server": "http://api"}, {"token": "t"}),
        ({}, {"exec": {"command": "login"}}),
        ({}, {"username": "u", "password": "p"}),
        ({}, {"token": "t", "as": "admin"}),
        ({"certificate-authority": "missing.pem"}, {"token": "t"}),
        ({"certificate-authority-data": "AAAA"}, {"token": "t"}),
        ({}, {"client-certificate-data": encoded(CERTIFICATE)}),
    ],
)
def test_what_is_not_plain_is_left_to_the_library(
    tmp_path: Path, cluster: dict[str, Any], user: dict[str, Any]
) -> None:
    assert kubeconfig.read(write(tmp_path, cluster=cluster, user=user)) is None


def test_a_context_or_a_file_that_is_not_there_is_the_librarys_to_tell(tmp_path: Path) -> None:
    file = write(tmp_path, cluster={}, user={})
    assert kubeconfig.read(file, "nowhere") is None
    assert kubeconfig.read(f"{file}:{file}") is None
    assert kubeconfig.read(str(tmp_path / "missing")) is None
    (tmp_path / "empty").write_text("")
    assert kubeconfig.read(str(tmp_path / "empty")) is None
