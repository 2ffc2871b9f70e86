from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from lockgate.adapters.oci.layout import LayoutStore
from lockgate.domain.digests import Digest
from lockgate.domain.model_image import LARGE_FILE
from lockgate.domain.sources import Snapshot, SnapshotFile

REPOSITORY = "lockgate.local/models/demo"


@pytest.fixture
def repository() -> str:
    return REPOSITORY


@pytest.fixture
def store(tmp_path: Path) -> LayoutStore:
    return LayoutStore(tmp_path / "store")


def _write(directory: Path, files: Mapping[str, bytes]) -> Snapshot:
    for path, body in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(body)
    return Snapshot.of(
        [SnapshotFile(path=p, size=len(b), digest=Digest.of_bytes(b)) for p, b in files.items()]
    )


@pytest.fixture
def write_model() -> Callable[[Path, Mapping[str, bytes]], Snapshot]:
    """Writes files below a directory and gives their snapshot."""
    return _write


def _noise(seed: str, size: int) -> bytes:
    return hashlib.shake_128(seed.encode()).digest(size)


@pytest.fixture
def model_files() -> dict[str, bytes]:
    """Two large files and three small ones."""
    return {
        "config.json": b'{"model_type": "demo"}',
        "model-1.safetensors": _noise("one", 2 * LARGE_FILE + 17),
        "model-2.safetensors": _noise("two", LARGE_FILE),
        "tokenizer/tokenizer.json": b"{}",
        "tokenizer/empty.txt": b"",
    }


@pytest.fixture
def model(tmp_path: Path, model_files: dict[str, bytes]) -> tuple[Path, Snapshot]:
    directory = tmp_path / "model"
    return directory, _write(directory, model_files)
