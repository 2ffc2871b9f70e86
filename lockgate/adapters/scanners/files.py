"""Reading files of an untrusted directory: regular files only, no link followed, never more than asked for."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lockgate.domain.scanning.content import HEAD, TAIL
from lockgate.errors import LockgateError, ScannerError


def said(error: Exception) -> str:
    """An error's message for evidence, which is signed and travels: without paths of this machine."""
    if isinstance(error, LockgateError):
        return error.message
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return f"{type(error).__name__}: {error}"


def open_regular(path: Path) -> int:
    """A descriptor. Raises `ScannerError` if the path is not a regular file or cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ScannerError(f"cannot read {path.name}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ScannerError(f"{path.name} is not a regular file")
    return descriptor


def read_range(path: Path, begin: int, length: int) -> bytes:
    """At most `length` bytes from `begin` on."""
    descriptor = open_regular(path)
    with open(descriptor, "rb") as file:
        file.seek(begin)
        return file.read(length)


def head_and_tail(path: Path) -> tuple[bytes, bytes]:
    """The beginning and the end, as `sniff` wants them."""
    descriptor = open_regular(path)
    with open(descriptor, "rb") as file:
        head = file.read(HEAD)
        size = os.fstat(descriptor).st_size
        file.seek(max(0, size - TAIL))
        return head, file.read(TAIL)


class Window:
    """So many bytes may be in memory at one time, whoever reads them; one large file waits for several small ones."""

    def __init__(self, size: int) -> None:
        self._left = self._size = size
        self._changed = threading.Condition()

    @contextmanager
    def of(self, wanted: int) -> Iterator[None]:
        """Holds `wanted` bytes (at most the whole window) while the block runs."""
        wanted = min(wanted, self._size)
        with self._changed:
            self._changed.wait_for(lambda: self._left >= wanted)
            self._left -= wanted
        try:
            yield
        finally:
            with self._changed:
                self._left += wanted
                self._changed.notify_all()
