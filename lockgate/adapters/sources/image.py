"""A model in an OCI image that Lockgate did not make: a plain image with files under `/models/`, a ModelPack or a KitOps kit.

Layers are untrusted archives: read as a stream, never unpacked by a tar program. Only regular files are taken, each hashed
while it is written; links, devices, names that leave the directory and layers that delete are refused. Images of Lockgate's
own making list their files with digests and are pulled by `lockgate.adapters.oci`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from lockgate.adapters.sources.directory import MAX_FILES, read_snapshot, snapshot_file
from lockgate.adapters.sources.transfer import CHUNK, require_space
from lockgate.domain.digests import Digest, read_json
from lockgate.domain.images import ImageRef
from lockgate.domain.sources import Snapshot, SnapshotFile
from lockgate.domain.stores import Descriptor, ImageStore
from lockgate.errors import IntegrityError, SourceError
from lockgate.staging import Staging, staged
from lockgate.streams import ChunkFile, at_most
from lockgate.tar_streams import members

MODELS = "models"
"""Directory of the files in a plain image, as KServe's modelcars, olot and RamaLama have it."""
FILE_PATH = "org.cncf.model.filepath"
_PLATFORM = {"os": "linux", "architecture": "amd64"}
_ARTIFACTS = ("application/vnd.cncf.model.", "application/vnd.kitops.modelkit.")
_FOREIGN = frozenset({"attestation-manifest"})


@dataclass(frozen=True)
class _Layer:
    """`root`: where in the archive the model lies. `name`: of the file, for a layer that is no archive."""

    blob: Descriptor
    root: str
    packed: bool
    name: str | None = None


def pull_plain(store: ImageStore, ref: ImageRef, directory: Path) -> Snapshot:
    """Bring the files of an image into `directory`, which appears whole or not at all. One that is there already (a call was
    killed right after) has to hold just these files. A pull that was killed or broke off is gone on with, within a layer too.

    Raises `SourceError` for an image that holds no model or what is not taken, `RegistryError` and `IntegrityError` as the
    store does.
    """
    layers = _layers(store, ref)
    with staged(directory, ref.digest.hex) as staging:
        try:
            snapshot = _Pulling(store, ref, staging).all_of(layers)
        except IntegrityError:
            if not staging.taken_up:
                raise
            # What was there may be the damaged part: once more, without it.
            snapshot = _Pulling(store, ref, staging.empty()).all_of(layers)
        files = staging.path / _FILES
        if not directory.exists():
            files.chmod(0o755)
            files.rename(directory)
        elif read_snapshot(directory) != snapshot:
            raise SourceError(f"{directory} holds something else than {ref}", hint="remove it")
        return snapshot


_FILES = "files"
"""Directory in the staging directory that becomes the model's."""
_STATE = "state.json"
SPOOLED = 64 << 20
"""A tar layer of so many bytes is written to the disk before it is unpacked, where it fits: only then can it be continued."""


