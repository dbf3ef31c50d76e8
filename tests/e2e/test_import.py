"""From PostgreSQL 15 to 17: a new cluster takes over roles, rows and sequences of an old one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pgcluster.api import names
from tests.e2e.cluster import Cluster, manifest
from tests.e2e.kubectl import Kubectl, KubectlError
from tests.e2e.report import Report
from tests.e2e.toolbox import Toolbox

# The cluster must have the image of PostgreSQL 15: POSTGRES_MAJORS="17 15", as `make test` has it.
pytestmark = pytest.mark.disturbs

ROLES = (
    "CREATE ROLE importer SUPERUSER LOGIN PASSWORD 'of the importer';"
    "CREATE ROLE reporting LOGIN PASSWORD 'kept as it was'"
)
ROWS = (
    "CREATE EXTENSION pgcrypto; CREATE SCHEMA sales AUTHORIZATION app;"
    "CREATE TABLE sales.orders (id bigserial PRIMARY KEY, note text);"
    "ALTER TABLE sales.orders OWNER TO app;"
    "INSERT INTO sales.orders (note) SELECT md5(n::text) FROM generate_series(1, 20000) AS n;"
    "SELECT setval('sales.orders_id_seq', 31000);"
    "GRANT USAGE ON SCHEMA sales TO reporting; GRANT SELECT ON sales.orders TO reporting"
)
DIGEST = "SELECT count(*), sum(id), md5(string_agg(note, ',' ORDER BY id)) FROM sales.orders"


def login(kubectl: Kubectl, password: str) -> None:
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "importer-login"},
            "stringData": {"username": "importer", "password": password},
        }
    )


@pytest.fixture(scope="module")
def old(own_namespace: Kubectl) -> Iterator[Cluster]:
    """A cluster of PostgreSQL 15 with rows."""
    cluster = Cluster(own_namespace, "old")
    cluster.apply(
        manifest("old", instances=1, postgres={"version": 15}, pgbouncer={"instances": 1})
    )
    cluster.psql("old-0", ROLES)
    cluster.psql("old-0", ROWS, "app")
    yield cluster
    cluster.delete()


@pytest.fixture(scope="module")
def new(own_namespace: Kubectl, old: Cluster, report: Report) -> Iterator[Cluster]:
    """A cluster of PostgreSQL 17 that begins with them, at first with a wrong password."""
    login(own_namespace, "wrong")
    cluster = Cluster(own_namespace, "new")
    source = {"cluster": "old", "passwordSecret": {"name": "importer-login"}}
    own_namespace.apply(
        manifest(
            "new",
            instances=2,
            postgres={"version": 17},
            pgbouncer={"instances": 1},
            bootstrap={"import": {"source": source}},
        )
    )
    cluster.condition_says('^ImportFailed .*password authentication failed for user "importer"')
    assert cluster.condition("Ready")["status"] == "False"
    login(own_namespace, "of the importer")
    cluster.wait_ready()
    yield cluster
    cluster.delete()


def test_the_old_one_runs_15_and_its_repmgr(old: Cluster) -> None:
    assert old.value("old-0", "SHOW server_version_num").startswith("15")
    assert old.agreed() == "old-0"


def test_a_new_major_version_has_the_rows_sequences_and_logins_of_the_old(
    old: Cluster, new: Cluster, own_namespace: Kubectl
) -> None:
    primary = new.settled()
    assert new.value(primary, "SHOW server_version_num").startswith("17")
    for pod in new.instances():
        assert new.psql(pod, DIGEST, "app") == old.psql("old-0", DIGEST, "app")
    tools = Toolbox(own_namespace)
    uri = new.secret(names.secret_app("new"))["uri"]
    query = "INSERT INTO sales.orders (note) VALUES ('new') RETURNING id"
    assert tools.psql(uri, query).stdout.split()[0] == "31001"
    reader = "postgresql://reporting:kept%20as%20it%20was@new/app"
    assert tools.psql(reader, "SELECT count(*) FROM sales.orders").stdout.strip() == "20001"
    superusers = "SELECT rolname FROM pg_roles WHERE rolsuper ORDER BY 1"
    assert new.psql(primary, superusers) == [["postgres"], ["repmgr"]]


def test_what_was_imported_is_fixed_and_may_leave_the_manifest(new: Cluster) -> None:
    assert new.status()["importedAt"]
    patch = {"spec": {"bootstrap": {"import": {"jobs": 3}}}}
    with pytest.raises(KubectlError, match="fixed once the import is complete"):
        new.kubectl.patch("pgcluster", "new", patch)
    new.kubectl.patch("pgcluster", "new", {"spec": {"bootstrap": None}})
    new.wait_ready()
