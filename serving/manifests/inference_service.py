"""The one InferenceService of a model, in which both slots' versions stand one after the other.

Its template is one version's, `canaryTrafficPercent` is that one's share, and the rest goes to the revision that last had
everything. Whatever stands in the template, and its labels and annotations, makes a new revision when it changes: a change of
weights must not touch them, so what belongs to a commit stands on the model's ServiceAccount.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lockgate.domain.cluster import (
    CANDIDATE_ANNOTATION,
    FAILOVER_ANNOTATION,
    GENERATION_ANNOTATION,
    TEMPLATE_ANNOTATION,
    WANTED_ANNOTATION,
)
from lockgate.domain.release_state import Occupant, ReleaseState, Restoring, Slot
from lockgate.errors import RenderingError
from serving.engines.kserve import MODEL_PATH, KserveServerlessEngine
from serving.manifests.kserve_parts import (
    Present,
    SlotObjects,
    account,
    file_name,
    kept,
    labels_of,
    metadata,
    pod,
)
from serving.manifests.routes import failover_slots

KIND = "InferenceService"
OTHER = ".other"
"""Ends the name of the file that keeps the object of the version which the InferenceService does not ask for, so that it can be
put back to the letter. Agents apply `*.yaml`."""
_KNATIVE_REFUSES = ("topologySpreadConstraints", "terminationGracePeriodSeconds", "enableServiceLinks")  # fmt: skip


def inference_service(
    state: ReleaseState,
    occupants: Mapping[Slot, Occupant],
    present: Present,
    slot_objects: SlotObjects,
) -> dict[str, dict[str, Any]]:
    """The objects of `state` by file name."""
    slot, percent = _asked(state)
    file = file_name(KIND, state.model)
    service = _version(state, slot, occupants[slot], present, slot_objects)
    template = service["spec"]["predictor"]["annotations"][TEMPLATE_ANNOTATION]
    _share(service, occupants[slot], percent)
    files = {file: service}
    if slot.other in occupants and state.restoring is not Restoring.UNDER_WAY:
        other = occupants[slot.other]
        files[file + OTHER] = _version(state, slot.other, other, present, slot_objects)
        _share(files[file + OTHER], other, None)
    own = account(state, state.model, labels_of(state, None))
    wanted = {
        "template": template,
        "share": percent,
        "slots": {
            s.value: {"candidate": str(o.candidate.digest), "weight": state.weights()[s]}
            for s, o in sorted(occupants.items())
        },
    }
    # The admission policy lockgate-warm-service reads the second of them.
    own["metadata"]["annotations"] = {
        GENERATION_ANNOTATION: str(state.generation),
        FAILOVER_ANNOTATION: ",".join(s.value for s in failover_slots(state)),
        WANTED_ANNOTATION: json.dumps(wanted, sort_keys=True),
    }
    files[file_name(own["kind"], own["metadata"]["name"])] = own
    return files


def _asked(state: ReleaseState) -> tuple[Slot, int | None]:
    """The slot whose version the InferenceService asks for, and its share in percent; None for all, the other being gone."""
    if state.stable is None:
        return state.free_slot, None
    if state.occupant(state.stable.other) is None:
        return state.stable, None
    if state.baking:
        return state.stable, 100 - state.weight
    if state.restoring is Restoring.UNDER_WAY:
        return state.stable, 0
    return state.stable.other, state.weight


def _version(
    state: ReleaseState,
    slot: Slot,
    occupant: Occupant,
    present: Present,
    slot_objects: SlotObjects,
) -> dict[str, Any]:
    """The object with a slot's version, as its candidate came with it."""
    file = file_name(KIND, state.model)
    there = kept(present, file, occupant)
    if there is not None:
        return there
    service = kept(present, file + OTHER, occupant)
    if service is None:
        service = _made(state, slot, occupant, slot_objects)
    if slot is _asked(state)[0]:
        # Another version stood there: this one becomes a revision of its own, even where an earlier one was the same, and is
        # to be told from that.
        service["spec"]["predictor"]["annotations"][TEMPLATE_ANNOTATION] = str(state.generation)
    return service


def _made(
    state: ReleaseState, slot: Slot, occupant: Occupant, slot_objects: SlotObjects
) -> dict[str, Any]:
    labels = labels_of(state, slot)
    spec, claims = pod(slot_objects, occupant, state.model, labels)
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
    service: dict[str, Any] = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": KIND,
        "metadata": metadata(state, state.model, labels, occupant),
        "spec": {
            "predictor": {
                "labels": labels,
                "annotations": {
                    CANDIDATE_ANNOTATION: str(occupant.candidate.digest),
                    TEMPLATE_ANNOTATION: str(state.generation),
                },
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
    _share(service, occupant, None)
    return service


def _share(service: dict[str, Any], occupant: Occupant, percent: int | None) -> None:
    predictor = service["spec"]["predictor"]
    predictor["minReplicas"] = predictor["maxReplicas"] = occupant.candidate.serving.replicas
    predictor.pop("canaryTrafficPercent", None)
    if percent is not None:
        predictor["canaryTrafficPercent"] = percent
