"""Packaging as a process of its own: its memory, its death, its command line."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_signing import verifying
from typer.testing import CliRunner

from lockgate.adapters.oci import open_store
from lockgate.adapters.oci.package import pull_model, push_model, snapshot_of
from lockgate.adapters.signing import generate_key
from lockgate.adapters.sources import read_snapshot
from lockgate.cli.app import app
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.sources import Snapshot, SnapshotFile

Model = tuple[Path, Snapshot]
Registry = Any
MIB = 1024 * 1024

PUSH = """
import os, resource, sys
from pathlib import Path
from lockgate.adapters.oci import open_store
from lockgate.adapters.oci.package import push_model
from lockgate.domain.model_image import parse_snapshot_document
host, directory, listing, until = sys.argv[1:]
# A second copy of the weights, wherever it were written, would be a larger file.
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

def progress(done, total):
    if done >= float(until) * total:
        os._exit(9)

push_model(
    open_store(host), f"{host}/models/demo", Path(directory),
    parse_snapshot_document(Path(listing).read_bytes()), labels={}, progress=progress,
)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def push_in_a_process(
    host: str, directory: Path, snapshot: Snapshot, *, until: float = 2.0
) -> subprocess.CompletedProcess[str]:
    listing = directory.parent / "listing.json"
    rows = [[f.path, f.size, f.digest] for f in snapshot.files]
    listing.write_text(json.dumps(rows, separators=(",", ":")))
    return subprocess.run(
        [sys.executable, "-c", PUSH, host, directory, listing, str(until)],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_a_large_model_takes_no_more_memory_than_a_small_one_and_is_written_nowhere_else(
    registry: Registry, tmp_path: Path
) -> None:
    directory = tmp_path / "large"
    directory.mkdir()
    size = 256 * MIB
    sha = hashlib.sha256()
    for _ in range(size // MIB):
        sha.update(bytes(MIB))
    with open(directory / "model.safetensors", "wb") as file:
        file.truncate(size)
    weights = SnapshotFile(
        path="model.safetensors", size=size, digest=Digest.from_hex(sha.hexdigest())
    )
    done = push_in_a_process(registry.host, directory, Snapshot.of([weights]))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 150 * 1024


def test_a_push_that_was_killed_goes_on_at_the_layers_that_are_missing(
    registry: Registry, make_proxy: Callable[..., Any], tmp_path: Path
) -> None:
    directory = tmp_path / "model"
    directory.mkdir()
    for number in range(6):
        body = hashlib.shake_128(bytes([number])).digest(4 * MIB)
        (directory / f"model-{number}.safetensors").write_bytes(body)
    snapshot = read_snapshot(directory)
    proxy = make_proxy(registry.port, cut_after=0, cuts=0)
    killed = push_in_a_process(proxy.host, directory, snapshot, until=5 / 6)
    assert killed.returncode == 9, killed.stderr
    before = proxy.forwarded
    store = open_store(proxy.host)
    ref = push_model(store, f"{proxy.host}/models/demo", directory, snapshot, labels={})
    assert snapshot_of(store, ref) == snapshot
    # Four layers at a time: at least two of the six were whole.
    assert proxy.forwarded - before < 17 * MIB


PULL = """
import os, sys
from pathlib import Path
from lockgate.adapters.oci import open_store
from lockgate.adapters.oci.package import pull_model
from lockgate.domain.images import ImageRef
host, ref, directory = sys.argv[1:]

def progress(done, total):
    if done >= 0.7 * total:
        os._exit(9)

pull_model(open_store(host), ImageRef.parse(ref), Path(directory), progress)
"""


def test_a_pull_that_was_killed_goes_on_within_the_layer(
    registry: Registry, make_proxy: Callable[..., Any], model: Model, tmp_path: Path
) -> None:
    proxy = make_proxy(registry.port, cut_after=0, cuts=0)
    ref = push_model(open_store(proxy.host), f"{proxy.host}/models/demo", *model, labels={})
    target = tmp_path / "pulled" / "model"
    command = [sys.executable, "-c", PULL, proxy.host, str(ref), str(target)]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert killed.returncode == 9, killed.stderr
    assert not target.exists()
    before = proxy.forwarded
    assert pull_model(open_store(proxy.host), ref, target) == model[1]
    assert read_snapshot(target) == model[1]
    # 30 % of 24 MiB, and what was on its way when it died.
    assert proxy.forwarded - before < 12 * MIB
    assert [entry.name for entry in target.parent.iterdir()] == ["model"]


def test_the_command_takes_a_registry_with_its_repository_and_mounts_what_another_has(
    registry: Registry, make_proxy: Callable[..., Any], model: Model
) -> None:
    proxy = make_proxy(registry.port, cut_after=0, cuts=0)
    command = ["package", str(model[0]), "--json", "--to"]

    def package(*arguments: str) -> ImageRef:
        done = CliRunner().invoke(app, [*command, *arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return ImageRef.parse(json.loads(done.stdout)["image"])

    first = package(f"{proxy.host}/team/demo")
    assert first.repository == f"{proxy.host}/team/demo"
    before = proxy.forwarded
    second = package(f"{proxy.host}/other/demo", "--mount-from", f"{proxy.host}/team/demo")
    assert second.digest == first.digest
    assert proxy.forwarded - before < MIB


def test_a_directory_is_signed_by_the_workspaces_key_on_request(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCKGATE_SIGNING_KEY", str(tmp_path / "release.key"))
    generate_key(tmp_path / "release.key", tmp_path / "release.pub")
    done = CliRunner().invoke(app, ["sign-directory", str(model[0])], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    config = verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "release.pub")
    config.verify(model[0], tmp_path / "model.sig")
