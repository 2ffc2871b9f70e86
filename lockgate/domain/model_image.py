"""The model image: which bytes a snapshot becomes, on any machine.

A plain OCI image of uncompressed tar layers, so a layer's digest is its `diff_id` and two variants of a model share every
layer whose files are the same. Tar headers are written here by hand: the standard library's differ between Python versions
(device fields), and the image's digest must not.

Sources: OCI image specification 1.1; POSIX.1-2017 `pax` (ustar and extended headers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from lockgate.domain.digests import Digest, canonical_json, read_json
from lockgate.domain.sources import Snapshot, SnapshotFile
from lockgate.domain.stores import (
    IMAGE_CONFIG,
    IMAGE_LAYER,
    IMAGE_MANIFEST,
    Descriptor,
)

MODELS = "models"
"""Directory inside the image that holds the snapshot."""
SNAPSHOT_PATH = "lockgate/snapshot.json"
"""File inside the image that lists the snapshot; alone in the first layer, so that it can be read without the weights."""

LABEL_SNAPSHOT = "dev.lockgate.snapshot"
LABEL_FORMAT = "dev.lockgate.image.format"
LABEL_MODEL = "dev.lockgate.model"
LABEL_SOURCE = "org.opencontainers.image.source"
LABEL_REVISION = "org.opencontainers.image.revision"
IMAGE_FORMAT = "1"
"""Changes whenever the same snapshot would give other bytes."""
PATH_ANNOTATION = "dev.lockgate.path"

LARGE_FILE = 1024 * 1024
"""Bytes from which on a file gets a layer of its own."""
MAX_LAYERS = 100
"""Container runtimes stack layers; some stop at 127."""
BLOCK = 512


@dataclass(frozen=True)
class LayerPlan:
    """Files that make up one layer, in order."""

    files: tuple[SnapshotFile, ...]

    @property
    def size(self) -> int:
        """Bytes of the tar archive."""
        heads = sum(len(h) for h in self.directory_headers())
        body = sum(len(file_header(f)) + f.size + padding(f.size) for f in self.files)
        return heads + body + 2 * BLOCK

    def directory_headers(self) -> list[bytes]:
        """Headers of every directory above the files, parents first."""
        parents = {
            p for f in self.files for p in PurePosixPath(image_path(f)).parents if str(p) != "."
        }
        ordered = sorted(parents, key=lambda p: p.parts)
        return [tar_header(f"{p}/", 0, directory=True) for p in ordered]

    @property
    def annotations(self) -> dict[str, str]:
        return {PATH_ANNOTATION: image_path(self.files[0])} if len(self.files) == 1 else {}


def image_path(file: SnapshotFile) -> str:
    """Where a snapshot's file lies in the image, without the leading slash."""
    return f"{MODELS}/{file.path}"


