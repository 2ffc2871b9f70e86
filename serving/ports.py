"""Free ports on the loopback interface that stay free until a slow server binds them."""

from __future__ import annotations

import contextlib
import random
import socket
from dataclasses import dataclass

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class PortReservation:
    """A bound, not listening socket: nobody is given this port by the kernel meanwhile.

    A server that sets SO_REUSEADDR (uvicorn, asyncio, http.server do) can bind it all the same, since nothing listens.
    """

    port: int
    _socket: socket.socket

    @classmethod
    def any(cls) -> PortReservation:
        """Raises `OSError` if there is no free port."""
        return cls._bound(0)

    @classmethod
    def of(cls, port: int) -> PortReservation:
        """Raises `OSError` if something listens there or holds the port for itself."""
        return cls._bound(port)

    @classmethod
    def _bound(cls, port: int) -> PortReservation:
        reserved = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind((LOOPBACK, port))
        except OSError:
            reserved.close()
            raise
        return cls(reserved.getsockname()[1], reserved)

    def fileno(self) -> int:
        """To be inherited by the server, so that the reservation lives as long as it does."""
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()


def listening(port: int) -> bool:
    """Whether something accepts connections on this loopback port."""
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_STREAM)) as probe:
        probe.settimeout(1)
        return probe.connect_ex((LOOPBACK, port)) == 0


def pick_stable() -> int:
    """A free port outside the range that the kernel lends to clients: one that is still free after a restart.

    Raises `OSError` if none is found.
    """
    for _ in range(200):
        port = random.randrange(20000, 30000)
        try:
            PortReservation.of(port).close()
        except OSError:
            continue
        return port
    raise OSError("no free port between 20000 and 30000")
