"""Blob content on its way: hashed as it passes, never whole in memory."""

from __future__ import annotations

import errno
import hashlib
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path

from lockgate.domain.digests import Digest
from lockgate.domain.stores import Content, Rewindable
from lockgate.errors import IntegrityError, LockgateError, RegistryError, StorageFull

CHUNK = 1024 * 1024
"""Bytes read or handed on at once."""
_AHEAD = 8
"""Chunks made in advance."""
Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all); the last call has both equal."""
MAX_MANIFEST = 4 * 1024 * 1024
"""Largest manifest or index that is read; registries refuse larger ones as well."""


def storage_error(error: OSError, path: Path | str, doing: str) -> LockgateError:
    """An operating system error in the words of what it means for the user."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull(
            f"no space left on the device while {doing} {path}",
            hint="free space or move the workspace to a larger disk, then run the same command again",
        )
    return RegistryError(f"{doing} {path} failed: {error.strerror or error}")


class Hashed:
    """Hashes a stream that may be rewound: every byte counts once, however often it is sent."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self.size = 0

    @property
    def digest(self) -> Digest:
        return Digest.from_hex(self._sha.hexdigest())

    def passing(self, chunks: Iterable[bytes], offset: int = 0) -> Iterator[bytes]:
        """The chunks unchanged; those beyond what was already hashed are hashed. `offset` is where they start."""
        if offset > self.size:
            raise IntegrityError(f"content resumed at byte {offset} but only {self.size} were sent")
        for chunk in chunks:
            offset += len(chunk)
            if offset > self.size:
                self._sha.update(chunk[-(offset - self.size) :])
                self.size = offset
            yield chunk

    def check(self, what: str, digest: Digest | None, size: int | None) -> Digest:
        """The digest of all that passed; `IntegrityError` if it is not the expected one."""
        if size is not None and self.size != size:
            raise IntegrityError(f"{what}: {self.size} bytes where {size} were expected")
        if digest is not None and self.digest != digest:
            raise IntegrityError(f"{what}: content has {self.digest}, expected {digest}")
        return self.digest


def rewindable(content: Content) -> Rewindable | None:
    """A way to get the content from any offset, or None for one that can be read only once."""
    if callable(content):
        return content
    if isinstance(content, Sequence):
        pieces = content
        return lambda offset: _skip(pieces, offset)
    return None


def once(content: Content) -> Iterable[bytes]:
    """The content from its beginning."""
    return content(0) if callable(content) else content


def _skip(pieces: Iterable[bytes], offset: int) -> Iterator[bytes]:
    for piece in pieces:
        if offset >= len(piece):
            offset -= len(piece)
            continue
        yield piece[offset:]
        offset = 0


def read_file(path: Path, offset: int = 0) -> Iterator[bytes]:
    """A file in chunks from an offset."""
    with open(path, "rb") as file:
        file.seek(offset)
        while chunk := file.read(CHUNK):
            yield chunk


def ahead(chunks: Iterator[bytes]) -> Generator[bytes]:
    """The chunks, some of them made in advance by a thread: hashing and sending go on side by side."""
    made: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)
    ended = threading.Event()

    def put(item: bytes | BaseException | None) -> bool:
        while not ended.is_set():
            try:
                made.put(item, timeout=0.5)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for chunk in chunks:
                if not put(chunk):
                    break
            else:
                put(None)
        except BaseException as error:
            put(error)
        finally:
            if isinstance(chunks, Generator):
                chunks.close()

    maker = threading.Thread(target=make, name="read-ahead", daemon=True)
    maker.start()
    try:
        while (item := made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        ended.set()
        maker.join()
