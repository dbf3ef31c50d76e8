"""`kubectl pgcluster report`: what is in the archive, what is not, and that it always comes."""

from __future__ import annotations

import base64
import json
import stat
import tarfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from pgcluster.api import names
from pgcluster.cli import bundle as bundles
from pgcluster.cli import executing, kubectl, reporting, terms
from pgcluster.cli.bundle import Bundle
from pgcluster.cli.redacting import MARK, Redactor
from pgcluster.kube.errors import Forbidden, Unavailable
from pgcluster.kube.resources import (
    CONFIG_MAPS,
    DEPLOYMENTS,
    EVENTS,
    NODES,
    PGCLUSTERS,
    PODS,
    SECRETS,
)
from tests.unit.fakekube import FakeKube
from tests.unit.test_cli_kubectl import carry_out, world

# One for each place in which they are put below, as generators of passwords make them.
APP = "aQ7%kd/93:Zp@x'1L"
REPMGR = "5f1de0c97ab34c20a1d5"
REPORTING = "correct horse battery staple"
KEY_LINE = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgVcB"
KEY = f"-----BEGIN PRIVATE KEY-----\n{KEY_LINE}\n-----END PRIVATE KEY-----\n"
UNKNOWN = "nobody-declared-this-9281"  # in no Secret that can be read
JWT = "eyJhbGciOiJSUzI1NiIsImtpZCI6IjEifQ.eyJzdWIiOiJzYSJ9.c2lnbmF0dXJlMTIz"
SCRAM = "SCRAM-SHA-256$4096:bm90LXNhbHQ=$c3RvcmVkLWtleQ==:c2VydmVyLWtleQ=="
ALL = (APP, REPMGR, REPORTING, KEY_LINE, UNKNOWN, JWT, SCRAM[20:])

_KUBECTL = """\
#!/bin/sh
case "$*" in
*logs*--previous*) echo 'panic: bad password "{unknown}"'; echo 'token={unknown}';;
*logs\\ shop-1*) sleep 60;;
*logs*operator*) echo '{{"msg": "mine {repmgr}", "cluster": "test/shop"}}'
  echo '{{"msg": "of another", "cluster": "test/other"}}'; echo 'started';;
*logs*)
  printf '%s\\n' {lines};;
*psql*) cat >/dev/null; echo "primary_conninfo | user=repmgr password={repmgr} host=shop-0";;
*SHOW*) echo 'auth_query	SELECT 1'; echo '"app" "{scram}"';;
*repmgr*service*) echo 'connection refused for repmgr:{repmgr}' >&2; exit 25;;
*exec*) echo "said in $3";;
*) echo "$@";;
esac
"""


