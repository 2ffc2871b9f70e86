"""Two machines' worth of workers on one: each has a home and a workspace of its own, and they share a registry, a Git remote, a
Prefect server on PostgreSQL, and the cluster that serves."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from lockgate.adapters.git import EMBEDDED
from lockgate.settings import Settings
from tasks.workspace import Workspace, initialise
from tests.integration.oci.conftest import free_port


@contextmanager
def running_postgres(programs: Path) -> Iterator[str]:
    """A server on a free port of the loopback; yields Prefect's address of its database. It does not run as root."""
    # Not under pytest's directories: they are for one user only, and their names too long for a socket.
    with tempfile.TemporaryDirectory(prefix="postgres-") as place:
        directory = Path(place)
        user = "postgres" if os.geteuid() == 0 else None
        if user is not None:
            shutil.chown(directory, user)
        with _postgres_in(directory, programs, user) as database:
            yield database


@contextmanager
def _postgres_in(directory: Path, programs: Path, user: str | None) -> Iterator[str]:
    data, port = directory / "data", free_port()
    run = {"user": user, "cwd": "/", "check": True, "timeout": 120, "capture_output": True}
    initdb = [
        programs / "initdb",
        "-D",
        data,
        "-A",
        "trust",
        "-U",
        "prefect",
        "--no-sync",
        "-E",
        "UTF8",
    ]
    subprocess.run(initdb, **run)
    with (directory / "postgres.log").open("wb") as log:
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", directory],
            user=user, cwd="/", stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        ask = [
            programs / "psql",
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-U",
            "prefect",
            "-d",
            "postgres",
        ]
        for _ in range(120):
            if not subprocess.run(
                [*ask, "-c", "select 1"], capture_output=True, timeout=30
            ).returncode:
                break
            assert server.poll() is None, (directory / "postgres.log").read_text()
            time.sleep(0.25)
        subprocess.run(
            [*ask, "-c", "create database prefect"], check=True, capture_output=True, timeout=30
        )
        yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/prefect"
    finally:
        server.send_signal(signal.SIGQUIT)
        server.wait(60)


@contextmanager
def running_prefect(database: str, directory: Path) -> Iterator[str]:
    """Prefect's server, with all of its services; yields its API's address."""
    directory.mkdir()
    url = f"http://127.0.0.1:{free_port()}/api"
    environment = {
        **os.environ, "PREFECT_HOME": str(directory), "PREFECT_API_URL": url,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }  # fmt: skip
    port = url.rpartition(":")[2].removesuffix("/api")
    with (directory / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", port],
            env=environment, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while not healthy(url):
            assert server.poll() is None, (directory / "server.log").read_text()
            assert time.monotonic() < deadline, (directory / "server.log").read_text()
            time.sleep(0.5)
        yield url
    finally:
        kill(server)


def healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def kill(process: subprocess.Popen[bytes]) -> None:
    """As the loss of a machine would: the process and all that it started, at once."""
    family = (
        [process, *psutil.Process(process.pid).children(recursive=True)]
        if process.poll() is None
        else []
    )
    for member in family:
        try:
            member.send_signal(signal.SIGKILL)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    process.wait(60)


@dataclass(frozen=True)
class Site:
    """What the workers share."""

    root: Path
    store: str
    prefect: str

    def settings(self, name: str) -> Settings:
        return Settings(
            workspace=self.root / name, store=self.store, repository=f"{self.store}/ml",
            remote=str(self.root / "remote.git"), signing_key=self.root / "secrets" / "keys" / "release.key",
        )  # fmt: skip

    def begin(self) -> None:
        """The repository with its policy, the release key, and the cluster."""
        secrets = self.settings("secrets").model_copy(update={"signing_key": None})
        initialise(secrets, layout=EMBEDDED, demo=True)
        Workspace(self.settings("machines")).start_cluster()

    def end(self) -> None:
        Workspace(self.settings("machines")).embedded_cluster().down()

    def environment(self, name: str) -> dict[str, str]:
        """Of a worker with a workspace and a home of its own; the cluster that it looks at is the one there is."""
        workspace = self.root / name
        if not workspace.exists():
            workspace.mkdir()
            (workspace / "cluster").symlink_to(self.root / "machines" / "cluster")
        settings = self.settings(name)
        return {
            **os.environ, "LOCKGATE_WORKSPACE": str(workspace), "LOCKGATE_STORE": self.store,
            "LOCKGATE_REPOSITORY": settings.repository, "LOCKGATE_REMOTE": settings.git_remote,
            "LOCKGATE_SIGNING_KEY": str(settings.signing_key), "LOCKGATE_STEP_RUNNER": "inline",
            "PREFECT_HOME": str(self.root / f"{name}-home"), "PREFECT_API_URL": self.prefect,
            "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json", "PREFECT_LOGGING_EXTRA_LOGGERS": "lockgate",
        }  # fmt: skip

    def worker(self, name: str) -> subprocess.Popen[bytes]:
        environment = self.environment(name)
        directory = self.root / f"{name}-home"
        directory.mkdir(exist_ok=True)
        with self.log(name).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "prefect", "worker", "start", "--pool", "lockgate", "--name", name],
                env=environment, cwd=directory, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def log(self, name: str) -> Path:
        return self.root / f"{name}.log"
