"""Reading tar layers from a stream that nobody trusts.

Only what was announced is written: each member must be a regular file (or a directory above one) that the snapshot lists
at that path, with that size and digest, once.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Protocol

from lockgate.adapters.oci.content import CHUNK, storage_error
from lockgate.domain.model_image import MODELS, LayerPlan, file_header, padding
from lockgate.domain.sources import Snapshot, SnapshotFile
from lockgate.errors import IntegrityError
from lockgate.streams import ChunkFile
from lockgate.tar_streams import members

_LARGEST_LISTING = 16 * 1024 * 1024


class Target(Protocol):
    """Takes the regular files of layers."""

    def take(self, path: str, size: int, content: IO[bytes]) -> None:
        """One file. Raises `IntegrityError` where it is not expected."""
        ...


def unpack(chunks: Iterator[bytes], target: Target) -> None:
    """Hand every file of one uncompressed layer to `target`, and read the layer to its end, so that its digest is checked.

    Raises `IntegrityError` for anything but regular files and directories.
    """
    stream = io.BufferedReader(ChunkFile(chunks), CHUNK)
    try:
        for member, content in members(stream):
            if member.isdir():
                continue
            if content is None:
                raise IntegrityError(f"layer holds {member.name!r}, which is no regular file")
            target.take(member.name, member.size, content)
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
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
    """Writes the files of a snapshot below a directory, each checked against size and digest. Of what lies there from an
    earlier try, only what `held` gave is gone on with."""

    def __init__(self, snapshot: Snapshot, directory: Path, ignored: frozenset[str]) -> None:
        self._expected = {f"{MODELS}/{f.path}": f for f in snapshot.files}
        self._directory = directory
        self._ignored = ignored
        self._kept: dict[str, int] = {}

    def held(self, plan: LayerPlan) -> Iterator[bytes]:
        """The first bytes of the layer that `plan` describes, as far as its files were written before. They pass through
        `take` like all others, which compares the digests."""
        headers = plan.directory_headers()
        for file in plan.files:
            path = self._directory / file.path
            size = _size_of(path)
            if size is None or size > file.size:
                return
            yield from headers
            headers = []
            self._kept[file.path] = size
            yield file_header(file)
            yield from _read(path, size)
            if size < file.size:
                return
            yield bytes(padding(size))

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
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise IntegrityError(
                f"image holds {path!r} both as a file and as a directory"
            ) from error
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise IntegrityError(
                    f"image holds a name too long to be written: {path!r}"
                ) from error
            raise storage_error(error, target, "writing") from error

    def _write(self, target: Path, file: SnapshotFile, content: IO[bytes]) -> None:
        sha, kept = hashlib.sha256(), self._kept.pop(file.path, 0)
        # O_EXCL and O_NOFOLLOW: nothing that lies there already is written through.
        flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        if not kept:
            target.unlink(missing_ok=True)
            flags |= os.O_CREAT | os.O_EXCL
        with open(os.open(target, flags, 0o644), "wb", buffering=0) as out:
            out.seek(kept)
            while chunk := content.read(CHUNK):
                sha.update(chunk)
                view = memoryview(chunk)[kept:]
                kept = max(0, kept - len(chunk))
                while view:
                    view = view[out.write(view) :]
        if sha.hexdigest() != file.digest.hex:
            raise IntegrityError(f"{file.path} in the image is not the file that was packaged")
        # A later look sees by the time that nobody wrote here since.
        os.utime(target, (0, 0))


def _size_of(path: Path) -> int | None:
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _read(path: Path, size: int) -> Iterator[bytes]:
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
        while size and (chunk := file.read(min(CHUNK, size))):
            size -= len(chunk)
            yield chunk


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
            status = path.lstat()
            if status.st_size != file.size or not path.is_file() or path.is_symlink():
                return f"{relative} was changed"
            if status.st_mtime != 0 and _digest(path) != file.digest.hex:
                return f"{relative} was changed"
    return f"{min(expected)} is missing" if expected else None


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_occupied(error: OSError) -> bool:
    """Whether a rename failed because somebody else was there first."""
    return error.errno in (errno.ENOTEMPTY, errno.EEXIST)
