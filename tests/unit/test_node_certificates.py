"""What an instance's agent makes of mounted certificates."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict

from pgcluster.api.errors import RetryError
from pgcluster.controller.certificates import internal, plan
from pgcluster.node.certificates import Certificates
from pgcluster.node.duties import with_tls
from pgcluster.render.repmgr import ENCRYPTED

NOW = datetime(2026, 5, 1, 9, 0, tzinfo=UTC)


def issued() -> Mapping[str, Mapping[str, str]]:
    return plan({}, {}, internal("shop", "test"), cluster="shop", now=NOW).leaves


class Pod:
    """The mounts and the files of a pod."""

    def __init__(self, directory: Path) -> None:
        self.run = directory / "run"
        self.run.mkdir()
        self.server, self.client = directory / "server", directory / "client"
        self.certificates = self.agent()

    def agent(self) -> Certificates:
        """A new process of the agent."""
        return Certificates(
            server=self.server,
            client=self.client,
            server_pem=self.run / "server.pem",
            client_pem=self.run / "client.pem",
            ca_pem=self.run / "ca.pem",
        )

    def mount(self, leaves: Mapping[str, Mapping[str, str]]) -> None:
        """As the kubelet does: all files of a Secret by the swap of one link."""
        for folder, secret in ((self.server, "shop-server"), (self.client, "shop-replication")):
            folder.mkdir(exist_ok=True)
            version = folder / f"..{len(os.listdir(folder))}"
            version.mkdir()
            for key, text in leaves[secret].items():
                (version / key).write_text(text)
            aside = folder / "..data.new"
            aside.symlink_to(version.name)
            aside.rename(folder / "..data")


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


def test_a_pod_of_an_operator_without_certificates_has_none(pod: Pod) -> None:
    assert not pod.certificates.mounted
    assert not pod.certificates.refresh()
    with pytest.raises(RetryError, match="not mounted"):
        pod.certificates.require()


def test_key_and_certificate_are_one_file_that_only_postgres_reads(pod: Pod) -> None:
    leaves = issued()
    pod.mount(leaves)
    assert pod.certificates.refresh()
    assert pod.certificates.complete
    for name, secret in (("server.pem", "shop-server"), ("client.pem", "shop-replication")):
        path = pod.run / name
        assert path.read_text() == leaves[secret]["tls.key"] + leaves[secret]["tls.crt"]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (pod.run / "ca.pem").read_text() == leaves["shop-server"]["ca.crt"]


def test_a_renewal_is_news_once(pod: Pod) -> None:
    pod.mount(issued())
    assert pod.certificates.refresh()
    assert not pod.certificates.refresh()
    renewed = issued()
    pod.mount(renewed)
    assert pod.certificates.refresh()
    assert renewed["shop-server"]["tls.crt"] in (pod.run / "server.pem").read_text()
    assert not pod.certificates.refresh()


def test_the_agent_that_comes_after_another_finds_nothing_to_do(pod: Pod) -> None:
    pod.mount(issued())
    pod.certificates.refresh()
    next_agent = pod.agent()
    assert not next_agent.refresh()
    assert next_agent.complete


@pytest.mark.parametrize("key", ["tls.key", "tls.crt", "ca.crt"])
def test_what_openssl_does_not_take_never_replaces_what_it_took(
    pod: Pod, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    leaves = issued()
    pod.mount(leaves)
    pod.certificates.refresh()
    before = {path.name: path.read_text() for path in pod.run.glob("*.pem")}
    broken = {**leaves, "shop-server": {**leaves["shop-server"], key: "no PEM"}}
    pod.mount(broken)
    for _ in range(3):
        assert not pod.certificates.refresh()
    assert {path.name: path.read_text() for path in pod.run.glob("*.pem")} == before
    assert caplog.text.count("cannot be taken") == 1
    assert "PRIVATE" not in caplog.text
    pod.mount(issued())
    assert pod.certificates.refresh()


def test_the_key_of_another_certificate_is_not_taken(pod: Pod) -> None:
    leaves, others = issued(), issued()
    mixed = {**leaves["shop-server"], "tls.key": others["shop-server"]["tls.key"]}
    pod.mount({**leaves, "shop-server": mixed})
    with pytest.raises(RetryError, match="cannot be taken"):
        pod.certificates.require()


def test_an_upstream_of_before_is_kept_and_gets_tls() -> None:
    before = "host=shop-0.shop-nodes.test.svc user=repmgr passfile='/run/x' application_name=shop-1"
    after = with_tls(before)
    assert after is not None
    kept = conninfo_to_dict(before)
    assert conninfo_to_dict(after) == {**kept, **ENCRYPTED}
    assert with_tls(after) is None, "nothing is written again"


def test_a_standby_without_an_upstream_is_given_none() -> None:
    assert with_tls("") is None
