"""A directory that is filled beside its place and renamed to it: seen whole or not at all, and gone on with after a kill."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lockgate.errors import RegistryError

_CONTINUED = (RegistryError, KeyboardInterrupt)
"""A store that broke off and somebody who stopped it: what has arrived is kept for the next call."""


@dataclass(frozen=True)
class Staging:
    """`taken_up`: whether an earlier call left something in `path`, which is not to be believed unread."""

    path: Path
    taken_up: bool

    def empty(self) -> Staging:
        """Throw away what is there."""
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        return Staging(self.path, taken_up=False)


@contextlib.contextmanager
def staged(directory: Path, identity: str) -> Iterator[Staging]:
    """Where to fill what is to become `directory`, in the same file system.

    What a call that was killed, or that met a `RegistryError`, left for the same `identity` (file name characters: what is
    to be brought) is taken up by the next one. One process at a time has it; another that comes meanwhile fills a place of
    its own. What was left for other identities is removed, and so is the place when the block ends in another error; a
    place that the block has renamed is gone. Raises `OSError`.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{directory.name}.incoming-"
    path = directory.parent / f"{prefix}{identity}"
    for other in directory.parent.glob(f"{_literal(prefix)}*"):
        if other != path:
            _sweep(other)
    lock = _lock(path, make=True)
    while lock is None:
        path = Path(tempfile.mkdtemp(prefix=prefix, dir=directory.parent))
        # None where a sweep came in between and has removed it.
        lock = _lock(path, make=False)
    try:
        yield Staging(path, taken_up=any(path.iterdir()))
    except _CONTINUED:
        if path.name != f"{prefix}{identity}":
            shutil.rmtree(path, ignore_errors=True)
        raise
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    else:
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(lock)


def _lock(path: Path, *, make: bool) -> int | None:
    """A descriptor that holds the directory's lock; None where somebody else has it, or it has gone."""
    while True:
        if make:
            path.mkdir(mode=0o700, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            if make:
                continue
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.lstat()):
                return handle
        # Whoever held it has moved it to its place meanwhile.
        os.close(handle)
        if not make:
            return None


def _sweep(path: Path) -> None:
    with contextlib.suppress(OSError):
        lock = _lock(path, make=False)
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            os.close(lock)


def _literal(text: str) -> str:
    """The text as a pattern that matches just it."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)
