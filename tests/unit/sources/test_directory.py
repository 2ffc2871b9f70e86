"""A model in a directory becomes a snapshot: whole, hashed while copied, the same on every machine; or nothing is left."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path

import pytest

from lockgate.adapters import sources
from lockgate.adapters.sources import FetchOptions
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.sources import ModelRevision, Snapshot, Source
from lockgate.errors import SourceError, StorageFull


@pytest.fixture
def model(tmp_path: Path) -> Path:
    root = tmp_path / "my-model"
    (root / "sub").mkdir(parents=True)
    (root / "config.json").write_text("{}")
    (root / "sub" / "weights.safetensors").write_bytes(os.urandom(3_000_000))
    (root / ".git").mkdir()
    (root / ".git" / "HEAD").write_text("ref")
    return root


def _source(root: Path) -> Source:
    return Source.parse(str(root))


def _fetch(root: Path, target: Path) -> Snapshot:
    return sources.fetch(_source(root), sources.resolve(_source(root)), target)


def _left_behind(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.exists() else []


def test_a_fetched_directory_holds_the_same_bytes_under_their_digests(
    model: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out" / "snapshot"
    snapshot = _fetch(model, target)
    assert [f.path for f in snapshot.files] == ["config.json", "sub/weights.safetensors"]
    for file in snapshot.files:
        data = (target / file.path).read_bytes()
        assert data == (model / file.path).read_bytes()
        assert file.digest.hex == hashlib.sha256(data).hexdigest()
        assert (target / file.path).stat().st_mode & 0o777 == 0o644
    assert sources.recorded_snapshot(target) == snapshot == sources.read_snapshot(target)


def test_the_same_bytes_are_the_same_revision_wherever_they_lie(
    model: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "elsewhere" / "my-model"
    _fetch(model, copy)
    assert sources.resolve(_source(copy)) == sources.resolve(_source(model))
    assert str(tmp_path) not in str(sources.resolve(_source(model)))


def test_a_second_fetch_reads_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = sources.resolve(_source(model))
    first = sources.fetch(_source(model), revision, tmp_path / "out" / "s")
    monkeypatch.setattr("hashlib.sha256", lambda: pytest.fail("a file was hashed again"))
    assert sources.fetch(_source(model), revision, tmp_path / "out" / "s") == first


def test_many_fetches_at_once_make_one_directory(model: Path, tmp_path: Path) -> None:
    revision = sources.resolve(_source(model))
    results: list[Snapshot] = []

    def one() -> None:
        results.append(sources.fetch(_source(model), revision, tmp_path / "out" / "s"))

    threads = [threading.Thread(target=one) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    assert len({result.digest for result in results}) == 1
    assert _left_behind(tmp_path / "out") == ["s", "s.snapshot.json"]


def test_what_a_killed_fetch_left_does_not_get_into_the_next(model: Path, tmp_path: Path) -> None:
    partial = tmp_path / "out" / ".s.partial"
    partial.mkdir(parents=True)
    (partial / "stray.json").write_text("{}")
    snapshot = _fetch(model, tmp_path / "out" / "s")
    assert [f.path for f in snapshot.files] == ["config.json", "sub/weights.safetensors"]
    assert sources.read_snapshot(tmp_path / "out" / "s") == snapshot


def test_a_record_without_its_directory_is_not_believed(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "s"
    first = _fetch(model, target)
    for path in sorted(target.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    target.rmdir()
    assert _fetch(model, target) == first
    assert (target / "config.json").exists()


def test_a_directory_that_changed_since_it_was_resolved_is_refused(
    model: Path, tmp_path: Path
) -> None:
    revision = sources.resolve(_source(model))
    (model / "config.json").write_text('{"changed": true}')
    with pytest.raises(SourceError, match="changed since"):
        sources.fetch(_source(model), revision, tmp_path / "out" / "s")
    assert _left_behind(tmp_path / "out") == []


def test_another_model_is_not_fetched_over_a_directory(model: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "s"
    _fetch(model, target)
    (model / "config.json").write_text('{"other": true}')
    with pytest.raises(SourceError, match="is not my-model@"):
        _fetch(model, target)
    assert (target / "config.json").read_text() == "{}"


@pytest.mark.parametrize("kind", ["link to a file", "link to a directory", "fifo"])
def test_links_and_special_files_are_refused(kind: str, model: Path, tmp_path: Path) -> None:
    if kind == "link to a file":
        (model / "extra.json").symlink_to("/etc/hostname")
    elif kind == "link to a directory":
        (model / "extra").symlink_to("/etc")
    else:
        os.mkfifo(model / "extra.json")
    with pytest.raises(SourceError, match="extra"):
        sources.resolve(_source(model))


@pytest.mark.parametrize("name", ["a\nb.json", "a\\b.json", b"a\xff.json"])
def test_a_name_that_no_snapshot_may_hold_is_refused(name: str | bytes, model: Path) -> None:
    path = os.path.join(os.fsencode(model), name if isinstance(name, bytes) else name.encode())
    with open(path, "w"):
        pass
    with pytest.raises(SourceError, match="name cannot be used"):
        sources.resolve(_source(model))


def test_a_directory_that_is_not_there_or_is_a_file_or_empty_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, said in (("nothing", "does not exist"), ("file", "not a dir"), ("empty", "no files")):
        with pytest.raises(SourceError, match=said):
            sources.resolve(Source.parse(str(tmp_path / name)))


def _broken_open(path: object, *args: object, **options: object) -> int:
    if str(path).endswith("weights.safetensors"):
        raise OSError(errno.EACCES, "Permission denied")
    return _OPEN(path, *args, **options)  # type: ignore[arg-type]


_OPEN = os.open


def test_an_unreadable_file_is_named_and_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = sources.resolve(_source(model))
    # Tests may run as root, for whom no file is unreadable.
    monkeypatch.setattr("lockgate.adapters.sources.directory.os.open", _broken_open)
    with pytest.raises(SourceError, match=r"cannot read .*weights\.safetensors: Permission denied"):
        sources.fetch(_source(model), revision, tmp_path / "out" / "s")
    assert _left_behind(tmp_path / "out") == []


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1000

    revision = sources.resolve(_source(model))
    monkeypatch.setattr("shutil.disk_usage", lambda place: Usage)
    with pytest.raises(StorageFull, match=r"no space left.* 1000 are free"):
        sources.fetch(_source(model), revision, tmp_path / "out" / "s")
    assert _left_behind(tmp_path / "out") == []


def test_a_disk_that_fills_up_on_the_way_leaves_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    revision = sources.resolve(_source(model))
    monkeypatch.setattr(Path, "chmod", full)  # the last thing done to a copied file
    with pytest.raises(StorageFull, match="no space left"):
        sources.fetch(_source(model), revision, tmp_path / "out" / "s")
    monkeypatch.undo()
    assert _left_behind(tmp_path / "out") == []


IMAGE = ImageRef.parse("lockgate.local/models/x@" + Digest.of_bytes(b"image"))


def test_an_image_is_brought_by_whoever_can_pull_it(model: Path, tmp_path: Path) -> None:
    def pull(image: ImageRef, directory: Path) -> Snapshot:
        assert image == IMAGE
        return _fetch(model, directory)

    source = Source.parse(f"oci://{IMAGE}")
    revision = sources.resolve(source)
    assert revision == ModelRevision(repo=IMAGE.repository, commit=IMAGE.digest.hex[:40])
    options = FetchOptions(pull=lambda image, directory: pull(image, directory.parent / "inner"))
    snapshot = sources.fetch(source, revision, tmp_path / "out" / "s", options=options)
    assert sources.recorded_snapshot(tmp_path / "out" / "s") == snapshot


def test_an_image_by_tag_is_refused() -> None:
    with pytest.raises(SourceError, match="by digest"):
        sources.resolve(Source.parse("oci://registry.example/models/x:latest"))


def test_patterns_decide_which_files_of_a_directory_are_meant(model: Path, tmp_path: Path) -> None:
    all_files = sources.resolve(_source(model))
    source = Source.parse(f"{model}?allow=*.safetensors,*.json&deny=config.*")
    revision = sources.resolve(source)
    assert revision != all_files
    snapshot = sources.fetch(source, revision, tmp_path / "out" / "s")
    assert [file.path for file in snapshot.files] == ["sub/weights.safetensors"]
    assert Source.parse(str(source)) == source
    with pytest.raises(SourceError, match="no file that is selected"):
        sources.resolve(Source.parse(f"{model}?deny=*"))


@pytest.mark.parametrize("selection", ["allow=", "allow=a&allow=b", "deny=a&other=b"])
def test_a_selection_that_says_nothing_or_too_much_is_refused(selection: str) -> None:
    with pytest.raises(ValueError, match="file selection"):
        Source.parse(f"hf://org/name?{selection}")


def test_an_image_is_not_selected_from() -> None:
    with pytest.raises(ValueError, match="as a whole"):
        Source.parse(f"oci://{IMAGE}?allow=*.json")
