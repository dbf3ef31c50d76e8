"""The README's path: what it shows works when typed as it stands (S1)."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import yaml

from pgcluster.api import names
from tests.e2e.cluster import Cluster
from tests.e2e.kubectl import Kubectl
from tests.e2e.report import Report
from tests.e2e.toolbox import Toolbox

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
# A block to be tried is announced by an HTML comment: `<!-- tested: NAME -->`, then the fence.
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"<!-- tested: (?P<name>[\w-]+) -->\n+```(?P<kind>\w+)\n(?P<text>.*?)```", re.S)


def block(name: str) -> str:
    found = {match["name"]: match["text"] for match in BLOCK.finditer(README)}
    return found[name]


@pytest.fixture(scope="module")
def readme_cluster(own_namespace: Kubectl, report: Report) -> Cluster:
    document = yaml.safe_load(block("smallest"))
    cluster = Cluster(own_namespace, document["metadata"]["name"])
    started_s = time.monotonic()
    own_namespace.apply_text(block("smallest"))
    cluster.wait_ready()
    report.measured("the README's PgCluster: apply to Ready", time.monotonic() - started_s, "s")
    return cluster


def test_the_smallest_pgcluster_is_instances_and_size_and_becomes_ready(
    readme_cluster: Cluster,
) -> None:
    document = yaml.safe_load(block("smallest"))
    assert set(document["spec"]) <= {"instances", "storage"}
    assert readme_cluster.status()["readyInstances"] == document["spec"]["instances"]


def test_the_commands_of_the_readme_work(readme_cluster: Cluster, own_namespace: Kubectl) -> None:
    """Each line that begins with kubectl is run as it stands, in the test's namespace."""
    lines = [line for line in block("look").splitlines() if line.startswith("kubectl ")]
    assert lines
    for line in lines:
        command = line.partition("#")[0].split()[1:]
        output = own_namespace.run(*command)
        assert output.strip(), line


def test_the_application_connects_with_the_secret_as_the_readme_says(
    readme_cluster: Cluster, own_namespace: Kubectl
) -> None:
    tools = Toolbox(own_namespace)
    uri = readme_cluster.secret(names.secret_app(readme_cluster.name))["uri"]
    assert tools.psql(uri, "SELECT 1").stdout.strip() == "1"


def test_the_samples_are_valid(own_namespace: Kubectl) -> None:
    files = sorted((ROOT / "deploy" / "samples").glob("*.yaml"))
    assert files
    for file in files:
        for document in yaml.safe_load_all(file.read_text()):
            if document and document.get("kind") == names.KIND:
                own_namespace.apply(document, dry_run=True)


def test_every_pgcluster_of_the_documentation_is_valid(own_namespace: Kubectl) -> None:
    shown = [
        document
        for page in PAGES
        for match in BLOCK.finditer(page.read_text())
        if match["kind"] == "yaml"
        for document in yaml.safe_load_all(match["text"])
    ]
    assert len(shown) >= 2
    for number, document in enumerate(shown):
        # Each as a new cluster: a change of another page's would be judged as a change.
        document["metadata"]["name"] = f"page-{number}"
    own_namespace.apply(*shown, dry_run=True)


def test_a_deleted_cluster_keeps_its_data_and_takes_it_up_when_made_again(
    readme_cluster: Cluster, own_namespace: Kubectl, report: Report
) -> None:
    primary = readme_cluster.settled()
    readme_cluster.psql(primary, "CREATE TABLE kept AS SELECT 42 AS answer", "app")
    system_id = readme_cluster.status()["systemIdentifier"]
    readme_cluster.delete()
    claims = own_namespace.objects("pvc", labels=f"{names.LABEL_CLUSTER}={readme_cluster.name}")
    assert len(claims) == 3
    started_s = time.monotonic()
    own_namespace.apply_text(block("smallest"))
    readme_cluster.wait_ready()
    report.measured("made again on its old volumes: Ready", time.monotonic() - started_s, "s")
    primary = readme_cluster.settled()
    assert readme_cluster.value(primary, "SELECT answer FROM kept", "app") == "42"
    assert readme_cluster.status()["systemIdentifier"] == system_id
    tools = Toolbox(own_namespace)
    uri = readme_cluster.secret(names.secret_app(readme_cluster.name))["uri"]
    assert tools.psql(uri, "SELECT 1").stdout.strip() == "1"
