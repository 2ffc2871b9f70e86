"""A fetched directory: made beside its place, moved there when complete, with a record of what it is.

The record (`NAME.snapshot.json` beside the directory) makes a second fetch read nothing: it is written before the rename,
so a directory that is there is complete, and its record is the one of the bytes in it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from lockgate.adapters.sources.directory import read_snapshot
from lockgate.adapters.sources.transfer import Interrupted
from lockgate.domain.base import Frozen
from lockgate.domain.sources import FileSelection, ModelRevision, Snapshot, Source, SourceKind
from lockgate.errors import IntegrityError, SourceError, StorageFull


class _Record(Frozen):
    revision: ModelRevision
    snapshot: Snapshot
    files: FileSelection = FileSelection()


def _record_path(directory: Path) -> Path:
    return directory.parent / f"{directory.name}.snapshot.json"


def recorded_snapshot(directory: Path) -> Snapshot | None:
    """The snapshot that was recorded when `directory` was fetched, without reading the files; None if there is none."""
    record = _read_record(directory)
    return record.snapshot if record else None


def _read_record(directory: Path) -> _Record | None:
    try:
        return _Record.model_validate_json(_record_path(directory).read_bytes())
    except (OSError, ValidationError):
        return None


def _sizes_match(directory: Path, snapshot: Snapshot) -> bool:
    try:
        return all((directory / file.path).lstat().st_size == file.size for file in snapshot.files)
    except OSError:
        return False


class Delivery:
    """One fetch. `done` is the snapshot if the directory is there already; else fill `staging`, then call `finished`."""

    def __init__(self, directory: Path, source: Source, revision: ModelRevision) -> None:
        self._directory = directory
        self._kind, self._files = source.kind, source.files
        self._revision = revision
        self.staging = directory.parent / f".{directory.name}.partial"
        self.done = self._find()

    def _find(self) -> Snapshot | None:
        if not self._directory.exists():
            return None
        record = _read_record(self._directory)
        if record is None and self._kind is SourceKind.OCI:
            # A pull that was killed before it was recorded: the puller looks at the directory itself.
            return None
        if record is None:
            # Made by other means: what it holds is found out by reading it.
            snapshot = read_snapshot(self._directory)
            if snapshot.digest.hex[:40] == self._revision.commit:
                return self.recorded(snapshot)
        elif (record.revision, record.files) == (self._revision, self._files) and _sizes_match(
            self._directory, record.snapshot
        ):
            return record.snapshot
        raise SourceError(
            f"{self._directory} is there and is not {self._revision}",
            hint="remove it, or fetch into another directory",
        )

    def recorded(self, snapshot: Snapshot) -> Snapshot:
        """Record a directory that is in its place already."""
        record = _Record(revision=self._revision, snapshot=snapshot, files=self._files)
        path = _record_path(self._directory)
        temporary = path.with_name(f".{path.name}.new")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(record.model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        return snapshot

    def finished(self, snapshot: Snapshot) -> Snapshot:
        """Move the staging directory to its place."""
        self.recorded(snapshot)
        self.staging.rename(self._directory)
        return snapshot


@contextmanager
def deliver(directory: Path, source: Source, revision: ModelRevision) -> Iterator[Delivery]:
    """One process at a time fills `directory`; what cannot be continued is removed on failure."""
    with _translated(source, directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _locked(directory.parent / f".{directory.name}.lock"):
            delivery = Delivery(directory, source, revision)
            try:
                yield delivery
            except (Interrupted, KeyboardInterrupt):
                raise
            except BaseException:
                shutil.rmtree(delivery.staging, ignore_errors=True)
                if not directory.exists():
                    _record_path(directory).unlink(missing_ok=True)
                raise


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    while True:
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _is_same_file(lock.fileno(), path):
                continue  # whoever held it has removed it: lock the one that is there now
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _translated(source: Source, directory: Path) -> Iterator[None]:
    try:
        yield
    except (SourceError, IntegrityError):
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageFull(
                f"no space left: {source} for {directory}: {error.strerror}",
                hint="free space there, or choose another workspace, and run again",
            ) from error
        raise SourceError(f"{source}: {error}") from error
