"""Models as OCI images, made from a directory without a copy of the weights.

The bytes are decided in `lockgate.domain.model_image`; here they are moved. A layer that the store cannot have yet is hashed
while it is sent; one that it may have is hashed first, and sent only where it is not there. What the store says is never
taken for a layer's digest: that comes from the files alone, or whoever can write a tag would decide what gets signed.
`pull_model` and what reads images stand in modules of their own and are public from here.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from lockgate.adapters.oci.content import CHUNK, Hashed, Progress, ahead, storage_error
from lockgate.adapters.oci.images import find_model, image_labels, missing_blobs, snapshot_of
from lockgate.adapters.oci.pulling import pull_model
from lockgate.domain import model_image
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.model_image import LayerPlan
from lockgate.domain.sources import Snapshot, SnapshotFile
from lockgate.domain.stores import IMAGE_MANIFEST, Descriptor, ImageStore
from lockgate.errors import IntegrityError, LockgateError

__all__ = ["find_model", "image_labels", "missing_blobs", "pull_model", "push_model", "snapshot_of"]

PARALLEL = 4
"""Layers on their way at once."""
_LOOKED_AT = 24
"""Earlier images of a repository that are looked at for layers in common; three small requests each."""


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
    is checked against its digest in the snapshot (`IntegrityError` before anything refers to its layer). Layers that the
    store has are not sent, those of `mount_from` repositories are mounted; a push that was killed goes on with the layers
    that are missing. Progress counts the bytes of files that have arrived or were there.
    """
    listing = model_image.snapshot_layer(snapshot)
    perhaps = _perhaps_there(store, (repository, *mount_from), snapshot, Digest.of_bytes(listing))
    pushing = _Pushing(store, repository, directory, mount_from, perhaps, _Done(snapshot, progress))
    layers = [_put_small(store, repository, listing)]
    layers += pushing.push(model_image.plan_layers(snapshot))
    config = model_image.image_config(
        model_image.model_labels(snapshot, labels), [layer.digest for layer in layers]
    )
    store.put_blob(repository, Digest.of_bytes(config), [config], len(config))
    digest = store.put_manifest(
        repository,
        model_image.image_manifest(config, layers),
        IMAGE_MANIFEST,
        model_image.snapshot_tag(snapshot.digest),
    )
    return ImageRef(repository=repository, digest=digest)


def _perhaps_there(
    store: ImageStore, repositories: Sequence[str], snapshot: Snapshot, listing: Digest
) -> Collection[SnapshotFile]:
    """Files whose layers the store may have: those of earlier images, and all where a push of this snapshot began before.

    Only a hint: a store that will not be asked costs nothing but the transfer.
    """
    found: set[SnapshotFile] = set()
    try:
        if store.has_blob(repositories[0], listing):
            return snapshot.files
        for repository in repositories:
            tags = [t for t in store.tags(repository) if t.startswith(model_image.TAG_PREFIX)]
            for tag in tags[:_LOOKED_AT]:
                digest = store.resolve(repository, tag)
                if digest is not None:
                    earlier = snapshot_of(store, ImageRef(repository=repository, digest=digest))
                    found.update(earlier.files)
    except LockgateError:
        return found
    return found


class _Done:
    """Counts bytes of files for the progress callback."""

    def __init__(self, snapshot: Snapshot, report: Progress | None) -> None:
        self._total, self._report, self._bytes = snapshot.size, report, 0
        self._guard = threading.Lock()

    def add(self, size: int) -> None:
        with self._guard:
            self._bytes += size
            if self._report:
                self._report(min(self._total, self._bytes), self._total)


def _put_small(store: ImageStore, repository: str, body: bytes) -> Descriptor:
    digest = store.put_blob(repository, Digest.of_bytes(body), [body], len(body))
    return model_image.layer_descriptor(digest, len(body))


class _Stopped(Exception):
    """Another layer failed: this one is given up."""


