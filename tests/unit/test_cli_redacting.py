"""Nothing that is a secret passes, wherever it stands and however it is written."""

from __future__ import annotations

import base64
import json
import time
from urllib.parse import quote

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pgcluster.cli.redacting import MARK, Redactor, sensitive

# As generators of passwords, and people, make them.
PASSWORD = "T7'x@:/ß9 q\"Zp\\4"
PLAIN = "hunter2-correct-horse"
KEY = (
    "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49AgEGCCqGSM49\nAwEHBG0wawIBAQQg\n"
    "-----END PRIVATE KEY-----"
)


@pytest.mark.parametrize(
    "text",
    [
        f"PGPASSWORD={PLAIN} psql",
        f"password={PLAIN},sslmode=require",
        f"password='{PLAIN}' user=app",
        f'"password": "{PLAIN}"',
        f'{{"msg":"login","token":"{PLAIN}","level":"info"}}',
        json.dumps({"msg": json.dumps({"db_password": PLAIN})}),
        f"my_app.api_key = {PLAIN}",
        f"adminPassword: {PLAIN}",
        f"client_secret => {PLAIN}",
        f"DB_PASS={PLAIN}",
        f"postgresql://app:{PLAIN}@shop:5432/app",
        f"postgresql://app:a@b:{PLAIN}/x@shop:5432/app",
        f"jdbc:postgresql://shop/app?user=app&password={PLAIN}",
        f"ALTER ROLE app WITH LOGIN PASSWORD '{PLAIN}' VALID UNTIL 'infinity'",
        f"ALTER ROLE app PASSWORD E'it''s \\' {PLAIN}'",
        f"ALTER ROLE app ENCRYPTED PASSWORD '{PLAIN} and then the log was cut",
        f"CREATE USER u PASSWORD $tag${PLAIN}$tag$",
        f"Authorization: Bearer {PLAIN}",
        f"authorization: Basic {base64.b64encode(f'app:{PLAIN}'.encode()).decode()}",
        f'"app" "{PLAIN}"',
        f'"o""dd" "{PLAIN}" ""',
        f"shop:5432:*:app:{PLAIN}",
        f"psql --password {PLAIN} --host shop",
        f"<dbPassword>{PLAIN}</dbPassword>",
        f"app:\n  password: |\n    {PLAIN}\n    {PLAIN}\nhost: shop",
        f'token=ab"cd{PLAIN}',
        f"restore_command = 'AWS_SECRET_ACCESS_KEY={PLAIN} wal-g wal-fetch %f %p'",
    ],
)
def test_what_stands_behind_a_name_that_says_so_is_taken_though_nobody_knows_it(text: str) -> None:
    told = Redactor().text(text)
    assert PLAIN not in told
    assert base64.b64encode(f"app:{PLAIN}".encode()).decode() not in told
    assert MARK in told


@pytest.mark.parametrize(
    "credential",
    [
        KEY,
        KEY.replace("\n", "\\n"),
        KEY[:80],
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7\n",
        "SCRAM-SHA-256$4096:c2FsdHNhbHQ=$c3RvcmVk:c2VydmVy",
        "md5" + "0a1B" * 8,
        "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzaG9wIn0.c2lnbmF0dXJl",
        "AKIAIOSFODNN7EXAMPLE",
        "ghp_0123456789abcdefghij0123456789abcdef",
        "xoxb-0123456789-abcdefghij",
        "hvs.CAESIJ0123456789",
    ],
)
def test_what_looks_like_a_credential_is_taken_wherever_it_stands(credential: str) -> None:
    told = Redactor().text(f"2026-05-01 LOG: it said {credential}, and went on")
    assert credential[12:40] not in told
    assert MARK in told
    assert "it said" in told


def written(secret: str) -> dict[str, str]:
    """A secret in the forms in which it gets into texts."""
    return {
        "plain": f"it said {secret} aloud",
        "json": json.dumps({"detail": f"x {secret}"}),
        "json, ASCII or not": json.dumps({"detail": f"x {secret}"}, ensure_ascii=False),
        "base64": base64.b64encode(secret.encode()).decode(),
        "URI": f"query?p={quote(secret, safe='')}",
        "SQL": "parameters: $1 = '" + secret.replace("'", "''") + "'",
        "hex": secret.encode().hex(),
    }


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=8, max_size=40))
def test_a_value_that_is_known_is_found_in_every_form(secret: str) -> None:
    if len(secret.strip()) < 8:
        return
    redactor = Redactor([secret])
    for form, text in written(secret).items():
        told = redactor.text(text)
        for found in written(secret.strip()).values():
            core = found.removeprefix("it said ").removesuffix(" aloud")
            assert form not in ("plain", "base64", "hex") or core not in told, form
        assert secret.strip() not in told, form


