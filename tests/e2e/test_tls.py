"""Nothing goes over the network in clear text, and who is who is verified; and it stays so while
certificates and their authorities are renewed under the application."""

from __future__ import annotations

import secrets
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import parse_qs

import pytest

from pgcluster.api import names
from pgcluster.controller.certificates import Profile, plan
from tests.e2e.cluster import Cluster
from tests.e2e.observing import Client
from tests.e2e.toolbox import Toolbox
from tests.e2e.waiting import eventually

# The kubelet brings a changed Secret when it next looks at a pod, of which `noticed` sees to.
TAKEN_WITHIN_S = 120.0
WHO = "SELECT current_user"


def verifying(
    shop: Cluster,
    toolbox: Toolbox,
    host: str,
    *,
    database: str = "app",
    authorities: str | None = None,
    more: str = "",
) -> subprocess.CompletedProcess[str]:
    """psql in an application's pod, which believes what the application's Secret says."""
    secret = shop.secret(names.secret_app(shop.name))
    bundle = secret["ca.crt"] if authorities is None else authorities
    file = f"/tmp/{secrets.token_hex(4)}.crt"
    toolbox.shell(f"cat > {file}", stdin=bundle)
    conninfo = (
        f"host={host} dbname={database} user=app sslmode=verify-full sslrootcert={file} {more}"
    )
    return toolbox.shell(
        "IFS= read -r PGPASSWORD; export PGPASSWORD;"
        f" psql -X -At -v ON_ERROR_STOP=1 '{conninfo}' -c '{WHO}'",
        stdin=secret["password"] + "\n",
        check=False,
    )


def strangers() -> dict[str, str]:
    """A certificate of an authority that nobody knows, for the names of the pools."""
    profiles = {"mine": Profile("mine", names.pool_hosts("shop", "anywhere"))}
    made = plan({}, {}, profiles, cluster="mine", now=datetime.now(UTC))
    return dict(made.leaves["mine"])


def noticed(shop: Cluster) -> None:
    """Have the operator look at the cluster, and the kubelets at its pods, at once."""
    word = f"tests.pgcluster.dev/look={secrets.token_hex(4)}"
    shop.kubectl.run("label", "--overwrite", "pgcluster", shop.name, word)
    selector = f"{names.LABEL_CLUSTER}={shop.name}"
    shop.kubectl.run("annotate", "--overwrite", "pods", "-l", selector, word)


def until(shop: Cluster, condition: Callable[[], bool], what: str) -> None:
    """Wait until it holds, and have everybody look meanwhile."""

    def holds() -> bool:
        held = False
        try:
            held = condition()
        finally:
            if not held:
                noticed(shop)
        return held

    eventually(holds, within=TAKEN_WITHIN_S, every=3.0, what=what)


def test_a_client_verifies_every_service_by_name(shop: Cluster, toolbox: Toolbox) -> None:
    namespace = shop.kubectl.namespace
    pool = names.service_pool("shop")
    for host in (
        *names.service_hosts(pool, namespace),
        f"{names.service_primary('shop')}.{namespace}.svc",
        names.pod_host(shop.primary(), "shop", namespace),
    ):
        told = verifying(shop, toolbox, host)
        assert told.stdout.strip() == "app", f"{host}: {told.stderr}"
    told = verifying(shop, toolbox, f"{names.service_read_only('shop')}", database="app_ro")
    assert told.stdout.strip() == "app", told.stderr
    address = shop.kubectl.json("get", "service", pool)["spec"]["clusterIP"]
    told = verifying(shop, toolbox, "elsewhere", more=f"hostaddr={address}")
    assert "does not match host name" in told.stderr
    told = verifying(shop, toolbox, pool, authorities=strangers()["ca.crt"])
    assert "certificate verify failed" in told.stderr


def test_clear_text_and_older_protocols_are_refused_with_the_reason(
    shop: Cluster, toolbox: Toolbox
) -> None:
    secret = shop.secret(names.secret_app("shop"))
    assert parse_qs(secret["uri"].partition("?")[2])["sslmode"] == ["require"]
    assert parse_qs(secret["jdbc-uri"].partition("?")[2])["sslmode"] == ["require"]
    plain = secret["uri"].replace("sslmode=require", "sslmode=disable")
    assert "SSL required" in toolbox.psql(plain, WHO, check=False).stderr
    host = f"{names.service_primary('shop')}.{shop.kubectl.namespace}.svc"
    past = plain.replace(secret["host"], host)
    assert "no encryption" in toolbox.psql(past, WHO, check=False).stderr
    older = f"{secret['uri']}&ssl_max_protocol_version=TLSv1.2"
    assert toolbox.psql(older, WHO, check=False).returncode != 0


