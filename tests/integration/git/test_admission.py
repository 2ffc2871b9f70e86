"""The admission rules of the template: those that the API server enforces itself are executed, on the pods that Lockgate renders
and on what must be kept out; CEL is evaluated by celpy, not by an API server.

Kyverno's and policy-controller's policies are checked against their schemas only (test_layouts.py): no engine of theirs runs
here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import celpy
import pytest
import yaml

from lockgate.adapters.git import Layout
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.images import ImageRef
from lockgate.domain.release_state import Occupant, Phase, ReleaseState, Slot
from lockgate.domain.spec import CanarySpec, CanaryStep, ServingSpec
from serving.manifests import pod_template, render
from serving.manifests.test_job import job
from tests.integration.git.layouts import lay_files

DIGEST = "@sha256:" + "a" * 64
REPOSITORY = "registry.acme.test/ml"
Pod = dict[str, Any]


class Rule:
    """One ValidatingAdmissionPolicy: its variables and validations, evaluated in order as the API server does."""

    def __init__(self, policy: dict[str, Any]) -> None:
        environment = celpy.Environment()

        def program(expression: str) -> Any:
            return environment.program(environment.compile(expression))

        spec = policy["spec"]
        self.fails_closed = spec["failurePolicy"] == "Fail"
        self._variables = [(v["name"], program(v["expression"])) for v in spec.get("variables", [])]
        self._validations = [(v["message"], program(v["expression"])) for v in spec["validations"]]

    def denials(self, **objects: Any) -> list[str]:
        """Messages of the validations that do not hold. An expression that cannot be evaluated denies: it fails closed."""
        given = {name: celpy.json_to_cel(value) for name, value in objects.items()}
        variables = celpy.celtypes.MapType()
        given["variables"] = variables
        for name, variable in self._variables:
            variables[celpy.celtypes.StringType(name)] = variable.evaluate(given)
        return [message for message, holds in self._validations if not holds.evaluate(given)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layout = Layout(
        ("production",), "flux", "eks", remote="ssh://git@git.acme.test/r.git", images=REPOSITORY
    )
    return lay_files(tmp_path_factory.mktemp("admission") / "r", layout)


@pytest.fixture(scope="module")
def rules(root: Path) -> dict[str, Rule]:
    found = {}
    for path in (root / "platform/cluster/admission/native").glob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            if document["kind"] == "ValidatingAdmissionPolicy":
                found[document["metadata"]["name"]] = Rule(document)
    assert set(found) == {
        "lockgate-images", "lockgate-warm-slots", "lockgate-warm-slots-kserve", "lockgate-warm-service",
        "lockgate-test-servers",
    }  # fmt: skip
    assert all(rule.fails_closed for rule in found.values())
    return found


def candidate(name: str, engine: str = "vllm") -> Candidate:
    return Candidate(
        model=ImageRef.parse(f"{REPOSITORY}/models/smol@{Digest.of_bytes(name.encode())}"),
        runtime=ImageRef.parse(f"{REPOSITORY}/runtimes/vllm@{Digest.of_bytes(b'runtime')}"),
        serving=ServingSpec(served_model_name="smol", engine=engine),
    )


@pytest.fixture(scope="module")
def slot_pod(root: Path, kubectl: Path) -> Pod:
    template = pod_template("smol", "production", candidate("one"), root, kubectl=kubectl)
    return {"apiVersion": "v1", "kind": "Pod", **template}


def first(pod: Pod) -> dict[str, Any]:
    container: dict[str, Any] = pod["spec"]["containers"][0]
    return container


def model_volume(pod: Pod) -> dict[str, Any]:
    return next(v for v in pod["spec"]["volumes"] if "image" in v)


IMAGES: dict[str, Callable[[Pod], object]] = {
    "a tag": lambda p: first(p).update(image=f"{REPOSITORY}/runtimes/vllm:v1"),
    "another registry": lambda p: first(p).update(image=f"docker.io/vllm/vllm-openai{DIGEST}"),
    "a name that begins alike": lambda p: first(p).update(image=f"{REPOSITORY}/modelsevil/x{DIGEST}"),
    "a tag in an image volume": lambda p: model_volume(p)["image"].update(reference=f"{REPOSITORY}/models/smol:v1"),
    "an image volume of another registry": lambda p: model_volume(p)["image"].update(reference=f"evil.test/m{DIGEST}"),
    "an image volume of nothing": lambda p: model_volume(p).update(image={}),
    "an init container by tag": lambda p: p["spec"].update(initContainers=[{"name": "i", "image": "busybox:1"}]),
    "an ephemeral container": lambda p: p["spec"].update(ephemeralContainers=[{"name": "e", "image": "busybox"}]),
    "text after the digest": lambda p: first(p).update(image=f"{REPOSITORY}/runtimes/vllm{DIGEST}\n"),
}  # fmt: skip


def test_a_slots_pod_is_admitted_and_one_with_any_other_image_is_not(
    rules: dict[str, Rule], slot_pod: Pod
) -> None:
    assert rules["lockgate-images"].denials(object=slot_pod) == []
    for name, change in IMAGES.items():
        pod = copy.deepcopy(slot_pod)
        change(pod)
        assert rules["lockgate-images"].denials(object=pod), name


@pytest.fixture(scope="module")
def test_pod(root: Path, kubectl: Path) -> Pod:
    what = candidate("one")
    template = pod_template("smol", "production", what, root, kubectl=kubectl)
    made = job(
        template, what, name="t", namespace="lockgate-tests", lifetime_seconds=60, node_selector={}
    )
    return {"apiVersion": "v1", "kind": "Pod", **made["spec"]["template"]}


SERVERS: dict[str, Callable[[Pod], object]] = {
    "a token": lambda p: p["spec"].update(automountServiceAccountToken=True),
    "a token by default": lambda p: p["spec"].pop("automountServiceAccountToken"),
    "an identity": lambda p: p["spec"].update(serviceAccountName="lockgate-measure"),
    "a secret mounted": lambda p: p["spec"]["volumes"].append({"name": "s", "secret": {"secretName": "x"}}),
    "a projected token": lambda p: p["spec"]["volumes"].append({"name": "s", "projected": {"sources": []}}),
    "a disk": lambda p: p["spec"]["volumes"].append({"name": "d", "persistentVolumeClaim": {"claimName": "x"}}),
    "a secret in the environment": lambda p: first(p)["env"].append({"name": "K", "valueFrom": {"secretKeyRef": {"name": "x", "key": "k"}}}),
    "a whole secret as environment": lambda p: first(p).update(envFrom=[{"secretRef": {"name": "x"}}]),
    "a secret of an init container": lambda p: p["spec"].update(initContainers=[{"name": "i", "image": f"x{DIGEST}", "envFrom": [{"secretRef": {"name": "x"}}]}]),
    "a tag": lambda p: first(p).update(image="vllm:latest"),
}  # fmt: skip


def test_an_unsigned_candidates_test_server_is_admitted_and_one_that_holds_anything_is_not(
    rules: dict[str, Rule], test_pod: Pod
) -> None:
    rule = rules["lockgate-test-servers"]
    assert rule.denials(object=test_pod) == []
    unsigned = copy.deepcopy(test_pod)
    first(unsigned)["image"] = f"elsewhere.test/runtime{DIGEST}"
    assert rule.denials(object=unsigned) == [], "by digest, from wherever"
    for name, change in SERVERS.items():
        pod = copy.deepcopy(test_pod)
        change(pod)
        assert rule.denials(object=pod), name


def occupant(name: str, engine: str = "vllm") -> Occupant:
    found = candidate(name, engine)
    return Occupant(candidate=found, release=name, evidence=Digest.of_bytes(b"e"))


def states(engine: str = "vllm") -> Iterator[tuple[str, ReleaseState, set[str], set[str]]]:
    """Phase, state, the slots that are warm then, and those that may be deleted."""
    common: dict[str, Any] = {
        "model": "smol", "environment": "production", "a": occupant("one", engine), "stable": Slot.A,
        "canary": CanarySpec(steps=(CanaryStep(weight=5),)),
    }  # fmt: skip
    both = {**common, "b": occupant("two", engine)}
    for phase, data, warm, cold in (
        ("stable", {**common, "phase": Phase.STABLE}, {"a"}, {"b"}),
        ("deploying", {**both, "phase": Phase.DEPLOYING}, {"a"}, {"b"}),
        ("canary", {**both, "phase": Phase.CANARY, "step": 0, "weight": 5}, {"a", "b"}, set()),
        ("baking", {**both, "phase": Phase.BAKING, "stable": Slot.B}, {"a", "b"}, set()),
        ("draining", {**both, "phase": Phase.DRAINING}, {"a"}, {"b"}),
    ):
        yield phase, ReleaseState.model_validate(data), warm, cold


def test_no_prune_deletes_a_warm_slot_and_every_cold_one_may_go(
    rules: dict[str, Rule], root: Path, kubectl: Path
) -> None:
    rule = rules["lockgate-warm-slots"]
    for phase, state, warm, cold in states():
        files = render(state, root, kubectl=kubectl)
        [route] = [yaml.safe_load(t) for p, t in files.items() if "httproute-" in p]
        for kind in ("Deployment", "Service"):
            for slot in warm | cold:
                labels = {"lockgate.dev/model": "smol", "lockgate.dev/slot": slot}
                item = {"kind": kind, "metadata": {"name": f"smol-{slot}", "labels": labels}}
                denied = rule.denials(oldObject=item, params=route)
                assert bool(denied) is (slot in warm), f"{phase}: {kind} {slot}"
                labels["lockgate.dev/model"] = "other"
                item["metadata"] = {"name": f"other-{slot}", "labels": labels}
                assert rule.denials(oldObject=item, params=route) == [], "of another model"
    bare = {"kind": "HTTPRoute", "metadata": {"name": "mine"}, "spec": {}}
    assert rule.denials(oldObject=item, params=bare) == [], "a route that is not Lockgate's"


def test_no_prune_deletes_a_warm_slot_of_kserves_and_none_stands_in_its_own_way(
    rules: dict[str, Rule], root: Path, kubectl: Path
) -> None:
    rule = rules["lockgate-warm-slots-kserve"]

    def services(state: ReleaseState) -> dict[str, dict[str, Any]]:
        files = render(state, root, kubectl=kubectl)
        made = [yaml.safe_load(t) for p, t in files.items() if "llminferenceservice-" in p]
        return {item["metadata"]["labels"]["lockgate.dev/slot"]: item for item in made}

    def denied(slot: str, live: dict[str, dict[str, Any]]) -> bool:
        # The API server asks once for each object that the binding names: all must agree.
        return any(rule.denials(oldObject=live[slot], params=p) for p in live.values())

    live = {}
    for phase, state, warm, _ in states("kserve"):
        live[phase] = services(state)
        for slot in live[phase]:
            assert denied(slot, live[phase]) is (slot in warm), f"{phase}: {slot}"
    # An agent that carries out two commits at once: the rollback is refused until stable's object is applied, and then goes.
    canary, stable = live["canary"], live["stable"]
    assert denied("b", canary)
    assert not denied("b", {"a": stable["a"], "b": canary["b"]})
    other = copy.deepcopy(canary["a"])
    other["metadata"]["labels"]["lockgate.dev/model"] = "other"
    assert rule.denials(oldObject=canary["b"], params=other) == [], "of another model"


def test_no_prune_deletes_the_one_service_of_a_model_once_it_was_promoted(
    rules: dict[str, Rule], root: Path, kubectl: Path
) -> None:
    rule = rules["lockgate-warm-service"]

    def objects(state: ReleaseState) -> dict[str, dict[str, Any]]:
        files = render(state, root, kubectl=kubectl)
        made = [yaml.safe_load(text) for path, text in files.items() if path.endswith(".yaml")]
        return {item["kind"]: item for item in made}

    engine = "kserve-serverless"
    for phase, state, _, _ in states(engine):
        live = objects(state)
        for kind in ("InferenceService", "ServiceAccount"):
            found = rule.denials(oldObject=live[kind], params=live["ServiceAccount"])
            assert found, f"{phase}: {kind}"
    first = objects(
        ReleaseState.model_validate(
            {
                "model": "smol", "environment": "production", "phase": Phase.DEPLOYING,
                "a": occupant("one", engine), "canary": CanarySpec(steps=(CanaryStep(weight=5),)),
            }
        )
    )  # fmt: skip
    cold = first["ServiceAccount"]
    for item in first.values():
        assert rule.denials(oldObject=item, params=cold) == [], "a first release that is given up"
    warm = live["ServiceAccount"]
    slots = render(next(states())[1], root, kubectl=kubectl)
    [plain] = [yaml.safe_load(t) for p, t in slots.items() if "serviceaccount-" in p]
    assert rule.denials(oldObject=plain, params=warm) == [], "of a slot of its own"
    other = copy.deepcopy(live["InferenceService"])
    other["metadata"]["labels"]["lockgate.dev/model"] = "other"
    assert rule.denials(oldObject=other, params=warm) == [], "of another model"
