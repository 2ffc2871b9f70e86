"""Where a model comes from, and exactly which bytes it is."""

from __future__ import annotations

import re
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from lockgate.domain.base import Frozen
from lockgate.domain.digests import Digest

_COMMIT = re.compile(r"[0-9a-f]{40}")
_PREFIX = re.compile(r"[a-z0-9][a-z0-9._-]{1,221}(?:/[^/?*]+)+")
_SELECTION = re.compile(r"\?(?:allow|deny|key)=")
_KEY = re.compile(r"key=[A-Za-z0-9][A-Za-z0-9:/_.-]*")
BOOKKEEPING = (".git", ".cache")
"""Directories at the top of a model's that belong to tools (Git, huggingface_hub), not to the model."""


class SourceKind(StrEnum):
    HUB = "hf"
    DIRECTORY = "dir"
    OCI = "oci"
    S3 = "s3"
    GCS = "gs"


class FileSelection(Frozen):
    """Which files of a source are meant: shell patterns over whole paths, in which `*` also crosses folders."""

    allow: tuple[str, ...] = ()
    """None: all files. At the Hub then without other formats of the same weights."""
    deny: tuple[str, ...] = ()

    def takes(self, path: str) -> bool:
        """Whether `path` is meant; what is denied is not, even if it is allowed."""
        if any(fnmatchcase(path, pattern) for pattern in self.deny):
            return False
        return not self.allow or any(fnmatchcase(path, pattern) for pattern in self.allow)

    @classmethod
    def parse(cls, text: str) -> FileSelection:
        """`allow=PATTERN,PATTERN&deny=PATTERN`. Raises `ValueError`."""
        parts: dict[str, tuple[str, ...]] = {}
        for part in text.split("&"):
            name, _, patterns = part.partition("=")
            listed = tuple(pattern for pattern in patterns.split(",") if pattern)
            if name not in ("allow", "deny") or name in parts or not listed:
                raise ValueError(
                    f"a file selection reads ?allow=PATTERN,…&deny=PATTERN,…: {text!r}"
                )
            parts[name] = listed
        return cls(**parts)

    def __str__(self) -> str:
        parts = (("allow", self.allow), ("deny", self.deny))
        return "&".join(f"{name}={','.join(listed)}" for name, listed in parts if listed)


class Source(Frozen):
    """A place to get a model from, as the user wrote it: `hf://org/name[@revision]`, `dir:PATH` or a path, `oci://ref`.

    `?allow=*.safetensors,*.json&deny=original/*` at its end selects files, `key=KEY` (object stores) says how they are encrypted.
    """

    kind: SourceKind
    location: str
    """Hub repository id, directory path, or OCI reference without the scheme."""
    revision: str | None = None
    """Branch, tag or commit at the Hub, as asked for; not yet resolved."""
    files: FileSelection = FileSelection()
    encryption_key: str | None = None
    """Object stores: the service's key (id or full name) that every object must be encrypted with at rest."""

    @classmethod
    def parse(cls, text: str) -> Source:
        """Raises `ValueError` with what was wrong."""
        asked = _SELECTION.search(text)
        if asked is not None:
            return cls.parse(text[: asked.start()])._asked(text[asked.start() + 1 :])
        if text.startswith("hf://"):
            repo, _, revision = text.removeprefix("hf://").partition("@")
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
                raise ValueError(f"a Hub source reads hf://organization/name[@revision]: {text!r}")
            return cls(kind=SourceKind.HUB, location=repo, revision=revision or None)
        if text.startswith("oci://"):
            return cls(kind=SourceKind.OCI, location=text.removeprefix("oci://"))
        for kind in (SourceKind.S3, SourceKind.GCS):
            if text.startswith(f"{kind.value}://"):
                location = text.removeprefix(f"{kind.value}://").rstrip("/")
                if not _PREFIX.fullmatch(location):
                    raise ValueError(
                        f"a bucket source reads {kind.value}://BUCKET/PREFIX: {text!r}"
                    )
                return cls(kind=kind, location=location)
        if "://" in text:
            raise ValueError(
                f"unknown source scheme: {text!r} (known: hf://, oci://, s3://, gs://, dir:)"
            )
        path = text.removeprefix("dir:")
        if not path:
            raise ValueError("an empty source")
        return cls(kind=SourceKind.DIRECTORY, location=path)

    def _asked(self, query: str) -> Source:
        """This source with what stands behind its `?`."""
        if self.kind is SourceKind.OCI:
            raise ValueError(f"an image is taken as a whole: {query!r}")
        keys = [part for part in query.split("&") if part.startswith("key=")]
        others = "&".join(part for part in query.split("&") if part not in keys)
        if keys and (len(keys) > 1 or not _KEY.fullmatch(keys[0])):
            raise ValueError(f"a key is named once, as its service names it: {query!r}")
        if keys and self.kind not in (SourceKind.S3, SourceKind.GCS):
            raise ValueError(f"key= says how an object store encrypts: {query!r}")
        update: dict[str, Any] = (
            {"files": FileSelection.parse(others)} if others or not keys else {}
        )
        if keys:
            update["encryption_key"] = keys[0].removeprefix("key=")
        return self.model_copy(update=update)

    def __str__(self) -> str:
        asked = "&".join(
            part
            for part in (
                str(self.files),
                f"key={self.encryption_key}" if self.encryption_key else "",
            )
            if part
        )
        selected = f"?{asked}" if asked else ""
        if self.kind is SourceKind.DIRECTORY:
            return f"dir:{self.location}{selected}"
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.kind.value}://{self.location}{at}{selected}"


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
    size: Annotated[int, Field(ge=0)]
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
