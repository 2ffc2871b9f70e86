"""The Hugging Face Hub, through huggingface_hub, with every file compared to what the Hub lists for it.

huggingface_hub itself accepts a file of the right size with other bytes: here LFS files are compared by their sha256 and
the others by their Git blob id.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import httpx
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import (
    DisabledRepoError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import tqdm
from pydantic import ValidationError

from lockgate.adapters.sources.directory import snapshot_file
from lockgate.adapters.sources.transfer import (
    CHUNK,
    Interrupted,
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

_BOOKKEEPING = ".cache/huggingface"


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
    with _translated(source):
        info = _api(endpoint, token).model_info(
            source.location, revision=source.revision, timeout=timeout
        )
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
    with _translated(source):
        listed = _list_files(source, revision, endpoint, token, timeout)
        wanted = select(listed, ignore)
        staging.mkdir(exist_ok=True)
        arrived = sum(p.stat().st_size for p in staging.rglob("*") if p.is_file())
        require_space(staging, sum(f.size for f in wanted) - arrived, str(source))
        meter = Meter(sum(f.size for f in wanted), "download", progress)

        def one(file: _Listed) -> SnapshotFile:
            hf_hub_download(
                revision.repo,
                file.path,
                revision=revision.commit,
                local_dir=staging,
                endpoint=_endpoint(endpoint),
                token=token,
                etag_timeout=timeout,
                tqdm_class=_silent_tqdm(meter.add),
            )
            return _verified(source, staging, file)

        snapshot = Snapshot.of(in_parallel(one, wanted, workers))
    shutil.rmtree(staging / ".cache", ignore_errors=True)
    _remove_leftovers(staging, snapshot)
    return snapshot


def select(listed: list[_Listed], ignore: tuple[str, ...]) -> list[_Listed]:
    """What is downloaded: all, but for other formats of the same weights where there are safetensors."""
    if not any(file.path.endswith(".safetensors") for file in listed):
        return listed
    return [f for f in listed if not any(fnmatch(f.path, pattern) for pattern in ignore)]


def _list_files(
    source: Source, revision: ModelRevision, endpoint: str | None, token: str | None, timeout: float
) -> list[_Listed]:
    info = _api(endpoint, token).model_info(
        revision.repo, revision=revision.commit, timeout=timeout, files_metadata=True
    )
    if info.sha != revision.commit:
        raise SourceError(f"{source}: the Hub answered with commit {info.sha} for {revision}")
    listed = []
    for sibling in info.siblings or []:
        lfs = sibling.lfs
        size = lfs.size if lfs else sibling.size
        if not isinstance(size, int) or size < 0:
            raise SourceError(f"{source}: the Hub gave no size for {sibling.rfilename!r}")
        if sibling.rfilename.startswith(_BOOKKEEPING):
            raise SourceError(f"{source}: a file's name cannot be used: {sibling.rfilename!r}")
        # Checked before the name becomes a path on this machine.
        snapshot_file(sibling.rfilename, size, Digest.of_bytes(b""))
        listed.append(
            _Listed(sibling.rfilename, size, lfs.sha256 if lfs else None, sibling.blob_id)
        )
    if not listed:
        raise SourceError(f"{source}: the repository has no files")
    return listed


def _verified(source: Source, staging: Path, file: _Listed) -> SnapshotFile:
    path = staging / file.path
    if path.is_symlink():
        raise SourceError(f"{source}: {file.path} arrived as a symbolic link")
    sha256, blob, size = hashlib.sha256(), hashlib.sha1(usedforsecurity=False), 0
    blob.update(f"blob {file.size}\0".encode())
    with path.open("rb", buffering=0) as reader:
        while chunk := reader.read(CHUNK):
            sha256.update(chunk)
            if file.sha256 is None:
                blob.update(chunk)
            size += len(chunk)
    if file.sha256 is not None:
        right = sha256.hexdigest() == file.sha256
    elif file.blob_id:
        right = blob.hexdigest() == file.blob_id
    else:
        right = size == file.size
    if not right or size != file.size:
        path.unlink()
        raise IntegrityError(
            f"{source}: {file.path} arrived with other bytes than the Hub lists",
            hint="run again; if it stays so, the mirror or cache between here and the Hub is damaged",
        )
    path.chmod(0o644)
    return snapshot_file(file.path, size, Digest.from_hex(sha256.hexdigest()))


def _remove_leftovers(staging: Path, snapshot: Snapshot) -> None:
    # From an earlier transfer that broke off and was to bring other files.
    known = {file.path for file in snapshot.files}
    for path in list(staging.rglob("*")):
        if not path.is_dir() and path.relative_to(staging).as_posix() not in known:
            path.unlink()


def _endpoint(endpoint: str | None) -> str:
    # Read now, not when huggingface_hub was imported.
    return (endpoint or os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def _api(endpoint: str | None, token: str | None) -> HfApi:
    return HfApi(endpoint=_endpoint(endpoint), token=token, library_name="lockgate")


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


@contextmanager
def _translated(source: Source) -> Iterator[None]:
    where = f"{source} at {_endpoint(None)}"
    try:
        yield
    except GatedRepoError as error:
        raise SourceError(
            f"{where}: the model is gated and this account has no access",
            hint="ask for access on the model's page, then set HF_TOKEN to a token of that account",
        ) from error
    except RepositoryNotFoundError as error:
        raise SourceError(
            f"{where}: no such model, or it is private",
            hint="check the name; for a private model set HF_TOKEN",
        ) from error
    except RevisionNotFoundError as error:
        raise SourceError(
            f"{where}: the model has no revision {source.revision!r}",
            hint="give a branch, a tag or a 40-hex commit",
        ) from error
    except DisabledRepoError as error:
        raise SourceError(f"{where}: the Hub has disabled this model") from error
    except (RemoteEntryNotFoundError, FileMetadataError) as error:
        raise SourceError(
            f"{where}: the Hub lists a file that it does not serve: {error}"
        ) from error
    except HFValidationError as error:
        raise SourceError(f"{where}: not a name that the Hub takes: {error}") from error
    except OfflineModeIsEnabled as error:
        raise SourceError(f"{where}: HF_HUB_OFFLINE is set", hint="unset it") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        kind = (
            Interrupted if status is None or status >= 500 or status in (408, 429) else SourceError
        )
        raise kind(f"{where}: the Hub answered {status}", hint="try again later") from error
    except (httpx.HTTPError, LocalEntryNotFoundError, ConnectionError) as error:
        raise Interrupted(
            f"{where}: the connection failed: {error}",
            hint="run again: what has arrived is kept and continued",
        ) from error
    except OSError as error:
        if error.errno is not None:
            raise
        # huggingface_hub's own consistency check raises a bare OSError.
        raise Interrupted(
            f"{where}: the transfer was incomplete: {error}", hint="run again"
        ) from error
