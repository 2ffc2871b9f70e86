"""The manifests of a release state for KServe, made from data and from the pod of the vLLM base.

A slot's pod is the one that `apps/vllm` gives it, with the same hardening, components and environment patches; KServe's objects
stand around it in the place of Deployment, Service and HTTPRoute. As everywhere a slot keeps what its candidate came with, and a
change of weights changes numbers alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from lockgate.domain.candidates import Candidate
from lockgate.domain.cluster import (
    CANDIDATE_ANNOTATION,
    FAILOVER_ANNOTATION,
    GENERATION_ANNOTATION,
    MODEL_LABEL,
    SLOT_LABEL,
)
from lockgate.domain.gitops import dump_yaml, manifests_directory
from lockgate.domain.release_state import Occupant, ReleaseState, Slot
from lockgate.errors import RenderingError
from serving.engines.kserve import MODEL_PATH, KserveEngine, KserveServerlessEngine
from serving.engines.registry import engine as engine_named
from serving.manifests.names import MODEL_VOLUME, namespace, slot_name
from serving.manifests.routes import failover_slots

Present = Mapping[str, tuple[str, dict[str, Any]]]
"""What is in the repository: file name → text and object."""
SlotObjects = Callable[[Candidate], list[dict[str, Any]]]
"""What the bases make of slot `a` of a vLLM candidate."""

GATEWAY = {"name": "models", "namespace": "lockgate-gateway"}
_KNATIVE_REFUSES = ("topologySpreadConstraints", "terminationGracePeriodSeconds", "enableServiceLinks")  # fmt: skip
_CLAIM = "PersistentVolumeClaim"
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def runs(state: ReleaseState) -> bool:
    """Whether KServe carries this state out. `RenderingError` where the slots' engines have no route in common."""
    names = {
        occupant.candidate.serving.engine
        for slot in Slot
        if (occupant := state.occupant(slot)) is not None
    }
    kserve = {name for name in names if isinstance(engine_named(name), KserveEngine)}
    if kserve and len(names) > 1:
        raise RenderingError(
            f"{state.model}'s slots have the engines {' and '.join(sorted(names))}, which share no route",
            hint="release the other engine under a model name of its own",
        )
    return bool(kserve)


def twin(candidate: Candidate) -> Candidate:
    """The vLLM candidate whose pod KServe's objects are put around; any other engine's candidate is its own."""
    if not isinstance(engine_named(candidate.serving.engine), KserveEngine):
        return candidate
    serving = candidate.serving.model_copy(update={"engine": "vllm"})
    return candidate.model_copy(update={"serving": serving})


def render_services(
    state: ReleaseState, present: Present, slot_objects: SlotObjects
) -> dict[str, str]:
    """All manifests of `state`: path in the repository → YAML. `RenderingError` as of `serving.manifests.render`."""
    occupants = {slot: o for slot in Slot if (o := state.occupant(slot)) is not None}
    engines = {o.candidate.serving.engine for o in occupants.values()}
    if KserveServerlessEngine.name in engines:
        made = _inference_service(state, occupants, present, slot_objects)
    else:
        made = [
            item
            for slot, occupant in sorted(occupants.items())
            for item in _llm_service(state, slot, occupant, present, slot_objects)
        ]
    directory = manifests_directory(state.model, state.environment)
    return {
        str(directory / _file(item["kind"], item["metadata"]["name"])): dump_yaml(item)
        for item in made
    }


def _llm_service(
    state: ReleaseState,
    slot: Slot,
    occupant: Occupant,
    present: Present,
    slot_objects: SlotObjects,
) -> list[dict[str, Any]]:
    """A slot's LLMInferenceService, with the objects that KServe does not make."""
    name, labels = slot_name(state.model, slot), _labels(state, slot)
    service = _kept(present, "LLMInferenceService", name, occupant)
    claims = [present[file][1] for file in (_file(_CLAIM, name),) if file in present]
    if service is None:
        spec, claims = _pod(slot_objects, occupant, name, labels)
        service = {
            "apiVersion": "serving.kserve.io/v1alpha2",
            "kind": "LLMInferenceService",
            "metadata": _metadata(state, name, labels, occupant),
            "spec": {
                "model": {
                    "uri": f"oci+native://{occupant.candidate.model}",
                    "name": occupant.candidate.serving.served_model_name,
                },
                "labels": labels,
                "annotations": {CANDIDATE_ANNOTATION: str(occupant.candidate.digest)},
                "template": spec,
            },
        }
    weight = state.weights()[slot]
    # The admission policy lockgate-warm-slots-kserve reads it on the other slot's object, there being no route of Lockgate's.
    warm = ",".join(other.value for other in failover_slots(state))
    service["metadata"]["annotations"] |= {
        FAILOVER_ANNOTATION: warm,
        GENERATION_ANNOTATION: str(state.generation),
    }
    service["spec"]["replicas"] = state.replicas(slot)
    service["spec"]["router"] = {
        "gateway": {"refs": [GATEWAY]},
        "route": {"group": state.model, "weight": weight},
    }
    return [service, _account(state, name, labels), _budget(state, name, labels), *claims]


