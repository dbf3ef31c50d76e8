"""repmgr's commands as typed into a shell of a pod: S2, S8, S9, S11 and S12, without SSH."""

from __future__ import annotations

import json
import subprocess

import pytest

from pgcluster.api import names
from pgcluster.render.repmgr import bindir
from tests.e2e.cluster import POSTGRES, Cluster
from tests.e2e.observing import Client, Watcher
from tests.e2e.report import Report
from tests.e2e.toolbox import POSTGRES_MAJOR, Toolbox
from tests.e2e.waiting import eventually

_BINDIR = bindir(POSTGRES_MAJOR)
_SWITCHOVER = ("standby", "switchover", "--siblings-follow")
_MATRIX = sorted(f"{a},{b},0" for a in (1, 2, 3) for b in (1, 2, 3))

# Connects to a peer's port as somebody who has no certificate of the cluster, and prints what came.
_STRANGER = """
import socket, ssl, subprocess, sys, tempfile
address, port, kind = sys.argv[1], int(sys.argv[2]), sys.argv[3]
plain = socket.create_connection((address, port), timeout=5)
try:
    if kind != "plain":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if kind == "certificate":
            context.load_cert_chain(sys.argv[4])
        plain = context.wrap_socket(plain, server_hostname="x")
    plain.settimeout(5)
    body = b'{"command": "/bin/true"}'
    plain.sendall(b"POST /run HTTP/1.0\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body) + body)
    print("ANSWER", plain.recv(4096))
except (OSError, ssl.SSLError) as error:
    print("REFUSED", error)
"""


def typed(
    shop: Cluster, pod: str, *words: str, within_s: float = 180
) -> subprocess.CompletedProcess[str]:
    """A repmgr command that may take its time."""
    return shop.kubectl.exec(
        pod, "repmgr", *words, container=POSTGRES, timeout_s=within_s, check=False
    )


def said(result: subprocess.CompletedProcess[str]) -> str:
    return f"exit {result.returncode}:\n{result.stdout}{result.stderr}"


def standbys(shop: Cluster) -> list[str]:
    primary = shop.settled()
    return [pod for pod in shop.instances() if pod != primary]


def address(shop: Cluster, pod: str) -> str:
    found = next(item for item in shop.pods() if item["metadata"]["name"] == pod)
    return str(found["status"]["podIP"])


@pytest.mark.parametrize("command", ["matrix", "crosscheck"])
def test_every_pod_reaches_every_other_one(shop: Cluster, command: str) -> None:
    shop.settled()
    for pod in shop.instances():
        result = typed(shop, pod, "cluster", command, "--csv", "--terse")
        assert result.returncode == 0, f"{pod}: {said(result)}"
        assert sorted(result.stdout.split()) == _MATRIX, f"{pod}: {said(result)}"
        table = typed(shop, pod, "cluster", command)
        assert table.returncode == 0, f"{pod}: {said(table)}"


@pytest.mark.parametrize(
    "command",
    [
        ("node", "check"),
        ("node", "status"),
        ("service", "status"),
        ("cluster", "event"),
        ("cluster", "show"),
        ("node", "check", "--data-directory-config", "--optformat"),
        ("node", "check", "--replication-config-owner", "--optformat"),
        ("node", "check", "--archive-ready"),
    ],
    ids=" ".join,
)
def test_what_repmgr_looks_at_is_well_in_every_pod(shop: Cluster, command: tuple[str, ...]) -> None:
    shop.settled()
    for pod in shop.instances():
        result = typed(shop, pod, *command)
        assert result.returncode == 0, f"{pod}: {said(result)}"


def test_ssh_runs_repmgrs_commands_on_a_peer_and_nothing_else(shop: Cluster) -> None:
    asking, peer, _ = shop.instances()
    host = names.pod_host(peer, shop.name, shop.kubectl.namespace)

    def ssh(*command: str) -> subprocess.CompletedProcess[str]:
        return shop.kubectl.exec(
            asking, "ssh", "-q", host, *command, container=POSTGRES, check=False
        )

    assert ssh("/bin/true").returncode == 0
    shown = ssh(f"{_BINDIR}/repmgr -f {names.REPMGR_CONF} cluster show --csv --terse")
    assert shown.returncode == 0, said(shown)
    assert len(shown.stdout.splitlines()) == 3, said(shown)
    for command in ("id", "sh", "cat /etc/passwd", f"{_BINDIR}/repmgr -f /etc/repmgr.conf; id"):
        refused = ssh(command)
        assert refused.returncode == 126, said(refused)
        assert refused.stdout == ""
        assert "refused" in refused.stderr
    nobody = shop.kubectl.exec(
        asking, "ssh", "no-such-instance", "/bin/true", container=POSTGRES, check=False
    )
    assert nobody.returncode == 255, said(nobody)


@pytest.mark.parametrize("kind", ["plain", "tls", "certificate"])
def test_a_stranger_in_another_pod_is_refused(shop: Cluster, toolbox: Toolbox, kind: str) -> None:
    own = ""
    if kind == "certificate":
        # A certificate of the stranger's own authority, with the cluster's peers' name in it.
        own = "/tmp/stranger.pem"
        name = names.peer_name(shop.name, shop.kubectl.namespace)
        toolbox.python(_OWN_CERTIFICATE, own, name)
    for pod in shop.instances():
        told = toolbox.python(_STRANGER, address(shop, pod), str(names.PORT_PEER), kind, own)
        # With TLS 1.3 the server may end the connection only after the stranger's last word.
        assert "REFUSED" in told or told.strip() == "ANSWER b''", f"{pod}: {told}"


