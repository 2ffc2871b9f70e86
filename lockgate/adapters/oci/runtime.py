"""The embedded cluster's runtime as an image: which environment and engine serve a candidate there.

The cluster runs engines from a Python environment, not from a container. The image holds that environment's lock file, so
the environment is pinned by digest, signed and verified like a container runtime's image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lockgate.adapters.oci.content import storage_error
from lockgate.adapters.oci.extraction import SingleFile, unpack
from lockgate.adapters.oci.images import image_labels, read_image_manifest
from lockgate.domain import model_image
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.stores import IMAGE_MANIFEST, ImageStore
from lockgate.errors import IntegrityError
from lockgate.streams import at_most

LABEL_ENVIRONMENT = "dev.lockgate.runtime.environment"
LABEL_ENGINE = "dev.lockgate.runtime.engine"
LOCK_PATH = "lockgate/environment.lock"


@dataclass(frozen=True)
class RuntimeDescription:
    """What a runtime image of the embedded cluster says."""

    environment: Digest
    """Digest of the environment, as the cluster computes it for its own."""
    engine: str
    lock_file: bytes


def push_runtime(
    store: ImageStore,
    repository: str,
    *,
    environment_digest: Digest,
    lock_file: Path | bytes,
    engine: str,
) -> ImageRef:
    """Describe a runtime as an image, tagged `runtime-<hex of the environment>`. The same runtime is the same digest."""
    if isinstance(lock_file, Path):
        try:
            body = lock_file.read_bytes()
        except OSError as error:
            raise storage_error(error, lock_file, "reading") from error
    else:
        body = lock_file
    layer_body = b"".join(
        (
            model_image.tar_header(f"{Path(LOCK_PATH).parent}/", 0, directory=True),
            model_image.tar_header(LOCK_PATH, len(body)),
            body,
            bytes(model_image.padding(len(body)) + 2 * model_image.BLOCK),
        )
    )
    layer = model_image.layer_descriptor(Digest.of_bytes(layer_body), len(layer_body))
    labels = {LABEL_ENVIRONMENT: str(environment_digest), LABEL_ENGINE: engine}
    config = model_image.image_config(labels, [layer.digest])
    store.put_blob(repository, layer.digest, [layer_body], len(layer_body))
    store.put_blob(repository, Digest.of_bytes(config), [config], len(config))
    digest = store.put_manifest(
        repository,
        model_image.image_manifest(config, [layer]),
        IMAGE_MANIFEST,
        f"runtime-{environment_digest.hex}",
    )
    return ImageRef(repository=repository, digest=digest)


def read_runtime(store: ImageStore, ref: ImageRef) -> RuntimeDescription:
    """What a runtime image says. Raises `IntegrityError` if it is not one that `push_runtime` made."""
    labels = image_labels(store, ref)
    lock = SingleFile(LOCK_PATH)
    for layer in read_image_manifest(store, ref).layers[:1]:
        chunks = store.read_blob(ref.repository, layer.digest)
        unpack(at_most(chunks, layer.size, f"layer {layer.digest}"), lock)
    try:
        environment, engine = Digest(labels[LABEL_ENVIRONMENT]), labels[LABEL_ENGINE]
    except (KeyError, ValueError) as error:
        raise IntegrityError(
            f"{ref} does not describe a runtime of the embedded cluster",
            hint="a container image as runtime needs a Kubernetes cluster",
        ) from error
    if not lock.body:
        raise IntegrityError(f"{ref} holds no lock file")
    return RuntimeDescription(environment, engine, lock.body)
