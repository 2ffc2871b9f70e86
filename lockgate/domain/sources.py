"""Where a model comes from, and exactly which bytes it is."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import PurePosixPath

from pydantic import field_validator, model_validator

from lockgate.domain.base import Frozen
from lockgate.domain.digests import Digest

_COMMIT = re.compile(r"[0-9a-f]{40}")


class SourceKind(StrEnum):
    HUB = "hf"
    DIRECTORY = "dir"
    OCI = "oci"


class Source(Frozen):
    """A place to get a model from, as the user wrote it: `hf://org/name[@revision]`, `dir:PATH` or a path, `oci://ref`."""

    kind: SourceKind
    location: str
    """Hub repository id, directory path, or OCI reference without the scheme."""
    revision: str | None = None
    """Branch, tag or commit at the Hub, as asked for; not yet resolved."""

    @classmethod
    def parse(cls, text: str) -> Source:
        """Raises `ValueError` with what was wrong."""
        if text.startswith("hf://"):
            repo, _, revision = text.removeprefix("hf://").partition("@")
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
                raise ValueError(f"a Hub source reads hf://organization/name[@revision]: {text!r}")
            return cls(kind=SourceKind.HUB, location=repo, revision=revision or None)
        if text.startswith("oci://"):
            return cls(kind=SourceKind.OCI, location=text.removeprefix("oci://"))
        if "://" in text:
            raise ValueError(f"unknown source scheme: {text!r} (known: hf://, oci://, dir:)")
        path = text.removeprefix("dir:")
        if not path:
            raise ValueError("an empty source")
        return cls(kind=SourceKind.DIRECTORY, location=path)

    def __str__(self) -> str:
        if self.kind is SourceKind.DIRECTORY:
            return f"dir:{self.location}"
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.kind.value}://{self.location}{at}"


class ModelRevision(Frozen):
    """A model at one commit. `repo` is a name without any machine's path; `commit` is 40 hex digits.

    For the Hub it is the Git commit. A directory has no commit of its own: there it is the first 40 digits of the
    snapshot digest, so that the same bytes are the same revision on every machine.
    """

    repo: str
    commit: str

    @field_validator("commit")
    @classmethod
    def _forty_hex(cls, value: str) -> str:
        if not _COMMIT.fullmatch(value):
            raise ValueError(f"not a 40-hex commit: {value!r}")
        return value

    def __str__(self) -> str:
        return f"{self.repo}@{self.commit}"


class SnapshotFile(Frozen):
    """One regular file: relative POSIX path, size in bytes, digest of its content."""

    path: str
    size: int
    digest: Digest

    @field_validator("path")
    @classmethod
    def _inside(cls, value: str) -> str:
        path = PurePosixPath(value)
        if not value or path.is_absolute() or ".." in path.parts or str(path) != value:
            raise ValueError(f"not a clean relative path: {value!r}")
        if any(ord(c) < 32 or c == "\\" for c in value):
            raise ValueError(f"control character or backslash in path: {value!r}")
        if any(0xD800 <= ord(c) <= 0xDFFF for c in value):
            raise ValueError(f"path is not UTF-8: {value!r}")
        return value


class Snapshot(Frozen):
    """The files of a model, sorted by path. Its digest does not depend on order, machine or time."""

    files: tuple[SnapshotFile, ...]

    @model_validator(mode="after")
    def _sorted_and_unique(self) -> Snapshot:
        paths = [f.path for f in self.files]
        if not paths:
            raise ValueError("a snapshot without files")
        if paths != sorted(set(paths)):
            raise ValueError("snapshot files must be unique and sorted by path")
        return self

    @classmethod
    def of(cls, files: list[SnapshotFile] | tuple[SnapshotFile, ...]) -> Snapshot:
        return cls(files=tuple(sorted(files, key=lambda f: f.path)))

    @property
    def digest(self) -> Digest:
        return Digest.of_json([[f.path, f.size, f.digest] for f in self.files])

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(f.size for f in self.files)