def _inference_service(
    state: ReleaseState,
    occupants: Mapping[Slot, Occupant],
    present: Present,
    slot_objects: SlotObjects,
) -> list[dict[str, Any]]:
    """The model's one InferenceService: its spec is the newer version's, and `canaryTrafficPercent` that one's share. The
    other version is the revision before it, which KServe keeps under the tag `prev`."""
    slot, percent = _newest(state)
    occupant = occupants[slot]
    labels = _labels(state, slot)
    service = _kept(present, "InferenceService", state.model, occupant)
    if service is None:
        spec, claims = _pod(slot_objects, occupant, state.model, labels)
        if claims:
            raise RenderingError(
                f"{KserveServerlessEngine.name} has two versions in one object, which would share a slot's volume",
                hint="leave the component persistent-cache out of this environment, or take the engine kserve",
            )
        for key in _KNATIVE_REFUSES:
            spec.pop(key, None)
        (container,) = spec["containers"]
        # The queue proxy drains: it stops taking requests, and waits as long as a request may take.
        container.pop("lifecycle", None)
        serving = occupant.candidate.serving
        service = {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": _metadata(state, state.model, labels, occupant),
            "spec": {
                "predictor": {
                    "labels": labels,
                    "annotations": {CANDIDATE_ANNOTATION: str(occupant.candidate.digest)},
                    "storageUris": [
                        {
                            "uri": f"oci+native://{occupant.candidate.model}",
                            "mountPath": MODEL_PATH,
                        }
                    ],
                    "timeout": serving.pre_stop_seconds + serving.drain_seconds,
                    **spec,
                }
            },
        }
        # By tag both revisions stay reachable, and so stand even while one of them has no share.
        service["metadata"]["annotations"] |= {
            "serving.kserve.io/deploymentMode": "Serverless",
            "serving.kserve.io/enable-tag-routing": "true",
        }
    predictor = service["spec"]["predictor"]
    predictor["minReplicas"] = predictor["maxReplicas"] = occupant.candidate.serving.replicas
    predictor.pop("canaryTrafficPercent", None)
    if percent is not None:
        predictor["canaryTrafficPercent"] = percent
    account = _account(state, state.model, _labels(state, None))
    # Not on the service: KServe copies its annotations into the revision's template, and each commit would start a new revision.
    account["metadata"]["annotations"] = {GENERATION_ANNOTATION: str(state.generation)}
    return [service, account]


def _newest(state: ReleaseState) -> tuple[Slot, int | None]:
    """The slot whose version the InferenceService asks for, and its share in percent; None for all, the other being gone."""
    if state.stable is None:
        return state.free_slot, None
    if state.occupant(state.stable.other) is None:
        return state.stable, None
    if state.baking:
        return state.stable, 100 - state.weight
    return state.stable.other, state.weight