class _Pushing:
    """The layers of one image on their way into a store."""

    def __init__(
        self,
        store: ImageStore,
        repository: str,
        directory: Path,
        mount_from: Sequence[str],
        perhaps: Collection[SnapshotFile],
        done: _Done,
    ) -> None:
        self._store, self._repository, self._directory = store, repository, directory
        self._mount_from, self._perhaps, self._done = mount_from, perhaps, done
        self._stop = threading.Event()

    def push(self, plans: Sequence[LayerPlan]) -> list[Descriptor]:
        """Every layer, some at a time; their descriptors in order. The first error ends the others."""
        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="layer") as pool:
            waiting = [pool.submit(self._push, plan) for plan in plans]
            try:
                layers = [future.result() for future in waiting]
            except BaseException as error:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                failed = next((e for e in map(_failure, waiting) if e is not None), None)
                if isinstance(error, _Stopped) and failed is not None:
                    raise failed from failed.__cause__
                raise
        return layers

    def _push(self, plan: LayerPlan) -> Descriptor:
        layer = _Layer(self._directory, plan)
        try:
            return self._pushed(plan, layer)
        except BaseException:
            self._stop.set()
            raise
        finally:
            layer.close()

    def _pushed(self, plan: LayerPlan, layer: _Layer) -> Descriptor:
        size = sum(file.size for file in plan.files)
        digest: Digest | None = None
        if any(file in self._perhaps for file in plan.files):
            digest = layer.digest(self._until_stopped)
            if self._is_there(digest):
                self._done.add(size)
                return model_image.layer_descriptor(digest, plan.size, plan.annotations)
        counted = _Once(size, self._done)
        digest = self._store.put_blob(
            self._repository,
            digest,
            lambda offset: counted.passing(self._until_stopped(layer.stream(offset)), offset),
            plan.size,
        )
        counted.finish()
        return model_image.layer_descriptor(digest, plan.size, plan.annotations)

    def _is_there(self, digest: Digest) -> bool:
        store, repository = self._store, self._repository
        return store.has_blob(repository, digest) or any(
            store.mount_blob(repository, digest, source) for source in self._mount_from
        )

    def _until_stopped(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            if self._stop.is_set():
                raise _Stopped
            yield chunk


class _Once:
    """Counts the bytes of one layer's files as they pass; those sent again after a break only once."""

    def __init__(self, size: int, done: _Done) -> None:
        self._left, self._done, self._furthest = size, done, 0

    def passing(self, chunks: Iterator[bytes], offset: int) -> Iterator[bytes]:
        for chunk in chunks:
            yield chunk
            offset += len(chunk)
            if offset > self._furthest:
                self._add(offset - self._furthest)
                self._furthest = offset

    def finish(self) -> None:
        """The store has all of it, whether it was sent or not."""
        self._add(self._left)

    def _add(self, size: int) -> None:
        # Headers and padding are sent too: the files' bytes are counted, and no more.
        size = min(size, self._left)
        self._left -= size
        self._done.add(size)


class _Layer:
    """One layer's bytes, from any offset, as often as asked; every byte of a file is hashed once, and the file checked."""

    def __init__(self, directory: Path, plan: LayerPlan) -> None:
        self._directory, self._plan = directory, plan
        self._hashed = {file.path: Hashed() for file in plan.files}
        self._reading: Generator[bytes] | None = None

    def digest(self, watched: Callable[[Iterator[bytes]], Iterator[bytes]]) -> Digest:
        """The layer's digest, from the files."""
        sha = hashlib.sha256()
        for chunk in watched(self.stream(0)):
            sha.update(chunk)
        return Digest.from_hex(sha.hexdigest())

    def stream(self, offset: int) -> Iterator[bytes]:
        """The layer's bytes from `offset` on, read ahead. The stream before ends: two readers would hash into each other."""
        self.close()
        self._reading = ahead(self._chunks(offset))
        return self._reading

    def close(self) -> None:
        """No thread reads on after whoever was to send it has given up."""
        if self._reading is not None:
            self._reading.close()

    def _chunks(self, offset: int) -> Iterator[bytes]:
        for header in self._plan.directory_headers():
            yield header[offset:]
            offset = max(0, offset - len(header))
        for file in self._plan.files:
            for size, piece in (
                _static(model_image.file_header(file)),
                (file.size, self._reader(file)),
                _static(bytes(model_image.padding(file.size))),
            ):
                if offset and offset >= size:
                    offset -= size
                    continue
                yield from piece(offset)
                offset = 0
        yield bytes(2 * model_image.BLOCK)[offset:]

    def _reader(self, file: SnapshotFile) -> Callable[[int], Iterator[bytes]]:
        path, hashed = self._directory / file.path, self._hashed[file.path]

        def read(offset: int) -> Iterator[bytes]:
            left = file.size - offset
            with open(path, "rb", buffering=0) as handle:
                handle.seek(offset)
                while left and (chunk := handle.read(min(CHUNK, left))):
                    left -= len(chunk)
                    yield chunk
                if left or handle.read(1):
                    raise _changed(path, f"has not the {file.size} bytes it had")

        def checked(offset: int) -> Iterator[bytes]:
            try:
                yield from hashed.passing(read(offset), offset)
            except FileNotFoundError as error:
                raise _changed(path, "is gone") from error
            except OSError as error:
                raise storage_error(error, path, "reading") from error
            if hashed.digest != file.digest:
                raise _changed(path, f"has not the content it had ({file.digest.short})")

        return checked


def _static(body: bytes) -> tuple[int, Callable[[int], Iterator[bytes]]]:
    return len(body), lambda offset: iter([body[offset:]])


def _failure(future: Future[Descriptor]) -> BaseException | None:
    """Why a layer failed by itself; None where it did not, or was only stopped."""
    if not future.done() or future.cancelled():
        return None
    error = future.exception()
    return None if isinstance(error, _Stopped) else error


def _changed(path: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"{path} {what} when the model was fetched",
        hint="fetch the model again; nothing may write to its directory",
    )
