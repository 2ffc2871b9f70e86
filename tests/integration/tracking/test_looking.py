"""A look at a track: real Git, a real image store, and a Hub whose branches move."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lockgate.adapters.git import Author
from lockgate.domain import gitops
from lockgate.domain.release_state import Phase, ReleaseState, Slot
from lockgate.domain.steps import ReleaseOutcome
from lockgate.domain.tracks import Track
from lockgate.errors import SourceError, UsageError
from tasks import tracking
from tasks.tracking import Considered
from tasks.workspace import Workspace
from tests.integration.git.repositories import git, make_remote, somebody_pushes
from tests.integration.tracking.moving_hub import MovingHub
from tests.unit.rollout.world import SPEC, occupant

FIRST, SECOND = "1" * 40, "2" * 40
RELEASE: dict[str, Any] = {
    "apiVersion": "lockgate.dev/v1",
    "kind": "Release",
    "model": "m",
    "source": "hf://org/name",
    "serving": {"served_model_name": "m"},
    "evaluation": {"tasks": [{"name": "t", "metric": "acc,none", "margin": 0.1, "floor": 0.1}]},
    "benchmark": {"profiles": [{"name": "chat", "requests": 8}]},
}
TRACK: dict[str, Any] = {
    "model": "m",
    "source": "hf://org/name",
    "spec": "specs/m.yaml",
    "environments": [{"name": "staging"}, {"name": "prod"}],
}


class World:
    """A GitOps remote with a tracked model, and the model's source."""

    def __init__(self, root: Path, hub: MovingHub) -> None:
        self.root, self.hub = root, hub
        self.writes("specs/m.yaml", RELEASE)
        self.writes("models/m/track.yaml", TRACK)

    def writes(self, path: str, document: Any) -> None:
        somebody_pushes(self.root, path, gitops.dump_yaml(document))

    def state(self, name: str, environment: str = "staging") -> None:
        """Somebody's release of candidate `name` stands in an environment."""
        state = ReleaseState(
            model="m", environment=environment, phase=Phase.STABLE, a=occupant(name),
            stable=Slot.A, canary=SPEC,
        )  # fmt: skip
        self.writes(f"models/m/{environment}/release.yaml", state.to_data())

    def looks(self, environment: str = "staging") -> Considered:
        (track,) = tracking.read_tracks.fn("m")
        (chosen,) = tracking.chosen(track, environment)
        return tracking.consider.fn(track, chosen, tracking.resolve_followed.fn(track), False)

    def ends(self, looked: Considered, name: str, result: str) -> None:
        """The release that a look started ends."""
        assert looked.release is not None
        outcome = ReleaseOutcome.model_construct(
            candidate=occupant(name).candidate, result=result, reason="said the flow"
        )
        tracking.remember(looked.release, outcome)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    make_remote(tmp_path)
    monkeypatch.setenv("LOCKGATE_WORKSPACE", str(tmp_path / "workspace"))
    monkeypatch.setenv("LOCKGATE_REMOTE", str(tmp_path / "remote.git"))
    hub = MovingHub(branches={"main": FIRST}, tags={})
    with hub.serving() as endpoint:
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        yield World(tmp_path, hub)


def resolved(**changes: Any) -> str:
    return tracking.resolve_followed.fn(Track.model_validate({**TRACK, **changes})).source


def test_a_branch_or_tag_is_resolved_to_a_commit_at_the_source(world: World) -> None:
    assert resolved() == f"hf://org/name@{FIRST}"
    world.hub.branches["main"] = SECOND
    world.hub.tags = {"v1.9": FIRST, "v1.10": SECOND, "nightly": FIRST}
    assert resolved() == f"hf://org/name@{SECOND}"
    assert resolved(follow={"tag": "v*"}) == f"hf://org/name@{SECOND}"
    assert resolved(follow={"tag": "v1.9"}) == f"hf://org/name@{FIRST}"
    for missing in ({"tag": "w*"}, {"branch": "gone"}, {"branch": "v*"}):
        with pytest.raises(SourceError):
            resolved(follow=missing)


def test_a_tag_of_an_image_is_resolved_to_its_digest(world: World) -> None:
    store, repository = Workspace.current().store, "lockgate.local/their/model"
    body = b'{"schemaVersion": 2}'
    digest = store.put_manifest(
        repository, body, "application/vnd.oci.image.manifest.v1+json", tag="v2"
    )
    source = f"oci://{repository}"
    assert resolved(source=source, follow={"tag": "v*"}) == f"{source}@{digest}"
    with pytest.raises(SourceError, match="has no tag w"):
        resolved(source=source, follow={"tag": "w*"})


def test_a_revision_is_started_until_it_ends_and_then_no_more(world: World) -> None:
    world.state("old")
    first = world.looks()
    assert first.decision.start and first.release is not None
    spec = first.release.request.spec
    assert (spec.source, spec.environment) == (f"hf://org/name@{FIRST}", "staging")
    # A crash in between leaves nothing behind: the same release is started, under the same key.
    again = world.looks()
    assert again.release is not None and again.release.key == first.release.key
    world.ends(first, "new", "refused")
    assert world.looks().decision.why == "refused"
    world.hub.branches["main"] = SECOND
    assert world.looks().decision.start
    world.hub.branches["main"] = FIRST
    assert world.looks().decision.why == "refused"
    world.writes("specs/m.yaml", {**RELEASE, "canary": {"alpha": 0.05}})
    assert world.looks().decision.start


def test_who_wrote_the_track_is_the_one_that_asks(world: World) -> None:
    looked = world.looks()
    assert looked.release is not None
    assert looked.release.request.requested_by == "Somebody <somebody@example.com>"


def test_production_gets_what_stands_in_staging_not_what_is_newest(world: World) -> None:
    staging = world.looks()
    assert world.looks("prod").decision.why == "busy"
    world.ends(staging, "new", "promoted")
    world.state("new")
    world.hub.branches["main"] = SECOND
    looked = world.looks("prod")
    assert looked.decision.start and looked.release is not None
    assert looked.release.request.spec.source == f"hf://org/name@{FIRST}"
    # Something that no track brought there goes nowhere.
    world.state("by hand")
    assert world.looks("prod").release is None


def test_a_track_is_committed_once_by_who_adds_it(world: World) -> None:
    author = Author("Mara", "mara@example.com")
    track = Track.model_validate({**TRACK, "model": "n", "spec": "specs/n.yaml"})
    with pytest.raises(UsageError, match=r"specs/n\.yaml"):
        tracking.add_track(track, None, author)
    text = gitops.dump_yaml({**RELEASE, "model": "n"})
    commit = tracking.add_track(track, text, author)
    assert commit is not None
    assert tracking.add_track(track, text, author) is None
    log = git("log", "-1", "--format=%H %an %s", "main", at=world.root / "remote.git")
    assert log.split() == [commit, "Mara", "Track", "n", "at", "hf://org/name"]
    assert [t.model for t in tracking.read_tracks.fn(None)] == ["m", "n"]
    with pytest.raises(UsageError, match="not of n"):
        tracking.add_track(track, gitops.dump_yaml(RELEASE), author)


def test_a_track_that_cannot_be_read_stands_in_no_others_way(world: World) -> None:
    world.writes("models/broken/track.yaml", {"kind": "Track"})
    assert [t.model for t in tracking.read_tracks.fn(None)] == ["m"]
    with pytest.raises(UsageError, match="not tracked"):
        tracking.read_tracks.fn("unknown")
