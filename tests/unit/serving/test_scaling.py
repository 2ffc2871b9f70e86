"""What the scalers of a model's slots may do in each phase of a release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lockgate.domain.release_state import Phase, ReleaseState, Slot
from lockgate.domain.scaling import Scaling
from lockgate.domain.spec import CanarySpec, CanaryStep, ReleaseSpec
from serving.local.desired import read_model
from serving.manifests import check_identity, render
from tests.unit.serving.rendering import TEMPLATE, objects, occupant, repository, state_of

NO_KUBECTL = Path("/nonexistent/kubectl")
SCALING = {"min": 2, "max": 9, "running_per_replica": 16}


def scaled(name: str, replicas: int = 3, **scaling: Any) -> Any:
    return occupant(name, replicas=replicas, scaling={**SCALING, **scaling})


PHASES: dict[str, dict[str, Any]] = {
    "stable": {},
    "deploying": {"b": scaled("two")},
    "canary": {"phase": Phase.CANARY, "step": 0, "weight": 5, "b": scaled("two")},
    "approval": {"phase": Phase.AWAITING_APPROVAL, "step": 0, "weight": 5, "b": scaled("two")},
    "held": {"phase": Phase.HELD, "held_from": Phase.CANARY, "held_reason": "x", "step": 0, "weight": 5,
             "b": scaled("two")},
    "draining": {"phase": Phase.DRAINING, "b": scaled("two")},
    "baking": {"phase": Phase.BAKING, "b": scaled("two"), "stable": Slot.B, "weight": 5},
    "held in the bake": {"phase": Phase.HELD, "held_from": Phase.BAKING, "held_reason": "x",
                         "b": scaled("two"), "stable": Slot.B, "weight": 5},
    "first": {"phase": Phase.DEPLOYING, "stable": None},
}  # fmt: skip
FREE, FROZEN, GROWS = (
    (2, 9, "Max", "Max"),
    (3, 3, "Disabled", "Disabled"),
    (3, 9, "Max", "Disabled"),
)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, kubectl: Path) -> Path:
    root = repository(tmp_path_factory.mktemp("scaled"))
    files = render(state_of(a=scaled("one"), b=scaled("two")), root, kubectl=kubectl)
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def rendered(root: Path, **changes: Any) -> dict[tuple[str, str], dict[str, Any]]:
    return objects(render(state_of(**{"a": scaled("one"), **changes}), root, kubectl=NO_KUBECTL))


def range_of(item: dict[str, Any]) -> tuple[int, int, str, str]:
    spec = item["spec"]
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    return (
        spec["minReplicaCount"], spec["maxReplicaCount"],
        behavior["scaleUp"]["selectPolicy"], behavior["scaleDown"]["selectPolicy"],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("phase", "a", "b"),
    [
        ("stable", FREE, None),
        ("deploying", GROWS, FROZEN),
        ("canary", GROWS, FROZEN),
        ("approval", GROWS, FROZEN),
        ("held", GROWS, FROZEN),
        ("draining", GROWS, FROZEN),
        ("baking", GROWS, GROWS),
        ("held in the bake", GROWS, GROWS),
        ("first", FROZEN, None),
    ],
)
def test_a_candidate_is_frozen_until_it_is_promoted_and_stable_never_shrinks_beside_it(
    released: Path, phase: str, a: Any, b: Any
) -> None:
    found = rendered(released, **PHASES[phase])
    scalers = {name: item for (kind, name), item in found.items() if kind == "ScaledObject"}
    assert {name: range_of(item) for name, item in scalers.items()} == {
        name: wanted for name, wanted in (("smol-a", a), ("smol-b", b)) if wanted is not None
    }


def test_stable_may_be_told_to_hold_its_size(released: Path) -> None:
    one = scaled("one", during_canary="hold")
    # Another candidate than the one whose files are there, so only its scaler is looked at.
    from serving.manifests.scalers import scaler

    state = state_of(a=one, **PHASES["canary"])
    item = scaler(state, Slot.A)
    assert item is not None
    assert range_of(item) == (3, 9, "Disabled", "Disabled")
    baking = scaler(state_of(a=one, **PHASES["baking"]), Slot.A)
    assert baking is not None
    assert range_of(baking) == GROWS


def test_a_deployment_with_a_scaler_names_no_replicas_and_is_left_alone_by_every_phase(
    released: Path,
) -> None:
    before = rendered(released, b=scaled("two"))
    for slot in "ab":
        assert "replicas" not in before["Deployment", f"smol-{slot}"]["spec"]
    after = rendered(released, **PHASES["canary"])
    changed = {key for key in before if before[key] != after[key]}
    assert changed == {("HTTPRoute", "smol")}
    baking = rendered(released, **PHASES["baking"])
    assert {key for key in before if before[key] != baking[key]} == {
        ("HTTPRoute", "smol"), ("ScaledObject", "smol-b"),
    }  # fmt: skip
    check_identity(after["Deployment", "smol-b"], scaled("two"), 3)


def test_the_triggers_ask_for_the_slots_own_pods_and_treat_silence_as_a_failure(
    released: Path,
) -> None:
    spec = rendered(released)["ScaledObject", "smol-a"]["spec"]
    assert spec["scaleTargetRef"] == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": "smol-a",
    }
    running, waiting, cache = spec["triggers"]
    selector = '{namespace="lockgate-prod",pod=~"smol-a-[a-z0-9]+-[a-z0-9]+"}'
    assert running["metadata"]["query"] == f"sum(vllm:num_requests_running{selector})"
    assert waiting["metadata"]["query"] == f"sum(vllm:num_requests_waiting{selector})"
    assert cache["metadata"]["query"] == f"100 * avg(vllm:kv_cache_usage_perc{selector})"
    assert [t["metadata"]["threshold"] for t in spec["triggers"]] == ["16", "1", "85"]
    assert [t["metricType"] for t in spec["triggers"]] == ["AverageValue", "AverageValue", "Value"]
    assert {t["metadata"]["ignoreNullValues"] for t in spec["triggers"]} == {"false"}
    assert spec["fallback"]["replicas"] == 3
    assert spec["fallback"]["behavior"] == "currentReplicasIfHigher"


def made(scaling: dict[str, Any], **changes: Any) -> dict[str, Any]:
    from serving.manifests.scalers import scaler

    item = scaler(state_of(**{"a": scaled("one", **scaling), **changes}), Slot.A)
    assert item is not None
    return item


def test_a_buffer_is_so_many_replicas_more_than_the_load_needs() -> None:
    running = made({"buffer": 2})["spec"]["triggers"][0]["metadata"]
    # ceil((running + 2 * 16) / 16) = ceil(running / 16) + 2
    assert running["query"].endswith(" + 32")
    assert running["threshold"] == "16"


def test_the_last_replica_sleeps_only_while_nothing_is_released() -> None:
    zero = {"to_zero": {"after_seconds": 900, "query": "sum(rate(asked[2m]))"}}
    asleep = made(zero)["spec"]
    assert (asleep["minReplicaCount"], asleep["cooldownPeriod"]) == (0, 900)
    assert asleep["triggers"][-1]["metadata"]["query"] == "sum(rate(asked[2m]))"
    assert asleep["triggers"][0]["metadata"]["ignoreNullValues"] == "true"
    for phase in ("deploying", "canary", "baking"):
        awake = made(zero, **PHASES[phase])["spec"]
        assert awake["minReplicaCount"] == 3
        assert "cooldownPeriod" not in awake
        assert awake["triggers"][0]["metadata"]["ignoreNullValues"] == "false"


def test_windows_become_cron_triggers() -> None:
    window = {
        "timezone": "Europe/Berlin",
        "start": "0 8 * * 1-5",
        "end": "0 19 * * 1-5",
        "replicas": 6,
    }
    (cron,) = (t for t in made({"windows": [window]})["spec"]["triggers"] if t["type"] == "cron")
    assert cron["metadata"] == {
        "timezone": "Europe/Berlin", "start": "0 8 * * 1-5", "end": "0 19 * * 1-5", "desiredReplicas": "6",
    }  # fmt: skip


def test_a_plain_autoscaler_reads_the_same_metrics_by_pod() -> None:
    from tests.unit.serving.rendering import check

    item = made({"by": "hpa"})
    check(item)
    spec = item["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 9)
    assert {m["pods"]["metric"]["name"]: m["pods"]["target"]["averageValue"] for m in spec["metrics"]} == {
        "vllm_num_requests_running": "16", "vllm_num_requests_waiting": "1", "vllm_kv_cache_usage_perc": "850m",
    }  # fmt: skip
    frozen = made({"by": "hpa"}, **PHASES["first"])["spec"]
    assert (frozen["minReplicas"], frozen["maxReplicas"]) == (3, 3)
    adapter = TEMPLATE / "charts" / "prometheus-adapter.yaml"
    offered = {r["name"]["as"] for r in yaml.safe_load(adapter.read_text())["rules"]["custom"]}
    assert {m["pods"]["metric"]["name"] for m in spec["metrics"]} == offered


def test_a_fresh_baseline_has_the_canarys_size_and_no_scaler(released: Path) -> None:
    canary = CanarySpec(steps=(CanaryStep(weight=5),), baseline="fresh")
    found = rendered(released, **{**PHASES["canary"], "canary": canary, "fresh_baseline": True})
    assert found["Deployment", "smol-baseline"]["spec"]["replicas"] == 3
    assert ("ScaledObject", "smol-baseline") not in found
    check_identity(found["Deployment", "smol-baseline"], scaled("one"), 3)


def test_the_embedded_cluster_says_that_it_has_no_autoscaler(released: Path) -> None:
    state = state_of(a=scaled("one"))
    files = render(state, released, kubectl=NO_KUBECTL)
    (slot,) = read_model("smol", map(yaml.safe_load, files.values()), state).slots
    assert "no autoscaler" in str(slot.refusal)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"min": 10}, "min 10 is more than max 9"),
        ({"by": "hpa", "buffer": 1}, "`buffer` needs `by: keda`"),
        ({"windows": [{"timezone": "UTC", "start": "0 8 * * *", "end": "x", "replicas": 1}]}, "five fields"),
        ({"windows": [{"timezone": "UTC", "start": "0 8 * * *", "end": "0 9 * * *", "replicas": 10}]},
         "more than max 9"),
    ],
)  # fmt: skip
def test_scaling_that_contradicts_itself_is_refused(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Scaling.model_validate({**SCALING, **change})


def test_scaling_goes_with_room_for_both_versions_only() -> None:
    spec = {
        "model": "x", "source": "hf://org/x",
        "serving": {"served_model_name": "x", "replicas": 3, "scaling": SCALING},
        "evaluation": {"tasks": [{"name": "t", "metric": "acc,none", "margin": 0.1}]},
        "benchmark": {"profiles": [{"name": "p"}]},
    }  # fmt: skip
    assert ReleaseSpec.model_validate(spec).serving.scaling is not None
    with pytest.raises(ValueError, match="counts replicas"):
        ReleaseSpec.model_validate({**spec, "canary": {"strategy": "borrow"}})
    spec["serving"] = {"served_model_name": "x", "replicas": 1, "scaling": SCALING}
    with pytest.raises(ValueError, match="not within"):
        ReleaseSpec.model_validate(spec)


def test_a_key_that_came_later_changes_no_older_candidate() -> None:
    before = occupant("one").candidate
    data = before.serving.to_data()
    assert not {"scaling", "parallel", "gpu_memory_utilization"} & set(data)
    assert set(data["resources"]) == {"cpu", "memory", "gpu"}
    assert scaled("one").candidate.digest != occupant("one", replicas=3).candidate.digest
    state = state_of(a=scaled("one"))
    assert ReleaseState.model_validate(state.to_data()) == state
