"""Unpacking an image: exactly its snapshot, or nothing."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lockgate.adapters.oci.images import read_image_manifest
from lockgate.adapters.oci.layout import LayoutStore
from lockgate.adapters.oci.package import pull_model, push_model, snapshot_of
from lockgate.adapters.oci.pulling import missing_blobs
from lockgate.adapters.oci.runtime import push_runtime, read_runtime
from lockgate.adapters.sources import read_snapshot
from lockgate.cli.app import app
from lockgate.domain import model_image
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.sources import Snapshot, SnapshotFile
from lockgate.domain.stores import IMAGE_MANIFEST
from lockgate.errors import IntegrityError, RegistryError
from lockgate.staging import staged

Model = tuple[Path, Snapshot]


def content_of(directory: Path) -> dict[str, bytes]:
    return {
        p.relative_to(directory).as_posix(): p.read_bytes()
        for p in directory.rglob("*")
        if p.is_file()
    }


def test_a_pulled_model_is_the_pushed_one_and_a_second_pull_changes_nothing(
    store: LayoutStore, repository: str, model: Model, model_files: dict[str, bytes], tmp_path: Path
) -> None:
    ref = push_model(store, repository, *model, labels={})
    target = tmp_path / "snapshots" / "demo"
    assert pull_model(store, ref, target) == model[1]
    assert content_of(target) == model_files
    before = target.stat().st_ino
    assert pull_model(store, ref, target) == model[1]
    assert target.stat().st_ino == before
    assert [p.name for p in target.parent.iterdir()] == ["demo"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: (d / "config.json").write_bytes(b'{"model_type": "DEMO"}'), "was changed"),
        (lambda d: (d / "modeling.py").write_text("import os"), "modeling.py does not belong"),
        (lambda d: (d / "tokenizer/empty.txt").unlink(), "empty.txt is missing"),
    ],
    ids=["changed", "added", "removed"],
)
def test_a_directory_with_something_else_in_it_is_refused_and_left_alone(
    store: LayoutStore,
    repository: str,
    model: Model,
    tmp_path: Path,
    change: Callable[[Path], object],
    words: str,
) -> None:
    ref = push_model(store, repository, *model, labels={})
    target = tmp_path / "target"
    pull_model(store, ref, target)
    change(target)
    before = content_of(target)
    with pytest.raises(IntegrityError, match=words):
        pull_model(store, ref, target)
    assert content_of(target) == before


def test_a_directory_that_was_fetched_in_another_way_is_taken_if_it_is_the_same(
    store: LayoutStore, repository: str, model: Model
) -> None:
    ref = push_model(store, repository, *model, labels={})
    assert pull_model(store, ref, model[0]) == model[1]


def flip_one_bit(body: bytes) -> bytes:
    return body[:3000] + bytes([body[3000] ^ 1]) + body[3001:]


@pytest.mark.parametrize("tamper", [flip_one_bit, lambda body: body + bytes(4 * 1024 * 1024)])
def test_a_tampered_layer_is_refused_and_nothing_is_left(
    store: LayoutStore,
    repository: str,
    model: Model,
    tmp_path: Path,
    tamper: Callable[[bytes], bytes],
) -> None:
    ref = push_model(store, repository, *model, labels={})
    blob = store.blob_path(read_image_manifest(store, ref).layers[2].digest)
    blob.write_bytes(tamper(blob.read_bytes()))
    with pytest.raises(IntegrityError):
        pull_model(store, ref, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    assert not list(tmp_path.glob(".target*"))


def test_a_swapped_manifest_is_refused(
    store: LayoutStore, repository: str, model: Model, tmp_path: Path
) -> None:
    ref = push_model(store, repository, *model, labels={})
    other = push_model(store, repository, *model, labels={"another": "image"})
    store.blob_path(ref.digest).write_bytes(store.blob_path(other.digest).read_bytes())
    with pytest.raises(IntegrityError, match=ref.digest):
        pull_model(store, ref, tmp_path / "target")


class BreakingOff(LayoutStore):
    """Breaks off after so many transferred bytes; `sent` counts them."""

    after: int | None = None
    sent = 0

    def read_blob(
        self, repository: str, digest: Digest, held: Iterable[bytes] = ()
    ) -> Iterator[bytes]:
        kept = list(held)
        there, given = sum(map(len, kept)), 0
        for chunk in super().read_blob(repository, digest, kept):
            given += len(chunk)
            if given > there:
                self.sent += len(chunk)
                if self.after is not None and self.sent > self.after:
                    yield chunk[: len(chunk) // 2]
                    raise RegistryError("the connection broke")
            yield chunk


@pytest.mark.parametrize("damage", [False, True], ids=["sound", "damaged meanwhile"])
def test_a_pull_that_breaks_off_within_a_file_goes_on_where_it_was(
    store: LayoutStore,
    repository: str,
    write_model: Callable[..., Snapshot],
    tmp_path: Path,
    damage: bool,
) -> None:
    files = {f"{name}.safetensors": name.encode() * (6 << 20) for name in "ab"}
    snapshot = write_model(tmp_path / "model", {**files, "config.json": b"{}"})
    ref = push_model(store, repository, tmp_path / "model", snapshot, labels={})
    breaking = BreakingOff(store.root)
    breaking.after = 9 << 20
    with pytest.raises(RegistryError, match="broke"):
        pull_model(breaking, ref, tmp_path / "out" / "s")
    assert not (tmp_path / "out" / "s").exists()
    (half,) = (tmp_path / "out").glob(".s.incoming-*/b.safetensors")
    assert 1 << 20 <= half.stat().st_size < 6 << 20
    if damage:
        half.write_bytes(b"x" * half.stat().st_size)
    breaking.after, breaking.sent = None, 0
    assert pull_model(breaking, ref, tmp_path / "out" / "s") == snapshot
    assert content_of(tmp_path / "out" / "s") == {**files, "config.json": b"{}"}
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["s"]
    if not damage:
        assert breaking.sent < 6 << 20


def test_two_pulls_at_once_do_not_share_what_is_half_done_and_leftovers_are_swept(
    store: LayoutStore, repository: str, model: Model, tmp_path: Path
) -> None:
    ref = push_model(store, repository, *model, labels={})
    target = tmp_path / "out" / "s"
    with staged(target, ref.digest.hex) as held_by_another:
        (held_by_another.path / "config.json").write_text("half")
        pull_model(store, ref, target)
    assert snapshot_of(store, ref) == model[1] == read_snapshot(target)
    (target.parent / ".t.incoming-abandoned").mkdir()
    pull_model(store, ref, target.parent / "t")
    assert sorted(p.name for p in target.parent.iterdir()) == ["s", "t"]


def forge(store: LayoutStore, repository: str, snapshot: Snapshot, layer: bytes) -> ImageRef:
    """An image whose list and labels are right and whose layer is the given one."""
    layers = [model_image.snapshot_layer(snapshot), layer]
    descriptors = [
        model_image.layer_descriptor(store.put_blob(repository, None, [b], None), len(b))
        for b in layers
    ]
    labels = model_image.model_labels(snapshot, {})
    config = model_image.image_config(labels, [d.digest for d in descriptors])
    store.put_blob(repository, None, [config], None)
    body = model_image.image_manifest(config, descriptors)
    return ImageRef(
        repository=repository, digest=store.put_manifest(repository, body, IMAGE_MANIFEST)
    )


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for member, body in members:
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    return out.getvalue()


def regular(name: str, body: bytes = b"{}") -> tuple[tarfile.TarInfo, bytes]:
    return tarfile.TarInfo(name), body


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


GOOD = regular("models/config.json")


@pytest.mark.parametrize(
    "layer",
    [
        archive(GOOD, regular("models/../../escaped")),
        archive(GOOD, regular("/etc/cron.d/escaped")),
        archive(GOOD, regular("models/unlisted.py", b"import os")),
        archive(GOOD, GOOD),
        archive(special("models/config.json", tarfile.SYMTYPE, "/etc/passwd")),
        archive(special("models/config.json", tarfile.LNKTYPE, "models/other")),
        archive(GOOD, special("models/fifo", tarfile.FIFOTYPE)),
        archive(GOOD, special("models/device", tarfile.CHRTYPE)),
        archive(regular("models/config.json", b"[]")),
        archive(regular("models/config.json", b"{ }")),
        archive(regular("models/config.txt")),
        archive(),
        archive(GOOD)[:700],
        b"not a tar archive" * 100,
    ],
    ids=[
        "parent",
        "absolute",
        "unlisted",
        "twice",
        "symlink",
        "hard link",
        "fifo",
        "device",
        "other content",
        "other size",
        "other name",
        "empty",
        "cut off",
        "no archive",
    ],
)
def test_an_image_that_holds_anything_but_its_list_is_refused(
    store: LayoutStore, repository: str, tmp_path: Path, layer: bytes
) -> None:
    listed = SnapshotFile(path="config.json", size=2, digest=Digest.of_bytes(b"{}"))
    ref = forge(store, repository, Snapshot.of([listed]), layer)
    room = tmp_path / "room"
    with pytest.raises(IntegrityError):
        pull_model(store, ref, room / "target")
    assert list(room.iterdir()) == []


def test_a_name_that_is_a_file_and_a_directory_is_the_images_fault_and_not_the_stores(
    store: LayoutStore, repository: str, tmp_path: Path
) -> None:
    names = ("config.json", "config.json/a.json")
    files = [SnapshotFile(path=name, size=2, digest=Digest.of_bytes(b"{}")) for name in names]
    for order in (files, files[::-1]):
        layer = archive(*(regular(f"models/{file.path}") for file in order))
        ref = forge(store, repository, Snapshot.of(files), layer)
        with pytest.raises(IntegrityError, match="both as a file and as a directory"):
            pull_model(store, ref, tmp_path / "room" / "target")
        assert list((tmp_path / "room").iterdir()) == []


def test_a_name_that_no_disk_takes_is_the_images_fault(
    store: LayoutStore, repository: str, tmp_path: Path
) -> None:
    file = SnapshotFile(path="x" * 300, size=2, digest=Digest.of_bytes(b"{}"))
    layer = archive(regular(f"models/{file.path}"))
    ref = forge(store, repository, Snapshot.of([file]), layer)
    with pytest.raises(IntegrityError, match="too long"):
        pull_model(store, ref, tmp_path / "target")


def test_an_image_labelled_with_another_snapshot_than_it_lists_is_refused(
    store: LayoutStore, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = SnapshotFile(path="config.json", size=2, digest=Digest.of_bytes(b"{}"))
    other = Snapshot.of([listed.model_copy(update={"path": "other.json"})])
    labels = model_image.model_labels(other, {})
    monkeypatch.setattr(model_image, "model_labels", lambda *_: labels)
    ref = forge(store, repository, Snapshot.of([listed]), archive(GOOD))
    with pytest.raises(IntegrityError, match="another snapshot"):
        snapshot_of(store, ref)


def test_a_runtime_image_says_what_it_was_made_from_and_is_no_model(
    store: LayoutStore, tmp_path: Path
) -> None:
    lock = tmp_path / "serving.lock"
    lock.write_bytes(b"vllm==0.1\n")
    environment = Digest.of_bytes(b"environment")
    refs = {
        push_runtime(
            store,
            "lockgate.local/runtime",
            environment_digest=environment,
            lock_file=given,
            engine="vllm",
        )
        for given in (lock, lock.read_bytes())
    }
    (ref,) = refs
    described = read_runtime(store, ref)
    assert (described.environment, described.engine) == (environment, "vllm")
    assert described.lock_file == b"vllm==0.1\n"
    with pytest.raises(IntegrityError, match="not a model image"):
        pull_model(store, ref, tmp_path / "target")


def test_a_model_image_is_no_runtime(store: LayoutStore, repository: str, model: Model) -> None:
    ref = push_model(store, repository, *model, labels={})
    with pytest.raises(IntegrityError, match="does not describe a runtime"):
        read_runtime(store, ref)


def test_an_image_that_is_not_there_is_named(store: LayoutStore, tmp_path: Path) -> None:
    ref = ImageRef(repository="lockgate.local/none", digest=Digest.of_bytes(b"none"))
    with pytest.raises(RegistryError, match=ref.digest):
        pull_model(store, ref, tmp_path / "target")


def test_a_layer_that_is_gone_is_named_though_the_manifest_is_still_there(
    store: LayoutStore, repository: str, model: Model
) -> None:
    image = push_model(store, repository, *model, labels={})
    assert missing_blobs(store, image) == []
    layer = read_image_manifest(store, image).layers[0].digest
    store.blob_path(layer).unlink()
    assert missing_blobs(store, image) == [layer]
    store.blob_path(image.digest).unlink()
    with pytest.raises(RegistryError):
        missing_blobs(store, image)


def test_a_local_runtime_is_an_image_with_all_its_parts(
    store: LayoutStore, repository: str, tmp_path: Path
) -> None:
    lock = tmp_path / "serving.lock"
    lock.write_text("vllm==0\n")
    image = push_runtime(
        store,
        repository,
        environment_digest=Digest.of_bytes(b"e"),
        lock_file=lock,
        engine="vllm",
    )
    assert missing_blobs(store, image) == []


def test_the_command_of_an_init_container_unpacks_a_model_once(
    store: LayoutStore, repository: str, model: Model, model_files: dict[str, bytes], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    ref = push_model(store, repository, *model, labels={})
    monkeypatch.setenv("LOCKGATE_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setenv("LOCKGATE_STORE", f"oci:{tmp_path / 'store'}")
    target = tmp_path / "weights" / "models"
    for _ in range(2):
        done = CliRunner().invoke(app, ["pull", str(ref), str(target)], catch_exceptions=False)
        assert done.exit_code == 0
        assert content_of(target) == model_files
