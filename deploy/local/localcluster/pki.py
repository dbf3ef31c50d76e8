"""The cluster's certificate authority, its certificates and the kubeconfigs that carry them."""

import base64
import json
import secrets
from dataclasses import dataclass
from pathlib import Path

from .commands import run
from .plan import Node, Plan

DAYS = "3650"


@dataclass(frozen=True)
class Certificate:
    name: str
    subject: str
    """As openssl writes it: /O=…/CN=…"""
    names: tuple[str, ...] = ()
    """Subject alternative names, DNS:… and IP:…; with any it is a server's certificate."""


def create(plan: Plan, folder: Path) -> None:
    """Create what is not there yet; what is there stays: a running cluster keeps its keys."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _sign(folder, Certificate("ca", "/CN=localkube-ca"))
    for certificate in (*_of_control_plane(plan), *(c for n in plan.nodes for c in of_node(n))):
        _sign(folder, certificate)
    key, public = folder / "service-account.key", folder / "service-account.pub"
    _key(key)
    if not public.exists():
        run(["openssl", "pkey", "-in", key, "-pubout", "-out", public])


def of_node(node: Node) -> tuple[Certificate, Certificate]:
    """The kubelet's two: as a client of the API, and as the server of exec and logs."""
    return (
        Certificate(f"kubelet-{node.name}", f"/O=system:nodes/CN=system:node:{node.name}"),
        Certificate(
            f"kubelet-serving-{node.name}",
            f"/CN={node.name}",
            (f"DNS:{node.name}", f"IP:{node.address}"),
        ),
    )


def _of_control_plane(plan: Plan) -> tuple[Certificate, ...]:
    service = "kubernetes.default.svc.cluster.local"
    short = ("kubernetes", "kubernetes.default", "kubernetes.default.svc", service)
    return (
        Certificate(
            "apiserver",
            "/CN=kube-apiserver",
            (
                *(f"DNS:{name}" for name in (*short, plan.control_plane.name, "localhost")),
                f"IP:{plan.control_plane.address}",
                f"IP:{plan.api_service_address}",
                "IP:127.0.0.1",
            ),
        ),
        Certificate("apiserver-kubelet-client", "/O=system:masters/CN=apiserver-kubelet-client"),
        Certificate("admin", "/O=system:masters/CN=kubernetes-admin"),
        Certificate("kube-controller-manager", "/CN=system:kube-controller-manager"),
        Certificate("kube-scheduler", "/CN=system:kube-scheduler"),
        Certificate("kube-proxy", "/CN=system:kube-proxy"),
    )


def _key(path: Path) -> None:
    if path.exists():
        return
    temporary = path.with_suffix(".tmp")
    curve = ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
    run(["openssl", "genpkey", *curve, "-out", temporary])
    temporary.chmod(0o600)
    temporary.rename(path)


def _sign(folder: Path, certificate: Certificate) -> None:
    final = folder / f"{certificate.name}.crt"
    if final.exists():
        return
    key = folder / f"{certificate.name}.key"
    request = folder / f"{certificate.name}.csr"
    extensions = folder / f"{certificate.name}.ext"
    temporary = folder / f"{certificate.name}.tmp"
    _key(key)
    run(["openssl", "req", "-new", "-key", key, "-subj", certificate.subject, "-out", request])
    is_ca = certificate.name == "ca"
    extensions.write_text("\n".join(_extensions(certificate, is_ca)) + "\n")
    issuer: list[str | Path] = ["-CA", folder / "ca.crt", "-CAkey", folder / "ca.key"]
    if is_ca:
        issuer = ["-signkey", key]
    options = ["-days", DAYS, "-sha256", "-set_serial", f"0x{secrets.token_hex(16)}"]
    files: list[str | Path] = ["-in", request, "-extfile", extensions, "-out", temporary]
    run(["openssl", "x509", "-req", *options, *issuer, *files])
    temporary.rename(final)
    request.unlink()
    extensions.unlink()


def _extensions(certificate: Certificate, is_ca: bool) -> list[str]:
    if is_ca:
        return [
            "basicConstraints=critical,CA:TRUE",
            "keyUsage=critical,digitalSignature,keyCertSign,cRLSign",
            "subjectKeyIdentifier=hash",
        ]
    usage = "serverAuth" if certificate.names else "clientAuth"
    lines = ["basicConstraints=critical,CA:FALSE", f"extendedKeyUsage={usage}"]
    lines.append("keyUsage=critical,digitalSignature")
    if certificate.names:
        lines.append("subjectAltName=" + ",".join(certificate.names))
    return lines


def kubeconfig(folder: Path, certificate: str, server: str) -> str:
    """A kubeconfig with its keys inside. It is JSON, which is YAML too."""

    def data(file: str) -> str:
        return base64.b64encode((folder / file).read_bytes()).decode()

    name = "localkube"
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [
                {
                    "name": name,
                    "cluster": {"server": server, "certificate-authority-data": data("ca.crt")},
                }
            ],
            "users": [
                {
                    "name": certificate,
                    "user": {
                        "client-certificate-data": data(f"{certificate}.crt"),
                        "client-key-data": data(f"{certificate}.key"),
                    },
                }
            ],
            "contexts": [{"name": name, "context": {"cluster": name, "user": certificate}}],
        },
        indent=1,
    )
