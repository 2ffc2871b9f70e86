"""OpenSSF Model Signing of a bare directory, read by model-signing itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from lockgate.adapters.signing import sign_snapshot
from lockgate.adapters.sources import read_snapshot
from lockgate.cli.app import app
from lockgate.domain.policy import Policy
from tasks.workspace import Workspace
from tests.unit.signing.local_sigstore import IDENTITY, ISSUER, LocalSigstore

pytestmark = pytest.mark.slow

World = Any
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    # Sorted by parts, not by characters: "." and "-" come before "/".
    "a/tokenizer.json": b"1",
    "a-b/tokenizer.json": b"2",
    "a.txt": b"3",
    ".gitattributes": b"*.safetensors filter=lfs",
}


@pytest.fixture
def signed(world: World, tmp_path: Path) -> tuple[Path, Path]:
    directory = tmp_path / "model"
    for name, body in FILES.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(body)
    signature = tmp_path / "model.sig"
    signature.write_bytes(sign_snapshot(read_snapshot(directory), "model", world.signer))
    return directory, signature


def model_signing(*arguments: object) -> str:
    """What its command line says."""
    done = subprocess.run(
        [sys.executable, "-m", "model_signing", "verify", *map(str, arguments)],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert (done.returncode == 0) == ("succeeded" in said), said
    return said


def test_model_signings_command_line_verifies_what_was_signed_without_reading_a_file(
    signed: tuple[Path, Path], tmp_path: Path
) -> None:
    directory, signature = signed
    for key, said in (("release", "Verification succeeded"), ("other", "Key mismatch")):
        public = ("--public_key", tmp_path / f"{key}.pub")
        assert said in model_signing("key", directory, "--signature", signature, *public)


@pytest.mark.parametrize("change", ["flip", "add", "remove"])
def test_model_signing_refuses_a_directory_that_changed(
    signed: tuple[Path, Path], tmp_path: Path, change: str
) -> None:
    from model_signing import verifying

    directory, signature = signed
    config = verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "release.pub")
    config.verify(directory, signature)
    if change == "flip":
        (directory / "model.safetensors").write_bytes(b"Weights")
    elif change == "add":
        (directory / "a" / "evil.py").write_bytes(b"")
    else:
        shutil.rmtree(directory / "a-b")
    config = verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "release.pub")
    with pytest.raises(ValueError, match="mismatch"):
        config.verify(directory, signature)


def test_a_directory_is_signed_by_a_jobs_identity_on_request_and_model_signing_verifies_it(
    signed: tuple[Path, Path],
    sigstore: LocalSigstore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    directory, signature = signed
    for name, value in {**sigstore.job(), "LOCKGATE_KEYLESS": "true"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCKGATE_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setattr(Workspace, "policy", Policy(signing=sigstore.policy()))
    done = CliRunner().invoke(app, ["sign-directory", str(directory)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert f"signed by {IDENTITY} ({ISSUER})" in " ".join(done.output.split())
    trust = tmp_path / "trust.json"
    trust.write_text(json.dumps(sigstore.trust_config()))

    def verify(identity: str) -> str:
        return model_signing(
            "sigstore", directory, "--signature", signature, "--trust_config", trust,
            "--identity", identity, "--identity_provider", ISSUER,
        )  # fmt: skip

    assert "Verification succeeded" in verify(IDENTITY)
    assert "do not match eve" in verify("eve@example.com")
    (directory / "config.json").write_bytes(b"[]")
    assert "Hash mismatch for 'config.json'" in verify(IDENTITY)