class _Pulling:
    """The layers of one image on their way to their files.

    After every layer it is written down which files are whole, and of the layer on its way the bytes that have arrived lie
    beside: a raw layer becomes its file, a large tar is unpacked from there. Smaller ones are unpacked as they come.
    """

    def __init__(self, store: ImageStore, ref: ImageRef, staging: Staging) -> None:
        self._store, self._ref, self._place = store, ref, staging.path
        (self._place / _FILES).mkdir(exist_ok=True)
        self._files = _Files(ref, self._place / _FILES)
        self._finished = self._taken_up() if staging.taken_up else 0

    def all_of(self, layers: Sequence[_Layer]) -> Snapshot:
        """Every layer that is not finished."""
        arrived = sum(p.lstat().st_size for p in self._place.rglob("*") if not p.is_dir())
        needed = sum(layer.blob.size for layer in layers) - arrived
        require_space(self._place, needed, str(self._ref))
        largest = max((layer.blob.size for layer in layers if layer.name is None), default=0)
        room = shutil.disk_usage(self._place).free >= needed + largest
        for number, layer in enumerate(layers[self._finished :], self._finished + 1):
            self._bring(layer, spooled=room and layer.blob.size >= SPOOLED)
            rows = [[file.path, file.size, file.digest] for file in self._files.taken.values()]
            fresh = self._place / f"{_STATE}.new"
            fresh.write_text(json.dumps({"layers": number, "files": rows}), encoding="utf-8")
            fresh.replace(self._place / _STATE)
        if not self._files.taken:
            raise SourceError(f"{self._ref} holds no files under /{MODELS}/", hint=_HINT)
        return Snapshot.of(list(self._files.taken.values()))

    def _bring(self, layer: _Layer, *, spooled: bool) -> None:
        blob = layer.blob
        if layer.name is not None:
            self._files.place(layer.name, blob.size, blob.digest, self._spooled(blob))
        elif spooled:
            archive = self._spooled(blob)
            self._files.take_layer(layer, _read(archive))
            archive.unlink()
        else:
            self._files.take_layer(layer, self._sent(blob, ()))

    def _sent(self, blob: Descriptor, held: Iterable[bytes]) -> Iterator[bytes]:
        chunks = self._store.read_blob(self._ref.repository, blob.digest, held)
        return at_most(chunks, blob.size, f"layer {blob.digest}")

    def _spooled(self, blob: Descriptor) -> Path:
        """A blob on the disk, its digest compared."""
        path = self._place / f"layer-{blob.digest.hex}"
        held = path.stat().st_size if path.exists() else 0
        chunks = self._sent(blob, _read(path, held))
        with path.open("ab") as out:
            for chunk in chunks:
                out.write(memoryview(chunk)[held:])
                held = max(0, held - len(chunk))
        return path

    def _taken_up(self) -> int:
        """How many layers an earlier call finished. Their files are read once and compared; what others left is removed."""
        try:
            state = json.loads((self._place / _STATE).read_bytes())
            rows, layers = state["files"], int(state["layers"])
            files = [SnapshotFile(path=p, size=n, digest=d) for p, n, d in rows]
            there = {f.path: f for f in read_snapshot(self._place / _FILES).files} if files else {}
        except (OSError, ValueError, KeyError, TypeError, SourceError):
            files, there, layers = [], {}, 0
        if any(there.get(file.path) != file for file in files):
            files, layers = [], 0
        self._files.taken = {file.path: file for file in files}
        for path in list((self._place / _FILES).rglob("*")):
            relative = path.relative_to(self._place / _FILES).as_posix()
            if not path.is_dir() and relative not in self._files.taken:
                path.unlink()
        return layers


def _read(path: Path, size: int | None = None) -> Iterator[bytes]:
    """A file's first `size` bytes, or all. One that is not there has none."""
    if size == 0:
        return
    with path.open("rb") as file:
        left = path.stat().st_size if size is None else size
        while left and (chunk := file.read(min(CHUNK, left))):
            left -= len(chunk)
            yield chunk


_HINT = "a model image has its files under /models/; a ModelPack or KitOps artifact names its own"


def _layers(store: ImageStore, ref: ImageRef) -> list[_Layer]:
    manifest = _manifest(store, ref, ref.digest)
    if "manifests" in manifest:
        manifest = _manifest(store, ref, _of_platform(manifest["manifests"], ref))
    try:
        blobs = [Descriptor.from_data(layer) for layer in manifest["layers"]]
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(f"{ref} is not an image's manifest") from error
    config = manifest.get("config")
    described = config.get("mediaType") if isinstance(config, dict) else None
    kind = str(manifest.get("artifactType") or described or "")
    artifact = kind.startswith(_ARTIFACTS)
    return [_layer(blob, artifact, ref) for blob in blobs]


def _manifest(store: ImageStore, ref: ImageRef, digest: Digest) -> dict[str, Any]:
    body, _ = store.get_manifest(ref.repository, str(digest))
    if Digest.of_bytes(body) != digest:
        raise IntegrityError(f"{ref.repository} answered with another manifest than {digest}")
    try:
        manifest = read_json(body)
    except ValueError as error:
        raise SourceError(f"{ref} is not an image's manifest") from error
    if not isinstance(manifest, dict):
        raise SourceError(f"{ref} is not an image's manifest")
    return manifest


def _of_platform(manifests: Any, ref: ImageRef) -> Digest:
    """Of an index the one image there is, else that for this kind of machine: a model's files are the same in all."""
    try:
        images = [
            part
            for part in manifests
            if (part.get("annotations") or {}).get("vnd.docker.reference.type") not in _FOREIGN
        ]
        if len(images) > 1:
            images = [p for p in images if _PLATFORM.items() <= (p.get("platform") or {}).items()]
        if len(images) == 1:
            return Digest(images[0]["digest"])
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise SourceError(f"{ref} is not an image's index") from error
    raise SourceError(f"{ref} is an index of several images", hint="name one of them by digest")


