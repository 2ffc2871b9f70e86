"""The model image: the same bytes everywhere, streamed, and nothing but what the snapshot lists."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockgate.adapters.oci.copying import copy_image
from lockgate.adapters.oci.images import read_image_manifest
from lockgate.adapters.oci.layout import LayoutStore
from lockgate.adapters.oci.package import PARALLEL, find_model, push_model, snapshot_of
from lockgate.adapters.sources import read_snapshot
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.model_image import (
    LARGE_FILE,
    MAX_LAYERS,
    PATH_ANNOTATION,
    image_config,
    image_manifest,
    layer_descriptor,
    model_labels,
    plan_layers,
    snapshot_layer,
    snapshot_tag,
    tar_header,
)
from lockgate.domain.sources import Snapshot, SnapshotFile
from lockgate.domain.stores import IMAGE_MANIFEST, Content
from lockgate.errors import IntegrityError
from tests.amounts import examples

Model = tuple[Path, Snapshot]
Writer = Callable[[Path, Mapping[str, bytes]], Snapshot]
LABELS = {"dev.lockgate.model": "demo"}


def layer(store: LayoutStore, ref: ImageRef, number: int) -> bytes:
    manifest = read_image_manifest(store, ref)
    return b"".join(store.read_blob(ref.repository, manifest.layers[number].digest))


def test_the_same_snapshot_has_this_digest_on_every_machine(
    store: LayoutStore, repository: str, model: Model
) -> None:
    """A change here changes every image that users have: raise `IMAGE_FORMAT` with it."""
    directory, snapshot = model
    assert snapshot.digest.short == "17dd6bf5ae2a"
    ref = push_model(store, repository, directory, snapshot, labels=LABELS)
    assert ref.digest.short == "4fc721c7e25c"


def test_times_modes_and_place_of_the_files_are_not_in_the_image(
    store: LayoutStore,
    tmp_path: Path,
    model: Model,
    model_files: dict[str, bytes],
    write_model: Writer,
) -> None:
    other = tmp_path / "elsewhere"
    write_model(other, dict(reversed(model_files.items())))
    for path in other.rglob("*.json"):
        path.chmod(0o600)
        os.utime(path, (1, 1))
    first = push_model(store, "lockgate.local/a", *model, labels=LABELS)
    again = push_model(store, "lockgate.local/b", other, model[1], labels=LABELS)
    assert first.digest == again.digest


def test_an_image_holds_each_large_file_in_a_layer_and_is_an_ordinary_image(
    store: LayoutStore, repository: str, model: Model, model_files: dict[str, bytes]
) -> None:
    ref = push_model(store, repository, *model, labels=LABELS)
    layers = read_image_manifest(store, ref).layers
    assert [d.annotations.get(PATH_ANNOTATION) for d in layers] == [
        None,
        None,
        "models/model-1.safetensors",
        "models/model-2.safetensors",
    ]
    found: dict[str, bytes] = {}
    for number, descriptor in enumerate(layers):
        body = layer(store, ref, number)
        assert len(body) == descriptor.size
        with tarfile.open(fileobj=io.BytesIO(body)) as archive:
            for member in archive:
                assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
                assert member.mode == (0o755 if member.isdir() else 0o644)
                content = archive.extractfile(member)
                if content is not None:
                    found[member.name] = content.read()
    del found["lockgate/snapshot.json"]
    assert found == {f"models/{path}": body for path, body in model_files.items()}


def test_a_variant_shares_the_layers_of_the_files_that_did_not_change(
    store: LayoutStore,
    repository: str,
    tmp_path: Path,
    model: Model,
    model_files: dict[str, bytes],
    write_model: Writer,
) -> None:
    changed = {**model_files, "model-2.safetensors": model_files["model-2.safetensors"][::-1]}
    variant = write_model(tmp_path / "variant", changed)
    first = push_model(store, repository, *model, labels=LABELS)
    second = push_model(store, repository, tmp_path / "variant", variant, labels=LABELS)
    one, two = (read_image_manifest(store, ref).layers for ref in (first, second))
    assert [a.digest == b.digest for a, b in zip(one, two, strict=True)] == [
        False,  # the list of files
        True,
        True,
        False,
    ]


def test_a_model_of_very_many_large_files_stays_within_the_layers_runtimes_take() -> None:
    digest = Digest.of_bytes(b"")
    large = [
        SnapshotFile(path=f"m-{n:04}.safetensors", size=LARGE_FILE, digest=digest)
        for n in range(331)
    ]
    snapshot = Snapshot.of([*large, SnapshotFile(path="config.json", size=2, digest=digest)])
    plans = plan_layers(snapshot)
    assert len(plans) + 1 <= MAX_LAYERS
    assert sorted(f.path for p in plans for f in p.files) == [f.path for f in snapshot.files]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\0"), "has not the content"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "has not the"),
        (lambda path: path.write_bytes(path.read_bytes() + b"\0"), "has not the"),
        (lambda path: path.unlink(), "is gone"),
    ],
    ids=["content", "shorter", "longer", "gone"],
)
def test_a_file_that_changed_since_it_was_fetched_is_not_packaged(
    store: LayoutStore,
    repository: str,
    model: Model,
    damage: Callable[[Path], object],
    words: str,
) -> None:
    directory, snapshot = model
    damage(directory / "model-1.safetensors")
    with pytest.raises(IntegrityError, match=words) as caught:
        push_model(store, repository, directory, snapshot, labels=LABELS)
    if words == "is gone":
        assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert store.tags(repository) == []
    assert list((store.root / ".incoming").iterdir()) == []


def test_a_model_is_found_by_its_snapshot_and_packaging_it_again_writes_no_layer(
    store: LayoutStore, repository: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_model(store, repository, model[1].digest) is None
    seen: list[tuple[int, int]] = []

    def push() -> ImageRef:
        seen.clear()
        return push_model(
            store, repository, *model, labels=LABELS, progress=lambda *done: seen.append(done)
        )

    ref = push()
    assert sorted(seen) == seen
    assert seen[-1] == (model[1].size, model[1].size)
    assert find_model(store, repository, model[1].digest) == ref
    assert find_model(store, repository, model[1].digest, labels=LABELS) == ref
    assert find_model(store, repository, model[1].digest, labels={"other": "label"}) is None
    assert snapshot_of(store, ref) == model[1]
    layers = {layer.digest for layer in read_image_manifest(store, ref).layers}
    write = store.put_blob

    def put_blob(name: str, digest: Digest | None, content: Content, size: int | None) -> Digest:
        assert digest not in layers or store.has_blob(name, digest)
        assert not callable(content)
        return write(name, digest, content, size)

    monkeypatch.setattr(store, "put_blob", put_blob)
    assert push() == ref
    assert seen[-1] == (model[1].size, model[1].size)


def test_an_image_planted_under_the_snapshots_tag_is_not_taken_for_the_snapshot(
    store: LayoutStore, repository: str, model: Model, tmp_path: Path
) -> None:
    """It lists the right files and says the right labels, but holds other weights: whoever may write tags must not decide
    what gets signed."""
    directory, snapshot = model
    honest = push_model(LayoutStore(tmp_path / "own"), repository, directory, snapshot, labels={})
    evil = tmp_path / "evil"
    shutil.copytree(directory, evil)
    weights = evil / "model-1.safetensors"
    weights.write_bytes(weights.read_bytes()[::-1])
    planted = push_model(store, repository, evil, read_snapshot(evil), labels={})
    manifest = read_image_manifest(store, planted)
    listing = snapshot_layer(snapshot)
    layers = [layer_descriptor(Digest.of_bytes(listing), len(listing)), *manifest.layers[1:]]
    config = image_config(model_labels(snapshot, {}), [layer.digest for layer in layers])
    for body in (listing, config):
        store.put_blob(repository, None, [body], len(body))
    tag = snapshot_tag(snapshot.digest)
    store.put_manifest(repository, image_manifest(config, layers), IMAGE_MANIFEST, tag)
    assert find_model(store, repository, snapshot.digest, labels={}) is not None
    assert push_model(store, repository, directory, snapshot, labels={}).digest == honest.digest
    assert store.resolve(repository, tag) == honest.digest


@settings(max_examples=examples(30), deadline=None)
@given(
    files=st.dictionaries(
        st.from_regex(r"[a-z]{1,4}(/[a-z0-9.]{1,6}[a-z]){0,2}", fullmatch=True),
        st.sampled_from(
            [b"", b"{}", b"x" * 511, b"y" * 512, b"z" * LARGE_FILE, b"w" * (LARGE_FILE + 1)]
        ),
        min_size=1,
        max_size=5,
    ),
    data=st.data(),
)
def test_neither_order_nor_place_nor_what_was_there_before_changes_the_digest(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes], data: st.DataObject
) -> None:
    paths = [p for p in files if not any(o.startswith(f"{p}/") for o in files)]
    place = tmp_path_factory.mktemp("places")
    digests = set()
    for number in range(2):
        order = data.draw(st.permutations(paths))
        directory, rows = place / f"{number}", []
        for path in order:
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_bytes(files[path])
            rows.append(
                SnapshotFile(path=path, size=len(files[path]), digest=Digest.of_bytes(files[path]))
            )
        store = LayoutStore(place / f"store-{number}")
        if data.draw(st.booleans()):
            part = Snapshot.of(rows[:1])
            push_model(store, "lockgate.local/m", directory, part, labels={})
        snapshot = Snapshot.of(rows)
        ref = push_model(store, f"lockgate.local/{'mn'[number]}", directory, snapshot, labels={})
        digests.add(ref.digest)
    assert len(digests) == 1


def test_an_image_that_lost_a_part_is_packaged_again(
    store: LayoutStore, repository: str, model: Model
) -> None:
    ref = push_model(store, repository, *model, labels=LABELS)
    for lost in (read_image_manifest(store, ref).layers[2].digest, ref.digest):
        store.blob_path(lost).unlink()
        assert push_model(store, repository, *model, labels=LABELS) == ref
        assert store.has_blob(repository, lost)


class MeetingStore(LayoutStore):
    """Stores a large layer only when others are on their way at the same time."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.meeting = threading.Barrier(PARALLEL, timeout=30)

    def put_blob(
        self, repository: str, digest: Digest | None, content: Content, size: int | None
    ) -> Digest:
        if size and size > LARGE_FILE:
            self.meeting.wait()
        return super().put_blob(repository, digest, content, size)


