"""KServe: what it is given, that its schemas take it, and that what it cannot do is known before a release."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from lockgate.domain.approval import manifests_digest
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.engine_support import Capability, lacking, limits, needed
from lockgate.domain.images import ImageRef
from lockgate.domain.release_state import Occupant, Phase, ReleaseState, Slot
from lockgate.domain.spec import CanarySpec, CanaryStep, ReleaseSpec, ServingSpec, Strategy
from lockgate.errors import RenderingError
from lockgate.settings import Settings
from serving.engines.registry import ENGINES, engine
from serving.manifests import bases_digest, changed_by_bases, pod_template, render
from serving.manifests.test_job import job
from tasks import engine_limits

TEMPLATE = Path(__file__).parents[3] / "gitops_repo_template"
NO_KUBECTL = Path("/nonexistent/kubectl")
SCHEMAS = {
    "LLMInferenceService": "llminferenceservice_v1alpha2.json",
    "InferenceService": "inferenceservice_v1beta1.json",
}
CANARY = CanarySpec(steps=(CanaryStep(weight=5), CanaryStep(weight=25)))
KSERVE = ("kserve", "kserve-serverless")


def occupant(name: str, engine_name: str, **serving: Any) -> Occupant:
    data = {"served_model_name": "smol", "engine": engine_name, **serving}
    candidate = Candidate(
        model=ImageRef.parse("r.example.com/smol@" + Digest.of_bytes(name.encode())),
        runtime=ImageRef.parse("r.example.com/vllm@" + Digest.of_bytes(b"runtime")),
        serving=ServingSpec.model_validate(data),
    )
    return Occupant(candidate=candidate, release=name, evidence=Digest.of_bytes(b"evidence"))


def state(engine_name: str, generation: int = 1, **changes: Any) -> ReleaseState:
    data = {
        "model": "smol", "environment": "local", "generation": generation, "canary": CANARY,
        "phase": Phase.STABLE, "a": occupant("one", engine_name), "stable": Slot.A, **changes,
    }  # fmt: skip
    return ReleaseState.model_validate(data)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    shutil.copytree(TEMPLATE / "apps", tmp_path / "apps")
    return tmp_path


def committed(wanted: ReleaseState, repo: Path, kubectl: Path) -> dict[str, Any]:
    """The objects of a state once it is in the repository, by kind and name; every one checked strictly."""
    files = render(wanted, repo, kubectl=kubectl)
    directory = repo / "models" / "smol" / "local" / "manifests"
    shutil.rmtree(directory, ignore_errors=True)
    found = {}
    for path, text in files.items():
        (repo / path).parent.mkdir(parents=True, exist_ok=True)
        (repo / path).write_text(text)
        item = yaml.safe_load(text)
        validate(item)
        if not path.endswith(".yaml"):
            continue  # kept for later, and applied by nobody
        found[f"{item['kind']}/{item['metadata']['name']}"] = item
    return found


def validate(item: dict[str, Any]) -> None:
    schema = SCHEMAS.get(item["kind"])
    if schema is None:
        kubernetes_validate.validate(item, "1.37", strict=True)
        return
    data = TEMPLATE / "schemas" / "serving.kserve.io" / schema
    jsonschema.Draft202012Validator(json.loads(data.read_text())).validate(item)


def test_two_llm_inference_services_share_the_traffic_by_their_weights_and_keep_their_pods(
    repo: Path, kubectl: Path
) -> None:
    two = occupant("two", "kserve", args=["--enforce-eager"], max_model_len=512)
    before = committed(state("kserve"), repo, kubectl)
    deploying = committed(state("kserve", 2, phase=Phase.DEPLOYING, b=two), repo, kubectl)
    # From here on nothing is rendered anew.
    canary = state("kserve", 3, phase=Phase.CANARY, b=two, step=1, weight=25)
    raised = committed(canary, repo, NO_KUBECTL)
    services = {slot: raised[f"LLMInferenceService/smol-{slot}"] for slot in "ab"}
    routes = {slot: s["spec"]["router"]["route"] for slot, s in services.items()}
    assert routes == {"a": {"group": "smol", "weight": 75}, "b": {"group": "smol", "weight": 25}}
    for slot, service in services.items():
        spec = service["spec"]
        assert spec["template"] == deploying[f"LLMInferenceService/smol-{slot}"]["spec"]["template"]
        assert service["metadata"]["annotations"]["lockgate.dev/generation"] == "3"
        assert spec["labels"]["lockgate.dev/slot"] == slot
        (container,) = spec["template"]["containers"]
        found = canary.occupant(Slot(slot))
        assert found is not None
        assert spec["model"]["uri"] == f"oci+native://{found.candidate.model}"
        assert spec["annotations"]["lockgate.dev/candidate"] == found.candidate.digest
        assert (container["name"], container["image"]) == ("main", str(found.candidate.runtime))
        assert container["command"] == ["vllm", "serve"]
        assert container["args"][0] == "/mnt/models"
        assert spec["template"]["serviceAccountName"] == f"smol-{slot}"
    assert services["b"]["spec"]["template"]["containers"][0]["args"][-1] == "--enforce-eager"
    assert (
        services["a"]["spec"]["template"]
        == (before["LLMInferenceService/smol-a"]["spec"]["template"])
    )
    assert not any(kind.startswith(("Deployment", "HTTPRoute")) for kind in raised)


def test_kserves_pods_are_as_hardened_as_those_of_the_base(repo: Path, kubectl: Path) -> None:
    for name in KSERVE:
        wanted = state(name, a=occupant("one", name))
        service = next(iter(committed(wanted, repo, kubectl).values()))
        pod = service["spec"].get("template") or service["spec"]["predictor"]
        (container,) = pod["containers"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert all(container[p]["httpGet"]["scheme"] == "HTTP" for p in ("readinessProbe",))
        volumes = {v["name"] for v in pod["volumes"]}
        assert {m["name"] for m in container["volumeMounts"]} == volumes
        assert "model" not in volumes
        shutil.rmtree(repo / "models")


@pytest.mark.parametrize(
    ("changes", "asks_for", "percent"),
    [
        ({"phase": Phase.STABLE, "b": None}, "one", None),
        ({"phase": Phase.DEPLOYING}, "two", 0),
        ({"phase": Phase.CANARY, "step": 1, "weight": 25}, "two", 25),
        ({"phase": Phase.DRAINING, "restoring": "due"}, "two", 0),
        ({"phase": Phase.DRAINING, "restoring": "under_way"}, "one", 0),
        ({"phase": Phase.BAKING, "stable": Slot.B, "weight": 5}, "two", 95),
        ({"phase": Phase.STABLE, "stable": Slot.B, "a": None}, "two", None),
    ],
)
def test_an_inference_service_asks_for_the_newer_version_and_says_its_share(
    repo: Path, kubectl: Path, changes: dict[str, Any], asks_for: str, percent: int | None
) -> None:
    name = "kserve-serverless"
    two = occupant("two", name)
    found = committed(state(name, 4, **{"b": two, **changes}), repo, kubectl)
    predictor = found["InferenceService/smol"]["spec"]["predictor"]
    assert predictor.get("canaryTrafficPercent") == percent
    wanted = occupant(asks_for, name).candidate
    assert predictor["annotations"]["lockgate.dev/candidate"] == wanted.digest
    assert predictor["storageUris"][0]["uri"] == f"oci+native://{wanted.model}"
    assert "lifecycle" not in predictor["containers"][0]


def test_nothing_but_the_share_of_an_inference_service_changes_with_the_weight(
    repo: Path, kubectl: Path
) -> None:
    name = "kserve-serverless"
    two = occupant("two", name)
    steps = (
        {"phase": Phase.DEPLOYING},
        {"phase": Phase.CANARY, "step": 1, "weight": 25},
        {"phase": Phase.BAKING, "stable": Slot.B, "weight": 5},
    )
    found = []
    for generation, changes in enumerate(steps, 2):
        objects = committed(state(name, generation, b=two, **changes), repo, kubectl)
        account = objects["ServiceAccount/smol"]["metadata"]["annotations"]
        assert account["lockgate.dev/generation"] == str(generation)
        assert json.loads(account["lockgate.dev/wanted"])["template"] == "2"
        found.append(objects["InferenceService/smol"])
    shares = [service["spec"]["predictor"].pop("canaryTrafficPercent") for service in found]
    assert shares == [0, 25, 95]
    # KServe copies labels and annotations of the service itself into the template of a revision.
    assert found[0] == found[1] == found[2]


def test_a_version_is_put_back_as_it_was_released_and_as_a_revision_of_its_own(
    repo: Path, kubectl: Path
) -> None:
    name = "kserve-serverless"
    two = occupant("two", name)
    before = committed(state(name, 1), repo, kubectl)["InferenceService/smol"]
    deploying = state(name, 2, b=two, phase=Phase.DEPLOYING, restoring="due")
    committed(deploying, repo, kubectl)
    assert changed_by_bases(deploying, repo, kubectl=kubectl) == ()
    path = repo / "apps/vllm/base/deployment.yaml"
    path.write_text(path.read_text().replace("runAsUser: 2000", "runAsUser: 2001"))
    gone = {"b": two, "phase": Phase.DRAINING}
    committed(state(name, 3, restoring="due", **gone), repo, NO_KUBECTL)
    restored = state(name, 4, restoring="under_way", **gone)
    found = committed(restored, repo, NO_KUBECTL)["InferenceService/smol"]
    after = committed(state(name, 5), repo, NO_KUBECTL)["InferenceService/smol"]
    assert found["spec"]["predictor"].pop("canaryTrafficPercent") == 0
    assert found == after, "the end of the rollback takes the share away, and nothing else"
    annotations = after["spec"]["predictor"]["annotations"]
    assert annotations.pop("lockgate.dev/template") == "4"
    assert before["spec"]["predictor"]["annotations"].pop("lockgate.dev/template") == "1"
    assert after == before
    assert [p.suffix for p in (repo / "models/smol/local/manifests").iterdir()] == [".yaml"] * 2


def test_slots_of_different_engines_are_not_rendered(repo: Path, kubectl: Path) -> None:
    mixed = state("vllm", 2, phase=Phase.DEPLOYING, b=occupant("two", "kserve"))
    with pytest.raises(RenderingError, match="share no route"):
        render(mixed, repo, kubectl=kubectl)


def test_a_base_whose_pod_is_not_the_candidates_is_refused(repo: Path, kubectl: Path) -> None:
    path = repo / "apps" / "vllm" / "environments" / "local" / "kustomization.yaml"
    component = yaml.safe_load(path.read_text())
    patch = [{"op": "replace", "path": "/spec/template/spec/containers/0/name", "value": "main"}]
    component["patches"] = [{"target": {"kind": "Deployment"}, "patch": json.dumps(patch)}]
    path.write_text(yaml.safe_dump(component))
    with pytest.raises(RenderingError, match="2 containers of the pod are named main"):
        render(state("kserve"), repo, kubectl=kubectl)


def spec(engine_name: str, **canary: Any) -> ReleaseSpec:
    return ReleaseSpec.model_validate(
        {
            "model": "smol",
            "environment": "local",
            "source": "dir:/x",
            "serving": {"served_model_name": "smol", "engine": engine_name, "replicas": 2},
            "evaluation": {"tasks": [{"name": "t", "metric": "m", "margin": 0.1}]},
            "benchmark": {"profiles": [{"name": "p"}]},
            "canary": canary,
        }
    )


HEADER = {"steps": [{"weight": 0, "traffic": "header"}, {"weight": 5}]}
MIRROR = {"steps": [{"weight": 0, "traffic": "mirror"}, {"weight": 5}]}
PLAIN = {"steps": [{"weight": 5}]}


@pytest.mark.parametrize(
    ("engine_name", "canary", "said"),
    [
        ("kserve", HEADER, "step 1 goes by header"),
        ("kserve", MIRROR, "step 1 mirrors"),
        ("kserve", PLAIN, ""),
        ("kserve", {**PLAIN, "baseline": "fresh"}, ""),
        ("kserve", {**PLAIN, "strategy": "borrow"}, ""),
        ("kserve-serverless", {**PLAIN, "strategy": "borrow"}, "strategy `borrow`"),
        ("kserve-serverless", {**PLAIN, "baseline": "fresh"}, "`baseline: fresh`"),
        ("kserve-serverless", {"strategy": "recreate"}, "strategy `recreate`"),
        ("kserve-serverless", {**PLAIN, "control_percent": 0}, "without a control"),
        ("kserve-serverless", HEADER, "step 1 goes by header"),
        ("kserve-serverless", MIRROR, "step 1 mirrors"),
        ("kserve-serverless", PLAIN, ""),
        ("vllm", {**MIRROR, "control_percent": 0}, ""),
    ],
)
def test_a_release_that_needs_what_its_engine_lacks_is_refused_with_the_reason(
    engine_name: str, canary: dict[str, Any], said: str
) -> None:
    wanted = spec(engine_name, **canary)
    stable = state(engine_name)
    found = "; ".join(engine_limits.obstacles(wanted, stable, Settings(cluster="kubernetes")))
    assert (said in found) if said else (found == "")
    embedded = "; ".join(engine_limits.obstacles(wanted, stable, Settings(cluster="local")))
    assert ("embedded cluster" in embedded) is (engine_name != "vllm")


def test_a_change_of_engine_is_no_canary() -> None:
    (why,) = engine_limits.obstacles(
        spec("kserve", **PLAIN), state("vllm"), Settings(cluster="kubernetes")
    )
    assert "two engines share no route" in why


@pytest.mark.parametrize("name", sorted(ENGINES))
def test_every_engine_says_of_every_capability_whether_it_has_it_and_why_not(name: str) -> None:
    found = engine(name)
    everything = dict.fromkeys(Capability, "asked")
    assert set(found.lacks) <= set(Capability)
    assert all(len(why) > 20 for why in found.lacks.values())
    assert len(lacking(found.lacks, everything)) == len(found.lacks)
    assert limits(found.lacks, everything) == ()
    assert len(limits(found.lacks, {})) == len(found.lacks)
    serving = ServingSpec(served_model_name="smol", engine=name, args=("--enforce-eager",))
    arguments = found.pod_arguments(serving)
    assert arguments[0].startswith("/")
    assert arguments[-1] == "--enforce-eager"
    assert str(found.port) in arguments
    assert found.container


def test_what_a_canary_needs_is_all_that_it_asks_for() -> None:
    plain = CanarySpec(steps=(CanaryStep(weight=5),))
    always = {Capability.OBSERVED_SLOTS}
    assert set(needed(plain, first_release=False, embedded=False)) == always
    recreate = CanarySpec(strategy=Strategy.RECREATE, steps=())
    asked = needed(recreate, first_release=False, embedded=True)
    assert set(asked) == always | {
        Capability.EMBEDDED_CLUSTER, Capability.RECREATE, Capability.IDLE_OLD_VERSION
    }  # fmt: skip
    assert set(needed(recreate, first_release=True, embedded=False)) == always


@pytest.mark.parametrize("name", KSERVE)
def test_an_edited_base_is_another_candidate_of_kserves_too(
    repo: Path, kubectl: Path, name: str
) -> None:
    candidate = occupant("one", name).candidate

    def digest() -> Digest:
        return bases_digest("smol", "local", candidate, repo, kubectl=kubectl)

    before = digest()
    assert digest() == before
    path = repo / "apps/vllm/base/deployment.yaml"
    path.write_text(path.read_text().replace("runAsUser: 2000", "runAsUser: 2001"))
    assert digest() != before


@pytest.mark.parametrize("name", KSERVE)
def test_a_candidate_of_kserves_is_measured_in_a_pod_of_its_own(
    repo: Path, kubectl: Path, name: str
) -> None:
    candidate = occupant("one", name).candidate
    template = pod_template("smol", "local", candidate, repo, kubectl=kubectl)
    made = job(
        template, candidate, name="t", namespace="tests", lifetime_seconds=60, node_selector={}
    )
    kubernetes_validate.validate(made, "1.35", strict=True)
    spec = made["spec"]["template"]["spec"]
    vllm = engine("vllm")
    assert spec["containers"][0]["args"] == vllm.arguments(
        candidate.serving, model_path="/models", host="0.0.0.0", port=vllm.port
    )
    [weights] = [v["image"]["reference"] for v in spec["volumes"] if "image" in v]
    assert weights == str(candidate.model)


def test_a_cache_that_outlives_pods_is_one_of_each_slot(repo: Path, kubectl: Path) -> None:
    own = repo / "apps/vllm/environments/local/kustomization.yaml"
    data = yaml.safe_load(own.read_text())
    data["components"].append("../../components/persistent-cache")
    own.write_text(yaml.safe_dump(data))
    both = state("kserve", b=occupant("two", "kserve"), phase=Phase.CANARY, step=0, weight=5)
    for found in (committed(both, repo, kubectl), committed(both, repo, NO_KUBECTL)):
        for slot in "ab":
            spec = found[f"LLMInferenceService/smol-{slot}"]["spec"]["template"]
            [claim] = [
                v["persistentVolumeClaim"] for v in spec["volumes"] if "persistentVolumeClaim" in v
            ]
            assert claim["claimName"] == f"smol-{slot}"
            claimed = found[f"PersistentVolumeClaim/smol-{slot}"]
            assert claimed["metadata"]["labels"]["lockgate.dev/slot"] == slot
    after = committed(state("kserve", 2), repo, NO_KUBECTL)
    assert "PersistentVolumeClaim/smol-b" not in after, "it goes with the slot's candidate"


@pytest.mark.parametrize(
    "serving",
    [
        {"engine": "kserve"},
        {"engine": "kserve-serverless"},
        {"replicas": 2, "scaling": {"max": 4, "running_per_replica": 8}},
        {"resources": {"gpu": 1}, "parallel": {"pipeline": 2, "nodes": 2}},
    ],
    ids=["kserve", "kserve-serverless", "scaled", "several nodes"],
)
def test_what_is_approved_stays_the_same_while_weights_sizes_and_scalers_follow_the_phase(
    repo: Path, kubectl: Path, serving: dict[str, Any]
) -> None:
    engine_name = serving.get("engine", "vllm")
    both = {
        slot: occupant(name, **{"engine_name": engine_name, **serving, "engine": engine_name})
        for slot, name in (("a", "one"), ("b", "two"))
    }
    digests = set()
    for generation, changes in enumerate(
        (
            {"phase": Phase.DEPLOYING},
            {"phase": Phase.CANARY, "step": 1, "weight": 25},
            {"phase": Phase.BAKING, "stable": Slot.B},
        )
    ):
        files = render(state(engine_name, generation, **both, **changes), repo, kubectl=kubectl)
        for path, text in files.items():
            (repo / path).parent.mkdir(parents=True, exist_ok=True)
            (repo / path).write_text(text)
        digests.add(manifests_digest(files))
    assert len(digests) == 1
