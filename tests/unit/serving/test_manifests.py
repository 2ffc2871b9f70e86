from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from lockgate.domain.release_state import Phase, ReleaseState, Slot
from lockgate.domain.spec import CanarySpec, CanaryStep, Resources, Strategy
from lockgate.errors import RenderingError
from serving.local.desired import read_model
from serving.manifests import check_deployment, render
from tests.unit.serving.rendering import TEMPLATE, occupant, state_of

HTTP_ROUTE = json.loads((Path(__file__).parent / "data" / "httproute_v1.json").read_text())
NO_KUBECTL = Path("/nonexistent/kubectl")
DIRECTORY = "models/smol/local/manifests"


def stable(**changes: Any) -> ReleaseState:
    return state_of(environment="local", **changes)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A GitOps repository in which nothing was released."""
    shutil.copytree(TEMPLATE / "apps", tmp_path / "apps")
    return tmp_path


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, kubectl: Path) -> Path:
    """A GitOps repository with candidates `one` and `two` in its slots; to be read only."""
    root = tmp_path_factory.mktemp("released")
    shutil.copytree(TEMPLATE / "apps", root / "apps")
    write(root, render(stable(b=occupant("two")), root, kubectl=kubectl))
    return root


def write(repo: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (repo / path).parent.mkdir(parents=True, exist_ok=True)
        (repo / path).write_text(text)


def read(files: dict[str, str], name: str) -> dict[str, Any]:
    data = yaml.safe_load(files[f"{DIRECTORY}/{name}.yaml"])
    assert isinstance(data, dict)
    return data


def edit_base(repo: Path, old: str, new: str, file: str = "deployment.yaml") -> None:
    path = repo / "apps" / "vllm" / "base" / file
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize("resources", [Resources(), Resources(cpu=4, memory="80Gi", gpu=2)])
def test_everything_rendered_is_valid_for_a_strict_api_server(
    repo: Path, kubectl: Path, resources: Resources
) -> None:
    two = occupant("two", resources=resources, replicas=3)
    state = stable(phase=Phase.CANARY, step=0, weight=5, b=two)
    files = render(state, repo, kubectl=kubectl)
    kinds = []
    for path, text in files.items():
        item = yaml.safe_load(text)
        kinds.append(item["kind"])
        if item["kind"] == "HTTPRoute":
            jsonschema.Draft202012Validator(HTTP_ROUTE).validate(item)
        else:
            kubernetes_validate.validate(item, "1.35", strict=True)
        assert path == f"{DIRECTORY}/{item['kind'].lower()}-{item['metadata']['name']}.yaml"
        assert item["metadata"]["namespace"] == "lockgate-local"
    per_slot = ["Deployment", "PodDisruptionBudget", "Service", "ServiceAccount"]
    assert sorted(kinds) == sorted([*per_slot, *per_slot, "HTTPRoute"])


def test_a_pod_is_hardened_drains_longer_than_its_streams_and_is_pinned_by_digest(
    released: Path,
) -> None:
    one = occupant("one")
    files = render(stable(a=one), released, kubectl=NO_KUBECTL)
    deployment = read(files, "deployment-smol-a")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] == 75
    assert container["lifecycle"]["preStop"]["sleep"]["seconds"] == 15
    assert container["args"][container["args"].index("--shutdown-timeout") + 1] == "45"
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"]
    assert container["image"] == str(one.candidate.runtime)
    model = next(v for v in pod["volumes"] if v["name"] == "model")
    assert model["image"]["reference"] == str(one.candidate.model)
    annotations = deployment["spec"]["template"]["metadata"]["annotations"]
    assert annotations["lockgate.dev/candidate"] == one.candidate.digest
    writable = {"HOME", "HF_HOME", "VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT", "TRITON_CACHE_DIR"}
    mounts = {m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")}
    for variable in container["env"]:
        if variable["name"] in writable:
            assert any(variable["value"].startswith(mount) for mount in mounts), variable


def test_services_select_one_slot_each(released: Path) -> None:
    files = render(stable(b=occupant("two")), released, kubectl=NO_KUBECTL)
    for slot in "ab":
        labels = read(files, f"deployment-smol-{slot}")["spec"]["template"]["metadata"]["labels"]
        assert read(files, f"service-smol-{slot}")["spec"]["selector"] == labels
        assert labels["lockgate.dev/slot"] == slot


def test_a_change_of_weight_touches_the_route_alone_and_needs_neither_base_nor_kubectl(
    released: Path, tmp_path: Path
) -> None:
    repo = tmp_path
    shutil.copytree(released / "models", repo / "models")
    before = stable(b=occupant("two"))
    files = render(before, repo, kubectl=NO_KUBECTL)
    canary = before.model_copy(update={"phase": Phase.CANARY, "step": 1, "weight": 25})
    after = render(canary, repo, kubectl=NO_KUBECTL)
    assert {p for p in files if files[p] != after[p]} == {f"{DIRECTORY}/httproute-smol.yaml"}
    default = read(after, "httproute-smol")["spec"]["rules"][-1]
    assert {b["name"]: b["weight"] for b in default["backendRefs"]} == {"smol-a": 75, "smol-b": 25}
    assert default["timeouts"] == {"request": "0s", "backendRequest": "0s"}


def test_an_edited_base_reaches_a_slot_only_with_a_new_candidate(repo: Path, kubectl: Path) -> None:
    files = render(stable(), repo, kubectl=kubectl)
    write(repo, files)
    edit_base(repo, "periodSeconds: 5", "periodSeconds: 7")
    after = render(stable(b=occupant("two")), repo, kubectl=kubectl)
    stays, new = f"{DIRECTORY}/deployment-smol-a.yaml", f"{DIRECTORY}/deployment-smol-b.yaml"
    assert after[stays] == files[stays]
    assert "periodSeconds: 7" in after[new]
    fresh = render(stable(), repo, kubectl=kubectl, fresh=True)
    assert "periodSeconds: 7" in fresh[stays]


def test_a_slot_that_lends_a_replica_changes_in_size_and_in_nothing_else(
    released: Path, tmp_path: Path, kubectl: Path
) -> None:
    one, two = occupant("one", replicas=3), occupant("two", replicas=3)
    shutil.copytree(released / "apps", tmp_path / "apps")
    write(tmp_path, render(stable(a=one), tmp_path, kubectl=kubectl))
    borrow = CanarySpec(strategy=Strategy.BORROW, steps=(CanaryStep(weight=30),))
    state = stable(a=one, b=two, canary=borrow, lent=1)
    before = read(render(stable(a=one), tmp_path, kubectl=NO_KUBECTL), "deployment-smol-a")
    files = render(state, tmp_path, kubectl=kubectl)
    lender = read(files, "deployment-smol-a")
    assert (before["spec"].pop("replicas"), lender["spec"].pop("replicas")) == (3, 2)
    assert lender == before
    assert read(files, "deployment-smol-b")["spec"]["replicas"] == 1
    write(tmp_path, files)
    back = render(stable(a=one), tmp_path, kubectl=NO_KUBECTL)
    assert read(back, "deployment-smol-a")["spec"]["replicas"] == 3


def test_a_fresh_baseline_is_stable_as_it_was_released_under_another_name(
    released: Path, tmp_path: Path
) -> None:
    shutil.copytree(released, tmp_path, dirs_exist_ok=True)
    edit_base(tmp_path, "periodSeconds: 5", "periodSeconds: 7")
    spec = CanarySpec(steps=(CanaryStep(weight=5),), baseline="fresh")
    state = stable(
        phase=Phase.CANARY, step=0, weight=5, b=occupant("two"), canary=spec, fresh_baseline=True
    )
    files = render(state, tmp_path, kubectl=NO_KUBECTL)
    objects = [yaml.safe_load(text) for text in files.values()]
    for item in objects:
        if item["kind"] != "HTTPRoute":
            kubernetes_validate.validate(item, "1.35", strict=True)
    fresh, original = (read(files, f"deployment-smol-{slot}") for slot in ("baseline", "a"))
    check_deployment(fresh, occupant("one"))
    assert (
        fresh["spec"]["template"]["spec"]["containers"]
        == original["spec"]["template"]["spec"]["containers"]
    )
    assert fresh["spec"]["selector"]["matchLabels"]["lockgate.dev/slot"] == "baseline"
    assert (
        read(files, "service-smol-baseline")["spec"]["selector"]
        == fresh["spec"]["selector"]["matchLabels"]
    )
    default = read(files, "httproute-smol")["spec"]["rules"][-1]
    assert {b["name"]: b["weight"] for b in default["backendRefs"]} == {
        "smol-a": 90, "smol-b": 5, "smol-baseline": 5,
    }  # fmt: skip
    annotations = read(files, "httproute-smol")["metadata"]["annotations"]
    assert annotations["lockgate.dev/failover-slots"] == "a,b"
    desired = read_model("smol", objects, state)
    assert {s.slot: s.refusal for s in desired.slots} == dict.fromkeys(Slot, None)


def test_another_candidate_in_the_same_slot_is_rendered_anew_and_an_empty_slot_leaves_no_file(
    released: Path, repo: Path, kubectl: Path
) -> None:
    shutil.copytree(released / "models", repo / "models")
    three = occupant("three", max_num_seqs=8)
    files = render(stable(b=three), repo, kubectl=kubectl)
    assert str(three.candidate.model) in files[f"{DIRECTORY}/deployment-smol-b.yaml"]
    assert not any("smol-b" in path for path in render(stable(), repo, kubectl=kubectl))


@pytest.mark.parametrize(
    ("phase", "changes", "slots"),
    [
        (Phase.STABLE, {}, "a"),
        (Phase.DEPLOYING, {"b": occupant("two")}, "a"),
        (Phase.CANARY, {"b": occupant("two"), "step": 0, "weight": 5}, "a,b"),
        (Phase.BAKING, {"b": occupant("two"), "stable": Slot.B}, "a,b"),
        (Phase.DRAINING, {"b": occupant("two")}, "a"),
        (Phase.DEPLOYING, {"stable": None}, ""),
    ],
)
def test_only_a_slot_that_was_trusted_with_traffic_may_take_over(
    released: Path, phase: Phase, changes: dict[str, Any], slots: str
) -> None:
    files = render(stable(phase=phase, **changes), released, kubectl=NO_KUBECTL)
    annotations = read(files, "httproute-smol")["metadata"]["annotations"]
    assert annotations["lockgate.dev/failover-slots"] == slots


def test_no_component_can_override_what_the_candidate_was_attested_for(
    repo: Path, kubectl: Path
) -> None:
    environment = repo / "apps" / "vllm" / "environments" / "local" / "kustomization.yaml"
    data = yaml.safe_load(environment.read_text())
    other = {"name": "vllm", "image": "example.com/other:latest", "args": ["--model", "evil"]}
    patch = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "any"},
        "spec": {"template": {"spec": {"priorityClassName": "high", "containers": [other]}}},
    }
    data["patches"] = [{"target": {"kind": "Deployment"}, "patch": yaml.safe_dump(patch)}]
    environment.write_text(yaml.safe_dump(data))
    one = occupant("one")
    deployment = read(render(stable(a=one), repo, kubectl=kubectl), "deployment-smol-a")
    assert deployment["spec"]["template"]["spec"]["priorityClassName"] == "high"
    check_deployment(deployment, one)


@pytest.mark.parametrize(
    ("what", "edit"),
    [
        ("model", lambda pod: pod["volumes"][0]["image"].update(reference="x@sha256:0")),
        ("runtime", lambda pod: pod["containers"][0].update(image="vllm:latest")),
        ("args", lambda pod: pod["containers"][0]["args"].append("--trust-remote-code")),
        ("command", lambda pod: pod["containers"][0].update(command=["sh"])),
        ("VLLM_NO_USAGE_STATS", lambda pod: pod["containers"][0].update(env=[])),
    ],
)
def test_a_deployment_that_says_something_else_than_its_candidate_is_refused_by_name(
    released: Path, what: str, edit: Callable[[dict[str, Any]], None]
) -> None:
    one = occupant("one")
    deployment = read(render(stable(a=one), released, kubectl=NO_KUBECTL), "deployment-smol-a")
    check_deployment(deployment, one)
    edit(deployment["spec"]["template"]["spec"])
    with pytest.raises(RenderingError, match=what):
        check_deployment(deployment, one)


def test_a_broken_base_is_an_error_in_kustomizes_own_words(repo: Path, kubectl: Path) -> None:
    edit_base(repo, "  - service.yaml", "  - missing.yaml", "kustomization.yaml")
    with pytest.raises(RenderingError, match=r"missing\.yaml"):
        render(stable(), repo, kubectl=kubectl)


def test_a_base_from_the_network_is_not_fetched(repo: Path, kubectl: Path) -> None:
    edit_base(
        repo,
        "  - service.yaml",
        "  - https://example.com/service.yaml",
        "kustomization.yaml",
    )
    with pytest.raises(RenderingError):
        render(stable(), repo, kubectl=kubectl)
