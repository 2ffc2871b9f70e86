"""A layout store forgets what nobody refers to: and nothing else, whoever writes meanwhile."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from lockgate.adapters.oci.artifacts import put_json
from lockgate.adapters.oci.collecting import collect
from lockgate.adapters.oci.layout import LayoutStore
from lockgate.domain.digests import Digest, canonical_json
from lockgate.domain.stores import EMPTY_BODY, EMPTY_JSON, IMAGE_MANIFEST, Descriptor
from lockgate.errors import RegistryError

OLD = time.time() - 90 * 86400
CUTOFF = time.time() - 30 * 86400


@pytest.fixture
def store(tmp_path: Path) -> LayoutStore:
    return LayoutStore(tmp_path / "store")


def image(store: LayoutStore, name: str, *, subject: Digest | None = None) -> Digest:
    """An image of one layer; with `subject` one that is about another, as signatures are."""
    body = name.encode() * 100
    layer = store.put_blob("m", Digest.of_bytes(body), [body], len(body))
    store.put_blob("m", None, [EMPTY_BODY], len(EMPTY_BODY))
    manifest = {
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "config": Descriptor(EMPTY_JSON, Digest.of_bytes(EMPTY_BODY), 2).to_data(),
        "layers": [Descriptor("application/x", layer, len(body)).to_data()],
    }
    if subject is not None:
        manifest["subject"] = Descriptor(IMAGE_MANIFEST, subject, 1).to_data()
    tag = None if subject is not None else name
    return store.put_manifest("m", canonical_json(manifest), IMAGE_MANIFEST, tag)


def layer_of(name: str) -> Digest:
    return Digest.of_bytes(name.encode() * 100)


def aged(store: LayoutStore) -> None:
    for path in (store.root / "blobs" / "sha256").iterdir():
        os.utime(path, (OLD, OLD))


def keeping(*digests: Digest):
    return lambda name, digest: digest in digests


def test_an_image_that_nobody_names_goes_with_its_layers_and_signatures(store: LayoutStore) -> None:
    kept, gone = image(store, "kept"), image(store, "gone")
    signatures = [image(store, "s1", subject=kept), image(store, "s2", subject=gone)]
    aged(store)
    found = collect(store, keeping(kept), before=CUTOFF, delete=True)
    assert ("m:gone", gone) in found.entries
    assert not store.has_blob("m", gone) and not store.has_blob("m", layer_of("gone"))
    assert not store.has_blob("m", signatures[1])
    assert store.resolve("m", "gone") is None and store.referrers("m", gone) == []
    # What is about the kept image is kept, and a second run finds nothing.
    assert [d.digest for d in store.referrers("m", kept)] == [signatures[0]]
    assert store.has_blob("m", layer_of("kept")) and store.has_blob("m", layer_of("s1"))
    assert collect(store, keeping(kept), before=CUTOFF, delete=True).blobs == ()


def test_without_delete_the_same_is_found_and_nothing_is_touched(store: LayoutStore) -> None:
    image(store, "a"), image(store, "b")
    aged(store)
    before = sorted(store.root.rglob("*"))
    planned = collect(store, keeping(), before=CUTOFF, delete=False)
    assert sorted(store.root.rglob("*")) == before
    done = collect(store, keeping(), before=CUTOFF, delete=True)
    assert set(done.entries) == set(planned.entries) and set(done.blobs) == set(planned.blobs)
    assert len(done.blobs) == 5


def test_what_is_young_or_was_used_lately_is_kept_whoever_refers_to_it(store: LayoutStore) -> None:
    old, used = image(store, "old"), image(store, "used")
    aged(store)
    young = image(store, "young")
    # A release that finds this image from an earlier run reads its manifest, long before Git names it.
    store.get_manifest("m", used)
    collect(store, keeping(), before=CUTOFF, delete=True)
    assert not store.has_blob("m", old)
    assert all(store.has_blob("m", d) for d in (used, young, layer_of("used"), layer_of("young")))


def test_a_layer_that_two_images_share_stays_with_the_one_that_is_kept(store: LayoutStore) -> None:
    first = image(store, "same")
    body, _ = store.get_manifest("m", first)
    other = store.put_manifest(
        "m", body.replace(b"{", b'{"annotations":{"a":"b"},', 1), IMAGE_MANIFEST, "o"
    )
    aged(store)
    collect(store, keeping(other), before=CUTOFF, delete=True)
    assert not store.has_blob("m", first) and store.has_blob("m", layer_of("same"))


def test_documents_are_entries_like_any_other(store: LayoutStore) -> None:
    digest = put_json(store, "records", "document-1", "application/x", b'{"a":1}')
    put_json(store, "records", "document-2", "application/x", b'{"a":2}')
    aged(store)
    collect(store, lambda name, _: name == "records:document-1", before=CUTOFF, delete=True)
    assert store.tags("records") == ["document-1"] and store.has_blob("records", digest)


def test_a_manifest_that_cannot_be_read_stops_everything(store: LayoutStore) -> None:
    kept = image(store, "kept")
    image(store, "gone")
    aged(store)
    store.blob_path(kept).write_bytes(b"[]")
    os.utime(store.blob_path(kept), (OLD, OLD))
    with pytest.raises(RegistryError, match="nothing is collected"):
        collect(store, keeping(kept), before=CUTOFF, delete=True)
    assert store.has_blob("m", layer_of("gone"))


def test_a_writer_that_relied_on_what_is_collected_meanwhile_gets_an_error(
    store: LayoutStore,
) -> None:
    body, _ = store.get_manifest("m", image(store, "gone"))
    aged(store)
    assert store.has_blob("m", layer_of("gone"))  # so it is not written again
    collect(store, keeping(), before=CUTOFF, delete=True)
    with pytest.raises(RegistryError, match="does not hold"):
        store.put_manifest("m", body, IMAGE_MANIFEST, "again")
    assert store.resolve("m", "again") is None


def test_no_image_dangles_however_writers_and_a_collection_meet(store: LayoutStore) -> None:
    store.prepare()
    ended = threading.Event()

    def write(number: int) -> None:
        while not ended.is_set():
            for name in ("x", "y"):
                try:
                    image(store, f"{name}{number}")
                except RegistryError:
                    continue

    writers = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(20):
            # Everything counts as old: the worst that can happen.
            collect(store, keeping(), before=time.time() + 60, delete=True)
    finally:
        ended.set()
        for writer in writers:
            writer.join()
    for tag in store.tags("m"):
        digest = store.resolve("m", tag)
        assert digest is not None and store.has_blob("m", digest)
        assert store.has_blob("m", layer_of(tag))
