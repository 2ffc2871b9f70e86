"""The Hugging Face Hub with its own client against a server that breaks off, lies and refuses."""

from __future__ import annotations

import contextlib
import json
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
from lockgate.domain.evidence import ScannerStatus, Severity
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
        # The client renames what it has begun between a listing and a look at the size.
        with contextlib.suppress(FileNotFoundError):
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


def _listing(**changes: object) -> bytes:
    file = {"rfilename": "config.json", "size": 2, "blobId": "0" * 40}
    known = {"id": "org/name", "sha": COMMIT, "siblings": [file]}
    return json.dumps({**known, **changes}).encode()


@pytest.mark.usefixtures("endpoint")
@pytest.mark.parametrize(
    "page",
    [
        b"<html>Log in to the network</html>", b"[]", b"764", b"null", b"{}", b"[" * 100_000,
        _listing(siblings=5), _listing(siblings=[5]), _listing(lastModified=5),
        _listing(siblings=[{"rfilename": 5, "size": 1}]), _listing(siblings=[{"rfilename": "a"}]),
        _listing(siblings=[{"rfilename": "a", "size": 1, "lfs": {"size": 1}}]), _listing(sha=5),
    ],
)  # fmt: skip
def test_what_does_not_speak_as_the_hub_does_is_told_so_and_leaves_nothing(
    page: bytes, repository: Repository, tmp_path: Path
) -> None:
    repository.page = page
    for ask in (
        lambda: sources.peek(SOURCE, REVISION, {"config.json"}),
        lambda: sources.fetch(SOURCE, REVISION, tmp_path / "in" / "s"),
    ):
        with pytest.raises(SourceError, match="Hub"):
            ask()
    assert _left_behind(tmp_path / "in") == []
    with pytest.raises(SourceError, match="branches"):
        sources.references(SOURCE)


def test_a_hub_that_nobody_answers_for_is_told_so(tmp_path: Path) -> None:
    options = FetchOptions(endpoint="http://127.0.0.1:9", timeout=5)
    with pytest.raises(SourceError, match="connection failed"):
        sources.resolve(SOURCE, options=options)


@pytest.mark.usefixtures("endpoint")
def test_patterns_decide_which_files_are_asked_for(repository: Repository, tmp_path: Path) -> None:
    source = Source.parse("hf://org/name?allow=*.json,*.bin&deny=sub/*")
    snapshot = sources.fetch(source, REVISION, tmp_path / "s")
    assert [file.path for file in snapshot.files] == ["config.json", "pytorch_model.bin"]
    asked = {path.rpartition("/")[2] for _, path, _ in repository.requests if "resolve" in path}
    assert asked == {"config.json", "pytorch_model.bin"}
    with pytest.raises(SourceError, match="is there and is not"):
        sources.fetch(SOURCE, REVISION, tmp_path / "s")
    with pytest.raises(SourceError, match="no file that is selected"):
        sources.fetch(Source.parse("hf://org/name?allow=*.onnx"), REVISION, tmp_path / "t")


@pytest.mark.usefixtures("endpoint")
def test_a_gated_model_is_fetched_with_its_token_and_not_without(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.token = "hf_right"
    with pytest.raises(SourceError, match="gated"):
        sources.resolve(SOURCE)
    with pytest.raises(SourceError, match="gated"):
        sources.resolve(SOURCE, options=FetchOptions(token="hf_wrong"))
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    snapshot = sources.fetch(SOURCE, sources.resolve(SOURCE), tmp_path / "s")
    assert len(snapshot.files) == 4


def test_the_token_goes_to_the_hub_and_not_to_where_it_keeps_large_files(
    repository: Repository, endpoint: str, tmp_path: Path
) -> None:
    storage = Repository(repository.files)
    repository.token = "hf_secret"
    with hub(storage) as elsewhere:
        # Another host, as far as an HTTP client can tell.
        repository.storage = elsewhere.replace("127.0.0.1", "localhost")
        options = FetchOptions(token="hf_secret")
        sources.fetch(SOURCE, REVISION, tmp_path / "s", options=options)
    assert (tmp_path / "s" / "model.safetensors").read_bytes() == WEIGHTS
    assert storage.requests
    assert set(storage.seen_tokens) == {None}


@pytest.mark.usefixtures("endpoint")
def test_what_the_hubs_scanners_say_is_evidence(repository: Repository, tmp_path: Path) -> None:
    snapshot = sources.fetch(SOURCE, REVISION, tmp_path / "s")
    listed = [{"path": "config.json", "level": "unsafe"}, {"path": "not/fetched.pkl", "level": "unsafe"}]  # fmt: skip
    repository.security = {"scansDone": True, "filesWithIssues": listed}
    evidence = sources.source_evidence(SOURCE, REVISION, snapshot)
    assert evidence is not None
    assert evidence.subject == snapshot.digest
    assert [run.status for run in evidence.runs] == [ScannerStatus.COMPLETED]
    severities = {finding.path: finding.severity for finding in evidence.findings}
    assert severities == {"config.json": Severity.CRITICAL, "not/fetched.pkl": Severity.LOW}


@pytest.mark.usefixtures("endpoint")
@pytest.mark.parametrize(
    ("security", "status"),
    [
        (None, ScannerStatus.NOT_INSTALLED),
        ({"scansDone": False, "filesWithIssues": []}, ScannerStatus.FAILED),
        ({"filesWithIssues": []}, ScannerStatus.FAILED),
        ({"scansDone": True, "filesWithIssues": [{"path": 7}]}, ScannerStatus.FAILED),
    ],
    ids=["nothing", "unfinished", "unclear", "nonsense"],
)
def test_a_hub_that_has_not_scanned_is_not_taken_for_one_that_found_nothing(
    security: object, status: ScannerStatus, repository: Repository, tmp_path: Path
) -> None:
    snapshot = sources.fetch(SOURCE, REVISION, tmp_path / "s")
    repository.security = security
    evidence = sources.source_evidence(SOURCE, REVISION, snapshot)
    assert evidence is not None
    assert [run.status for run in evidence.runs] == [status]
    repository.status = 500
    broken = sources.source_evidence(SOURCE, REVISION, snapshot)
    assert broken is not None
    assert [run.status for run in broken.runs] == [ScannerStatus.FAILED]
