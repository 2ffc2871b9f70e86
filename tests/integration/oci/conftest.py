"""A real registry: Docker's 2.8 from Debian, which has no referrers API, on a free port of the loopback."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import yaml

from lockgate.domain.digests import Digest
from lockgate.domain.sources import Snapshot, SnapshotFile


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class RunningRegistry:
    """A registry process that can be stopped and started again on the same port and storage."""

    binary: Path
    directory: Path
    settings: Mapping[str, object] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        config = self.directory / "registry.yml"
        config.write_text(
            yaml.safe_dump(
                {
                    "version": 0.1,
                    "log": {"level": "error"},
                    "storage": {"filesystem": {"rootdirectory": str(self.directory / "data")}},
                    "http": {"addr": self.host},
                    **self.settings,
                }
            )
        )
        log = open(self.directory / "registry.log", "ab")  # noqa: SIM115
        with log:
            self.process = subprocess.Popen(
                [self.binary, "serve", config],
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"},
            )
        for _ in range(200):
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"http://{self.host}/v2/", timeout=5, trust_env=False)
                return
            assert self.process.poll() is None, (self.directory / "registry.log").read_text()
            time.sleep(0.05)
        raise AssertionError("the registry does not answer")

    def stop(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=10)
            self.process = None


@pytest.fixture
def make_registry(
    docker_registry: Path, tmp_path: Path
) -> Iterator[Callable[..., RunningRegistry]]:
    made: list[RunningRegistry] = []

    def make(**settings: object) -> RunningRegistry:
        directory = tmp_path / f"registry-{len(made)}"
        directory.mkdir()
        registry = RunningRegistry(docker_registry, directory, settings)
        made.append(registry)
        registry.start()
        return registry

    yield make
    for registry in made:
        registry.stop()


@pytest.fixture
def registry(make_registry: Callable[..., RunningRegistry]) -> RunningRegistry:
    return make_registry()


class CuttingProxy:
    """Forwards connections to a port and cuts the first ones that carry much, after some bytes in either direction."""

    def __init__(self, target: int, cut_after: int, cuts: int) -> None:
        self._target, self._cut_after, self._cuts_left = target, cut_after, cuts
        self.forwarded = 0
        self._guard = threading.Lock()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def cuts_left(self) -> int:
        return self._cuts_left

    def close(self) -> None:
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                upstream = socket.create_connection(("127.0.0.1", self._target))
                for source, sink in ((client, upstream), (upstream, client)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
                passed += len(data)
                with self._guard:
                    self.forwarded += len(data)
                    cut = passed > self._cut_after and self._cuts_left > 0
                    self._cuts_left -= cut
                if cut:
                    break
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
                # Only a closed socket answers what still comes with a reset.
                end.close()


@pytest.fixture
def make_proxy() -> Iterator[Callable[..., CuttingProxy]]:
    made: list[CuttingProxy] = []

    def make(target: int, *, cut_after: int, cuts: int) -> CuttingProxy:
        made.append(CuttingProxy(target, cut_after, cuts))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


LARGE = 24 * 1024 * 1024


@pytest.fixture
def model(tmp_path: Path) -> tuple[Path, Snapshot]:
    """A model of one large file and two small ones."""
    directory = tmp_path / "model"
    directory.mkdir()
    files = {
        "config.json": b"{}",
        "model.safetensors": hashlib.shake_128(b"weights").digest(LARGE),
        "tokenizer.json": b'{"version": "1.0"}',
    }
    for name, body in files.items():
        (directory / name).write_bytes(body)
    return directory, Snapshot.of(
        [SnapshotFile(path=p, size=len(b), digest=Digest.of_bytes(b)) for p, b in files.items()]
    )
