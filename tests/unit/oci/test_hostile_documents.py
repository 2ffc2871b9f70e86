"""Manifests, configurations and indexes that a registry made up: read or refused, whatever their form."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.adapters.oci import artifacts, pulling, referring
from lockgate.adapters.oci.copying import copy_image, image_for_platform
from lockgate.adapters.oci.images import find_model, image_labels, missing_blobs, snapshot_of
from lockgate.adapters.oci.layout import LayoutStore
from lockgate.adapters.sources import pull_plain
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.model_image import parse_snapshot_document
from lockgate.domain.stores import IMAGE_CONFIG, IMAGE_LAYER, IMAGE_MANIFEST
from lockgate.errors import LockgateError
from tests.amounts import examples

REPOSITORY = "lockgate.local/m"
DIGEST = Digest.of_bytes(b"x")
_DESCRIPTOR = {"mediaType": IMAGE_LAYER, "digest": DIGEST, "size": 1}
_LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    | st.sampled_from([DIGEST, IMAGE_CONFIG, IMAGE_LAYER, IMAGE_MANIFEST, "linux", "amd64"])
    | st.just(_DESCRIPTOR) | st.just([_DESCRIPTOR])
)  # fmt: skip
_KEYS = st.sampled_from(
    ["manifests", "layers", "config", "digest", "size", "mediaType", "artifactType", "subject",
     "annotations", "platform", "os", "architecture", "Labels", "rootfs", "schemaVersion"]
)  # fmt: skip
_JSON = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=5),
    max_leaves=12,
)
_BODIES = st.binary(max_size=30) | _JSON.map(lambda value: json.dumps(value).encode())


class _MadeUp(LayoutStore):
    """Every manifest and every blob is `body`."""

    def __init__(self, body: bytes, root: Path) -> None:
        super().__init__(root)
        self.body = body

    def get_manifest(self, repository: str, reference: str) -> tuple[bytes, str]:
        return self.body, IMAGE_MANIFEST

    def resolve(self, repository: str, tag: str) -> Digest | None:
        return DIGEST

    def blob_size(self, repository: str, digest: Digest) -> int | None:
        return len(self.body)

    def read_blob(
        self, repository: str, digest: Digest, held: Iterable[bytes] = ()
    ) -> Iterator[bytes]:
        yield self.body


def _readers(body: bytes, place: Path) -> list[Callable[[], Any]]:
    store = _MadeUp(body, place / "made-up")
    ref = ImageRef(repository=REPOSITORY, digest=Digest.of_bytes(body))
    target = LayoutStore(place / "target")
    return [
        lambda: image_labels(store, ref),
        lambda: missing_blobs(store, ref),
        lambda: pulling.missing_blobs(store, ref),
        lambda: snapshot_of(store, ref),
        lambda: find_model(store, REPOSITORY, DIGEST, labels={}),
        lambda: image_for_platform(store, ref, "linux/amd64"),
        lambda: copy_image(store, ref, target, REPOSITORY),
        lambda: artifacts.get_json(store, REPOSITORY, "t", IMAGE_LAYER),
        lambda: artifacts.read_json(store, REPOSITORY, DIGEST),
        lambda: pull_plain(store, ref, place / "pulled"),
        lambda: referring.parse(DIGEST, body, IMAGE_MANIFEST),
        lambda: referring.parse_index(body),
    ]


def _all_answer(body: bytes, place: Path) -> None:
    for read in _readers(body, place):
        try:
            read()
        except LockgateError:
            continue
    try:
        parse_snapshot_document(body)
    except ValueError:
        return


@settings(max_examples=examples(250))
@given(_BODIES)
def test_a_document_of_any_form_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, body: bytes
) -> None:
    _all_answer(body, tmp_path_factory.mktemp("documents"))


@pytest.mark.parametrize("opening", [b"[", b'{"config":', b'{"manifests":['])
def test_a_document_nested_without_end_is_refused(opening: bytes, tmp_path: Path) -> None:
    body = opening * 100_000
    for read in _readers(body, tmp_path):
        with pytest.raises(LockgateError):
            read()
    with pytest.raises(ValueError, match="nests"):
        parse_snapshot_document(body)
