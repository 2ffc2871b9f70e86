"""What of a layout store nobody refers to any more: found by mark and sweep from the entries that are to be kept.

Manifests and blobs that were written, or manifests that were read, after a moment are kept whatever refers to them. All of it
happens under the index's lock, and `LayoutStore.put_manifest` looks under the same lock whether what it refers to is there:
a writer that relied on a blob that is swept meanwhile gets an error, and never a dangling image.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from lockgate.adapters.oci import referring
from lockgate.adapters.oci.layout import LayoutStore, name_of
from lockgate.domain.digests import Digest, read_json
from lockgate.errors import RegistryError

Kept = Callable[[str, Digest], bool]
"""Whether the manifest with this name (`<repository>:<tag>`, empty without a tag) and digest is to be kept."""


@dataclass(frozen=True)
class Unreferenced:
    """What can go, or is gone."""

    entries: tuple[tuple[str, Digest], ...]
    """Names and digests of manifests."""
    blobs: tuple[tuple[Digest, int], ...]
    """With their sizes; the manifests' own among them."""


def collect(store: LayoutStore, kept: Kept, *, before: float, delete: bool) -> Unreferenced:
    """Find every manifest that is not `kept`, and every blob that no kept one leads to, both last touched before `before`
    (seconds since 1970), and remove them with `delete`. A signature or attestation stays with what it is about.

    Raises:
        RegistryError: the layout cannot be read; nothing is removed then.
    """
    if not (store.root / "index.json").exists():
        return Unreferenced((), ())
    with store.changed_index() as entries:
        marked = _Marked(store, entries, before)
        for entry in entries:
            digest = Digest(entry["digest"])
            if marked.young(digest) or kept(name_of(entry), digest):
                marked.mark(digest)
        dead = [e for e in entries if Digest(e["digest"]) not in marked.manifests]
        blobs = tuple(marked.unmarked())
        if delete:
            entries[:] = [e for e in entries if Digest(e["digest"]) in marked.manifests]
    if delete:
        # The index forgot them first: what is interrupted here leaves blobs for the next run, and no entry without its blob.
        blobs = _sweep(store, before)
    return Unreferenced(tuple((name_of(e), Digest(e["digest"])) for e in dead), blobs)


def _sweep(store: LayoutStore, before: float) -> tuple[tuple[Digest, int], ...]:
    """Remove what no entry of the index leads to; somebody may have written entries since those above were removed."""
    with store.changed_index() as entries:
        marked = _Marked(store, entries, before)
        for entry in entries:
            marked.mark(Digest(entry["digest"]))
        blobs = tuple(marked.unmarked())
        for digest, _ in blobs:
            with contextlib.suppress(FileNotFoundError):
                store.blob_path(digest).unlink()
    return blobs


class _Marked:
    """Everything that the kept manifests lead to."""

    def __init__(self, store: LayoutStore, entries: list[dict[str, Any]], before: float) -> None:
        self.store, self.before = store, before
        self.manifests: set[Digest] = set()
        self.blobs: set[Digest] = set()
        self._about: dict[str, list[Digest]] = {}
        for entry in entries:
            # Referrers' indexes and legacy signatures lie under tags that begin with their subject's digest.
            tag = name_of(entry).rpartition(":")[2]
            if tag.startswith("sha256-"):
                self._about.setdefault(tag[:71], []).append(Digest(entry["digest"]))

    def young(self, digest: Digest) -> bool:
        """A tag that is about another manifest is as old as that one: it is marked with it."""
        if any(digest in found for found in self._about.values()):
            return False
        try:
            return self.store.blob_path(digest).stat().st_mtime >= self.before
        except FileNotFoundError:
            return False

    def mark(self, digest: Digest) -> None:
        waiting = [digest]
        while waiting:
            manifest = waiting.pop()
            if manifest in self.manifests:
                continue
            self.manifests.add(manifest)
            self.blobs.add(manifest)
            waiting += self._about.get(referring.fallback_tag(manifest), [])
            for found, is_manifest in self._parts(manifest):
                self.blobs.add(found)
                if is_manifest:
                    waiting.append(found)

    def unmarked(self) -> Iterable[tuple[Digest, int]]:
        for path in sorted((self.store.root / "blobs" / "sha256").iterdir()):
            digest, stat = Digest.from_hex(path.name), path.stat()
            if digest not in self.blobs and stat.st_mtime < self.before:
                yield digest, stat.st_size

    def _parts(self, digest: Digest) -> list[tuple[Digest, bool]]:
        path = self.store.blob_path(digest)
        try:
            data = read_json(path.read_bytes())
            manifests = [Digest(m["digest"]) for m in data.get("manifests", ())]
            others = [Digest(part["digest"]) for part in data.get("layers", ())]
            if "config" in data:
                others.append(Digest(data["config"]["digest"]))
        except FileNotFoundError:
            # An index may list what was never copied.
            return []
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise RegistryError(
                f"{path} is a manifest that cannot be read: nothing is collected",
                hint="find out what changed it; fetch or package the image again",
            ) from error
        return [(m, True) for m in manifests] + [(o, False) for o in others]
