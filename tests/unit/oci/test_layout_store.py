"""A layout directory as a store: what was written is read back whole, or not at all."""

from __future__ import annotations

import errno
import fcntl
import json
import multiprocessing
import os
from pathlib import Path

import pytest

from lockgate.adapters.oci import open_store
from lockgate.adapters.oci.layout import LayoutStore
from lockgate.domain.digests import Digest, canonical_json
from lockgate.domain.stores import EMPTY_JSON, IMAGE_MANIFEST, Descriptor
from lockgate.errors import IntegrityError, RegistryError, StorageFull, UsageError

BODY = b"weights" * 1000


def manifest(note: str, subject: Descriptor | None = None) -> bytes:
    data = {
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST,
        "artifactType": "application/x-note",
        "config": Descriptor(EMPTY_JSON, Digest.of_bytes(b"{}"), 2).to_data(),
        "layers": [],
        "annotations": {"note": note},
    }
    if subject:
        data["subject"] = subject.to_data()
    return canonical_json(data)


def half_written(root: Path) -> list[Path]:
    return list((root / ".incoming").iterdir())


def test_a_blob_that_was_changed_on_disk_is_not_read_back(
    store: LayoutStore, repository: str
) -> None:
    digest = store.put_blob(repository, None, [BODY[:3], BODY[3:]], len(BODY))
    assert digest == Digest.of_bytes(BODY)
    assert b"".join(store.read_blob(repository, digest)) == BODY
    store.blob_path(digest).write_bytes(BODY.replace(b"w", b"W", 1))
    with pytest.raises(IntegrityError, match=digest):
        list(store.read_blob(repository, digest))


@pytest.mark.parametrize(
    ("digest", "size"),
    [(Digest.of_bytes(b"other"), len(BODY)), (Digest.of_bytes(BODY), len(BODY) - 1)],
    ids=["digest", "size"],
)
def test_bytes_that_are_not_those_announced_are_not_kept(
    store: LayoutStore, repository: str, digest: Digest, size: int
) -> None:
    with pytest.raises(IntegrityError):
        store.put_blob(repository, digest, [BODY], size)
    assert not store.has_blob(repository, digest)
    assert half_written(store.root) == []


def test_a_full_disk_is_named_and_leaves_no_half_blob(
    store: LayoutStore, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put_blob(repository, None, [b"room for this"], None)
    write = os.write

    def full(handle: int, data: bytes | memoryview) -> int:
        if len(data) < 600:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(handle, data[:500])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageFull, match="no space left") as caught:
        store.put_blob(repository, None, [BODY], len(BODY))
    assert str(store.root) in caught.value.message
    assert "free space" in str(caught.value.hint)
    monkeypatch.undo()
    assert half_written(store.root) == []
    assert not store.has_blob(repository, Digest.of_bytes(BODY))


def _tag_many(root: Path, worker: int) -> None:
    store = LayoutStore(root)
    for number in range(20):
        body = manifest(f"{worker}-{number}")
        store.put_manifest("lockgate.local/shared", body, IMAGE_MANIFEST, f"w{worker}-{number}")
        store.put_blob("lockgate.local/shared", None, [BODY, bytes([number])], None)


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    root = tmp_path / "not made yet"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_tag_many, args=(root, n)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [w.exitcode for w in workers] == [0, 0, 0, 0]
    store = LayoutStore(root)
    tags = store.tags("lockgate.local/shared")
    assert tags == sorted(f"w{w}-{n}" for w in range(4) for n in range(20))
    for tag in tags:
        body, media_type = store.get_manifest("lockgate.local/shared", tag)
        assert json.loads(body)["annotations"]["note"] == tag[1:]
        assert media_type == IMAGE_MANIFEST
    assert json.loads((root / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}


def test_a_tag_moves_and_is_its_repositorys_own(store: LayoutStore) -> None:
    first = store.put_manifest("host:5000/a", manifest("1"), IMAGE_MANIFEST, "latest")
    second = store.put_manifest("host:5000/a", manifest("2"), IMAGE_MANIFEST, "latest")
    assert store.resolve("host:5000/a", "latest") == second != first
    assert store.get_manifest("host:5000/a", first)[0] == manifest("1")
    assert store.resolve("host:5000/b", "latest") is None
    assert store.tags("host") == []
    with pytest.raises(RegistryError, match="host:5000/b:latest"):
        store.get_manifest("host:5000/b", "latest")


def test_what_refers_to_an_image_is_found_by_its_kind_and_once(
    store: LayoutStore, repository: str
) -> None:
    image = manifest("image")
    subject = Descriptor(IMAGE_MANIFEST, store.put_manifest(repository, image, IMAGE_MANIFEST), 1)
    for _ in range(2):
        digest = store.put_manifest(repository, manifest("note", subject), IMAGE_MANIFEST)
    found = store.referrers(repository, subject.digest, "application/x-note")
    assert [(d.digest, d.annotations) for d in found] == [(digest, {"note": "note"})]
    assert store.referrers(repository, subject.digest, "application/x-other") == []
    assert store.referrers(repository, digest) == []


def test_a_store_that_another_process_locked_for_good_says_so(
    store: LayoutStore, repository: str
) -> None:
    store.put_blob(repository, None, [b"x"], 1)
    with open(store.root / ".index.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        impatient = LayoutStore(store.root, lock_seconds=0.05)
        with pytest.raises(RegistryError, match="locked"):
            impatient.put_manifest(repository, manifest("1"), IMAGE_MANIFEST, "tag")


def test_a_directory_that_holds_something_else_is_not_made_a_store(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RegistryError, match="neither empty nor an OCI layout"):
        LayoutStore(tmp_path).put_blob("r", None, [b"x"], 1)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_a_killed_writer_left_is_swept_up_later_but_not_what_one_still_writes(
    store: LayoutStore, repository: str
) -> None:
    store.put_blob(repository, None, [b"x"], 1)
    abandoned, young, busy = (store.root / ".incoming" / n for n in ("old", "young", "busy"))
    for path in (abandoned, young, busy):
        path.write_bytes(b"half")
    for path in (abandoned, busy):
        os.utime(path, (0, 0))
    with open(busy) as writing:
        fcntl.flock(writing, fcntl.LOCK_EX)
        open_store(store.location)
    assert sorted(p.name for p in half_written(store.root)) == ["busy", "young"]


def test_an_index_that_is_no_index_is_an_error_not_an_empty_store(
    store: LayoutStore, repository: str
) -> None:
    store.put_manifest(repository, manifest("1"), IMAGE_MANIFEST, "tag")
    (store.root / "index.json").write_text('{"manifests": [{"digest": "sha256:zz"}]}')
    with pytest.raises(RegistryError, match=r"index\.json"):
        store.resolve(repository, "tag")


@pytest.mark.parametrize("location", ["oci:", "", "https://registry.example", "a/b", "host:port"])
def test_a_location_that_is_no_store_is_a_usage_error(location: str) -> None:
    with pytest.raises(UsageError):
        open_store(location)
