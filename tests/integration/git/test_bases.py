"""An edited base: which candidates it makes, and that it changes nothing until one of them is released."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from lockgate.adapters.git import EMBEDDED
from lockgate.cli.app import app
from lockgate.domain import gitops
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.release_state import Occupant, Phase, ReleaseState, Slot
from lockgate.domain.rollout import Transition, start
from lockgate.domain.spec import CanarySpec, CanaryStep, Resources, ServingSpec
from lockgate.errors import RenderingError, UsageError
from lockgate.settings import Settings
from serving.manifests import bases_digest
from tasks.bases import plan_bases, rendering_as_described, with_bases
from tasks.driving import rendering
from tasks.rendering import UNMADE
from tasks.workspace import Workspace, initialise
from tests.integration.git.layouts import lay_files
from tests.integration.git.repositories import git

AT = datetime(2026, 11, 24, 12, tzinfo=UTC)


def candidate(name: str, **serving: Any) -> Candidate:
    return Candidate(
        model=ImageRef.parse("registry.example.com/m@" + Digest.of_bytes(name.encode())),
        runtime=ImageRef.parse("registry.example.com/vllm@" + Digest.of_bytes(b"runtime")),
        serving=ServingSpec.model_validate({"served_model_name": name, **serving}),
    )


@pytest.fixture
def workspace(tmp_path: Path, kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Two models stand in it: one on a GPU, one on CPUs."""
    monkeypatch.setenv("LOCKGATE_WORKSPACE", str(tmp_path / "workspace"))
    initialise(Settings(), layout=EMBEDDED)
    made = Workspace(Settings())
    for model, resources in (("large", Resources(gpu=1)), ("small", Resources())):
        release(
            made, model, with_bases(made, model, "local", candidate(model, resources=resources))
        )
    return made


def release(workspace: Workspace, model: str, what: Candidate) -> None:
    occupant = Occupant(candidate=what, release="one", evidence=what.digest)

    def build(state: ReleaseState) -> Transition:
        answer = start(state, occupant, CanarySpec(steps=(CanaryStep(weight=5),)), AT)
        assert isinstance(answer, Transition)
        settled = ReleaseState(
            model=model, environment="local", phase=Phase.STABLE, a=occupant, stable=Slot.A,
            generation=answer.state.generation,
        )  # fmt: skip
        return answer.model_copy(update={"state": settled})

    workspace.gitops.commit_transition(
        model, "local", build, rendering_as_described(workspace, what)
    )


def edit(tmp_path: Path, path: str, old: str, new: str) -> None:
    """A person's commit to the GitOps repository."""
    work = tmp_path / "person"
    if not work.exists():
        git("clone", "--quiet", Settings().git_remote, str(work), at=tmp_path)
    git("pull", "--quiet", "origin", "main", at=work)
    text = (work / path).read_text()
    assert old in text
    (work / path).write_text(text.replace(old, new))
    git("commit", "--quiet", "--all", "-m", f"Edit {path}", at=work)
    git("push", "--quiet", "origin", "HEAD:main", at=work)


def named(found: Any) -> dict[str, list[str]]:
    return {item.model: [Path(file).name for file in item.files] for item in found}


