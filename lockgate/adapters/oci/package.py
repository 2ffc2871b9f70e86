"""Models as OCI images, made from a directory without a copy of the weights.

The bytes are decided in `lockgate.domain.model_image`; here they are moved. `pull_model` and what reads images stand in
modules of their own and are public from here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from lockgate.adapters.oci.content import CHUNK, Progress, storage_error
from lockgate.adapters.oci.images import find_model, image_labels, missing_blobs, snapshot_of
from lockgate.adapters.oci.pulling import pull_model
from lockgate.domain import model_image
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.model_image import LayerPlan
from lockgate.domain.sources import Snapshot, SnapshotFile
from lockgate.domain.stores import IMAGE_MANIFEST, Descriptor, ImageStore
from lockgate.errors import IntegrityError, RegistryError

__all__ = ["find_model", "image_labels", "missing_blobs", "pull_model", "push_model", "snapshot_of"]


def push_model(
    store: ImageStore,
    repository: str,
    directory: Path,
    snapshot: Snapshot,
    *,
    labels: Mapping[str, str],
    progress: Progress | None = None,
    mount_from: Sequence[str] = (),
) -> ImageRef:
    """Package the snapshot that lies in `directory`; gives the image, tagged `snapshot-<hex>` so that it is found again.

    The same snapshot and labels give the same digest on any machine. Files are streamed, one MiB at a time, and every one
    is checked against its digest in the snapshot (`IntegrityError` before anything refers to its layer). For a registry
    files are read twice, to hash and to send, and progress counts both. Layers that the
    store has are not sent, those of `mount_from` repositories are mounted; where all of the image is there nothing is read.
    """
    wanted = model_image.model_labels(snapshot, labels)
    done = _Done(snapshot.size * (2 if store.digest_first else 1), progress)
    ready = _whole_image(store, repository, snapshot, labels)
    if ready is not None:
        done.finish()
        return ready
    layers = [_put_small(store, repository, model_image.snapshot_layer(snapshot))]
    for plan in model_image.plan_layers(snapshot):
        layers.append(_push_layer(store, repository, directory, plan, done, mount_from))
    config = model_image.image_config(wanted, [layer.digest for layer in layers])
    store.put_blob(repository, Digest.of_bytes(config), [config], len(config))
    digest = store.put_manifest(
        repository,
        model_image.image_manifest(config, layers),
        IMAGE_MANIFEST,
        model_image.snapshot_tag(snapshot.digest),
    )
    done.finish()
    return ImageRef(repository=repository, digest=digest)


def _whole_image(
    store: ImageStore, repository: str, snapshot: Snapshot, labels: Mapping[str, str]
) -> ImageRef | None:
    try:
        ready = find_model(store, repository, snapshot.digest, labels=labels)
        return None if ready is None or missing_blobs(store, ready) else ready
    except RegistryError:
        # A tag without its manifest, or an outage: making the image again mends the one and reports the other.
        return None


class _Done:
    """Counts bytes for the progress callback."""

    def __init__(self, total: int, report: Progress | None) -> None:
        self._total, self._report, self._bytes = total, report, 0

    def add(self, size: int) -> None:
        self._bytes = min(self._total, self._bytes + size)
        if self._report:
            self._report(self._bytes, self._total)

    def finish(self) -> None:
        self.add(self._total)


def _put_small(store: ImageStore, repository: str, body: bytes) -> Descriptor:
    digest = store.put_blob(repository, Digest.of_bytes(body), [body], len(body))
    return model_image.layer_descriptor(digest, len(body))


def _push_layer(
    store: ImageStore,
    repository: str,
    directory: Path,
    plan: LayerPlan,
    done: _Done,
    mount_from: Sequence[str],
) -> Descriptor:
    digest: Digest | None = None
    if store.digest_first:
        # Reading twice from the page cache is cheaper than sending once what the registry has.
        digest = _layer_digest(directory, plan, done)
        if not store.has_blob(repository, digest):
            any(store.mount_blob(repository, digest, source) for source in mount_from)
        store.put_blob(
            repository,
            digest,
            lambda offset: _counted(_tar(directory, plan, offset, check=False), done),
            plan.size,
        )
    else:
        chunks = _counted(_tar(directory, plan), done)
        digest = store.put_blob(repository, None, chunks, plan.size)
    return model_image.layer_descriptor(digest, plan.size, plan.annotations)


def _layer_digest(directory: Path, plan: LayerPlan, done: _Done) -> Digest:
    sha = hashlib.sha256()
    for chunk in _counted(_tar(directory, plan), done):
        sha.update(chunk)
    return Digest.from_hex(sha.hexdigest())


def _counted(chunks: Iterator[bytes], done: _Done) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        done.add(len(chunk))


def _tar(
    directory: Path, plan: LayerPlan, offset: int = 0, *, check: bool = True
) -> Iterator[bytes]:
    """The layer's bytes from `offset` on. A resumed upload is checked as a whole by the layer's digest instead."""
    for header in plan.directory_headers():
        yield header[offset:]
        offset = max(0, offset - len(header))
    for file in plan.files:
        for piece in (
            _static(model_image.file_header(file)),
            _file(directory, file, check=check and offset == 0),
            _static(bytes(model_image.padding(file.size))),
        ):
            size, chunks = piece
            if offset >= size:
                offset -= size
                continue
            yield from chunks(offset)
            offset = 0
    yield bytes(2 * model_image.BLOCK)[offset:]


_Piece = tuple[int, Callable[[int], Iterator[bytes]]]


def _static(body: bytes) -> _Piece:
    return len(body), lambda offset: iter([body[offset:]])


def _file(directory: Path, file: SnapshotFile, *, check: bool) -> _Piece:
    def chunks(offset: int) -> Iterator[bytes]:
        path = directory / file.path
        sha, left = hashlib.sha256(), file.size - offset
        try:
            with open(path, "rb") as handle:
                handle.seek(offset)
                while left and (chunk := handle.read(min(CHUNK, left))):
                    if check:
                        sha.update(chunk)
                    left -= len(chunk)
                    yield chunk
                longer = bool(handle.read(1))
        except FileNotFoundError as error:
            raise _changed(path, "is gone") from error
        except OSError as error:
            raise storage_error(error, path, "reading") from error
        if left or longer:
            raise _changed(path, f"has not the {file.size} bytes it had")
        if check and sha.hexdigest() != file.digest.hex:
            raise _changed(path, f"has not the content it had ({file.digest.short})")

    return file.size, chunks


def _changed(path: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"{path} {what} when the model was fetched",
        hint="fetch the model again; nothing may write to its directory",
    )
