"""Find, and remove if asked to, what nothing refers to any more: in the workspace, and in its own image store.

Whatever cannot be read stops it: what is not known to be garbage is none.
"""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from prefect.cache_policies import NO_CACHE

from lockgate.adapters.oci import artifacts
from lockgate.adapters.oci.collecting import collect
from lockgate.adapters.oci.layout import LayoutStore
from lockgate.domain.base import Frozen
from lockgate.domain.collecting import (
    CommittedRelease,
    Garbage,
    Kind,
    Needed,
    digests_in,
    needed,
    outlives,
)
from lockgate.domain.digests import Digest, read_json
from lockgate.domain.images import ImageRef
from lockgate.errors import LockgateError, RegistryError
from tasks.reporting import recorded_outcomes
from tasks.steps import step
from tasks.workspace import Workspace

logger = logging.getLogger("lockgate.gc")

OLD = timedelta(days=30)
EPHEMERAL = timedelta(days=1)
"""Work in progress writes more often than this."""
_NAMED = re.compile(r"(?P<repository>.+):(?P<kind>document|step)-(?P<hex>[0-9a-f]{64})")


class Collected(Frozen):
    """What was found, and whether it is gone."""

    deleted: bool
    garbage: tuple[Garbage, ...]
    note: str = ""
    """What was not looked at, and why."""

    @property
    def bytes(self) -> int:
        return sum(item.bytes for item in self.garbage)


@step(name="collect-garbage", cache_policy=NO_CACHE)
def collect_garbage(*, delete: bool, older_than: timedelta = OLD) -> Collected:
    """Everything that is older than `older_than` and that neither Git's state, its denylist, its history's evidence nor a slot
    refers to. Nothing is removed without `delete`.

    Raises:
        LockgateError: something cannot be read; nothing was removed before it was.
    """
    workspace = Workspace.current()
    repository = workspace.gitops
    repository.sync()
    committed = [
        CommittedRelease(
            release=entry.release, generation=int(entry.trailers.get("Lockgate-Generation", "0")),
            evidence=Digest(evidence) if (evidence := entry.trailers.get("Evidence")) else None,
        )
        for entry in repository.every_transition()
        if entry.release is not None
    ]  # fmt: skip
    needs = needed(repository.states(), committed)
    sweep = _Sweep(workspace, needs, time.time() - older_than.total_seconds())
    # All is looked for before anything is removed: an error leaves everything as it is.
    files = [
        found
        for part in (sweep.traces, sweep.logs, sweep.snapshots, sweep.scratch)
        for found in part()
    ]
    note, images = sweep.store(delete=False)
    if delete:
        for _, path in files:
            _remove(path)
        note, images = sweep.store(delete=True)
    garbage = [item for item, _ in files] + images
    done = Collected(deleted=delete, garbage=tuple(garbage), note=note)
    word = "removed" if delete else "could go"
    logger.info("%d things, %.1f MB %s", len(garbage), done.bytes / 1e6, word)
    return done


Found = tuple[Garbage, Path]


@dataclass(frozen=True)
class _Sweep:
    workspace: Workspace
    needs: Needed
    before: float
    """Seconds since 1970."""

    def traces(self) -> Iterable[Found]:
        """Scrapes and looks of canary steps of releases that stand in no slot, and are not the last one either."""
        root = self.workspace.layout.root / "traces"
        for path in sorted(root.glob("*/*")):
            generation = path.name.split(".")[0]
            kept = self.needs.traces.get(path.parent.name, frozenset())
            if generation.isdigit() and int(generation) in kept:
                continue
            yield from self._if_old("trace", path)

    def logs(self) -> Iterable[Found]:
        alive = {f"measure-{digest.short}" for digest in self.needs.candidates}
        for path in sorted(self.workspace.layout.logs.glob("*")):
            if path.name not in alive:
                yield from self._if_old("log", path)

    def snapshots(self) -> Iterable[Found]:
        """Models unpacked on this machine: by their files' digest, and by the image that the embedded cluster pulled."""
        layout = self.workspace.layout
        pulled = {digest.hex for digest in self.needs.images}
        for path in sorted((layout.root / "pulled").glob("*")):
            if path.name not in pulled:
                yield from self._if_old("snapshot", path)
        there = sorted((layout.root / "snapshots").glob("*"))
        kept = self._kept_snapshots() if there else frozenset()
        for path in there:
            if path.name not in kept:
                yield from self._if_old("snapshot", path)

    def scratch(self) -> Iterable[Found]:
        """Ephemeral directories of steps that were killed; by their newest file, since a step that runs writes."""
        root = self.workspace.layout.root
        before = max(self.before, time.time() - EPHEMERAL.total_seconds())
        for name in ("scratch", "fetching"):
            for path in sorted((root / name).glob("*")):
                yield from self._if_old("scratch", path, before)

    def store(self, *, delete: bool) -> tuple[str, list[Garbage]]:
        """Images, documents and records of finished steps, and the blobs that only they had."""
        store = self.workspace.store
        if self.workspace.settings.store is not None or not isinstance(store, LayoutStore):
            return (
                f"{store.location} was left alone: others may use it; it has a retention of its own",
                [],
            )
        found = collect(
            store, _Kept(self.workspace, self.needs, store), before=self.before, delete=delete
        )
        sizes = dict(found.blobs)
        garbage = []
        for name, digest in found.entries:
            match = _NAMED.fullmatch(name)
            kinds: dict[str, Kind] = {"document": "document", "step": "step record"}
            kind: Kind = kinds[match["kind"]] if match else "image"
            garbage.append(Garbage(kind=kind, name=name or digest, bytes=sizes.pop(digest, 0)))
        garbage += [Garbage(kind="blob", name=d, bytes=size) for d, size in sizes.items()]
        return "", garbage

    def _kept_snapshots(self) -> frozenset[str]:
        """Of every model image in a slot. Those whose image cannot be read now may be any: then all are kept, by the error."""
        images = {
            occupant.candidate.model
            for state in self.workspace.gitops.states()
            for occupant in (state.a, state.b)
            if occupant is not None
        }
        return frozenset(self._snapshot(image).hex for image in images)

    def _snapshot(self, image: ImageRef) -> Digest:
        return self.workspace.stored_model(image).snapshot

    def _if_old(self, kind: Kind, path: Path, before: float | None = None) -> Iterable[Found]:
        newest, size = _measure(path)
        if newest < (self.before if before is None else before):
            name = str(path.relative_to(self.workspace.layout.root))
            yield Garbage(kind=kind, name=name, bytes=size), path


