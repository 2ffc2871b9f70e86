"""A file that arrives piece by piece and is gone on with by the next process where one was killed.

For sources that give no digest to compare the whole with. Beside the file, a line a piece says how long it was and which
CRC-32 it had when it arrived. Taking the file up reads it back once, for its digest, and cuts it at the first piece that is
not what arrived: what a crash of the machine left of the last pieces is asked for again and never taken for content.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path
from types import TracebackType

from lockgate.domain.digests import Digest

MAX_PIECE = 64 << 20
_JOURNAL = ".pieces"


class Partial:
    """Open until the `with` block ends. `size`: bytes that are there and right."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sha = hashlib.sha256()
        self.size = 0
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._file = open(os.open(path, flags, 0o644), "r+b", buffering=0)  # noqa: SIM115
        self._journal = open(_journal(path), "a+b", buffering=0)  # noqa: SIM115
        self._take_up()

    def __enter__(self) -> Partial:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._file.close()
        self._journal.close()

    def write(self, piece: bytes) -> None:
        """The next piece, at most `MAX_PIECE` bytes."""
        rest = memoryview(piece)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._journal.write(b"%d %d\n" % (len(piece), zlib.crc32(piece)))
        self._sha.update(piece)
        self.size += len(piece)

    @property
    def digest(self) -> Digest:
        """Of what is there."""
        return Digest.from_hex(self._sha.hexdigest())

    def _take_up(self) -> None:
        self._journal.seek(0)
        good = 0
        for line in self._journal.readall().splitlines(keepends=True):
            length, crc = _parsed(line)
            piece = self._read(length)
            if not length or len(piece) != length or zlib.crc32(piece) != crc:
                break
            self._sha.update(piece)
            self.size += length
            good += len(line)
        self._journal.truncate(good)
        self._file.truncate(self.size)
        self._file.seek(self.size)

    def _read(self, length: int) -> bytes:
        pieces = []
        while length and (piece := self._file.read(length)):
            pieces.append(piece)
            length -= len(piece)
        return b"".join(pieces)


def finished(path: Path, place: Path) -> None:
    """Move a file that has arrived whole to its place, without what was noted about it."""
    path.chmod(0o644)
    path.replace(place)
    _journal(path).unlink(missing_ok=True)


def _journal(path: Path) -> Path:
    return path.with_name(f"{path.name}{_JOURNAL}")


def _parsed(line: bytes) -> tuple[int, int]:
    """Length and CRC; length 0 for a line that a kill cut short."""
    try:
        length, crc = (int(number) for number in line.split())
    except ValueError:
        return 0, 0
    return (length, crc) if line.endswith(b"\n") and 0 < length <= MAX_PIECE else (0, 0)
