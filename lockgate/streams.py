"""Byte streams that somebody else sends: held to their announced size, and as files for readers that take nothing else."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

from lockgate.errors import IntegrityError


def at_most(chunks: Iterable[bytes], size: int, what: str) -> Iterator[bytes]:
    """The pieces. `IntegrityError` where they come to more than the `size` bytes announced: a stream without end ends there."""
    left = size
    for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise IntegrityError(f"{what} goes on after the {size} bytes announced")
        yield chunk


class ChunkFile(io.RawIOBase):
    """An iterator of pieces as a file that can be read once, from its beginning."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # mypy's own Buffer
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size

    def drain(self) -> None:
        """Read what is left and throw it away: whoever makes the pieces may check the whole at its end."""
        self._left = memoryview(b"")
        for _ in self._chunks:
            pass
