"""Getting images into the nodes' containerd, without a registry."""

import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import archive
from .build import COREDNS, LOCAL_PATH
from .commands import run, try_run
from .layout import Layout
from .node import init_process, inside
from .nodeconfig import PAUSE_IMAGE
from .plan import Node, Plan
from .progress import LocalkubeError

BUSYBOX_IMAGE = "docker.io/localkube/busybox:1"
ID_LABEL = "localkube.image-id"
IMPORT_TIMEOUT_S = 600
IMPORT_ATTEMPTS = 3
IMPORTS_AT_ONCE = 2
CTR = ["ctr", "--namespace", "k8s.io", "images"]


@dataclass(frozen=True)
class Image:
    archive: Path
    id: str
    names: tuple[str, ...]
    """Full names, as the kubelet looks them up. The archive knows the image by the first."""


def coredns_image() -> str:
    return f"docker.io/localkube/coredns:{COREDNS.version}"


def local_path_image() -> str:
    return f"docker.io/localkube/local-path-provisioner:{LOCAL_PATH.version}"


def own_images(layout: Layout) -> list[Image]:
    """The images of the cluster itself, each one static program FROM scratch."""
    coredns = COREDNS.folder(layout) / "coredns"
    local_path = LOCAL_PATH.folder(layout) / "local-path-provisioner"
    # catatonit -P is a pause: it sleeps and reaps zombies.
    pause, busybox = Path("/usr/bin/catatonit"), Path("/bin/busybox")
    tools = run([busybox, "--list"]).split()
    return [
        _own(layout, PAUSE_IMAGE, {"pause": pause}, ["/pause", "-P"]),
        _own(layout, BUSYBOX_IMAGE, {"bin/busybox": busybox}, ["/bin/sh"], tools),
        _own(layout, coredns_image(), {"coredns": coredns}, ["/coredns"]),
        _own(
            layout,
            local_path_image(),
            {"local-path-provisioner": local_path},
            ["/local-path-provisioner"],
        ),
    ]


def _own(
    layout: Layout,
    name: str,
    files: dict[str, Path],
    entrypoint: list[str],
    busybox_tools: Sequence[str] = (),
) -> Image:
    target = layout.images / (name.rsplit("/", 1)[-1].replace(":", "-") + ".tar")
    if not target.exists():
        links = {f"bin/{tool}": "busybox" for tool in busybox_tools if tool != "busybox"}
        archive.write_image(target, name, files, links, entrypoint)
    return Image(target, archive.image_id(target), (name,))


def load(layout: Layout, plan: Plan, references: Sequence[str]) -> list[str]:
    """Load images into every running node; return a line for each that says what was done."""
    lines = []
    for reference in references:
        with tempfile.TemporaryDirectory(prefix="localkube-") as folder:
            image = _from_reference(reference, Path(folder))
            nodes = _running_without(layout, plan.nodes, image)
            import_image(layout, nodes, image)
        where = ", ".join(node.name for node in nodes) or "every running node had it"
        lines.append(f"{' = '.join(image.names)} ({image.id[:12]}): {where}")
    return lines


def import_image(layout: Layout, nodes: Iterable[Node], image: Image) -> None:
    with ThreadPoolExecutor(IMPORTS_AT_ONCE) as pool:
        for done in [pool.submit(_import_into, layout, node, image) for node in nodes]:
            done.result()


def missing_on(layout: Layout, node: Node, images: Iterable[Image]) -> list[Image]:
    present = _labels(layout, node)
    return [i for i in images if any(present.get(name) != i.id for name in i.names)]


def _running_without(layout: Layout, nodes: Iterable[Node], image: Image) -> list[Node]:
    running = [node for node in nodes if init_process(layout, node) is not None]
    return [node for node in running if missing_on(layout, node, [image])]


def _import_into(layout: Layout, node: Node, image: Image) -> None:
    for attempt in range(IMPORT_ATTEMPTS):
        try:
            with image.archive.open("rb") as content:
                # Standard input: the node has its own /var/lib and may not see the archive's path.
                argv = inside(layout, node, [*CTR, "import", "-"])
                run(argv, stdin=content, timeout_s=IMPORT_TIMEOUT_S)
            break
        except LocalkubeError:
            # containerd collects the layers of a replaced image while those of the new one are
            # laid on them: "parent snapshot does not exist".
            if attempt == IMPORT_ATTEMPTS - 1:
                raise
    first, *others = image.names
    for other in others:
        run(inside(layout, node, [*CTR, "tag", "--force", first, other]))
    for name in image.names:
        # Written last, so that an import that was cut short is done again.
        run(inside(layout, node, [*CTR, "label", name, f"{ID_LABEL}={image.id}"]))


def _labels(layout: Layout, node: Node) -> dict[str, str]:
    """Image name: the id it was loaded with."""
    found = {}
    for line in run(inside(layout, node, [*CTR, "list"])).splitlines()[1:]:
        name, *_, labels = line.split()
        for label in labels.split(","):
            key, _, value = label.partition("=")
            if key == ID_LABEL:
                found[name] = value
    return found


def _from_reference(reference: str, folder: Path) -> Image:
    """An image in buildah's store by its name, or in an archive by its path, as one archive."""
    path = Path(reference)
    if path.is_file():
        return _from_archive(path, folder / "image.tar")
    if try_run(["buildah", "inspect", "--type", "image", reference]).returncode != 0:
        raise LocalkubeError(f"{reference} is neither an image that buildah has nor a file")
    target = folder / "image.tar"
    names = image_names_of(reference)
    source = f"containers-storage:{_stored_name(reference)}"
    copy = ["skopeo", "copy", source, f"docker-archive:{target}:{names[0]}"]
    run(copy, timeout_s=IMPORT_TIMEOUT_S)
    return Image(target, archive.image_id(target), names)


def _from_archive(path: Path, converted: Path) -> Image:
    given = archive.image_names(path)
    if not given:
        raise LocalkubeError(f"{path} gives its image no name; load it from buildah by name")
    names = tuple(map(full_name, given))
    if archive.is_docker(path):
        return Image(path, archive.image_id(path), names)
    # containerd makes up names for images of OCI archives; those of Docker archives keep theirs.
    copy = ["skopeo", "copy", f"oci-archive:{path}", f"docker-archive:{converted}:{names[0]}"]
    run(copy, timeout_s=IMPORT_TIMEOUT_S)
    return Image(converted, archive.image_id(converted), names[:1])


def _stored_name(reference: str) -> str:
    """The name under which buildah has it: of `app:dev` it makes `localhost/app:dev`."""
    template = "{{.Name}}:{{.Tag}}"
    shown = run(["buildah", "images", "--format", template, reference]).split()
    return shown[0] if shown else reference


def image_names_of(reference: str) -> tuple[str, ...]:
    """The names a pod may use for it: a pod's `app:dev` means docker.io/library/app:dev."""
    plain = reference.removeprefix("localhost/")
    if plain == reference:
        return (full_name(reference),)
    return (full_name(plain), full_name(reference))


def full_name(reference: str) -> str:
    """The name that containerd keeps for a reference (github.com/distribution/reference)."""
    registry, slash, rest = reference.partition("/")
    if not slash or not ("." in registry or ":" in registry or registry == "localhost"):
        registry, rest = "docker.io", reference if slash else f"library/{reference}"
    return f"{registry}/{rest}" if ":" in rest else f"{registry}/{rest}:latest"
