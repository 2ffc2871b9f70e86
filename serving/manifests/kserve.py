"""The manifests of a release state for KServe, made from data and from the pod of the vLLM base.

A slot's pod is the one that `apps/vllm` gives it, with the same hardening, components and environment patches; KServe's objects
stand around it in the place of Deployment, Service and HTTPRoute. As everywhere a slot keeps what its candidate came with, and a
change of weights changes numbers alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lockgate.domain.cluster import (
    CANDIDATE_ANNOTATION,
    FAILOVER_ANNOTATION,
    GENERATION_ANNOTATION,
)
from lockgate.domain.gitops import dump_yaml, manifests_directory
from lockgate.domain.release_state import Occupant, ReleaseState, Slot
from lockgate.errors import RenderingError
from serving.engines.kserve import KserveEngine, KserveServerlessEngine
from serving.engines.registry import engine as engine_named
from serving.manifests.inference_service import inference_service
from serving.manifests.kserve_parts import (
    CLAIM,
    Present,
    SlotObjects,
    account,
    file_name,
    kept,
    labels_of,
    metadata,
    pod,
)
from serving.manifests.names import namespace, slot_name
from serving.manifests.routes import failover_slots

GATEWAY = {"name": "models", "namespace": "lockgate-gateway"}


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


def render_services(
    state: ReleaseState, present: Present, slot_objects: SlotObjects
) -> dict[str, str]:
    """All manifests of `state`: path in the repository → YAML. `RenderingError` as of `serving.manifests.render`."""
    occupants = {slot: o for slot in Slot if (o := state.occupant(slot)) is not None}
    engines = {o.candidate.serving.engine for o in occupants.values()}
    if KserveServerlessEngine.name in engines:
        files = inference_service(state, occupants, present, slot_objects)
    else:
        files = {
            file_name(item["kind"], item["metadata"]["name"]): item
            for slot, occupant in sorted(occupants.items())
            for item in _llm_service(state, slot, occupant, present, slot_objects)
        }
    directory = manifests_directory(state.model, state.environment)
    return {str(directory / name): dump_yaml(item) for name, item in files.items()}


def _llm_service(
    state: ReleaseState,
    slot: Slot,
    occupant: Occupant,
    present: Present,
    slot_objects: SlotObjects,
) -> list[dict[str, Any]]:
    """A slot's LLMInferenceService, with the objects that KServe does not make."""
    name, labels = slot_name(state.model, slot), labels_of(state, slot)
    service = kept(present, file_name("LLMInferenceService", name), occupant)
    claims = [present[file][1] for file in (file_name(CLAIM, name),) if file in present]
    if service is None:
        spec, claims = pod(slot_objects, occupant, name, labels)
        service = {
            "apiVersion": "serving.kserve.io/v1alpha2",
            "kind": "LLMInferenceService",
            "metadata": metadata(state, name, labels, occupant),
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
    return [service, account(state, name, labels), _budget(state, name, labels), *claims]


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
