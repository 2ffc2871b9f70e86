"""Unpacking a model image into a directory, all or nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from lockgate.adapters.oci.content import Progress, storage_error
from lockgate.adapters.oci.extraction import SnapshotDirectory, is_occupied, unpack, untouched
from lockgate.adapters.oci.images import read_image_manifest, snapshot_of
from lockgate.domain.digests import Digest, read_json
from lockgate.domain.images import ImageRef
from lockgate.domain.model_image import SNAPSHOT_PATH, plan_layers
from lockgate.domain.sources import Snapshot
from lockgate.domain.stores import ImageStore
from lockgate.errors import IntegrityError, RegistryError
from lockgate.staging import Staging, staged
from lockgate.streams import at_most


def pull_model(
    store: ImageStore, ref: ImageRef, directory: Path, progress: Progress | None = None
) -> Snapshot:
    """Unpack a model image; afterwards `directory` holds exactly its snapshot, every file verified.

    Files are written beside the directory and renamed into place as a whole, so it is never seen half full, and several
    processes may do this at once. A pull that was killed or broke off is gone on with, within a file too. A directory that
    holds the snapshot already is left alone; one that holds something else is an `IntegrityError` and not touched.
    """
    snapshot = snapshot_of(store, ref)
    try:
        if directory.exists() and any(directory.iterdir()):
            return _checked(directory, snapshot)
        with staged(directory, ref.digest.hex) as staging:
            try:
                _unpack_all(store, ref, snapshot, staging, progress)
            except IntegrityError:
                if not staging.taken_up:
                    raise
                # What was there may be the damaged part: once more, without it.
                _unpack_all(store, ref, snapshot, staging.empty(), progress)
            staging.path.chmod(0o755)
            try:
                os.rename(staging.path, directory)
            except OSError as error:
                if not is_occupied(error):
                    raise
                return _checked(directory, snapshot)
    except OSError as error:
        raise storage_error(error, directory, "making") from error
    return snapshot


def _unpack_all(
    store: ImageStore,
    ref: ImageRef,
    snapshot: Snapshot,
    staging: Staging,
    progress: Progress | None,
) -> None:
    target = SnapshotDirectory(snapshot, staging.path, frozenset({SNAPSHOT_PATH}))
    layers = read_image_manifest(store, ref).layers
    plans = (None, *plan_layers(snapshot))
    total, done = sum(layer.size for layer in layers), 0
    for number, layer in enumerate(layers):
        plan = plans[number] if len(plans) == len(layers) else None
        # Only of a layer that is as it would be made today is the beginning known.
        known = staging.taken_up and plan is not None and plan.size == layer.size
        held = target.held(plan) if plan is not None and known else ()
        chunks = at_most(
            store.read_blob(ref.repository, layer.digest, held), layer.size, f"layer {layer.digest}"
        )
        unpack(_reported(chunks, done, total, progress), target)
        done += layer.size
    if target.missing:
        raise IntegrityError(f"{ref} lacks {', '.join(target.missing[:3])}")


def _reported(
    chunks: Iterator[bytes], done: int, total: int, progress: Progress | None
) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk
        done = min(total, done + len(chunk))
        if progress:
            progress(done, total)


def _checked(directory: Path, snapshot: Snapshot) -> Snapshot:
    problem = untouched(directory, snapshot)
    if problem:
        raise IntegrityError(
            f"{directory} does not hold the model of the image: {problem}",
            hint=f"move {directory} away and run the same command again",
        )
    return snapshot


def missing_blobs(store: ImageStore, image: ImageRef) -> list[Digest]:
    """Layers and configuration of an image that a node could not pull now; of an index those of every platform. Each is
    asked for, none is read.

    `RegistryError` where that cannot be asked, or a manifest is missing or is none.
    """
    body, _ = store.get_manifest(image.repository, str(image.digest))
    try:
        manifest = read_json(body)
        platforms = [Digest(part["digest"]) for part in manifest.get("manifests", ())]
        blobs = [Digest(part["digest"]) for part in manifest.get("layers", ())]
        if not platforms:
            blobs.append(Digest(manifest["config"]["digest"]))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RegistryError(f"{image}: not an image's manifest: {error!r}") from error
    for platform in platforms:
        blobs += missing_blobs(store, ImageRef(repository=image.repository, digest=platform))
    return [blob for blob in blobs if not store.has_blob(image.repository, blob)]
