"""What KServe's two kinds of service have in common: the pod of the vLLM base, the names, and what is kept of an earlier commit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from lockgate.domain.candidates import Candidate
from lockgate.domain.cluster import CANDIDATE_ANNOTATION, MODEL_LABEL, SLOT_LABEL
from lockgate.domain.release_state import Occupant, ReleaseState, Slot
from lockgate.errors import RenderingError
from serving.engines.kserve import KserveEngine
from serving.engines.registry import engine as engine_named
from serving.manifests.names import MODEL_VOLUME, namespace

Present = Mapping[str, tuple[str, dict[str, Any]]]
"""What is in the repository: file name → text and object."""
SlotObjects = Callable[[Candidate], list[dict[str, Any]]]
"""What the bases make of slot `a` of a vLLM candidate."""

CLAIM = "PersistentVolumeClaim"
_PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def twin(candidate: Candidate) -> Candidate:
    """The vLLM candidate whose pod KServe's objects are put around; any other engine's candidate is its own."""
    if not isinstance(engine_named(candidate.serving.engine), KserveEngine):
        return candidate
    serving = candidate.serving.model_copy(update={"engine": "vllm"})
    return candidate.model_copy(update={"serving": serving})


def pod(
    slot_objects: SlotObjects, occupant: Occupant, name: str, labels: Mapping[str, str]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The pod that the bases give a vLLM candidate of the same spec, as this engine starts it, and the claims of its volumes."""
    candidate = occupant.candidate
    engine = engine_named(candidate.serving.engine)
    made = copy.deepcopy(slot_objects(twin(candidate)))
    (deployment,) = (item for item in made if item["kind"] == "Deployment")
    spec: dict[str, Any] = deployment["spec"]["template"]["spec"]
    claims = [item for item in made if item["kind"] == CLAIM]
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


def kept(present: Present, file: str, occupant: Occupant) -> dict[str, Any] | None:
    """The object as this candidate came with it; None where another one stands there."""
    found = present.get(file)
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


def metadata(
    state: ReleaseState, name: str, labels: Mapping[str, str], occupant: Occupant
) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": namespace(state.environment),
        "labels": dict(labels),
        "annotations": {CANDIDATE_ANNOTATION: str(occupant.candidate.digest)},
    }


def labels_of(state: ReleaseState, slot: Slot | None) -> dict[str, str]:
    labels = {"app.kubernetes.io/name": state.model, MODEL_LABEL: state.model}
    return labels if slot is None else {**labels, SLOT_LABEL: slot.value}


def account(state: ReleaseState, name: str, labels: Mapping[str, str]) -> dict[str, Any]:
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


def file_name(kind: str, name: str) -> str:
    return f"{kind.lower()}-{name}.yaml"
