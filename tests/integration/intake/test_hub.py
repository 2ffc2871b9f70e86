"""The Hugging Face Hub with its own client against a server that breaks off, lies and refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockgate.adapters import sources
from lockgate.adapters.sources import FetchOptions
from lockgate.domain.sources import ModelRevision, Source
from lockgate.errors import IntegrityError, SourceError
from tests.integration.intake.hub_server import COMMIT, Repository, hub

WEIGHTS = os.urandom(24_000_000)
CUT = 12_000_000
"""huggingface_hub writes pieces of 10 MB: what came of a piece that was cut is asked for again."""
SOURCE = Source.parse("hf://org/name")
REVISION = ModelRevision(repo="org/name", commit=COMMIT)


@pytest.fixture
def repository() -> Repository:
    return Repository(
        {
            "config.json": b'{"model_type": "llama"}',
            "model.safetensors": WEIGHTS,
            "sub/tokenizer.json": b"{}",
            "pytorch_model.bin": os.urandom(2000),
            ".gitattributes": b"*.safetensors filter=lfs\n",
        }
    )


@pytest.fixture
def endpoint(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with hub(repository) as address:
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield address


def _left_behind(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.exists() else []


@pytest.mark.usefixtures("endpoint")
def test_a_branch_becomes_a_commit_and_its_files_arrive_under_their_digests(
    repository: Repository, tmp_path: Path
) -> None:
    revision = sources.resolve(SOURCE)
    assert revision == REVISION
    fractions: list[float] = []
    snapshot = sources.fetch(
        SOURCE, revision, tmp_path / "s", progress=lambda fraction, what: fractions.append(fraction)
    )
    assert [file.path for file in snapshot.files] == [
        ".gitattributes",
        "config.json",
        "model.safetensors",
        "sub/tokenizer.json",
    ]
    assert (tmp_path / "s" / "model.safetensors").read_bytes() == WEIGHTS
    assert sources.read_snapshot(tmp_path / "s") == snapshot
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert _left_behind(tmp_path) == ["s", "s.snapshot.json"]

    repository.requests.clear()
    assert sources.fetch(SOURCE, revision, tmp_path / "s") == snapshot
    assert repository.requests == []


@pytest.mark.usefixtures("endpoint")
def test_what_a_model_is_can_be_seen_without_its_weights(repository: Repository) -> None:
    seen = sources.peek(SOURCE, REVISION, ("config.json", "quantize_config.json"))
    assert seen is not None
    assert seen.contents == {"config.json": repository.files["config.json"]}
    assert "model.safetensors" in seen.files
    assert "pytorch_model.bin" not in seen.files
    assert not any(path.endswith(".safetensors") for _, path, _ in repository.requests)
    repository.tampered["config.json"] = b'{"model_type": "other"}'
    with pytest.raises(IntegrityError):
        sources.peek(SOURCE, REVISION, ("config.json",))


@pytest.mark.usefixtures("endpoint")
def test_a_connection_that_is_cut_in_mid_file_is_continued_where_it_broke(
    repository: Repository, tmp_path: Path
) -> None:
    repository.cut_after = CUT
    sources.fetch(SOURCE, REVISION, tmp_path / "s")
    assert (tmp_path / "s" / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [r for m, path, r in repository.requests if path.endswith(".safetensors") and r]
    assert any(int(r.removeprefix("bytes=").split("-")[0]) > 0 for r in ranges)


FETCH = """
import sys
from pathlib import Path
from lockgate.adapters import sources
from lockgate.domain.sources import ModelRevision, Source
sources.fetch(Source.parse("hf://org/name"), ModelRevision(repo="org/name", commit=sys.argv[1]), Path(sys.argv[2]))
"""


@pytest.mark.usefixtures("endpoint")
def test_a_download_that_was_killed_is_continued_by_the_next(
    repository: Repository, tmp_path: Path
) -> None:
    repository.cut_after, repository.cut_always = CUT, True
    process = subprocess.Popen([sys.executable, "-c", FETCH, COMMIT, str(tmp_path / "s")])
    while process.poll() is None:
        if any(p.stat().st_size >= 10_000_000 for p in tmp_path.rglob(".incomplete/*")):
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "s").exists()

    repository.cut_after = None
    repository.requests.clear()
    snapshot = sources.fetch(SOURCE, REVISION, tmp_path / "s")
    assert sources.read_snapshot(tmp_path / "s") == snapshot
    weights = [r for m, path, r in repository.requests if m == "GET" and "model.safe" in path]
    assert weights
    assert all(r is not None and not r.startswith("bytes=0-") for r in weights)


@pytest.mark.usefixtures("endpoint")
def test_a_damaged_part_of_an_earlier_download_does_not_stay(
    repository: Repository, tmp_path: Path
) -> None:
    repository.cut_after, repository.cut_always = 11_000_000, True
    repository.refuse_ranges = True
    with pytest.raises(SourceError, match="connection failed"):
        sources.fetch(SOURCE, REVISION, tmp_path / "s")
    (partial,) = (p for p in tmp_path.rglob(".incomplete/*") if p.stat().st_size > 1000)
    partial.write_bytes(b"x" * 5000)
    repository.cut_after, repository.refuse_ranges = None, False
    sources.fetch(SOURCE, REVISION, tmp_path / "s")
    assert (tmp_path / "s" / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.usefixtures("endpoint")
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_of_the_right_size_with_other_bytes_is_refused(
    name: str, repository: Repository, tmp_path: Path
) -> None:
    listed = repository.files[name]
    repository.tampered[name] = listed[:-1] + bytes([listed[-1] ^ 1])
    with pytest.raises(IntegrityError, match=name):
        sources.fetch(SOURCE, REVISION, tmp_path / "s")
    assert _left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (401, "RepoNotFound", "no such model"),
        (403, "GatedRepo", "gated"),
        (404, "RepoNotFound", "no such model"),
        (404, "RevisionNotFound", "no revision"),
    ],
)
@pytest.mark.usefixtures("endpoint")
def test_a_model_that_is_unknown_or_closed_is_told_so(
    status: int, code: str, said: str, repository: Repository, tmp_path: Path
) -> None:
    repository.status, repository.error_code = status, code
    with pytest.raises(SourceError, match=said):
        sources.resolve(SOURCE)
    with pytest.raises(SourceError, match=said):
        sources.fetch(SOURCE, REVISION, tmp_path / "s")
    assert _left_behind(tmp_path) == []


@pytest.mark.usefixtures("endpoint")
def test_an_unknown_branch_is_named() -> None:
    with pytest.raises(SourceError, match="no revision 'nightly'"):
        sources.resolve(Source.parse("hf://org/name@nightly"))


@pytest.mark.usefixtures("endpoint")
@pytest.mark.parametrize("name", ["../escape.json", "/etc/escape", "a\\b", ".incomplete/x"])
def test_a_listing_with_a_name_that_leaves_the_directory_is_refused(
    name: str, repository: Repository, tmp_path: Path
) -> None:
    repository.files[name] = b"{}"
    with pytest.raises(SourceError, match="name cannot be used"):
        sources.fetch(SOURCE, REVISION, tmp_path / "in" / "s")
    assert _left_behind(tmp_path / "in") == []
    assert not (tmp_path / "escape.json").exists()


def test_a_hub_that_nobody_answers_for_is_told_so(tmp_path: Path) -> None:
    options = FetchOptions(endpoint="http://127.0.0.1:9", timeout=5)
    with pytest.raises(SourceError, match="connection failed"):
        sources.resolve(SOURCE, options=options)
