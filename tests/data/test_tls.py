"""TLS among real servers, a real pool and real clients: who is let in, what a renewal costs."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest

from pgcluster.api import names
from pgcluster.api.config import ClusterConfig, TlsConfig
from pgcluster.controller.certificates import SPREAD, Certificates, plan
from pgcluster.node.duties import Duties
from pgcluster.postgres.local import LocalPostgres
from pgcluster.render import postgres as render_postgres
from pgcluster.render import repmgr as render_repmgr
from tests.data import pki
from tests.data.conftest import PRIMARY, STANDBY, encrypted
from tests.data.pool import PASSWORD, Pool
from tests.data.servers import Postgres, binaries, eventually, free_port, own
from tests.data.test_pooler import off_loop, running, writing
from tests.data.test_upkeep import HostsRepmgr

CONFIG = ClusterConfig(
    name=pki.CLUSTER, namespace=pki.NAMESPACE, uid="u", instances=2, tls=TlsConfig()
)
MIXED = CONFIG.model_copy(update={"tls": TlsConfig(enforced=False)})
ADDRESSES = {"shop-0": PRIMARY, "shop-1": STANDBY}
SSL_OF_STREAM = (
    "SELECT s.ssl, s.version, s.client_dn FROM pg_stat_replication AS r"
    " JOIN pg_stat_ssl AS s USING (pid)"
    " WHERE r.application_name = 'shop-1' AND r.state = 'streaming'"
)


class Instances:
    """shop-0 and shop-1 with what their agents write for them, under a folder each."""

    def __init__(self, programs: Path, directory: Path, issued: Certificates) -> None:
        self._programs = programs
        self._directory = directory
        self.port = free_port()
        self.servers = {
            pod: Postgres(programs, directory / pod, address, self.port)
            for pod, address in ADDRESSES.items()
        }
        self.issued = issued
        for pod in self.servers:
            self.certify(pod, issued)

    def certify(self, pod: str, issued: Certificates) -> None:
        """Mount certificates, and have them taken."""
        server = self.servers[pod]
        encrypted(server, self._directory, issued)
        # psycopg runs here, perhaps as root, and takes no key of somebody else's.
        mine = self._directory / f"{pod}-mine"
        mine.mkdir(exist_ok=True)
        for name in ("client.pem", "ca.pem"):
            shutil.copy(server.data.parent / name, mine / name)
            (mine / name).chmod(0o600)

    def conninfo(
        self, to: str, config: ClusterConfig = CONFIG, *, by: str = "shop-1", here: bool = False
    ) -> str:
        """As the instance `by` connects to another one; `here`: from this very process."""
        host = names.pod_host(to, pki.CLUSTER, pki.NAMESPACE)
        text = render_repmgr.conninfo(host, config, address=ADDRESSES[to])
        own_place = self._directory / (f"{by}-mine" if here else by)
        text = text.replace(f"port={names.PORT_POSTGRES}", f"port={self.port}")
        return text.replace(names.RUN, str(own_place))

    def hba(self, pod: str, config: ClusterConfig) -> None:
        """What its agent writes; the harness comes by the socket, which takes whoever runs it."""
        text = render_postgres.pg_hba_conf(config).replace("local all postgres peer", "")
        path = self.servers[pod].data / "pg_hba.conf"
        path.write_text(f"local all postgres trust\n{text}")

    def repmgr(self, pod: str, config: ClusterConfig) -> HostsRepmgr:
        """repmgr of an instance, with the configuration that its agent renders."""
        place = self.servers[pod].data.parent
        text = render_repmgr.repmgr_conf(config, instance=pod, data_directory=str(place / "data"))
        line = next(each for each in text.splitlines() if each.startswith("conninfo="))
        text = text.replace(line, f"conninfo='{self.conninfo(pod, config, by=pod)}'")
        text = text.replace(render_repmgr.bindir(17), str(self._programs))
        text = text.replace(names.RUN, str(place))
        pg_ctl = f"{self._programs}/pg_ctl -D {place}/data"
        text += (
            f"service_promote_command='{pg_ctl} -w promote'\nservice_start_command='/bin/true'\n"
            "failover_validation_command='/bin/true'\nevent_notification_command='/bin/true'\n"
        )
        path = place / "repmgr.conf"
        path.write_text(text)
        own(path)
        (place / "pgpass").write_text(render_repmgr.passfile(PASSWORD))
        (place / "pgpass").chmod(0o600)
        own(place / "pgpass")
        return HostsRepmgr(str(self._programs), config=str(path))

    async def make(self, template: Path, config: ClusterConfig) -> None:
        """A primary, and its standby cloned and registered by repmgr."""
        primary, standby = self.servers.values()
        primary.copy(template)
        self.hba("shop-0", config)
        with (primary.data / "postgresql.conf").open("a") as file:
            file.write(
                "shared_preload_libraries = 'repmgr'\nwal_log_hints = on\nwal_keep_size = 128MB\n"
            )
        primary.start()
        primary.query(f"CREATE ROLE repmgr SUPERUSER LOGIN PASSWORD '{PASSWORD}'")
        primary.query("CREATE DATABASE repmgr OWNER repmgr")
        done = await self.repmgr("shop-0", config).primary_register()
        assert done.status == 0, done.output
        here = self.repmgr("shop-1", config)
        done = await here.standby_clone(self.conninfo("shop-0", config))
        assert done.status == 0, done.output
        await off_loop(standby.start)
        done = await here.standby_register("shop-0")
        assert done.status == 0, done.output
        eventually(self.streaming, within=20, what="the standby streams")

    def streaming(self, source: str = "shop-0", standby: str = "shop-1") -> list[tuple]:
        """How the standby streams from the primary."""
        return self.servers[source].query(SSL_OF_STREAM.replace("shop-1", standby))

    def end(self) -> None:
        """Leave nothing behind."""
        for server in self.servers.values():
            server.end()


@pytest.fixture
def instances(
    directory: Path, authorities: tuple[Certificates, Certificates]
) -> Iterator[Instances]:
    programs = binaries()
    if programs is None or not (programs / "repmgr").exists():
        pytest.fail("repmgr is not installed: apt-get install postgresql-15-repmgr")
    made = Instances(programs, directory, authorities[0])
    try:
        yield made
    finally:
        made.end()


def refusal(conninfo: str) -> str:
    """Why nobody is let in so."""
    with pytest.raises(psycopg.OperationalError) as refused:
        psycopg.connect(conninfo).close()
    return str(refused.value)


@pytest.mark.timeout(120)
async def test_instances_know_one_another_by_certificate_alone(
    instances: Instances, template: Path
) -> None:
    await instances.make(template, CONFIG)
    assert instances.streaming() == [(True, "TLSv1.3", "/CN=repmgr")]
    upstream = instances.servers["shop-1"].query("SELECT current_setting('primary_conninfo')")
    assert "sslmode='verify-full'" in upstream[0][0], "as repmgr copies it"
    good = instances.conninfo("shop-0", here=True)
    with psycopg.connect(good) as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("repmgr",)
    # The password is right in all of these, and does not help.
    known = f"{good} password={PASSWORD}"
    assert "no encryption" in refusal(f"{known} sslmode=disable")
    assert "client certificate" in refusal(f"{known} sslcert=/nowhere sslkey=/nowhere")
    assert "rejects connection" in refusal(f"{known} user=postgres")
    assert 'does not match host name "elsewhere"' in refusal(f"{known} host=elsewhere")
    stranger = pki.issue(pki.OF_INSTANCES)
    instances.certify("shop-1", stranger)
    assert "certificate verify failed" in refusal(known), "the server is not of that authority"
    trusting = known.replace("sslmode=verify-full", "sslmode=require")
    path = f"{instances._directory}/shop-0-mine/ca.pem"
    assert "unknown ca" in refusal(f"{trusting} sslrootcert={path}")
    app = f"hostaddr={PRIMARY} port={instances.port} user=app password={PASSWORD} dbname=app"
    told = refusal(f"{app} sslmode=disable")
    assert "no pg_hba.conf entry" in told
    assert "no encryption" in told
    psycopg.connect(f"{app} sslmode=require").close()


@pytest.mark.timeout(120)
async def test_a_former_primary_is_rewound_and_follows_by_its_certificate(
    instances: Instances, template: Path
) -> None:
    await instances.make(template, CONFIG)
    former, successor = instances.servers.values()
    successor.stop()
    former.query_in("app", "CREATE TABLE lost AS SELECT 1 AS a")
    former.stop()
    await off_loop(successor.start)
    done = await instances.repmgr("shop-1", CONFIG).standby_promote()
    assert done.status == 0, done.output
    successor.query_in("app", "CREATE TABLE kept AS SELECT 1 AS a")
    successor.query("CHECKPOINT")
    upstream = instances.conninfo("shop-1", by="shop-0")
    done = await instances.repmgr("shop-0", CONFIG).node_rejoin(upstream)
    assert done.status == 0, done.output
    assert "pg_rewind" in done.output
    await off_loop(former.start)
    eventually(
        lambda: instances.streaming("shop-1", "shop-0") == [(True, "TLSv1.3", "/CN=repmgr")],
        within=20,
        what="the former primary follows",
    )
    eventually(
        lambda: (
            former.query_in("app", "SELECT to_regclass('kept'), to_regclass('lost')")
            == [("kept", None)]
        ),
        within=20,
        what="it has what the successor has",
    )


@pytest.mark.timeout(120)
async def test_a_cluster_from_before_goes_over_while_it_streams(
    instances: Instances, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await instances.make(template, MIXED)
    primary, standby = instances.servers.values()
    assert instances.streaming()[0][2] is None, "by password"
    for pod in instances.servers:
        instances.hba(pod, CONFIG)
    primary.reload()
    standby.reload()
    place = standby.data.parent
    monkeypatch.setattr(
        "pgcluster.postgres.local.socket_conninfo",
        lambda database: f"host={place} port={instances.port} user=postgres dbname={database}",
    )
    paths = {
        key: value.replace(names.RUN, str(place)) for key, value in render_repmgr.ENCRYPTED.items()
    }
    monkeypatch.setattr("pgcluster.render.repmgr.ENCRYPTED", paths)
    local = LocalPostgres()
    nobody: object = None
    duties = Duties(nobody, nobody, local, lambda: CONFIG, me="shop-1", address=STANDBY)  # type: ignore[arg-type]
    try:
        await duties.encrypt_stream()
        eventually(
            lambda: instances.streaming() == [(True, "TLSv1.3", "/CN=repmgr")],
            within=10,
            what="the stream goes on under the certificate",
        )
        written = (standby.data / "postgresql.auto.conf").stat().st_mtime_ns
        duties.forget()
        await duties.encrypt_stream()
        assert (standby.data / "postgresql.auto.conf").stat().st_mtime_ns == written
    finally:
        await local.close()


@pytest.mark.timeout(120)
async def test_a_certificate_that_ran_out_is_renewed_and_nobody_is_cut_off(
    instances: Instances, template: Path
) -> None:
    old = pki.issue(pki.OF_INSTANCES, now=pki.expired())
    primary = instances.servers["shop-0"]
    instances.certify("shop-0", old)
    instances.certify("shop-1", old)
    primary.copy(template)
    primary.start()
    open_before = psycopg.connect(
        f"hostaddr={PRIMARY} port={instances.port} user=app password={PASSWORD} dbname=app"
        " sslmode=require",
        autocommit=True,
    )
    good = f"{instances.conninfo('shop-0', here=True)} user=app password={PASSWORD} dbname=app"
    assert "certificate verify failed" in refusal(f"{good} sslcert=/nowhere")
    held = old.leaves
    fresh = plan(old.ca, held, pki.OF_INSTANCES, cluster=pki.CLUSTER, now=datetime.now(UTC))
    assert fresh.ca == old.ca
    for pod in instances.servers:
        instances.certify(pod, fresh)
    primary.reload()
    eventually(lambda: connects(f"{good} sslcert=/nowhere"), within=5, what="the new one is shown")
    assert open_before.execute("SELECT 1").fetchone() == (1,)
    open_before.close()


def connects(conninfo: str) -> bool:
    """Whether somebody is let in so."""
    try:
        psycopg.connect(conninfo).close()
    except psycopg.OperationalError:
        return False
    return True


async def test_a_pool_believes_its_instances_alone_and_heals_without_a_restart(
    pool: Pool, primary: Postgres, authorities: tuple[Certificates, Certificates]
) -> None:
    of_instances, of_pools = authorities
    pool.certify(of_pools, pki.issue(pki.OF_INSTANCES).bundle)
    pool.show(data={names.PGBOUNCER_INI_KEY: pool.settings(query_wait_timeout="2")})
    pool.point_at(primary, epoch=1, name="shop-0")
    pool.start_agent()
    pool.start_pgbouncer()
    eventually(
        lambda: pool.report().get("reason") == "the primary shop-0 does not answer",
        within=5,
        what="its agent believes no other than pgbouncer does",
    )
    pool.kill_agent()
    pool.console("RESUME app")
    pool.console("RESUME postgres")
    with pytest.raises(psycopg.OperationalError):
        await off_loop(pool.connect)
    assert "certificate verify failed" in (pool.directory / "pgbouncer.log").read_text()
    pool.start_agent()
    pool.certify(of_pools, of_instances.bundle)
    # Clients that came meanwhile hear of the last failed login once more.
    eventually(lambda: connects(pool.uri()), within=20, what="the pool serves")
    with pool.connect() as connection:
        assert connection.execute(
            "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
        ).fetchone() == (True,)


async def test_clients_are_refused_in_clear_text_and_verify_the_pool_by_name(
    pool: Pool, primary: Postgres
) -> None:
    running(pool, primary)
    good = pool.uri()
    told = refusal(good.replace("sslmode=verify-full", "sslmode=disable"))
    assert "SSL required" in told
    assert "does not match" in refusal(good.replace("@shop.default.svc:", "@elsewhere:"))
    other = pki.issue(pki.OF_POOLS).bundle
    (pool.directory / "other.crt").write_text(other)
    assert "verify failed" in refusal(good.replace("/ca.crt", "/other.crt"))
    older = f"{good}&ssl_max_protocol_version=TLSv1.2"
    assert "version" in refusal(older), "the default is TLS 1.3"
    for host in ("shop", "shop-ro.default", "shop.default.svc.cluster.local"):
        assert connects(good.replace("@shop.default.svc:", f"@{host}:"))


async def test_a_plain_server_is_no_server_to_a_pool(
    pool: Pool, primary: Postgres, template: Path
) -> None:
    primary.stop()
    primary.settings = {}
    (primary.data / "pg_hba.conf").write_text("local all all trust\nhost all all all trust\n")
    primary.start()
    pool.show(data={names.PGBOUNCER_INI_KEY: pool.settings(query_wait_timeout="2")})
    pool.point_at(primary, epoch=1, name="shop-0")
    pool.start_agent()
    pool.start_pgbouncer()
    with pytest.raises(psycopg.OperationalError):
        await off_loop(pool.connect)


@pytest.mark.timeout(120)
async def test_certificates_and_authorities_are_renewed_under_writers_without_an_error(
    pool: Pool, primary: Postgres, directory: Path, authorities: tuple[Certificates, Certificates]
) -> None:
    running(pool, primary)
    rounds = [_rounds(before) for before in zip(authorities, PROFILES, strict=True)]
    async with writing(pool) as writers:
        for of_instances, of_pools in zip(*rounds, strict=True):
            await off_loop(encrypted, primary, directory, of_instances)
            primary.reload()
            before = pool.agent_log().count("the certificates were reloaded")
            pool.certify(of_pools, of_instances.bundle)
            await off_loop(_reloaded, pool, before)
            # What comes from now on verifies what is shown from now on.
            with await off_loop(pool.connect) as late:
                assert late.execute("SELECT 1").fetchone() == (1,)
            await asyncio.sleep(1.0)
    assert writers.errors == []
    assert writers.gap_s() < 1.0
    last = rounds[1][-1]
    assert last.bundle.count("BEGIN CERTIFICATE") == 1
    assert last.ca != authorities[1].ca


PROFILES = (pki.OF_INSTANCES, pki.OF_POOLS)


def _rounds(before: tuple[Certificates, dict]) -> list[Certificates]:
    """A new certificate; then a new authority: believed, signing, and the former one forgotten."""
    made, profiles = before
    now = datetime.now(UTC)

    def planned(ca, held, at):
        return plan(ca, held, profiles, cluster=pki.CLUSTER, now=at)

    renewed = planned(made.ca, {}, now - 2 * SPREAD)
    believed = planned({}, renewed.leaves, now - SPREAD)
    signing = planned(believed.ca, believed.leaves, now)
    alone = planned(signing.ca, signing.leaves, now + SPREAD)
    return [renewed, believed, signing, alone]


def _reloaded(pool: Pool, before: int) -> None:
    eventually(
        lambda: pool.agent_log().count("the certificates were reloaded") > before,
        within=15,
        what="the pool has taken the certificates",
    )
