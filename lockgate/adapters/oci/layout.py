"""An OCI image layout directory as a store for all repositories, shared by any number of processes.

Blobs are written beside their place and renamed into it, so a blob that can be seen is whole. `index.json` is the only
file that changes; it is replaced by rename under an advisory lock, so readers need none.

Source: OCI image layout specification 1.1. Tags are `org.opencontainers.image.ref.name = <repository>:<tag>`; referrers
are kept as an index under the tag `sha256-<hex>`, as the distribution specification has it for stores without the API.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lockgate.adapters.oci import referring
from lockgate.adapters.oci.content import (
    MAX_MANIFEST,
    Hashed,
    once,
    read_file,
    storage_error,
)
from lockgate.domain.digests import Digest, read_json
from lockgate.domain.stores import EMPTY_DIGEST, IMAGE_INDEX, IMAGE_MANIFEST, Content, Descriptor
from lockgate.errors import IntegrityError, RegistryError

REF_NAME = "org.opencontainers.image.ref.name"
LOCK_SECONDS = 60.0
"""How long to wait for another process to finish its change of the index (it takes milliseconds)."""
_STALE_SECONDS = 3600.0
_DAY = 86400.0


class LayoutStore:
    """See `lockgate.domain.stores.ImageStore`. The directory is made by the first write."""

    def __init__(self, root: Path, *, lock_seconds: float = LOCK_SECONDS) -> None:
        self.root = root
        self._lock_seconds = lock_seconds
        self._cached: tuple[tuple[int, int, int], list[dict[str, Any]]] | None = None

    @property
    def location(self) -> str:
        return f"oci:{self.root}"

    # Blobs

    def blob_path(self, digest: Digest) -> Path:
        """Where the blob lies or would lie."""
        return self.root / "blobs" / "sha256" / digest.hex

    def has_blob(self, repository: str, digest: Digest) -> bool:
        return self.blob_path(digest).is_file()

    def blob_size(self, repository: str, digest: Digest) -> int | None:
        try:
            return self.blob_path(digest).stat().st_size
        except FileNotFoundError:
            return None

    def read_blob(
        self, repository: str, digest: Digest, held: Iterable[bytes] = ()
    ) -> Iterator[bytes]:
        path = self.blob_path(digest)
        hashed = Hashed()
        yield from hashed.passing(held)
        try:
            yield from hashed.passing(read_file(path, hashed.size), hashed.size)
        except FileNotFoundError as error:
            raise RegistryError(f"{self.location} holds no blob {digest}") from error
        except OSError as error:
            raise storage_error(error, path, "reading") from error
        try:
            hashed.check(f"blob {path}", digest, None)
        except IntegrityError as error:
            error.hint = f"the file was changed after it was written; delete {path} and run the same command again"
            raise

    def put_blob(
        self, repository: str, digest: Digest | None, content: Content, size: int | None
    ) -> Digest:
        if digest is not None and self.has_blob(repository, digest):
            return digest
        self.prepare()
        incoming = self.root / ".incoming"
        try:
            handle, name = tempfile.mkstemp(dir=incoming)
        except OSError as error:
            raise storage_error(error, incoming, "writing below") from error
        try:
            # The lock tells a sweep that somebody still writes here.
            fcntl.flock(handle, fcntl.LOCK_EX)
            hashed = Hashed()
            for chunk in hashed.passing(once(content)):
                self._write(handle, chunk)
            found = hashed.check("blob to be stored", digest, size)
            try:
                os.fchmod(handle, 0o644)
                os.replace(name, self.blob_path(found))
            except OSError as error:
                raise storage_error(error, self.root, "writing a blob below") from error
            return found
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
        finally:
            os.close(handle)

    def _write(self, handle: int, chunk: bytes) -> None:
        view = memoryview(chunk)
        try:
            while view:
                view = view[os.write(handle, view) :]
        except OSError as error:
            raise storage_error(error, self.root, "writing a blob below") from error

    def mount_blob(self, repository: str, digest: Digest, source: str) -> bool:
        return self.has_blob(repository, digest)

    # Manifests and tags

    def get_manifest(self, repository: str, reference: str) -> tuple[bytes, str]:
        if ":" in reference:
            digest = Digest(reference)
        else:
            found = self.resolve(repository, reference)
            if found is None:
                raise RegistryError(f"{self.location} holds no {repository}:{reference}")
            digest = found
        size = self.blob_size(repository, digest)
        if size is None:
            raise RegistryError(f"{self.location} holds no manifest {digest}")
        if size > MAX_MANIFEST:
            raise RegistryError(f"{digest} is not a manifest: {size} bytes")
        body = b"".join(self.read_blob(repository, digest))
        self._touch(digest)
        return body, self._media_type(digest, body)

    def _touch(self, digest: Digest) -> None:
        """Remember, to the day, that a manifest was used: what is in use is not collected."""
        path = self.blob_path(digest)
        with contextlib.suppress(OSError):  # somebody else's store, or gone meanwhile
            if time.time() - path.stat().st_mtime > _DAY:
                os.utime(path)

    def put_manifest(
        self, repository: str, body: bytes, media_type: str, tag: str | None = None
    ) -> Digest:
        digest = self.put_blob(repository, None, [body], len(body))
        entry = Descriptor(
            media_type,
            digest,
            len(body),
            annotations={REF_NAME: f"{repository}:{tag}"} if tag else {},
        )
        referrer = referring.parse(digest, body, media_type)
        with self.changed_index() as entries:
            self.put_blob(repository, digest, [body], len(body))  # where it was collected meanwhile
            # What is attached to an image may be anything, and is nobody's image.
            if referrer is None:
                self._require_parts(digest, body)
            if tag:
                _set(entries, entry)
            elif referrer is None and not any(e.get("digest") == digest for e in entries):
                entries.append(entry.to_data())
            if referrer is not None:
                self._add_referrer(entries, repository, referrer)
        return digest

    def _require_parts(self, digest: Digest, body: bytes) -> None:
        """What was there when its writer looked may have been collected since. An index may leave out images, an image no
        blob."""
        try:
            manifest = read_json(body)
            parts = [*manifest.get("layers", ()), *filter(None, [manifest.get("config")])]
            digests = {Digest(part["digest"]) for part in parts}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RegistryError(f"{digest} is not a manifest: {error}") from error
        # Everybody knows what the empty blob holds.
        for part in sorted(digests - {EMPTY_DIGEST}):
            if not self.blob_path(part).is_file():
                raise RegistryError(
                    f"manifest {digest} refers to {part}, which {self.location} does not hold",
                    hint="run the same command again: what is missing is written again",
                )

    def _add_referrer(
        self, entries: list[dict[str, Any]], repository: str, referrer: referring.Referrer
    ) -> None:
        name = f"{repository}:{referring.fallback_tag(referrer.subject)}"
        current = next((Digest(e["digest"]) for e in entries if name_of(e) == name), None)
        known = [] if current is None else self._index_of(repository, current)
        if any(d.digest == referrer.descriptor.digest for d in known):
            return
        body = referring.index([*known, referrer.descriptor])
        digest = self.put_blob(repository, None, [body], len(body))
        _set(entries, Descriptor(IMAGE_INDEX, digest, len(body), annotations={REF_NAME: name}))

    def resolve(self, repository: str, tag: str) -> Digest | None:
        name = f"{repository}:{tag}"
        found = next((e["digest"] for e in self._entries() if name_of(e) == name), None)
        return None if found is None else Digest(found)

    def tags(self, repository: str) -> list[str]:
        prefix = f"{repository}:"
        names = [name_of(e) for e in self._entries()]
        tags = [n.removeprefix(prefix) for n in names if n.startswith(prefix)]
        return sorted(t for t in tags if "/" not in t)

    def referrers(
        self, repository: str, digest: Digest, artifact_type: str | None = None
    ) -> list[Descriptor]:
        current = self.resolve(repository, referring.fallback_tag(digest))
        known = [] if current is None else self._index_of(repository, current)
        return [d for d in known if artifact_type in (None, d.artifact_type)]

    def _index_of(self, repository: str, digest: Digest) -> list[Descriptor]:
        return referring.parse_index(b"".join(self.read_blob(repository, digest)))

    def _media_type(self, digest: Digest, body: bytes) -> str:
        try:
            declared = read_json(body).get("mediaType")
        except (ValueError, AttributeError):
            # Whoever reads it finds that it is no manifest; one that anybody put here is no failure of the store.
            declared = None
        if isinstance(declared, str) and declared:
            return declared
        named = (e["mediaType"] for e in self._entries() if e.get("digest") == digest)
        return str(next(named, IMAGE_MANIFEST))

    # The index

    def entries(self) -> list[tuple[str, Digest]]:
        """Name (`<repository>:<tag>`, empty without a tag) and digest of every manifest that the index lists."""
        return [(name_of(e), Digest(e["digest"])) for e in self._entries()]

    def _entries(self) -> list[dict[str, Any]]:
        path = self.root / "index.json"
        try:
            with open(path, "rb") as file:
                stat = os.fstat(file.fileno())
                state = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
                if self._cached is None or self._cached[0] != state:
                    self._cached = (state, _parse_index(file.read()))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise storage_error(error, path, "reading") from error
        except (ValueError, KeyError, TypeError) as error:
            raise RegistryError(f"{path} is not an OCI layout's index: {error}") from error
        return self._cached[1]

    @contextlib.contextmanager
    def changed_index(self) -> Iterator[list[dict[str, Any]]]:
        """The index's entries, to be changed while nobody else does."""
        self.prepare()
        with self.locked():
            before = self._entries()
            entries = [dict(e) for e in before]
            yield entries
            if entries != before:
                body = json.dumps(
                    {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": entries}
                )
                _replace(self.root / "index.json", body.encode())

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """While the block runs nobody changes the index."""
        path = self.root / ".index.lock"
        deadline = time.monotonic() + self._lock_seconds
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise storage_error(error, path, "locking") from error
        try:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise RegistryError(
                            f"{path} has been locked for {self._lock_seconds:.0f} s",
                            hint="another process is stuck while it writes to this store; end it",
                        ) from error
                    time.sleep(0.005)
            yield
        finally:
            os.close(handle)

    def prepare(self) -> None:
        """Make the layout if it is not there; refuses a directory that holds something else."""
        if (self.root / "oci-layout").exists():
            return
        try:
            present = {p.name for p in self.root.iterdir()} if self.root.is_dir() else set()
            if {n for n in present if not n.startswith(".")} - {
                "blobs",
                "index.json",
                "oci-layout",
            }:
                raise RegistryError(
                    f"{self.root} is neither empty nor an OCI layout",
                    hint="name another directory for the store",
                )
            (self.root / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
            (self.root / ".incoming").mkdir(exist_ok=True)
            with self.locked():
                if not (self.root / "index.json").exists():
                    empty = {"schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": []}
                    _replace(self.root / "index.json", json.dumps(empty).encode())
                _replace(self.root / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        except OSError as error:
            raise storage_error(error, self.root, "making an OCI layout in") from error

    def sweep(self, clock: Callable[[], float] = time.time) -> int:
        """Remove what killed writers left half-written an hour ago or more; gives how many."""
        removed = 0
        for path in (self.root / ".incoming").glob("*"):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                if clock() - os.fstat(file.fileno()).st_mtime < _STALE_SECONDS:
                    continue
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
                removed += 1
        return removed


def _parse_index(body: bytes) -> list[dict[str, Any]]:
    manifests = read_json(body)["manifests"]
    for entry in manifests:
        Descriptor.from_data(entry)
    return list(manifests)


def name_of(entry: dict[str, Any]) -> str:
    """`<repository>:<tag>` of an entry; empty without a tag."""
    return str((entry.get("annotations") or {}).get(REF_NAME, ""))


def _set(entries: list[dict[str, Any]], entry: Descriptor) -> None:
    data = entry.to_data()
    name = name_of(data)
    entries[:] = [e for e in entries if name_of(e) != name]
    entries.append(data)


def _replace(path: Path, body: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(handle, "wb") as file:
            file.write(body)
            os.fchmod(file.fileno(), 0o644)
        os.replace(name, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise storage_error(error, path, "writing") from error
