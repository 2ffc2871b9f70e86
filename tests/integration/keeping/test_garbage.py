"""Garbage collection of a workspace: real Git, a real image store, and everything in it made old."""

from __future__ import annotations

import os
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest

from lockgate.adapters.oci.package import missing_blobs, snapshot_of
from lockgate.adapters.oci.runtime import push_runtime
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.gates import Decision, GateReport, GateResult
from lockgate.domain.release_state import Phase
from lockgate.domain.spec import Recipe
from lockgate.domain.steps import ReleaseOutcome, StepKey
from lockgate.errors import GitError, IntegrityError, RegistryError
from tasks import driving
from tasks.collecting import Collected, collect_garbage
from tasks.reporting import record_outcome
from tests.integration.git.repositories import make_remote, render
from tests.integration.keeping.test_rescan import World

OLD = time.time() - 90 * 86400


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setenv("LOCKGATE_REMOTE", str(tmp_path / "remote.git"))
    monkeypatch.setenv("LOCKGATE_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setattr(driving, "rendering", lambda workspace: render)
    return World(tmp_path)


def aged(world: World) -> None:
    for path in [world.workspace.layout.root, *world.workspace.layout.root.rglob("*")]:
        os.utime(path, (OLD, OLD), follow_symlinks=False)


def collected(*, delete: bool = True) -> Collected:
    return collect_garbage.fn(delete=delete, older_than=timedelta(days=30))


def kinds(found: Collected) -> Counter[str]:
    return Counter(item.kind for item in found.garbage)


def record_of(world: World, step: str, candidate: Candidate) -> Digest:
    """A finished step about a candidate."""
    key = StepKey(step=step, version=1, inputs={"candidate": candidate.digest})
    value = {"key": key.to_data(), "result": {"image": str(candidate.model)}}
    world.workspace.records.record(key.content_digest(), value)
    return key.content_digest()


def everything(world: World) -> set[str]:
    root = world.workspace.layout.root
    return {str(p) for p in root.rglob("*") if "checkouts" not in p.parts}


def test_what_stands_in_a_slot_stays_whole_and_what_stood_there_goes(world: World) -> None:
    gone = world.candidate("never-released")
    slots = [world.candidate("old"), world.candidate("new")]
    for who in (*slots, gone):
        world.workspace.materialise(world.workspace.stored_model(who.model))
    old_record, kept_record = record_of(world, "fetch", gone), record_of(world, "fetch", slots[0])
    aged(world)
    found = collected()
    assert found.bytes > 0
    for who in slots:
        assert not missing_blobs(world.workspace.store, who.model)
        assert not missing_blobs(world.workspace.store, who.runtime)
        snapshot = snapshot_of(world.workspace.store, who.model).digest
        assert world.workspace.layout.snapshot(snapshot).is_dir()
    with pytest.raises(RegistryError):
        snapshot_of(world.workspace.store, gone.model)
    assert world.workspace.records.find(kept_record) is not None
    assert world.workspace.records.find(old_record) is None
    assert kinds(found)["snapshot"] == 1 and kinds(found)["image"] == 1
    # The second time there is nothing.
    aged(world)
    assert collected().garbage == ()


def test_a_dry_run_says_the_same_and_removes_nothing(world: World) -> None:
    world.candidate("never-released")
    scratch = world.workspace.layout.root / "scratch" / "killed"
    scratch.mkdir(parents=True)
    (scratch / "half").write_bytes(b"x" * 1000)
    aged(world)
    before = everything(world)
    planned = collected(delete=False)
    assert everything(world) == before and not planned.deleted
    done = collected()
    assert {(g.kind, g.name) for g in planned.garbage} == {(g.kind, g.name) for g in done.garbage}
    assert not scratch.exists()


def test_evidence_of_the_whole_history_and_of_refusals_stays_with_what_it_names(
    world: World,
) -> None:
    records = world.workspace.records
    samples = records.put_document([{"answer": "yes"}])
    scores = records.put_document({"samples": samples})
    refused, forgotten = records.put_document({"scores": scores}), records.put_document({"a": 1})
    outcome = ReleaseOutcome(
        model="m", environment="prod", candidate=world.candidate("bad"), recipe=Recipe.NONE,
        gates=GateReport(
            candidate=world.candidate("bad").digest,
            results=(GateResult(gate="scan", decision=Decision.FAIL, reasons=("r",)),),
        ),
        result="refused", phase=Phase.STABLE, reason="r", measurements=refused,
    )  # fmt: skip
    record_outcome(world.workspace.settings, outcome)
    aged(world)
    collected()
    for kept in (refused, scores, samples):
        assert records.get_document(kept) is not None
    with pytest.raises(RegistryError):
        records.get_document(forgotten)


def test_what_remembers_rather_than_saves_work_stays_whatever_its_age(world: World) -> None:
    gone = world.candidate("never-released")
    remembered = [record_of(world, step, gone) for step in ("tracked", "rescan", "duration")]
    forgotten = record_of(world, "quantize", gone)
    aged(world)
    collected()
    assert all(world.workspace.records.find(key) is not None for key in remembered)
    assert world.workspace.records.find(forgotten) is None


def test_a_runtime_that_serves_nowhere_yet_stays_since_a_spec_may_name_it(world: World) -> None:
    lock = world.root / "another.lock"
    lock.write_text("vllm==2\n")
    runtime = push_runtime(
        world.workspace.store, world.workspace.settings.runtime_repository("vllm"),
        environment_digest=Digest.of_bytes(b"another"), lock_file=lock, engine="vllm",
    )  # fmt: skip
    aged(world)
    collected()
    assert not missing_blobs(world.workspace.store, runtime)


def test_traces_of_what_stands_in_a_slot_stay_and_others_go_when_they_are_old(world: World) -> None:
    layout, generation = world.workspace.layout, world.state().generation
    kept = [layout.trace("m", "prod", generation), layout.looks("m", "prod", generation)]
    old = [layout.trace("m", "prod", 999), layout.trace("away", "prod", 1)]
    for path in (*kept, *old):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}\n")
    aged(world)
    young = layout.trace("m", "prod", 998)
    young.write_text("{}\n")
    assert kinds(collected())["trace"] == 2
    assert all(path.exists() for path in (*kept, young))


