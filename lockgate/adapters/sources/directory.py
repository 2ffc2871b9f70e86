"""A model in a directory: walked, hashed and copied, without ever following a link."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from lockgate.adapters.sources.transfer import CHUNK, Meter, Progress, in_parallel, require_space
from lockgate.domain.digests import Digest
from lockgate.domain.sources import (
    BOOKKEEPING,
    FileSelection,
    ModelRevision,
    Snapshot,
    SnapshotFile,
)
from lockgate.errors import SourceError

MAX_FILES = 10_000
MAX_SMALL_BYTES = 16 << 20


@dataclass(frozen=True)
class FoundFile:
    """A regular file: its path relative to the root, and its size when it was found."""

    path: str
    size: int


def existing(location: str) -> Path:
    """The directory that a source names. Raises `SourceError` if it is not one."""
    path = Path(location).expanduser()
    if not path.is_dir():
        what = "is not a directory" if path.exists() else "does not exist"
        raise SourceError(
            f"{location} {what}",
            hint="a source reads hf://organization/name[@revision], oci://ref@sha256:... or a directory",
        )
    return path.resolve()


def directory_revision(root: Path, snapshot: Snapshot) -> ModelRevision:
    """A directory's name for itself, and its content as commit."""
    return ModelRevision(repo=root.resolve().name or "model", commit=snapshot.digest.hex[:40])


def walk(root: Path, *, strict: bool = True) -> list[FoundFile]:
    """All regular files below `root`, sorted. Raises `SourceError` on a link or a special file, which are left out where it
    is not to be `strict`."""
    found: list[FoundFile] = []
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except OSError as error:
            raise SourceError(f"cannot list {root / folder}: {error.strerror}") from error
        for entry in entries:
            relative = f"{folder}/{entry.name}" if folder else entry.name
            if not folder and entry.name in BOOKKEEPING:
                continue
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                pending.append(relative)
            elif stat.S_ISREG(status.st_mode):
                found.append(FoundFile(relative, status.st_size))
            elif not strict:
                continue
            elif stat.S_ISLNK(status.st_mode):
                raise SourceError(
                    f"{root / relative} is a symbolic link",
                    hint="links are not followed; copy the directory with `cp -rL` first",
                )
            else:
                raise SourceError(f"{root / relative} is not a regular file")
            if len(found) + len(pending) > MAX_FILES:
                raise SourceError(f"{root} has more than {MAX_FILES} files: not a model directory")
    if not found:
        raise SourceError(f"{root} has no files")
    return sorted(found, key=lambda file: file.path)


def snapshot_file(path: str, size: int, digest: Digest) -> SnapshotFile:
    """Raises `SourceError` for a name that no snapshot may hold."""
    try:
        return SnapshotFile(path=path, size=size, digest=digest)
    except (ValidationError, UnicodeError) as error:
        raise SourceError(f"a file's name cannot be used: {path!r}") from error


def selected(found: list[FoundFile], files: FileSelection, root: Path) -> list[FoundFile]:
    """Those of `found` that are meant. Raises `SourceError` if none is."""
    taken = [file for file in found if files.takes(file.path)]
    if not taken:
        raise SourceError(f"{root} has no file that is selected by {files}")
    return taken


def is_clean_name(path: str) -> bool:
    """Whether a snapshot may hold a file of this name."""
    try:
        snapshot_file(path, 0, Digest.of_bytes(b""))
    except SourceError:
        return False
    return True


def read_snapshot(
    directory: Path,
    *,
    workers: int = 4,
    progress: Progress | None = None,
    strict: bool = True,
    files: FileSelection = FileSelection(),  # noqa: B008 - frozen
) -> Snapshot:
    """Hash every file of `directory` that `files` selects. Raises `SourceError` for what cannot be read, and where it is `strict` for links,
    special files and names that no snapshot may hold; else these are left out, for a scan to find."""
    found = selected(walk(directory, strict=strict), files, directory)
    if not strict:
        found = [file for file in found if is_clean_name(file.path)]
        if not found:
            raise SourceError(f"{directory} has no regular files")
    return _process(directory, found, None, workers, progress)


def copy_tree(
    root: Path,
    target: Path,
    *,
    workers: int = 4,
    progress: Progress | None = None,
    files: FileSelection = FileSelection(),  # noqa: B008 - frozen
) -> Snapshot:
    """Copy what `files` selects of `root` to `target` (made here), hashing the bytes that are written as they pass. Files 0644."""
    found = selected(walk(root), files, root)
    require_space(target.parent, sum(file.size for file in found), str(root))
    if target.is_relative_to(root):
        raise SourceError(f"{target.parent} lies inside the source {root}")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    return _process(root, found, target, workers, progress)


def small_files(root: Path, names: Collection[str]) -> dict[str, bytes]:
    """Those of `names` that lie at the top of `root`. Raises `SourceError` for one that is large or cannot be read."""
    found = {}
    for file in walk(root):
        if file.path not in names:
            continue
        if file.size > MAX_SMALL_BYTES:
            raise SourceError(
                f"{root / file.path} has {file.size} bytes, too many for a config file"
            )
        try:
            found[file.path] = (root / file.path).read_bytes()
        except OSError as error:
            raise SourceError(f"cannot read {root / file.path}: {error.strerror}") from error
    return found


def _process(
    root: Path,
    files: list[FoundFile],
    target: Path | None,
    workers: int,
    progress: Progress | None,
) -> Snapshot:
    meter = Meter(sum(file.size for file in files), "hash" if target is None else "copy", progress)

    def one(file: FoundFile) -> SnapshotFile:
        return _hash_file(root, file, target, meter)

    return Snapshot.of(list(in_parallel(one, files, workers)))


def _hash_file(root: Path, file: FoundFile, target: Path | None, meter: Meter) -> SnapshotFile:
    # O_NONBLOCK: a FIFO that was put in the file's place must not hang; O_NOFOLLOW: nor may a link be followed.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    snapshot_file(file.path, file.size, Digest.of_bytes(b""))
    try:
        descriptor = os.open(root / file.path, flags)
    except OSError as error:
        raise SourceError(f"cannot read {root / file.path}: {error.strerror}") from error
    with open(descriptor, "rb", buffering=0) as reader:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise SourceError(f"{root / file.path} is not a regular file")
        if target is None:
            digest, size = _pump(reader.read, None, meter, root / file.path)
        else:
            place = target / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            with place.open("wb", buffering=0) as writer:
                digest, size = _pump(reader.read, writer.write, meter, root / file.path)
            place.chmod(0o644)
    return snapshot_file(file.path, size, digest)


def _pump(
    read: Callable[[int], bytes],
    write: Callable[[memoryview], int] | None,
    meter: Meter,
    path: Path,
) -> tuple[Digest, int]:
    hasher, size = hashlib.sha256(), 0
    while True:
        try:
            chunk = read(CHUNK)
        except OSError as error:
            raise SourceError(f"cannot read {path}: {error.strerror}") from error
        if not chunk:
            return Digest.from_hex(hasher.hexdigest()), size
        hasher.update(chunk)
        size += len(chunk)
        if write is not None:
            rest = memoryview(chunk)
            while rest:
                rest = rest[write(rest) :]
        meter.add(len(chunk))