def test_the_password_of_repmgr_opens_nothing_over_the_network(
    shop: Cluster, toolbox: Toolbox
) -> None:
    password = shop.secret(names.secret_repmgr("shop"))["password"]
    host = names.service_primary("shop")
    for database in ("repmgr", "postgres"):
        uri = f"postgresql://repmgr:{password}@{host}/{database}?sslmode=require"
        assert "client certificate" in toolbox.psql(uri, WHO, check=False).stderr


def test_what_reaches_an_instance_over_the_network_is_encrypted(shop: Cluster) -> None:
    primary = shop.settled()
    streams = shop.psql(
        primary,
        "SELECT application_name, ssl, version, client_dn FROM pg_stat_replication"
        " JOIN pg_stat_ssl USING (pid) ORDER BY 1",
    )
    standbys = sorted(pod for pod in shop.instances() if pod != primary)
    assert streams == [[pod, "t", "TLSv1.3", "/CN=repmgr"] for pod in standbys]
    for pod in shop.instances():
        plain = shop.psql(
            pod,
            "SELECT usename, client_addr FROM pg_stat_activity JOIN pg_stat_ssl USING (pid)"
            " WHERE client_addr IS NOT NULL AND NOT ssl",
        )
        assert plain == []
        of_instances = shop.psql(
            pod,
            "SELECT DISTINCT client_dn FROM pg_stat_activity JOIN pg_stat_ssl USING (pid)"
            " WHERE client_addr IS NOT NULL AND usename = 'repmgr'",
        )
        assert of_instances in ([["/CN=repmgr"]], [])


@pytest.mark.disturbs
def test_certificates_and_authorities_are_renewed_under_the_application(
    shop: Cluster, toolbox: Toolbox, client: Client
) -> None:
    primary = shop.settled()
    before = shop.secret(names.secret_server("shop"))
    mark = client.mark()
    authorities = (names.secret_ca("shop"), names.secret_pool_ca("shop"))
    for secret in authorities:
        shop.kubectl.delete("secret", secret)

    def believed() -> bool:
        bundle = shop.secret(names.secret_server("shop"))["ca.crt"]
        pool_bundle = shop.secret(names.secret_pool_tls("shop"))["ca.crt"]
        return (
            bundle != before["ca.crt"]
            and pool_bundle in shop.secret(names.secret_app("shop"))["ca.crt"]
            and all(
                shop.exec(pod, "cat", names.CA_PEM).stdout == bundle for pod in shop.instances()
            )
        )

    until(shop, believed, "every instance believes the new authority beside the former one")
    # An hour later the operator would do it by itself.
    leaves = [names.secret_server("shop"), names.secret_replication("shop")]
    for secret in (*leaves, names.secret_pool_tls("shop")):
        shop.kubectl.delete("secret", secret)

    def renewed() -> bool:
        return all(
            shop.exec(pod, "cat", path).stdout.endswith(shop.secret(secret)["tls.crt"])
            for pod in shop.instances()
            for path, secret in zip((names.SERVER_PEM, names.CLIENT_PEM), leaves, strict=True)
        )

    until(shop, renewed, "every instance has the new certificates")
    assert shop.secret(names.secret_server("shop"))["tls.crt"] != before["tls.crt"]
    until(
        shop,
        lambda: verifying(shop, toolbox, names.service_pool("shop")).returncode == 0,
        "a client that believes the present authorities gets in",
    )
    counted = client.stats(mark)
    assert counted["errors"] == 0, counted["errors_by_text"]
    assert shop.settled() == primary


@pytest.mark.disturbs
def test_the_users_own_certificate_is_shown_and_followed(
    shop: Cluster, toolbox: Toolbox, client: Client
) -> None:
    mark = client.mark()
    pool = f"{names.service_pool('shop')}.anywhere.svc"
    address = shop.kubectl.json("get", "service", names.service_pool("shop"))["spec"]["clusterIP"]
    shop.kubectl.patch("pgcluster", "shop", {"spec": {"tls": {"secretName": "mine"}}})
    try:
        shop.condition_says("CertificateMissing.*Secret mine does not exist")
        for _ in range(2):
            made = strangers()
            manifest = {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "mine"},
                "type": "kubernetes.io/tls",
                "stringData": made,
            }
            shop.kubectl.apply(manifest)

            def shown(authority: str = made["ca.crt"]) -> bool:
                # Of a name that no other certificate has, verified by that authority alone.
                told = verifying(
                    shop, toolbox, pool, authorities=authority, more=f"hostaddr={address}"
                )
                return told.returncode == 0

            until(shop, shown, "the pools show the user's certificate")
            assert made["ca.crt"].strip() in shop.secret(names.secret_app("shop"))["ca.crt"]
    finally:
        shop.kubectl.json_patch("pgcluster", "shop", [{"op": "remove", "path": "/spec/tls"}])
    until(
        shop,
        lambda: verifying(shop, toolbox, names.service_pool("shop")).returncode == 0,
        "the pools show the operator's certificate again",
    )
    counted = client.stats(mark)
    assert counted["errors"] == 0, counted["errors_by_text"]
    shop.settled()