def test_work_that_is_going_on_is_known_by_its_newest_file(world: World) -> None:
    scratch = world.workspace.layout.root / "fetching" / "long" / "model"
    scratch.mkdir(parents=True)
    (scratch / "first").write_text("old")
    aged(world)
    (scratch / "second").write_text("just now")
    assert kinds(collected())["scratch"] == 0 and scratch.is_dir()


def test_a_store_that_others_may_share_is_left_alone_and_that_is_said(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = world.candidate("never-released")
    aged(world)
    monkeypatch.setenv("LOCKGATE_STORE", f"oci:{world.workspace.layout.store}")
    found = collected()
    assert "left alone" in found.note
    assert not missing_blobs(world.workspace.store, gone.model)


def test_nothing_is_removed_where_something_cannot_be_read(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.candidate("never-released")
    trace = world.workspace.layout.trace("m", "prod", 999)
    trace.parent.mkdir(parents=True, exist_ok=True)
    trace.write_text("{}\n")
    manifest = world.workspace.store.blob_path(world.candidate("old").model.digest)  # type: ignore[attr-defined]
    body = manifest.read_bytes()
    aged(world)
    before = everything(world)
    manifest.write_bytes(b"{")
    with pytest.raises((RegistryError, IntegrityError)):
        collected()
    manifest.write_bytes(body)
    monkeypatch.setenv("LOCKGATE_REMOTE", str(tmp_path / "nowhere.git"))
    with pytest.raises(GitError):
        collected()
    assert everything(world) == before


def test_an_empty_workspace_has_no_garbage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_remote(tmp_path)
    monkeypatch.setenv("LOCKGATE_REMOTE", str(tmp_path / "remote.git"))
    monkeypatch.setenv("LOCKGATE_WORKSPACE", str(tmp_path / "workspace"))
    assert collected().garbage == ()