def test_layers_are_sent_side_by_side(
    repository: str, write_model: Callable[..., Snapshot], tmp_path: Path
) -> None:
    files = {f"m-{number}.safetensors": bytes([number]) * LARGE_FILE for number in range(PARALLEL)}
    snapshot = write_model(tmp_path / "model", files)
    store = MeetingStore(tmp_path / "store")
    ref = push_model(store, repository, tmp_path / "model", snapshot, labels={})
    assert snapshot_of(store, ref) == snapshot


class ResumingStore(LayoutStore):
    """A store that takes every upload in pieces that begin anywhere."""

    def __init__(self, root: Path, cuts: Iterable[int]) -> None:
        super().__init__(root)
        self._cuts = sorted(cuts)

    def put_blob(
        self, repository: str, digest: Digest | None, content: Content, size: int | None
    ) -> Digest:
        if not callable(content):
            return super().put_blob(repository, digest, content, size)
        assert size is not None
        body, edges = b"", [0, *(c % size for c in self._cuts), size]
        for start, end in zip(sorted(edges), sorted(edges)[1:], strict=False):
            body += b"".join(content(start))[: end - start]
        return super().put_blob(repository, digest, [body], size)


@settings(max_examples=examples(25), deadline=None)
@given(cuts=st.lists(st.integers(0, 4 * LARGE_FILE), max_size=4))
def test_an_upload_resumed_at_any_byte_is_the_same_image(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int]
) -> None:
    directory = tmp_path_factory.mktemp("resumed")
    files = {"a.json": b"{}", "b/weights": b"w" * (LARGE_FILE + 1), "c": b"", "d.txt": b"t" * 512}
    for path, body in files.items():
        (directory / path).parent.mkdir(exist_ok=True)
        (directory / path).write_bytes(body)
    snapshot = Snapshot.of(
        [SnapshotFile(path=p, size=len(b), digest=Digest.of_bytes(b)) for p, b in files.items()]
    )
    refs = {
        push_model(store, "lockgate.local/m", directory, snapshot, labels={}).digest
        for store in (
            LayoutStore(directory / "whole"),
            ResumingStore(directory / "resumed", cuts),
        )
    }
    assert len(refs) == 1


@given(
    parts=st.lists(
        st.text(
            st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)),
            min_size=1,
            max_size=90,
        ),
        min_size=1,
        max_size=4,
    ),
    size=st.sampled_from([0, 1, 8**11 - 1, 8**11, 5 * 10**12]),
)
def test_any_name_and_size_is_read_back_from_its_tar_header(parts: list[str], size: int) -> None:
    name = "models/" + "/".join(p if p.strip(".") else "x" for p in parts)
    with tarfile.open(fileobj=io.BytesIO(tar_header(name, size))) as archive:
        member = archive.next()
    assert member is not None
    assert (member.name, member.size, member.isreg()) == (name, size, True)


def test_a_copy_in_another_store_is_the_same_image(
    store: LayoutStore, repository: str, model: Model, tmp_path: Path
) -> None:
    ref = push_model(store, repository, *model, labels=LABELS)
    other = LayoutStore(tmp_path / "other")
    copied = copy_image(store, ref, other, "mirror.local/demo", tag="v1")
    assert copied.digest == ref.digest == other.resolve("mirror.local/demo", "v1")
    assert snapshot_of(other, copied) == model[1]
