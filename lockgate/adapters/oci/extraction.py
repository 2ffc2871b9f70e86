"""Reading tar layers from a stream that nobody trusts.

Only what was announced is written: each member must be a regular file (or a directory above one) that the snapshot lists
at that path, with that size and digest, once.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

from lockgate.adapters.oci.content import CHUNK, storage_error
from lockgate.domain.model_image import MODELS
from lockgate.domain.sources import Snapshot, SnapshotFile
from lockgate.errors import IntegrityError

_LARGEST_LISTING = 16 * 1024 * 1024


class Target(Protocol):
    """Takes the regular files of layers."""

    def take(self, path: str, size: int, content: IO[bytes]) -> None:
        """One file. Raises `IntegrityError` where it is not expected."""
        ...


class _Stream(io.RawIOBase):
    """A chunk iterator as the readable file that `tarfile` wants."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size


def unpack(chunks: Iterator[bytes], target: Target) -> None:
    """Hand every file of one uncompressed layer to `target`, and read the layer to its end, so that its digest is checked.

    Raises `IntegrityError` for anything but regular files and directories.
    """
    stream = io.BufferedReader(_Stream(chunks), CHUNK)
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=CHUNK) as archive:
            for member in archive:
                if member.isdir():
                    continue
                content = archive.extractfile(member) if member.isreg() else None
                if content is None or member.issparse():
                    raise IntegrityError(f"layer holds {member.name!r}, which is no regular file")
                target.take(member.name, member.size, content)
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        raise IntegrityError(f"layer is not a tar archive: {error}") from error
    while stream.read(CHUNK):
        pass


class SingleFile:
    """Keeps one small file in memory and passes over the others."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.body = b""

    def take(self, path: str, size: int, content: IO[bytes]) -> None:
        if path != self._path:
            return
        if size > _LARGEST_LISTING:
            raise IntegrityError(f"{path} has {size} bytes")
        self.body = content.read()


class SnapshotDirectory:
    """Writes the files of a snapshot below a directory, each checked against size and digest."""

    def __init__(self, snapshot: Snapshot, directory: Path, ignored: frozenset[str]) -> None:
        self._expected = {f"{MODELS}/{f.path}": f for f in snapshot.files}
        self._directory = directory
        self._ignored = ignored

    @property
    def missing(self) -> list[str]:
        """Paths that no layer held yet."""
        return sorted(self._expected)

    def take(self, path: str, size: int, content: IO[bytes]) -> None:
        if path in self._ignored:
            return
        file = self._expected.pop(path, None)
        if file is None:
            raise IntegrityError(f"image holds {path!r}, which its snapshot does not list (again)")
        if file.size != size:
            raise IntegrityError(f"{path} has {size} bytes in the image, {file.size} in the list")
        target = self._directory / file.path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self._write(target, file, content)
        except OSError as error:
            raise storage_error(error, target, "writing") from error

    def _write(self, target: Path, file: SnapshotFile, content: IO[bytes]) -> None:
        sha = hashlib.sha256()
        # O_EXCL and O_NOFOLLOW: nothing that lies there already is written through.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(target, flags, 0o644), "wb", buffering=0) as out:
            while chunk := content.read(CHUNK):
                sha.update(chunk)
                view = memoryview(chunk)
                while view:
                    view = view[out.write(view) :]
        if sha.hexdigest() != file.digest.hex:
            raise IntegrityError(f"{file.path} in the image is not the file that was packaged")
        # A later look sees by the time that nobody wrote here since.
        os.utime(target, (0, 0))


def untouched(directory: Path, snapshot: Snapshot) -> str | None:
    """Why a directory does not hold exactly the snapshot, or None.

    Files that carry the time `SnapshotDirectory` gave them are taken by their size; others are hashed.
    """
    expected = {f.path: f for f in snapshot.files}
    for folder, folders, names in os.walk(directory):
        # A link to a directory is listed among the directories, and would be followed by whoever loads the model.
        for name in [*names, *(f for f in folders if Path(folder, f).is_symlink())]:
            path = Path(folder, name)
            relative = path.relative_to(directory).as_posix()
            file = expected.pop(relative, None)
            if file is None:
                return f"{relative} does not belong there"
            stat = path.lstat()
            if stat.st_size != file.size or not path.is_file() or path.is_symlink():
                return f"{relative} was changed"
            if stat.st_mtime != 0 and _digest(path) != file.digest.hex:
                return f"{relative} was changed"
    return f"{min(expected)} is missing" if expected else None


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_occupied(error: OSError) -> bool:
    """Whether a rename failed because somebody else was there first."""
    return error.errno in (errno.ENOTEMPTY, errno.EEXIST)