def _pod(
    slot_objects: SlotObjects, occupant: Occupant, name: str, labels: Mapping[str, str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The pod that the bases give a vLLM candidate of the same spec, as this engine starts it, and the claims of its volumes."""
    candidate = occupant.candidate
    engine = engine_named(candidate.serving.engine)
    made = copy.deepcopy(slot_objects(twin(candidate)))
    (deployment,) = (item for item in made if item["kind"] == "Deployment")
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    claims = [item for item in made if item["kind"] == _CLAIM]
    if len(claims) > 1:
        raise RenderingError("the vLLM base has more than one claim for a slot")
    for claim in claims:
        claim["metadata"] |= {"name": name, "labels": dict(labels)}
    for volume in spec.get("volumes", []):
        if claims and "persistentVolumeClaim" in volume:
            volume["persistentVolumeClaim"]["claimName"] = name
    spec["serviceAccountName"] = name
    for constraint in spec.get("topologySpreadConstraints", []):
        constraint["labelSelector"] = {"matchLabels": dict(labels)}
    # KServe mounts the model by the address in its own field.
    spec["volumes"] = [v for v in spec.get("volumes", []) if v["name"] != MODEL_VOLUME]
    try:
        (container,) = (c for c in spec["containers"] if c["name"] == "vllm")
    except ValueError as error:
        raise RenderingError("the vLLM base has no single container named vllm") from error
    container["name"] = engine.container
    container["args"] = engine.pod_arguments(candidate.serving)
    container["volumeMounts"] = [
        m for m in container.get("volumeMounts", []) if m["name"] != MODEL_VOLUME
    ]
    for probe in _PROBES:
        if "httpGet" in container.get(probe, {}):
            # KServe's own template, which this is merged into, asks by TLS.
            container[probe]["httpGet"]["scheme"] = "HTTP"
    _check(spec, occupant)
    return spec, claims


def _check(spec: Mapping[str, Any], occupant: Occupant) -> None:
    """The pod runs what the candidate says, to the letter."""
    candidate = occupant.candidate
    engine = engine_named(candidate.serving.engine)
    named = [c for c in spec["containers"] if c["name"] == engine.container]
    if len(named) != 1:
        raise RenderingError(
            f"{len(named)} containers of the pod are named {engine.container}",
            hint="a base, component or environment patch adds or renames one",
        )
    (container,) = named
    env = {e["name"]: e.get("value") for e in container.get("env", [])}
    found = {
        "image": container["image"],
        "command": container["command"],
        "args": container["args"],
        "env": {key: env.get(key) for key in engine.environment(candidate.serving)},
    }
    wanted = {
        "image": str(candidate.runtime),
        "command": engine.command(),
        "args": engine.pod_arguments(candidate.serving),
        "env": engine.environment(candidate.serving),
    }
    for what, value in wanted.items():
        if found[what] != value:
            raise RenderingError(
                f"the pod's {what} is {found[what]!r}, the candidate's is {value!r}",
                hint="a base, component or environment patch overrides it",
            )


def _kept(present: Present, kind: str, name: str, occupant: Occupant) -> dict[str, Any] | None:
    """The object as this candidate came with it; None where another one stands there."""
    found = present.get(_file(kind, name))
    if found is None:
        return None
    annotations = (found[1].get("metadata") or {}).get("annotations") or {}
    if annotations.get(CANDIDATE_ANNOTATION) != str(occupant.candidate.digest):
        return None
    item = copy.deepcopy(found[1])
    return item if _is_candidates(item["spec"], occupant.candidate) else None


def _is_candidates(spec: Mapping[str, Any], candidate: Candidate) -> bool:
    """Whether an object of an earlier commit still has the candidate's images, own arguments and own environment. What
    Lockgate and the base add may be of another version than this one."""
    try:
        pod = spec.get("template") or spec["predictor"]
        (container,) = pod["containers"]
        address = spec["model"]["uri"] if "model" in spec else pod["storageUris"][0]["uri"]
        env = {e["name"]: e.get("value") for e in container.get("env", [])}
        own = list(candidate.serving.args)
        return bool(
            container["image"] == str(candidate.runtime)
            and address == f"oci+native://{candidate.model}"
            and (not own or container["args"][-len(own) :] == own)
            and candidate.serving.env.items() <= env.items()
        )
    except (LookupError, TypeError, ValueError):
        return False


def _metadata(
    state: ReleaseState, name: str, labels: Mapping[str, str], occupant: Occupant
) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": namespace(state.environment),
        "labels": dict(labels),
        "annotations": {CANDIDATE_ANNOTATION: str(occupant.candidate.digest)},
    }


def _labels(state: ReleaseState, slot: Slot | None) -> dict[str, str]:
    labels = {"app.kubernetes.io/name": state.model, MODEL_LABEL: state.model}
    return labels if slot is None else {**labels, SLOT_LABEL: slot.value}


def _account(state: ReleaseState, name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": {
            "name": name,
            "namespace": namespace(state.environment),
            "labels": dict(labels),
        },
        "automountServiceAccountToken": False,
    }


def _budget(state: ReleaseState, name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {
            "name": name,
            "namespace": namespace(state.environment),
            "labels": dict(labels),
        },
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": dict(labels)}},
    }


def _file(kind: str, name: str) -> str:
    return f"{kind.lower()}-{name}.yaml"
