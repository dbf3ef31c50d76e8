"""Image archives in Docker's format: writing a one-layer image FROM scratch, reading an image's id.

Format: https://github.com/moby/docker-image-spec (manifest.json, the config, one tar per layer).
"""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from .progress import LocalkubeError


def write_image(
    target: Path,
    name: str,
    files: Mapping[str, Path],
    links: Mapping[str, str],
    entrypoint: Sequence[str],
) -> None:
    """Write an image of these executables (path in the image: file here) and symbolic links.

    Deterministic: the same files give the same image id, so that a second load is skipped.
    """
    layer = _layer(files, links)
    diff_id = hashlib.sha256(layer).hexdigest()
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": list(entrypoint), "Env": ["PATH=/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
            "history": [{"created_by": "localkube"}],
        },
        sort_keys=True,
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    layer_name = f"{diff_id}/layer.tar"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": [layer_name]}]
    temporary = target.with_suffix(".tmp")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(temporary, "w") as archive:
        _add(archive, config_name, config)
        _add(archive, layer_name, layer)
        _add(archive, "manifest.json", json.dumps(manifest).encode())
    temporary.rename(target)


def is_docker(archive: Path) -> bool:
    """Whether it is an archive in Docker's format, and not in OCI's."""
    with _opened(archive) as tar:
        return "manifest.json" in tar.getnames()


def image_id(archive: Path) -> str:
    """The id of the one image in a Docker archive: the digest of its config."""
    with _opened(archive) as tar:
        images = _json(tar, "manifest.json")
    if len(images) != 1:
        raise LocalkubeError(f"{archive} holds {len(images)} images; localkube loads one at a time")
    return str(images[0]["Config"]).removeprefix("blobs/sha256/").removesuffix(".json")


def image_names(archive: Path) -> list[str]:
    """The names that a Docker or OCI archive itself gives its image."""
    with _opened(archive) as tar:
        if "manifest.json" in tar.getnames():
            images = _json(tar, "manifest.json")
            return [name for image in images for name in image["RepoTags"] or []]
        manifests = _json(tar, "index.json")["manifests"]
    key = "org.opencontainers.image.ref.name"
    return [m["annotations"][key] for m in manifests if key in m.get("annotations", {})]


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(archive) as tar:
            yield tar
    except (tarfile.TarError, ValueError, KeyError) as error:
        raise LocalkubeError(f"{archive} is no image archive") from error


def _layer(files: Mapping[str, Path], links: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        for folder in ("tmp", "etc", "bin"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            layer.addfile(entry)
        for path, source in sorted(files.items()):
            _add(layer, path.lstrip("/"), source.read_bytes(), 0o755)
        for path, destination in sorted(links.items()):
            entry = tarfile.TarInfo(path)
            entry.type, entry.linkname = tarfile.SYMTYPE, destination
            layer.addfile(entry)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))


def _json(archive: tarfile.TarFile, name: str):  # type: ignore[no-untyped-def]  # any JSON
    member = archive.extractfile(name)
    if member is None:
        raise LocalkubeError(f"{name} in the archive is no file")
    return json.load(member)
