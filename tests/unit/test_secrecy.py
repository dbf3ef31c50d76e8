"""What holds a secret shows it in no representation: an error, a log line, a failed assertion."""

from __future__ import annotations

import ssl
from typing import Any

from pgcluster.controller.observe import Observed
from pgcluster.kube.kubeconfig import Plain


def test_an_observed_cluster_does_not_show_its_secrets() -> None:
    secret: dict[str, Any] = {
        "metadata": {"name": "shop-app"},
        "data": {"password": "aHVudGVyMg=="},
    }
    seen = Observed(
        cluster={"metadata": {"name": "shop", "namespace": "prod"}},
        children={("Secret", "shop-app"): secret},
    )
    assert seen.children["Secret", "shop-app"] is secret
    assert "aHVudGVyMg" not in repr(seen)


def test_a_login_does_not_show_its_token() -> None:
    login = Plain("https://api", ssl.create_default_context(), "a-bearer-token", "prod")
    assert login.token == "a-bearer-token"
    assert "a-bearer-token" not in repr(login)