def forms(secret: str) -> set[str]:
    """In which a secret would be found out."""
    return {
        secret,
        base64.b64encode(secret.encode()).decode(),
        quote(secret, safe=""),
        json.dumps(secret)[1:-1],
        secret.replace("'", "''"),
    }


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubectl whose pods talk of secrets; that of one pod hangs, another command fails."""
    lines = [
        f"LOG: statement: ALTER ROLE reporting PASSWORD '{UNKNOWN}'",
        f"connecting to postgresql://app:{UNKNOWN}@shop:5432/app",
        f"DETAIL: {REPORTING} was wrong, and {quote(APP, safe='')} too",
        f"debug: {KEY_LINE}",
        f"Authorization: Bearer {JWT}",
        json.dumps({"msg": f"login with {APP}", "password": UNKNOWN}),
    ]
    folder = tmp_path / "bin"
    folder.mkdir()
    made = folder / "kubectl"
    quoted = " ".join("'" + line.replace("'", "'\\''") + "'" for line in lines)
    made.write_text(_KUBECTL.format(lines=quoted, unknown=UNKNOWN, repmgr=REPMGR, scram=SCRAM))
    made.chmod(made.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    monkeypatch.setattr(reporting, "_ASKS_WITHIN_S", 2.0)
    return made


def full_of_secrets() -> FakeKube:
    """A cluster with a secret in every place that a report looks at."""
    kube = world()
    body = kube.find(PGCLUSTERS, "shop")
    assert body is not None
    body["metadata"]["annotations"] = {
        "kubectl.kubernetes.io/last-applied-configuration": json.dumps({"x": UNKNOWN}),
        "ci.example/deploy-token": UNKNOWN,
    }
    body["metadata"]["managedFields"] = [{"manager": UNKNOWN}]
    body["spec"]["users"] = [{"name": "reporting", "passwordSecret": {"name": "reporting-login"}}]
    body["spec"]["postgres"] = {"parameters": {"archive_command": f"AWS_SECRET={UNKNOWN} push %p"}}
    mine = {names.LABEL_CLUSTER: "shop"}
    for name, data in {
        "shop-app": {"username": "app", "password": APP, "uri": f"postgresql://app:{APP}@shop"},
        "shop-repmgr": {"password": REPMGR, "pgpass": f"*:*:*:repmgr:{REPMGR}\n"},
        "shop-ca": {"tls.key": KEY, "tls.crt": "-----BEGIN CERTIFICATE-----"},
    }.items():
        kube.put(
            SECRETS,
            {
                "metadata": {"name": name, "namespace": "test", "labels": mine},
                "stringData": data,
            },
        )
    kube.put(
        SECRETS,
        {
            "metadata": {"name": "reporting-login", "namespace": "test"},
            "stringData": {"password": REPORTING},
        },
    )
    kube.put(
        CONFIG_MAPS,
        {
            "metadata": {"name": "shop-config", "namespace": "test", "labels": mine},
            "data": {"repmgr.conf": f"conninfo='password={REPMGR}'", "key.pem": KEY},
        },
    )
    for ordinal in range(3):
        pod = kube.find(PODS, f"shop-{ordinal}")
        assert pod is not None
        pod["spec"]["nodeName"] = f"node-{ordinal}"
        pod["spec"]["containers"] = [
            {
                "name": "postgres",
                "args": ["--password", UNKNOWN],
                "env": [{"name": "PGPASSWORD", "value": UNKNOWN}, {"name": "X", "value": APP}],
            }
        ]
        pod["status"]["containerStatuses"] = [
            {"name": "postgres", "state": {"running": {}}, "restartCount": int(ordinal == 2)}
        ]
        kube.put(
            NODES,
            {
                "metadata": {"name": f"node-{ordinal}", "annotations": {"k3s/token": UNKNOWN}},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]},
            },
        )
    kube.put(
        PODS,
        {
            "metadata": {
                "name": "shop-pgbouncer-x",
                "namespace": "test",
                "labels": {**mine, names.LABEL_COMPONENT: names.COMPONENT_PGBOUNCER},
            },
            "spec": {"nodeName": "node-0"},
            "status": {"containerStatuses": [{"name": "pgbouncer", "state": {"running": {}}}]},
        },
    )
    kube.put(
        EVENTS,
        {
            "metadata": {"name": "e1", "namespace": "test"},
            "regarding": {"kind": "Pod", "name": "shop-1"},
            "reason": "Failed",
            "note": f"password={UNKNOWN} refused, scram {SCRAM}",
        },
    )
    operator = {"app.kubernetes.io/name": names.MANAGED_BY}
    container = {
        "name": "operator",
        "image": "operator:1",
        "env": [{"name": "HTTPS_PROXY", "value": f"http://proxy:{UNKNOWN}@proxy:3128"}],
    }
    kube.put(
        DEPLOYMENTS,
        {
            "metadata": {"name": "operator", "namespace": "operator", "labels": operator},
            "spec": {"template": {"spec": {"containers": [container]}}},
        },
    )
    kube.put(
        PODS,
        {
            "metadata": {"name": "operator-1", "namespace": "operator", "labels": operator},
            "status": {"containerStatuses": [{"name": "operator", "state": {"running": {}}}]},
        },
    )
    return kube


async def made(kube: FakeKube, path: Path, *more: str) -> dict[str, str]:
    """The files of a report, by their path below its folder."""
    options = kubectl.parse(["report", "shop", "--file", str(path), *more])
    assert await carry_out(kube, options) == terms.DONE
    files = {}
    with tarfile.open(path) as archive:
        for entry in archive.getmembers():
            file = archive.extractfile(entry)
            assert file is not None
            assert entry.name.startswith("pgcluster-report-test-shop-")
            files[entry.name.partition("/")[2]] = file.read().decode()
    return files


async def test_a_report_has_everything_and_no_secret(
    tmp_path: Path, program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "report.tar.gz"
    files = await made(full_of_secrets(), path)
    for secret in ALL:
        for form in forms(secret):
            for name, text in files.items():
                assert form not in text, f"{name} has {form}"
                assert form not in name
    assert not any(secret in capsys.readouterr().out for secret in ALL)
    for name in (
        "README.txt",
        "pgcluster.yaml",
        "status.txt",
        "events.txt",
        "objects/pods.yaml",
        "objects/configmaps.yaml",
        "objects/leases.yaml",
        "objects/secrets.txt",
        "nodes/node-0.yaml",
        "nodes/node-2.yaml",
        "logs/shop-0/postgres.log",
        "logs/shop-2/postgres.previous.log",
        "instances/shop-0/repmgr-cluster-show.txt",
        "instances/shop-0/pg_controldata.txt",
        "instances/shop-0/postgres.txt",
        "poolers/shop-pgbouncer-x.txt",
        "operator/operator/operator/deployment.yaml",
        "operator/operator/operator/logs/operator-1/operator.log",
        "versions.txt",
    ):
        assert name in files, f"{name} is not in {sorted(files)}"
    # What is around the secrets is there.
    assert "LOG: statement: ALTER ROLE reporting PASSWORD" in files["logs/shop-0/postgres.log"]
    assert MARK in files["logs/shop-0/postgres.log"]
    assert "shop-app: password, uri, username" in files["objects/secrets.txt"]
    assert "reporting-login" in files["pgcluster.yaml"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.glob(".*")) == []


async def test_what_does_not_answer_is_named_and_costs_nothing_else(
    tmp_path: Path, program: Path
) -> None:
    started_s = time.monotonic()
    files = await made(full_of_secrets(), tmp_path / "report.tar.gz")
    assert time.monotonic() - started_s < 30
    assert "logs/shop-1/postgres.log" not in files
    readme = files["README.txt"]
    assert "logs/shop-1/postgres.log: no answer in time" in readme
    assert "repmgr-service-status.txt: ended with status 25" in readme


async def test_the_time_is_bounded_whatever_hangs(tmp_path: Path, program: Path) -> None:
    program.write_text("#!/bin/sh\nsleep 60\n")
    started_s = time.monotonic()
    files = await made(full_of_secrets(), tmp_path / "report.tar.gz", "--timeout", "1s")
    assert time.monotonic() - started_s < 20
    assert "pgcluster.yaml" in files
    assert "in time" in files["README.txt"] or "the time was over" in files["README.txt"]


async def test_without_rights_and_without_kubectl_there_is_what_there_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    kube = full_of_secrets()
    listing, getting = kube.list, kube.get

    async def some(resource: Any, *about: Any, **more: Any) -> Any:
        if resource in (SECRETS, NODES):
            raise Forbidden(403, "Forbidden", f"you may not list {resource.plural}")
        if resource is EVENTS:
            raise Unavailable(503, "", "the API server does not answer")
        return await listing(resource, *about, **more)

    async def one(resource: Any, *about: Any, **more: Any) -> Any:
        if resource in (SECRETS, NODES):
            raise Forbidden(403, "Forbidden", f"you may not get {resource.plural}")
        return await getting(resource, *about, **more)

    monkeypatch.setattr(kube, "list", some)
    monkeypatch.setattr(kube, "get", one)
    files = await made(kube, tmp_path / "report.tar.gz")
    assert "objects/pods.yaml" in files
    readme = files["README.txt"]
    for told in (
        "you may not list secrets",
        "by its name and shape alone",
        "nodes/node-0.yaml: you may not get nodes",
        "events.txt: the API server does not answer",
        "logs/, instances/, poolers/: there is no kubectl on the PATH",
    ):
        assert told in readme, readme
    # The other nets hold without the values.
    assert not any(UNKNOWN in text or JWT in text for text in files.values())


async def test_an_operators_log_is_that_of_one_cluster(tmp_path: Path, program: Path) -> None:
    files = await made(full_of_secrets(), tmp_path / "report.tar.gz")
    log = files["operator/operator/operator/logs/operator-1/operator.log"]
    assert "mine" in log
    assert "started" in log
    assert "of another" not in log


async def test_a_cluster_that_is_not_there_makes_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "report.tar.gz"
    with pytest.raises(terms.Refused, match="there is no PgCluster shop"):
        await made(FakeKube(), path)
    with pytest.raises(terms.Refused, match="nothing can be written in"):
        await made(world(), tmp_path / "nowhere" / "report.tar.gz")
    assert not path.exists()


def test_parts_and_the_whole_have_a_size_that_they_do_not_pass() -> None:
    bundle = Bundle("x", Redactor(), largest=bundles.LARGEST_PART + 1000)
    bundle.text("long", "start\n" + "0123456789abcde\n" * (bundles.LARGEST_PART // 8) + "end\n")
    bundle.text("second", "x" * 5000)
    bundle.text("third", "y" * 100)
    assert bundle.files == ("long", "third")
    assert "large enough" in bundle.missing["second"]


async def test_a_program_that_writes_without_end_is_cut_and_one_that_hangs_is_killed() -> None:
    words = ("sh", "-c", "yes 0123456789 | head -c 50000000; echo end")
    done = await executing.run(words, timeout_s=30, limit=1000)
    assert done.cut
    assert len(done.output) == 1000
    assert done.output.endswith("end\n")
    with pytest.raises(TimeoutError):
        await executing.run(("sleep", "60"), timeout_s=0.2)


def test_a_key_that_was_cut_at_its_beginning_is_no_key_any_more() -> None:
    bundle = Bundle("x", Redactor())
    text = f"LAgEA\n{KEY_LINE}\n-----END PRIVATE KEY-----\nafter it\n"
    bundle.text("log", text, cut=True)
    told = bundle._files["log"].decode()
    assert KEY_LINE not in told
    assert "after it" in told


def test_what_is_public_in_a_secret_stays_and_each_line_of_a_list_is_known() -> None:
    secret = {
        "data": {
            key: base64.b64encode(value.encode()).decode()
            for key, value in {
                "username": "application",
                "password": "a-password",
                "users": '"a" "first-one"\n"b" "second-one"',
            }.items()
        }
    }
    found = set(reporting.values_in(secret))
    assert "application" not in found
    assert "a-password" in found
    assert '"b" "second-one"' in found
