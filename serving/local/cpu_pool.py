"""CPU cores for model servers, one owner each, on one machine.

A core is owned by holding a `flock` on a file of its own. The lock is given on to the server by inheritance of the file
descriptor, so it is released by the kernel when the server ends, whoever was killed before. Every cluster and test server
of a user shares the pool. Where no core is free, cores are shared evenly: level 0 of a core is its exclusive owner's,
level 1 the first sharer's, and so on.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lockgate.errors import ServingError

_LEVELS = 64


@dataclass
class CpuLease:
    """Cores lent to one server. `close()` drops this process's share of the locks, not that of a child."""

    cores: tuple[int, ...]
    exclusive: bool
    fds: tuple[int, ...]
    _closed: bool = field(default=False, repr=False)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            for fd in self.fds:
                os.close(fd)

    def __enter__(self) -> CpuLease:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Cores(Protocol):
    """Whoever lends cores to a server."""

    def acquire(self, count: int) -> CpuLease: ...


class SharedCores:
    """The cores of one lease, lent on to several servers that are never asked anything at the same time.

    So two candidates are measured on the very same cores, beside the same neighbours.
    """

    def __init__(self, lease: CpuLease) -> None:
        self.lease = lease

    def acquire(self, count: int) -> CpuLease:
        """The first `count` cores of the lease, with a share of its own in all of its locks."""
        fds = tuple(os.dup(fd) for fd in self.lease.fds)
        return CpuLease(self.lease.cores[:count], self.lease.exclusive, fds)


def default_directory() -> Path:
    """Where the locks of this user's machine-wide pool lie."""
    return Path(tempfile.gettempdir()) / f"lockgate-cpus-{os.getuid()}"


class CpuPool:
    """The cores this process may run on (or `cores`), lent out by locks in `directory`."""

    def __init__(
        self, directory: Path | None = None, *, cores: Sequence[int] | None = None
    ) -> None:
        self.directory = directory or default_directory()
        self.cores = tuple(sorted(os.sched_getaffinity(0) if cores is None else cores))

    def acquire(self, count: int) -> CpuLease:
        """`count` cores: exclusive ones if that many are free, else the least shared. Never waits.

        More cores than there are give all there are. `ServingError` if the pool's directory cannot be used.
        """
        units = {f"core-{core}": core for core in self.cores}
        taken, exclusive = lend(self.directory, units, min(count, len(units)))
        return CpuLease(
            tuple(sorted(units[name] for name in taken)), exclusive, tuple(taken.values())
        )


def lend(directory: Path, units: Iterable[str], count: int) -> tuple[dict[str, int], bool]:
    """Locks `count` of the named units in `directory`, the least shared first: open lock files by name, and whether no unit
    is shared. Never waits. `ServingError` if the directory cannot be used.
    """
    taken: dict[str, int] = {}
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if directory.stat().st_uid != os.getuid():
            raise PermissionError(f"{directory} belongs to another user")
        for level in range(_LEVELS):
            for name in units:
                if name in taken or len(taken) == count:
                    continue
                fd = _lock(directory / f"{name}.{level}")
                if fd is not None:
                    taken[name] = fd
            if len(taken) == count:
                return taken, level == 0
    except OSError as error:
        _release(taken.values())
        raise ServingError(
            f"the pool {directory} cannot be used: {error}",
            hint="remove that directory, or set TMPDIR to one that is writable",
        ) from error
    _release(taken.values())
    raise ServingError(f"more than {_LEVELS} servers share each unit of {directory}")


def _lock(path: Path) -> int | None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _release(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
