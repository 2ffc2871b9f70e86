"""The Hugging Face Hub, through huggingface_hub, with every file compared to what the Hub lists for it.

huggingface_hub itself accepts a file of the right size with other bytes, and since 2.4 forgets half a file when its process
dies. Here its `http_get` writes into files of ours: each is hashed as it arrives, compared with the sha256 (LFS) or Git blob
id that the Hub lists, and continued by the next process where one was killed.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

from huggingface_hub import hf_hub_url
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers, tqdm
from pydantic import ValidationError

from lockgate.adapters.sources.directory import MAX_SMALL_BYTES, snapshot_file
from lockgate.adapters.sources.hub_api import endpoint_of, model_info, translated
from lockgate.adapters.sources.transfer import (
    CHUNK,
    INCOMPLETE,
    Meter,
    Progress,
    in_parallel,
    require_space,
)
from lockgate.domain.digests import Digest
from lockgate.domain.sources import ModelRevision, Snapshot, SnapshotFile, Source
from lockgate.errors import IntegrityError, SourceError

DEFAULT_IGNORE = (
    "*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.ot",
    "*.tflite", "*.gguf", "*.pdf", "*.png", "*.jpg", "original/*", "onnx/*", "openvino/*",
    "coreml/*",
)  # fmt: skip
"""The same weights in other formats, and pictures. Used only where the repository has safetensors weights."""

MAX_REWINDS = 2


@dataclass(frozen=True)
class _Listed:
    path: str
    size: int
    sha256: str | None
    blob_id: str | None


def resolve(
    source: Source, endpoint: str | None, token: str | None, timeout: float
) -> ModelRevision:
    """The commit that the source's revision (default branch where none is given) points to now."""
    with translated(source):
        info = model_info(source, source.location, source.revision, endpoint, token, timeout)
        try:
            return ModelRevision(repo=source.location, commit=info.sha or "")
        except ValidationError as error:
            raise SourceError(f"{source}: the Hub answered without a commit") from error


def download(
    source: Source,
    revision: ModelRevision,
    staging: Path,
    *,
    endpoint: str | None,
    token: str | None,
    ignore: tuple[str, ...],
    workers: int,
    timeout: float,
    progress: Progress | None,
) -> Snapshot:
    """Download into `staging` (made here, or left there by a transfer that broke off) and hash each file once."""
    with translated(source):
        listed = _list_files(source, revision, endpoint, token, timeout)
        wanted = select(listed, source, ignore)
        staging.mkdir(exist_ok=True)
        arrived = sum(p.stat().st_size for p in staging.rglob("*") if p.is_file())
        require_space(staging, sum(f.size for f in wanted) - arrived, str(source))
        meter = Meter(sum(f.size for f in wanted), "download", progress)
        headers = build_hf_headers(token=token, library_name="lockgate")

        def one(file: _Listed) -> SnapshotFile:
            url = hf_hub_url(
                revision.repo, file.path, revision=revision.commit, endpoint=endpoint_of(endpoint)
            )
            return _bring(source, staging, file, url, headers, meter)

        snapshot = Snapshot.of(in_parallel(one, wanted, workers))
    shutil.rmtree(staging / INCOMPLETE, ignore_errors=True)
    _remove_leftovers(staging, snapshot)
    return snapshot


def peek(
    source: Source,
    revision: ModelRevision,
    names: Collection[str],
    *,
    endpoint: str | None,
    token: str | None,
    ignore: tuple[str, ...],
    timeout: float,
) -> tuple[dict[str, int], dict[str, bytes]]:
    """Names and sizes of all files that a download would bring, and the content of those of `names`, compared with what the Hub lists."""
    with translated(source), tempfile.TemporaryDirectory() as place:
        listed = _list_files(source, revision, endpoint, token, timeout)
        wanted = select(listed, source, ignore)
        headers = build_hf_headers(token=token, library_name="lockgate")
        found = {}
        for file in wanted:
            if file.path not in names:
                continue
            if file.size > MAX_SMALL_BYTES:
                raise SourceError(
                    f"{source}: {file.path} has {file.size} bytes, too many for a config file"
                )
            url = hf_hub_url(
                revision.repo, file.path, revision=revision.commit, endpoint=endpoint_of(endpoint)
            )
            _bring(source, Path(place), file, url, headers, Meter(file.size, "peek", None))
            found[file.path] = (Path(place) / file.path).read_bytes()
    return {file.path: file.size for file in wanted}, found


def select(listed: list[_Listed], source: Source, ignore: tuple[str, ...]) -> list[_Listed]:
    """What is downloaded: what the source selects. Where it names nothing and there are safetensors, all but other formats of
    the same weights. Raises `SourceError` if nothing is left."""
    wanted = [file for file in listed if source.files.takes(file.path)]
    if not source.files.allow and any(f.path.endswith(".safetensors") for f in wanted):
        wanted = [f for f in wanted if not any(fnmatch(f.path, pattern) for pattern in ignore)]
    if not wanted:
        raise SourceError(f"{source}: the repository has no file that is selected")
    return wanted


def security_status(
    source: Source, revision: ModelRevision, endpoint: str | None, token: str | None, timeout: float
) -> Any:
    """What the Hub's scanners say of this revision, as the Hub words it; None where it says nothing."""
    with translated(source):
        info = model_info(
            source, revision.repo, revision.commit, endpoint, token, timeout, securityStatus=True
        )
        if info.sha != revision.commit:
            raise SourceError(f"{source}: the Hub answered with commit {info.sha} for {revision}")
        return info.security_repo_status


