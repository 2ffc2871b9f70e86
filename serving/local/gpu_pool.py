"""GPUs for model servers on one machine, lent like its cores (`serving.local.cpu_pool`): one owner each while there are enough.

An engine takes nearly all memory of a GPU that it sees. So every server is shown its own only; more servers than GPUs share,
which works where their arguments leave each other room.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lockgate.errors import ServingError
from serving.hardware import VISIBLE_GPUS, visible_gpus
from serving.local.cpu_pool import lend


@dataclass(frozen=True)
class GpuLease:
    """GPUs lent to one server, by index or UUID as CUDA takes them."""

    gpus: tuple[str, ...] = ()
    exclusive: bool = True
    fds: tuple[int, ...] = ()


class GpuPool:
    """The GPUs this process may use (or `gpus`), lent out by locks in `directory`."""

    def __init__(self, directory: Path | None = None, *, gpus: Sequence[str] | None = None) -> None:
        self.directory = directory or Path(tempfile.gettempdir()) / f"lockgate-gpus-{os.getuid()}"
        self.gpus = tuple(visible_gpus() if gpus is None else gpus)

    @contextmanager
    def acquire(self, count: int) -> Iterator[GpuLease]:
        """`count` GPUs for the time of the block, and beyond it for a server that inherited the lease's `fds`; the least
        shared ones, without waiting. None of them is no lease. `ServingError` if there are not that many."""
        if not count:
            yield GpuLease()
            return
        if count > len(self.gpus):
            raise ServingError(
                f"{count} GPUs are needed, {len(self.gpus)} can be used here",
                hint=f"see `nvidia-smi -L` and {VISIBLE_GPUS}, or ask for fewer (`serving.resources.gpu`)",
            )
        units = {f"gpu-{name}": name for name in self.gpus}
        taken, exclusive = lend(self.directory, units, count)
        try:
            gpus = tuple(name for unit, name in units.items() if unit in taken)
            yield GpuLease(gpus, exclusive, tuple(taken.values()))
        finally:
            for fd in taken.values():
                os.close(fd)
