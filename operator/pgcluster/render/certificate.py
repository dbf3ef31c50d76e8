"""What cert-manager is asked for. Pure.

Source: cert-manager documentation, API reference of cert-manager.io/v1, CertificateSpec.
"""

from __future__ import annotations

from pgcluster.api import names
from pgcluster.api.models import IssuerRef, PgCluster
from pgcluster.render.metadata import Manifest, metadata


def certificate(cluster: PgCluster, issuer: IssuerRef) -> Manifest:
    """The Certificate of the pools, with a new key at each renewal."""
    name = names.secret_pool_certificate(cluster.name)
    hosts = names.pool_hosts(cluster.name, cluster.namespace)
    return {
        "apiVersion": "cert-manager.io/v1",
        "kind": "Certificate",
        "metadata": metadata(cluster, name, names.COMPONENT_PGBOUNCER),
        "spec": {
            "dnsNames": [*hosts, *cluster.spec.tls.dns_names],
            "issuerRef": {"group": issuer.group, "kind": issuer.kind, "name": issuer.name},
            "privateKey": {"algorithm": "ECDSA", "rotationPolicy": "Always", "size": 256},
            "secretName": name,
            "usages": ["digital signature", "server auth"],
        },
    }