def plan_layers(snapshot: Snapshot) -> tuple[LayerPlan, ...]:
    """Small files together, then one large file a layer; consecutive large files share one where that makes too many.

    The layer that lists the snapshot comes before these and is counted in `MAX_LAYERS`.
    """
    small = tuple(f for f in snapshot.files if f.size < LARGE_FILE)
    large = [f for f in snapshot.files if f.size >= LARGE_FILE]
    room = MAX_LAYERS - 1 - bool(small)
    width = max(1, -(-len(large) // room))
    plans = [LayerPlan(small)] if small else []
    plans += [LayerPlan(tuple(large[i : i + width])) for i in range(0, len(large), width)]
    return tuple(plans)


def snapshot_document(snapshot: Snapshot) -> bytes:
    """The JSON at `SNAPSHOT_PATH`: `[[path, size, digest], …]`, whose sha256 is the snapshot's digest."""
    return canonical_json([[f.path, f.size, f.digest] for f in snapshot.files])


def parse_snapshot_document(body: bytes) -> Snapshot:
    """Raises `ValueError` if it is not what `snapshot_document` writes."""
    rows = read_json(body)
    if not isinstance(rows, list) or not all(isinstance(r, list) and len(r) == 3 for r in rows):
        raise ValueError("not a list of [path, size, digest]")
    files = [SnapshotFile(path=path, size=size, digest=digest) for path, size, digest in rows]
    snapshot = Snapshot(files=tuple(files))
    if snapshot_document(snapshot) != body:
        raise ValueError("not in canonical form")
    return snapshot


def snapshot_layer(snapshot: Snapshot) -> bytes:
    """The whole first layer: small, for it holds a list of names."""
    body = snapshot_document(snapshot)
    directory = str(PurePosixPath(SNAPSHOT_PATH).parent)
    return b"".join(
        (
            tar_header(f"{directory}/", 0, directory=True),
            tar_header(SNAPSHOT_PATH, len(body)),
            body,
            bytes(padding(len(body)) + 2 * BLOCK),
        )
    )


def file_header(file: SnapshotFile) -> bytes:
    """Tar header of a snapshot's file at its place in the image."""
    return tar_header(image_path(file), file.size)


def padding(size: int) -> int:
    """Zero bytes after `size` bytes of content, up to the next tar block."""
    return -size % BLOCK


def tar_header(path: str, size: int, *, directory: bool = False) -> bytes:
    """A ustar header (root, mtime 0, 0644 or 0755), after a pax header where name or size does not fit ustar."""
    name, records = path.encode(), []
    if len(name) > 100 or not path.isascii():
        records.append(_pax_record("path", name))
    if size >= 8**11:
        records.append(_pax_record("size", str(size).encode()))
    kind, mode = (b"5", 0o755) if directory else (b"0", 0o644)
    header = _ustar(_ascii(path), 0 if size >= 8**11 else size, kind, mode)
    if not records:
        return header
    body = b"".join(records)
    pax = _ustar(b"././@PaxHeader", len(body), b"x", 0o644)
    return pax + body + bytes(padding(len(body))) + header


def _ascii(path: str) -> bytes:
    # Readers that know pax ignore this name; for the others it must only be unambiguous ASCII.
    return path.encode("ascii", "replace")[:100]


def _pax_record(key: str, value: bytes) -> bytes:
    rest = b" " + key.encode() + b"=" + value + b"\n"
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length).encode() + rest


def _ustar(name: bytes, size: int, kind: bytes, mode: int) -> bytes:
    fields = (
        name.ljust(100, b"\0"),
        b"%07o\0" % mode,
        b"%07o\0" % 0,  # uid
        b"%07o\0" % 0,  # gid
        b"%011o\0" % size,
        b"%011o\0" % 0,  # mtime
        b" " * 8,  # checksum, counted as spaces
        kind,
        bytes(100),  # link name
        b"ustar\x0000",
        bytes(32 + 32),  # user and group name
        b"%07o\0" % 0 * 2,  # device
        bytes(155 + 12),  # prefix, padding
    )
    header = b"".join(fields)
    return header[:148] + b"%06o\0 " % sum(header) + header[156:]


def model_labels(snapshot: Snapshot, labels: Mapping[str, str]) -> dict[str, str]:
    """The caller's labels with Lockgate's own, which win."""
    return {**labels, LABEL_SNAPSHOT: str(snapshot.digest), LABEL_FORMAT: IMAGE_FORMAT}


def image_config(labels: Mapping[str, str], diff_ids: Sequence[Digest]) -> bytes:
    """Config blob of an image that holds files only. There is no time in it: the same content is the same image."""
    return canonical_json(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {"Labels": dict(labels)},
            "rootfs": {"type": "layers", "diff_ids": [str(d) for d in diff_ids]},
        }
    )


def image_manifest(config: bytes, layers: Sequence[Descriptor]) -> bytes:
    """Manifest of an image; without `artifactType`, so that container runtimes take it for what it is."""
    return canonical_json(
        {
            "schemaVersion": 2,
            "mediaType": IMAGE_MANIFEST,
            "config": Descriptor(IMAGE_CONFIG, Digest.of_bytes(config), len(config)).to_data(),
            "layers": [layer.to_data() for layer in layers],
        }
    )


def layer_descriptor(
    digest: Digest, size: int, annotations: Mapping[str, str] | None = None
) -> Descriptor:
    """Descriptor of an uncompressed tar layer."""
    return Descriptor(IMAGE_LAYER, digest, size, annotations=annotations or {})


def labels_of(config: Any) -> dict[str, str]:
    """Labels of a parsed image config; empty if it has none. Raises `ValueError` if it is not an image config."""
    if not isinstance(config, dict):
        raise ValueError("an image config is a JSON object")
    inner = config.get("config") or {}
    labels = inner.get("Labels") or {} if isinstance(inner, dict) else None
    if not isinstance(labels, dict):
        raise ValueError("the image config's labels are not an object")
    return {str(k): str(v) for k, v in labels.items()}


TAG_PREFIX = "snapshot-"


def snapshot_tag(digest: Digest) -> str:
    """Tag under which the image of a snapshot is found again."""
    return f"{TAG_PREFIX}{digest.hex}"