def _list_files(
    source: Source, revision: ModelRevision, endpoint: str | None, token: str | None, timeout: float
) -> list[_Listed]:
    info = model_info(
        source, revision.repo, revision.commit, endpoint, token, timeout, files_metadata=True
    )
    if info.sha != revision.commit:
        raise SourceError(f"{source}: the Hub answered with commit {info.sha} for {revision}")
    listed = []
    for sibling in info.siblings or []:
        lfs = sibling.lfs
        size = lfs.size if lfs else sibling.size
        if not isinstance(sibling.rfilename, str):
            raise SourceError(f"{source}: the Hub lists a file without a name")
        if not isinstance(size, int) or size < 0:
            raise SourceError(f"{source}: the Hub gave no size for {sibling.rfilename!r}")
        if PurePosixPath(sibling.rfilename).parts[:1] == (INCOMPLETE,):
            raise SourceError(f"{source}: a file's name cannot be used: {sibling.rfilename!r}")
        # Checked before the name becomes a path on this machine.
        snapshot_file(sibling.rfilename, size, Digest.of_bytes(b""))
        listed.append(
            _Listed(sibling.rfilename, size, lfs.sha256 if lfs else None, sibling.blob_id)
        )
    if not listed:
        raise SourceError(f"{source}: the repository has no files")
    return listed


class _Hashing:
    """A file that is hashed as it is written; what it held before is hashed first."""

    def __init__(self, file: BinaryIO, listed: _Listed) -> None:
        self._file = file
        self._listed = listed
        self._rewinds = 0
        self._start()
        file.seek(0)
        while chunk := file.read(CHUNK):
            self._take(chunk)

    def _start(self) -> None:
        self._sha256 = hashlib.sha256()
        self._blob = hashlib.sha1(f"blob {self._listed.size}\0".encode(), usedforsecurity=False)
        self.size = 0

    def _take(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        if self._listed.sha256 is None:
            self._blob.update(chunk)
        self.size += len(chunk)

    def write(self, chunk: bytes) -> int:
        self._take(chunk)
        return self._file.write(chunk)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = 0) -> int:
        # http_get goes back only to begin anew, where a server ignores the range it was asked for.
        if (offset, whence) != (0, 0):
            raise ValueError("only the beginning can be gone back to")
        self._rewinds += 1
        if self._rewinds > MAX_REWINDS:
            # It would try for ever: every piece that arrives resets its count of retries.
            raise ConnectionError("the server breaks off and does not continue where it did")
        self._start()
        return self._file.seek(0)

    def truncate(self) -> int:
        return self._file.truncate()

    def digest(self) -> Digest | None:
        """The content's digest if it is what the Hub lists, else None."""
        if self.size != self._listed.size:
            return None
        if self._listed.sha256 is not None:
            right = self._sha256.hexdigest() == self._listed.sha256
        else:
            right = self._listed.blob_id in (None, self._blob.hexdigest())
        return Digest.from_hex(self._sha256.hexdigest()) if right else None


def _bring(
    source: Source,
    staging: Path,
    file: _Listed,
    url: str,
    headers: dict[str, str],
    meter: Meter,
) -> SnapshotFile:
    place = staging / file.path
    if place.exists():
        # Arrived whole in an earlier call that was cut off at another file.
        with place.open("rb") as arrived:
            digest = _Hashing(arrived, file).digest()
        if digest is not None:
            meter.add(file.size)
            return snapshot_file(file.path, file.size, digest)
        place.unlink()
    # Named by content: what is left of another revision is not taken for a part of this one.
    name = hashlib.sha256(f"{file.path}\n{file.sha256}\n{file.blob_id}".encode()).hexdigest()
    partial = staging / INCOMPLETE / name
    partial.parent.mkdir(exist_ok=True)
    begun = partial.exists() and partial.stat().st_size > 0
    digest = _transfer(partial, file, url, headers, meter)
    if digest is None and begun:
        # The part that was there may be the damaged one.
        partial.unlink()
        digest = _transfer(partial, file, url, headers, meter)
    if digest is None:
        partial.unlink()
        raise IntegrityError(
            f"{source}: {file.path} arrived with other bytes than the Hub lists",
            hint="run again; if it stays so, the mirror or cache between here and the Hub is damaged",
        )
    place.parent.mkdir(parents=True, exist_ok=True)
    partial.chmod(0o644)
    partial.rename(place)
    return snapshot_file(file.path, file.size, digest)


def _transfer(
    partial: Path, file: _Listed, url: str, headers: dict[str, str], meter: Meter
) -> Digest | None:
    with partial.open("a+b") as opened:
        hashing = _Hashing(opened, file)
        meter.add(hashing.size)
        if hashing.size < file.size:
            http_get(
                url,
                cast(BinaryIO, hashing),
                resume_size=hashing.size,
                headers=headers,
                displayed_filename=file.path,
                tqdm_class=_silent_tqdm(meter.add),
            )
        return hashing.digest()


def _remove_leftovers(staging: Path, snapshot: Snapshot) -> None:
    # From an earlier transfer that broke off and was to bring other files.
    known = {file.path for file in snapshot.files}
    for path in list(staging.rglob("*")):
        if not path.is_dir() and path.relative_to(staging).as_posix() not in known:
            path.unlink()


def _silent_tqdm(count: Callable[[float], None]) -> Any:
    class Counting(tqdm):
        """Counts for our own progress and prints nothing."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs["disable"] = True
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            count(n or 0)
            return None

    return Counting