def test_the_awkward_password_is_found_in_every_form() -> None:
    redactor = Redactor([PASSWORD, KEY])
    for form, text in written(PASSWORD).items():
        assert MARK in redactor.text(text), form
    # One line of a key, logged by itself.
    assert "MIGHAgEAMBMG" not in redactor.text("debug: MIGHAgEAMBMGByqGSM49AgEGCCqGSM49")


def test_an_object_keeps_its_shape_and_loses_its_secrets() -> None:
    found = {
        "metadata": {
            "name": "shop",
            "managedFields": [{"f:password": {}}],
            "annotations": {
                "kubectl.kubernetes.io/last-applied-configuration": PLAIN,
                "vault/token": PLAIN,
            },
        },
        "spec": {
            "containers": [
                {
                    "name": "app",
                    "args": ["--user", "app", "--password", PLAIN, "--verbose"],
                    "env": [
                        {"name": "PGPASSWORD", "value": PLAIN},
                        {"name": "PIN_TOKEN", "value": "4711"},
                        {"name": "MODE", "value": f"uri=postgres://a:{PLAIN}@h/d"},
                        {
                            "name": "FROM_SECRET",
                            "valueFrom": {"secretKeyRef": {"name": "shop-app", "key": "password"}},
                        },
                    ],
                }
            ],
            "volumes": [{"name": "app", "secret": {"secretName": "shop-app"}}],
            "passwordSecret": {"name": "reporting-login"},
            "automountServiceAccountToken": False,
            "imagePullSecrets": [{"name": "registry"}],
            "parameters": {"password_encryption": "scram-sha-256", "app.secret": PLAIN},
        },
        "data": {"app.yaml": f"db:\n  password: |\n    {PLAIN}\n", PLAIN: "a key by its value"},
    }
    redactor = Redactor([PLAIN])
    made = redactor.manifest(found)
    text = yaml.safe_dump(made)
    assert PLAIN not in text
    assert "4711" not in text
    spec = made["spec"]
    assert spec["containers"][0]["env"][3] == found["spec"]["containers"][0]["env"][3]  # type: ignore[index]
    assert spec["containers"][0]["args"] == ["--user", "app", "--password", MARK, "--verbose"]
    for field in ("volumes", "passwordSecret", "automountServiceAccountToken", "imagePullSecrets"):
        assert spec[field] == found["spec"][field], field  # type: ignore[index]
    assert spec["parameters"]["password_encryption"] == "scram-sha-256"
    assert "managedFields" not in made["metadata"]


def test_what_is_no_secret_stays_readable() -> None:
    for text in (
        "2026-05-01 10:00:00.123 UTC [42] LOG:  checkpoint complete: wrote 5 buffers (0.0%)",
        'FATAL:  password authentication failed for user "app"',
        " ID | Name   | Role    | Status    | Upstream | Location | Priority | Timeline",
        "host=shop-0.shop-nodes user=repmgr dbname=repmgr connect_timeout=2 passfile=/run/pgpass",
        "password_encryption = scram-sha-256",
        "Latest checkpoint's REDO WAL file:    000000010000000000000005",
        "automountServiceAccountToken: false",
    ):
        redactor = Redactor(["something-else-entirely"])
        assert redactor.text(text) == text
        assert redactor.count == 0


def test_names_are_judged_by_their_words() -> None:
    for name in ("PGPASSWORD", "apiKey", "api_key", "clientSecret", "x-auth-token", "DB_PASS"):
        assert sensitive(name), name
    for name in ("secretName", "passwordSecret", "secretKeyRef", "bypass", "compass", "monkey"):
        assert not sensitive(name), name


def test_it_is_quick_enough_for_logs() -> None:
    line = '{"ts": "2026-05-01T10:00:00Z", "level": "info", "msg": "it is said", "pod": "shop-0"}\n'
    text = line * 20_000 + "QUJD" * 50_000
    redactor = Redactor([f"secret-number-{n}" for n in range(30)])
    started_s = time.process_time()
    assert redactor.text(text) == text
    assert time.process_time() - started_s < 5