def test_plan_all_names_the_models_that_an_edited_base_makes_new_candidates_of(
    tmp_path: Path, workspace: Workspace
) -> None:
    assert named(plan_bases()) == {"large": [], "small": []}
    edit(tmp_path, "apps/vllm/base/deployment.yaml", "revisionHistoryLimit: 3", "revisionHistoryLimit: 4")  # fmt: skip
    assert named(plan_bases()) == {
        "large": ["deployment-large-a.yaml"],
        "small": ["deployment-small-a.yaml"],
    }
    edit(tmp_path, "apps/vllm/base/deployment.yaml", "revisionHistoryLimit: 4", "revisionHistoryLimit: 3")  # fmt: skip
    edit(tmp_path, "apps/vllm/components/gpu/kustomization.yaml", "operator: Exists", "operator: Exists\n                tolerationSeconds: 60")  # fmt: skip
    assert named(plan_bases()) == {"large": ["deployment-large-a.yaml"], "small": []}
    done = CliRunner().invoke(app, ["plan", "--all"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "1 of 2 models would be changed" in done.output
    edit(tmp_path, "apps/vllm/components/gpu/kustomization.yaml", "kind: Component", "kind: Komponent")  # fmt: skip
    done = CliRunner().invoke(app, ["plan", "--all", "--json"], catch_exceptions=False)
    problems = {item["model"]: item["problem"] for item in json.loads(done.output)}
    assert problems["small"] is None
    assert "Komponent" in problems["large"]


def test_an_edited_base_is_another_candidate_and_touches_nothing_that_stands(
    tmp_path: Path, workspace: Workspace
) -> None:
    before = with_bases(workspace, "large", "local", candidate("large", resources=Resources(gpu=1)))
    state = workspace.gitops.read_state("large", "local")
    stands = state.occupant(Slot.A)
    assert stands is not None
    assert stands.candidate.digest == before.digest, "the same bases make the same candidate"
    edit(tmp_path, "apps/vllm/base/service.yaml", "appProtocol: http", "appProtocol: kubernetes.io/h2c")  # fmt: skip
    after = with_bases(workspace, "large", "local", candidate("large", resources=Resources(gpu=1)))
    assert after.digest != before.digest
    assert (after.model, after.runtime, after.serving) == (before.model, before.runtime, before.serving)  # fmt: skip
    committed = workspace.gitops.look_at_files(
        lambda root: (root / "models/large/local/manifests/service-large-a.yaml").read_text()
    )
    kept = workspace.gitops.look_at_files(rendering_of(workspace, state))
    assert kept["models/large/local/manifests/service-large-a.yaml"] == committed
    assert "h2c" not in committed


def rendering_of(workspace: Workspace, state: ReleaseState) -> Any:
    return lambda root: rendering(workspace)(state, root)


def test_a_base_that_was_edited_while_a_release_was_measured_stops_its_first_commit(
    tmp_path: Path, workspace: Workspace
) -> None:
    described = with_bases(workspace, "late", "local", candidate("late"))
    edit(tmp_path, "apps/vllm/base/deployment.yaml", "revisionHistoryLimit: 3", "revisionHistoryLimit: 4")  # fmt: skip
    with pytest.raises(RenderingError, match="changed since its release began"):
        release(workspace, "late", described)
    assert workspace.gitops.read_state("late", "local").stable is None
    release(workspace, "late", with_bases(workspace, "late", "local", candidate("late")))
    assert workspace.gitops.read_state("late", "local").stable is Slot.A


def test_only_what_a_model_uses_is_part_of_its_candidate(tmp_path: Path, kubectl: Path) -> None:
    root = lay_files(tmp_path / "r", EMBEDDED)

    def digest() -> Digest:
        return bases_digest("m", "local", candidate("m"), root, kubectl=kubectl)

    before = digest()
    base = root / "apps/vllm/base/deployment.yaml"
    base.write_text("# another comment\n" + base.read_text())
    (root / "apps/vllm/components/gpu/kustomization.yaml").write_text(
        gitops.dump_yaml({"apiVersion": "kustomize.config.k8s.io/v1alpha1", "kind": "Component"})
    )
    assert digest() == before
    route = root / "apps/vllm/route/httproute.yaml"
    route.write_text(route.read_text().replace("name: models", "name: others"))
    assert digest() != before
    environment = root / "apps/vllm/environments/local/kustomization.yaml"
    own = yaml.safe_load(environment.read_text())
    route.write_text(route.read_text().replace("name: others", "name: models"))
    environment.write_text(yaml.safe_dump({**own, "components": []}))
    assert digest() != before


def test_render_writes_what_the_first_commit_would_hold_and_commits_nothing(
    tmp_path: Path, workspace: Workspace
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text("{}")
    spec = tmp_path / "spec.yaml"
    data = {
        "model": "small", "source": "dir:model", "serving": {"served_model_name": "small"},
        "evaluation": {"tasks": [{"name": "lockgate_numbers", "metric": "exact_match,strip", "margin": 0.1}]},
        "benchmark": {"profiles": [{"name": "single", "requests": 10, "output_tokens": 50}]},
    }  # fmt: skip
    spec.write_text(yaml.safe_dump(data))
    before = workspace.gitops.read_state("small", "local")

    def rendered(out: str, *options: str) -> Any:
        return CliRunner().invoke(
            app, ["render", str(spec), "--out", str(tmp_path / out), *options]
        )

    done = rendered("first")
    assert done.exit_code == 0, done.output
    assert "not made yet" in done.output
    manifests = tmp_path / "first/models/small/local/manifests"
    found = {p.name: yaml.safe_load(p.read_text()) for p in manifests.iterdir()}
    assert {"deployment-small-a.yaml", "deployment-small-b.yaml", "httproute-small.yaml"} <= set(
        found
    )
    pod = found["deployment-small-b.yaml"]["spec"]["template"]["spec"]
    [reference] = [v["image"]["reference"] for v in pod["volumes"] if "image" in v]
    assert reference == f"{workspace.settings.model_repository('small')}@{UNMADE}"
    weights = found["httproute-small.yaml"]["spec"]["rules"][-1]["backendRefs"]
    assert {b["name"]: b["weight"] for b in weights} == {"small-a": 100, "small-b": 0}
    assert workspace.gitops.read_state("small", "local") == before
    again = rendered("first")
    assert isinstance(again.exception, UsageError)
    listed = json.loads(rendered("second", "--json").output)
    assert set(listed["files"]) == {f"models/small/local/manifests/{name}" for name in found}
