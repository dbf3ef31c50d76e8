"""How an application gets in: the Secret `<cluster>-app`, the Services, the read-only pool."""

from __future__ import annotations

import json

from pgcluster.api import names
from tests.e2e.cluster import Cluster
from tests.e2e.toolbox import Toolbox
from tests.e2e.waiting import eventually

WHO = "SELECT current_user, current_database(), pg_is_in_recovery()"

PYTHON = """
import json, sys
import psycopg
secret = json.loads(sys.argv[1])
rows = [psycopg.connect(secret["uri"]).execute(sys.argv[2]).fetchone()]
parts = {k: secret[k] for k in ("host", "port", "dbname", "password")}
rows.append(psycopg.connect(user=secret["username"], **parts).execute(sys.argv[2]).fetchone())
print(json.dumps(rows))
"""


def test_every_form_of_the_credentials_works(shop: Cluster, toolbox: Toolbox) -> None:
    secret = shop.secret(names.secret_app("shop"))
    assert secret["username"] == "app"
    assert secret["dbname"] == "app"
    assert toolbox.psql(secret["uri"], WHO).stdout.strip() == "app|app|f"
    assert (
        json.loads(toolbox.python(PYTHON, json.dumps(secret), WHO)) == [["app", "app", False]] * 2
    )
    prefix = f"jdbc:postgresql://{secret['host']}:{secret['port']}/{secret['dbname']}?"
    assert secret["jdbc-uri"].startswith(prefix)
    assert "user=app" in secret["jdbc-uri"]
    from_pgpass = toolbox.shell(
        "umask 077; cat > /tmp/pgpass; PGPASSFILE=/tmp/pgpass psql -X -At -w "
        f"-h {secret['host']} -p {secret['port']} -U app -d app -c '{WHO}'",
        stdin=secret["pgpass"],
    )
    assert from_pgpass.stdout.strip() == "app|app|f"


def test_the_credentials_also_fit_the_primary_itself(shop: Cluster, toolbox: Toolbox) -> None:
    secret = shop.secret(names.secret_app("shop"))
    uri = f"postgresql://app:{secret['password']}@{names.service_primary('shop')}/app"
    assert toolbox.psql(uri, WHO).stdout.strip() == "app|app|f"


def test_the_read_only_pool_serves_from_standbys_only(shop: Cluster, toolbox: Toolbox) -> None:
    primary = shop.settled()
    password = shop.secret(names.secret_app("shop"))["password"]
    uri = f"postgresql://app:{password}@{names.service_read_only('shop')}/app_ro"
    question = "SELECT current_setting('cluster_name'), pg_is_in_recovery()"
    answers = {toolbox.psql(uri, question).stdout.strip() for _ in range(12)}
    assert all(answer.endswith("|t") for answer in answers), answers
    assert f"{primary}|f" not in answers
    refused = toolbox.psql(uri, "CREATE TABLE never (id int)", check=False)
    assert "read-only" in refused.stderr


def test_the_service_of_the_primary_leads_to_the_primary_only(shop: Cluster) -> None:
    primary = shop.settled()

    def only_the_primary() -> bool:
        slices = shop.kubectl.objects(
            "endpointslices", labels=f"kubernetes.io/service-name={names.service_primary('shop')}"
        )
        targets = [
            endpoint["targetRef"]["name"]
            for part in slices
            for endpoint in part.get("endpoints") or []
            if endpoint["conditions"].get("ready")
        ]
        assert targets == [primary], targets
        return True

    eventually(only_the_primary, within=10)


def test_the_deletion_of_a_pooler_costs_no_more_than_its_connections(
    shop: Cluster, toolbox: Toolbox
) -> None:
    victim = shop.poolers()[0]
    password = shop.secret(names.secret_app("shop"))["password"]
    shop.kubectl.run("delete", "pod", victim, "--wait=false")
    eventually(
        lambda: victim not in shop.poolers() and len(shop.poolers()) == 2,
        within=60,
        what="a new pooler replaces the old one",
    )
    shop.wait_ready()
    assert toolbox.psql(f"postgresql://app:{password}@shop/app", WHO).stdout.strip() == "app|app|f"
