"""The pure parts of deploy/local: the address plan, image names, and what the nodes are told."""

import os
import sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "deploy" / "local"))

from localcluster import archive, images  # noqa: E402
from localcluster.build import COMPONENTS  # noqa: E402
from localcluster.nodeconfig import node_config  # noqa: E402
from localcluster.plan import NODE_RANGE, parse_plan, read_plan  # noqa: E402
from localcluster.processes import identify  # noqa: E402
from localcluster.progress import LocalkubeError  # noqa: E402

KIND_CONFIG = """
kind: Cluster
name: demo
networking: {}
nodes:
  - role: control-plane
  - image: some
    role: worker   # a comment
  - role: "worker"
"""


def test_the_repository_s_kind_config_has_one_control_plane_and_three_workers() -> None:
    plan = read_plan(REPOSITORY / "kind-config.yaml")
    assert [node.name for node in plan.nodes] == [
        "pgcluster-control-plane",
        "pgcluster-worker",
        "pgcluster-worker2",
        "pgcluster-worker3",
    ]
    assert plan.pod_range == IPv4Network("10.244.0.0/16")
    assert plan.dns_address == IPv4Address("10.96.0.10")


def test_workers_are_counted_however_the_entry_is_written() -> None:
    plan = parse_plan(KIND_CONFIG)
    assert plan.workers == 2
    assert plan.nodes[2].name == "demo-worker2"


def test_the_command_line_overrides_the_number_of_workers() -> None:
    assert parse_plan(KIND_CONFIG, workers=0).workers == 0
    with pytest.raises(LocalkubeError):
        parse_plan(KIND_CONFIG, workers=1000)


def test_several_control_planes_are_refused() -> None:
    with pytest.raises(LocalkubeError, match="control planes"):
        parse_plan(KIND_CONFIG + "  - role: control-plane\n")


def test_no_two_nodes_share_an_address_a_range_or_a_link() -> None:
    plan = parse_plan(KIND_CONFIG, workers=20)
    for values in (
        [node.address for node in plan.nodes],
        [node.pod_range for node in plan.nodes],
        [node.mac for node in plan.nodes],
        [node.host_link for node in plan.nodes],
    ):
        assert len(set(values)) == 21
    assert all(node.address in NODE_RANGE for node in plan.nodes)
    assert all(node.pod_range.subnet_of(plan.pod_range) for node in plan.nodes)
    # IFNAMSIZ: the kernel refuses longer names of links.
    assert all(len(node.host_link) < 16 for node in plan.nodes)


def test_adding_a_worker_moves_no_other_node() -> None:
    assert parse_plan(KIND_CONFIG, 4).nodes[:3] == parse_plan(KIND_CONFIG, 2).nodes


def test_a_node_is_found_by_its_full_and_its_short_name() -> None:
    plan = parse_plan(KIND_CONFIG)
    assert plan.node("demo-worker2") == plan.node("worker2") == plan.nodes[2]
    with pytest.raises(LocalkubeError, match="worker7"):
        plan.node("worker7")


@pytest.mark.parametrize(
    ("reference", "full"),
    [
        ("app", "docker.io/library/app:latest"),
        ("app:dev", "docker.io/library/app:dev"),
        ("pgcluster/postgres:dev", "docker.io/pgcluster/postgres:dev"),
        ("ghcr.io/pgcluster/postgres:1", "ghcr.io/pgcluster/postgres:1"),
        ("localhost/app:dev", "localhost/app:dev"),
        ("registry:5000/app", "registry:5000/app:latest"),
    ],
)
def test_an_image_is_stored_under_the_name_that_the_kubelet_looks_up(
    reference: str, full: str
) -> None:
    assert images.full_name(reference) == full


def test_what_buildah_calls_localhost_is_found_without_localhost_too() -> None:
    assert images.image_names_of("localhost/app:dev") == (
        "docker.io/library/app:dev",
        "localhost/app:dev",
    )


def test_an_image_of_the_same_files_has_the_same_id(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"one")
    ids = []
    for name in ("a.tar", "b.tar"):
        target = tmp_path / name
        archive.write_image(target, "docker.io/x/y:1", {"p": program}, {"q": "p"}, ["/p"])
        ids.append(archive.image_id(target))
    program.write_bytes(b"two")
    archive.write_image(tmp_path / "c.tar", "docker.io/x/y:1", {"p": program}, {}, ["/p"])
    assert ids[0] == ids[1] != archive.image_id(tmp_path / "c.tar")
    assert archive.image_names(tmp_path / "a.tar") == ["docker.io/x/y:1"]


def test_every_component_has_one_version_in_its_go_mod() -> None:
    versions = {component.name: component.version for component in COMPONENTS}
    assert versions["kubernetes"].startswith("v1.35.")
    assert set(versions) == {"kubernetes", "coredns", "local-path-provisioner"}


def test_only_the_control_plane_is_tainted() -> None:
    plan = parse_plan(KIND_CONFIG)
    for node in plan.nodes:
        config = node_config(plan, node, Path("/bin"), may_lower_oom_score=True)
        tainted = "node-role.kubernetes.io/control-plane" in config.files["kubelet.json"]
        assert tainted == node.is_control_plane
        assert f"/localkube/{node.name}" in config.files["kubelet.json"]


def test_a_process_that_is_gone_has_no_identity() -> None:
    me = identify(os.getpid())
    assert me is not None
    assert me.is_alive
    # Beyond the largest pid that Linux gives (PID_MAX_LIMIT).
    assert identify(2**22 + 1) is None
