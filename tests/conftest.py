"""Markers of all tiers."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "disturbs: hurts the shared cluster, so it runs after the tests that only look;"
        ' with "all", nodes or what all clusters share, so it runs last',
    )