_OWN_CERTIFICATE = """
import sys
from datetime import UTC, datetime
from pgcluster.controller.certificates import Profile, plan
profiles = {"own": Profile("peers", (sys.argv[2],), client=True)}
made = plan({}, {}, profiles, cluster="shop", now=datetime.now(UTC)).leaves["own"]
open(sys.argv[1], "w").write(made["tls.crt"] + made["tls.key"])
"""


def test_the_plain_port_tells_a_stranger_nothing_of_the_data(
    shop: Cluster, toolbox: Toolbox
) -> None:
    script = (
        "import sys, urllib.request as r, urllib.error as e\n"
        "try: print(r.urlopen(sys.argv[1], timeout=5).status)\n"
        "except e.HTTPError as error: print(error.code)\n"
    )
    for pod in shop.instances():
        base = f"http://{address(shop, pod)}:{names.PORT_AGENT}"
        assert toolbox.python(script, f"{base}/livez").strip() == "200"
        assert toolbox.python(script, f"{base}/status").strip() == "404"


def test_the_authoritys_key_is_in_no_pod(shop: Cluster) -> None:
    authorities = names.secret_ca(shop.name), names.secret_pool_ca(shop.name)
    for pod in [*shop.pods(), *shop.pods(names.COMPONENT_PGBOUNCER)]:
        for secret in authorities:
            assert f'"{secret}"' not in json.dumps(pod["spec"]), pod["metadata"]["name"]
    agents = names.service_account_postgres(shop.name), names.pgbouncer(shop.name)
    for account in agents:
        who = f"system:serviceaccount:{shop.kubectl.namespace}:{account}"
        for name in (*authorities, names.secret_peers(shop.name), names.secret_server(shop.name)):
            result = shop.kubectl.completed("auth", "can-i", "get", f"secret/{name}", f"--as={who}")
            assert result.stdout.strip() == "no", f"{account} may read {name}"


def test_a_switchover_that_is_only_tried_changes_nothing(shop: Cluster) -> None:
    primary = shop.settled()
    for pod in standbys(shop):
        result = typed(shop, pod, *_SWITCHOVER, "--dry-run")
        assert result.returncode == 0, f"{pod}: {said(result)}"
        assert "prerequisites for executing STANDBY SWITCHOVER are met" in result.stderr
    assert shop.settled() == primary


def test_a_promotion_beside_a_primary_is_refused_with_the_reason(shop: Cluster) -> None:
    primary = shop.settled()
    for words in (("standby", "promote"), ("standby", "promote", "--siblings-follow", "--force")):
        result = typed(shop, standbys(shop)[0], *words)
        assert result.returncode != 0, said(result)
        assert result.stderr
    assert shop.settled() == primary


@pytest.mark.disturbs
def test_a_person_may_tell_a_standby_to_follow(shop: Cluster) -> None:
    pod = standbys(shop)[0]
    result = typed(shop, pod, "standby", "follow")
    # repmgr itself refuses where there is nothing to do: the slot is in use already.
    idle = "already exists as an active slot" in said(result)
    assert result.returncode == 0 or idle, said(result)
    shop.settled()


@pytest.mark.disturbs
def test_a_switchover_works_from_the_targets_shell(
    shop: Cluster, client: Client, watcher: Watcher, report: Report
) -> None:
    before = shop.settled()
    target = standbys(shop)[0]
    mark = client.mark()
    result = typed(shop, target, *_SWITCHOVER)
    assert result.returncode == 0, said(result)
    assert "STANDBY SWITCHOVER has completed successfully" in result.stderr, said(result)
    counted = client.writes_again(mark, within=45)
    assert shop.settled() == target
    counted = client.stats(mark)
    report.measured("repmgr standby switchover: longest gap", counted["longest_gap_s"], "s")
    report.measured("repmgr standby switchover: errors of 8 writers", counted["errors"])
    primary = shop.primary()
    streaming = shop.psql(primary, "SELECT application_name FROM pg_stat_replication ORDER BY 1")
    assert streaming == [[pod] for pod in shop.instances() if pod != target]
    assert before in standbys(shop)
    watcher.assert_one_primary()
    client.assert_nothing_lost()


@pytest.mark.disturbs
def test_a_primary_that_a_person_stops_is_succeeded_and_rejoins(
    shop: Cluster, client: Client, watcher: Watcher
) -> None:
    stopped = shop.settled()
    mark = client.mark()
    result = typed(shop, stopped, "node", "service", "--action=stop", "--checkpoint")
    assert result.returncode == 0, said(result)
    # Whoever wins, this person or repmgrd, does so by the Lease; the other one is told why not.
    typed(shop, next(pod for pod in shop.instances() if pod != stopped), "standby", "promote")
    client.writes_again(mark, within=45)
    successor = eventually(shop.primary, within=60, what="one primary")
    assert successor != stopped
    host = names.pod_host(successor, shop.name, shop.kubectl.namespace)
    upstream = f"host={host} user={names.ROLE_REPMGR} dbname={names.DB_REPMGR}"
    rejoined = typed(shop, stopped, "node", "rejoin", "-d", upstream, "--force-rewind")
    assert rejoined.returncode == 0, said(rejoined)
    assert shop.settled() == successor
    watcher.assert_one_primary()
    client.assert_nothing_lost()
