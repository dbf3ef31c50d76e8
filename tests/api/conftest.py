"""What the tests against a real API server share."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgcluster.api import names
from tests.e2e.kubectl import Kubectl

CRD = Path(__file__).parents[2] / "crds" / f"{names.PLURAL}.{names.GROUP}.yaml"


@pytest.fixture(scope="module")
def restricted() -> Iterator[Kubectl]:
    """A namespace that lets in no pod below the restricted standard; the CRD is there."""
    everywhere = Kubectl()
    everywhere.run("apply", "--server-side", "--force-conflicts", "-f", str(CRD))
    everywhere.run("wait", "--for=condition=Established", "-f", str(CRD), "--timeout=30s")
    namespace = Kubectl(f"api-{secrets.token_hex(2)}")
    everywhere.run("create", "namespace", namespace.namespace)
    everywhere.run(
        "label",
        "namespace",
        namespace.namespace,
        "pod-security.kubernetes.io/enforce=restricted",
        "pod-security.kubernetes.io/enforce-version=latest",
    )
    yield namespace
    everywhere.run("delete", "namespace", namespace.namespace, "--wait=false")