class _Kept:
    """Which entries of the store's index stay."""

    def __init__(self, workspace: Workspace, needs: Needed, store: LayoutStore) -> None:
        self.needs, self.store = needs, store
        self.records = workspace.settings.records_repository
        # Specs name imported runtimes, and specs lie anywhere: none of them is ever known to be garbage.
        self.runtimes = f"{workspace.settings.repository}/runtimes/"
        self.documents = dict(self._tagged("document"))
        self.steps = {name: self._value(digest) for name, digest in self._tagged("step")}
        alive = {name for name, value in self.steps.items() if outlives(value, needs)}
        roots = set(needs.evidence)
        for name in alive:
            roots |= digests_in(self.steps[name])
        for recorded in recorded_outcomes(workspace.settings):
            # What a refusal is explained by: no commit names it.
            roots |= digests_in(recorded.outcome.to_data())
        self.names = {f"{self.records}:step-{name}" for name in alive}
        self.names |= {f"{self.records}:document-{name}" for name in self._reached(roots)}

    def __call__(self, name: str, digest: Digest) -> bool:
        kept = digest in self.needs.images or name in self.names
        return kept or name.startswith(self.runtimes)

    def _tagged(self, kind: str) -> Iterable[tuple[str, Digest]]:
        """Hex digits of each tag of this kind, and the digest of what it holds. Read without a trace: a look is no use."""
        prefix = f"{self.records}:{kind}-"
        for name, manifest in self.store.entries():
            if name.startswith(prefix):
                body = b"".join(self.store.read_blob(self.records, manifest))
                try:
                    (layer,) = read_json(body)["layers"]
                    yield name.removeprefix(prefix), Digest(layer["digest"])
                except (ValueError, KeyError, TypeError) as error:
                    raise RegistryError(f"{name} is malformed: nothing is collected") from error

    def _value(self, digest: Digest) -> dict[str, Any]:
        found = artifacts.read_json(self.store, self.records, digest)
        value = found.get("value") if isinstance(found, dict) else None
        if not isinstance(value, dict):
            raise RegistryError(f"the step's record {digest} is malformed: nothing is collected")
        return value

    def _reached(self, roots: set[Digest]) -> set[str]:
        """The documents that the roots name, and those that these name."""
        reached: set[str] = set()
        waiting = [digest.hex for digest in roots if digest.hex in self.documents]
        while waiting:
            name = waiting.pop()
            if name in reached:
                continue
            reached.add(name)
            document = artifacts.read_json(self.store, self.records, self.documents[name])
            waiting += [d.hex for d in digests_in(document) if d.hex in self.documents]
        return reached


def _measure(path: Path) -> tuple[float, int]:
    """When the newest file of a tree was written, and how many bytes it has."""
    files = [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]
    stats = [file.lstat() for file in files]
    return max(s.st_mtime for s in stats), sum(s.st_size for s in stats)


def _remove(path: Path) -> None:
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise LockgateError(
            f"{path} cannot be removed: {error.strerror}",
            hint="see to whom it belongs; the rest goes with the next run",
        ) from error