def _layer(blob: Descriptor, artifact: bool, ref: ImageRef) -> _Layer:
    kind = blob.media_type
    if kind.endswith((".tar+gzip", ".tar.gzip")):
        return _Layer(blob, "" if artifact else MODELS, packed=True)
    if kind.endswith(".tar"):
        return _Layer(blob, "" if artifact else MODELS, packed=False)
    name = blob.annotations.get(FILE_PATH)
    if artifact and name and kind.endswith(".raw"):
        return _Layer(blob, "", packed=False, name=name)
    if kind.endswith(("+zstd", ".zstd")):
        raise SourceError(
            f"{ref} has a layer compressed with zstd ({kind}), which is not read here",
            hint="have it pushed uncompressed or with gzip: `skopeo copy --dest-compress-format gzip "
            "--dest-force-compress-format`",
        )
    raise SourceError(
        f"{ref} has a layer of type {kind!r}, which is not read here",
        hint="tar, tar+gzip, and the raw files of a ModelPack are",
    )


class _Files:
    """The files that layers hold, written below a directory; a later layer's file takes the place of an earlier one's."""

    def __init__(self, ref: ImageRef, directory: Path) -> None:
        self._ref, self._directory = ref, directory
        self.taken: dict[str, SnapshotFile] = {}

    def take_layer(self, layer: _Layer, chunks: Iterator[bytes]) -> None:
        stream = ChunkFile(_unpacked(chunks, self._ref) if layer.packed else chunks)
        try:
            for member, content in members(io.BufferedReader(stream, CHUNK)):
                self._take_member(member, content, layer.root)
        except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
            raise SourceError(f"{self._ref} has a layer that is no tar archive: {error}") from error
        # To the end: only then has the store compared the digest.
        stream.drain()

    def place(self, name: str, size: int, digest: Digest, arrived: Path) -> None:
        """Take a file that has arrived whole."""
        os.close(self._created(name, size))
        arrived.chmod(0o644)
        arrived.replace(self._directory / name)
        self.taken[name] = snapshot_file(name, size, digest)

    def _take_member(self, member: tarfile.TarInfo, content: IO[bytes] | None, root: str) -> None:
        name = member.name.removeprefix("./").lstrip("/")
        if root:
            if not name.startswith(f"{root}/"):
                return
            name = name.removeprefix(f"{root}/")
        if member.isdir() or not name:
            return
        if PurePosixPath(name).name.startswith(".wh."):
            raise SourceError(f"{self._ref} deletes files of an earlier layer: {name!r}")
        if content is None:
            raise SourceError(f"{self._ref} holds {name!r}, which is no regular file")
        self._take(name, member.size, content)

    def _created(self, name: str, size: int) -> int:
        """A descriptor of a new, empty file."""
        snapshot_file(name, size, Digest.of_bytes(b""))
        if len(self.taken) >= MAX_FILES:
            raise SourceError(f"{self._ref} has more than {MAX_FILES} files")
        place = self._directory / name
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if name in self.taken:
                place.unlink()
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            return os.open(place, flags, 0o644)
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            message = f"{self._ref} holds {name!r} both as a file and as a directory"
            raise SourceError(message) from error

    def _take(self, name: str, size: int, content: IO[bytes]) -> None:
        require_space(self._directory, size, str(self._ref))
        sha, left = hashlib.sha256(), size
        with open(self._created(name, size), "wb") as out:
            while left and (chunk := content.read(min(CHUNK, left))):
                sha.update(chunk)
                out.write(chunk)
                left -= len(chunk)
        if left:
            raise SourceError(f"{self._ref} breaks off within {name!r}")
        self.taken[name] = snapshot_file(name, size, Digest.from_hex(sha.hexdigest()))


def _unpacked(chunks: Iterator[bytes], ref: ImageRef) -> Iterator[bytes]:
    """gzip, in pieces of at most `CHUNK` bytes: what a small layer may grow to is bounded by the disk, not by memory."""
    inflater = zlib.decompressobj(wbits=31)
    try:
        for chunk in chunks:
            data = chunk
            while data:
                if inflater.eof:
                    # A further member, as parallel compressors write them.
                    inflater = zlib.decompressobj(wbits=31)
                piece = inflater.decompress(data, CHUNK)
                data = inflater.unconsumed_tail or inflater.unused_data
                if piece:
                    yield piece
    except zlib.error as error:
        raise SourceError(f"{ref} has a layer that is not gzip: {error}") from error
    if not inflater.eof:
        raise SourceError(f"{ref} has a layer that breaks off")
