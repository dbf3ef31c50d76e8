"""Building Kubernetes, CoreDNS and the volume provisioner from Go modules, once a machine.

The versions are those in deploy/local/go/*/go.mod and nowhere else. A build goes to a temporary
folder and is renamed when whole, so an interrupted one is never mistaken for a finished one.
"""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from .commands import run_logged, tool_environment
from .layout import GO_MODULES, Layout
from .progress import LocalkubeError, step

BUILD_TIMEOUT_S = 3600


@dataclass(frozen=True)
class Component:
    name: str
    module: str
    commands: tuple[str, ...]
    version_variables: tuple[str, ...] = ()

    @property
    def source(self) -> Path:
        return GO_MODULES / self.name

    @property
    def version(self) -> str:
        text = (self.source / "go.mod").read_text()
        match = re.search(rf"^\s*(?:require )?{re.escape(self.module)} (v\S+)", text, re.MULTILINE)
        if match is None:
            raise LocalkubeError(f"{self.source}/go.mod does not require {self.module}")
        return match.group(1)

    def folder(self, layout: Layout) -> Path:
        return layout.cache / f"{self.name}-{self.version}"

    def is_built(self, layout: Layout) -> bool:
        folder = self.folder(layout)
        return all((folder / command.rsplit("/", 1)[-1]).is_file() for command in self.commands)


KUBERNETES = Component(
    "kubernetes",
    "k8s.io/kubernetes",
    tuple(
        f"k8s.io/kubernetes/cmd/{command}"
        for command in (
            "kube-apiserver",
            "kube-controller-manager",
            "kube-proxy",
            "kube-scheduler",
            "kubectl",
            "kubelet",
        )
    ),
    version_variables=("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"),
)
COREDNS = Component("coredns", "github.com/coredns/coredns", ("github.com/coredns/coredns",))
LOCAL_PATH = Component(
    "local-path-provisioner",
    "github.com/rancher/local-path-provisioner",
    ("github.com/rancher/local-path-provisioner",),
)
COMPONENTS = (KUBERNETES, COREDNS, LOCAL_PATH)


def build_missing(layout: Layout) -> None:
    for component in COMPONENTS:
        if not component.is_built(layout):
            with step(f"build {component.name} {component.version} (once a machine, minutes)"):
                _build(component, layout)


def _build(component: Component, layout: Layout) -> None:
    if shutil.which("go") is None:
        raise LocalkubeError(
            f"go is not on the PATH; {component.name} {component.version} is built with Go ≥ 1.25"
        )
    final = component.folder(layout)
    for stale in final.parent.glob(f"{final.name}.*.tmp"):  # a build that was killed
        shutil.rmtree(stale, ignore_errors=True)
    temporary = final.with_name(f"{final.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
    try:
        run_logged(
            [
                "go",
                "build",
                "-trimpath",
                "-mod=readonly",
                "-ldflags",
                _linker_flags(component),
                "-o",
                f"{temporary}/",
                *component.commands,
            ],
            layout.logs / f"build-{component.name}.log",
            timeout_s=BUILD_TIMEOUT_S,
            env={**tool_environment(), "CGO_ENABLED": "0"},
            cwd=component.source,
        )
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _linker_flags(component: Component) -> str:
    major, minor = component.version.lstrip("v").split(".")[:2]
    values = {
        "gitVersion": component.version,
        "gitMajor": major,
        "gitMinor": minor,
        "gitTreeState": "clean",
    }
    settings = [
        f"-X {package}.{name}={value}"
        for package in component.version_variables
        for name, value in values.items()
    ]
    return " ".join(["-s -w", *settings])
