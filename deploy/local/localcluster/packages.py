"""The Debian packages that the nodes and the image builds need."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .commands import run_logged, tool_environment
from .progress import LocalkubeError

POLICY = Path("/usr/sbin/policy-rc.d")

PACKAGES: dict[str, str] = {
    # package: a file that only this package puts there
    "etcd-server": "/usr/bin/etcd",
    "containerd": "/usr/bin/containerd",
    "runc": "/usr/sbin/runc",
    "containernetworking-plugins": "/usr/lib/cni/bridge",
    "catatonit": "/usr/bin/catatonit",
    "busybox-static": "/bin/busybox",
    "iproute2": "/sbin/ip",
    "iptables": "/usr/sbin/iptables",
    "conntrack": "/usr/sbin/conntrack",
    "ipset": "/usr/sbin/ipset",
    "socat": "/usr/bin/socat",
    "mount": "/bin/mount",
    "util-linux": "/usr/bin/unshare",
    "openssl": "/usr/bin/openssl",
    "kmod": "/sbin/modprobe",
    "buildah": "/usr/bin/buildah",
    "skopeo": "/usr/bin/skopeo",
    "mmdebstrap": "/usr/bin/mmdebstrap",
}


def missing_packages() -> list[str]:
    return [package for package, file in PACKAGES.items() if not Path(file).exists()]


def install_packages(packages: list[str], log: Path) -> None:
    if shutil.which("apt-get") is None:
        raise LocalkubeError(
            f"these programs are missing: {', '.join(packages)}; localkube installs them with "
            "apt-get, which this machine does not have"
        )
    env = {**tool_environment(), "DEBIAN_FRONTEND": "noninteractive"}
    run_logged(["apt-get", "update"], log, timeout_s=600, env=env)
    install = ["apt-get", "install", "-y", "--no-install-recommends", *packages]
    with _no_services_started():
        run_logged(install, log, timeout_s=1800, env=env)


@contextmanager
def _no_services_started() -> Iterator[None]:
    """Debian starts etcd and containerd as services of the machine when it installs them.

    https://people.debian.org/~hmh/invokerc.d-policyrc.d-specification.txt: 101 forbids it.
    """
    if POLICY.exists():  # the machine has a policy of its own
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink()
