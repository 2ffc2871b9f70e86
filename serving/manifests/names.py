"""Names and marks in the manifests, by which agents and tools find a model's slot and candidate."""

from __future__ import annotations

from lockgate.domain.release_state import Slot

SLOT_HEADER = "x-lockgate-slot"
MODEL_VOLUME = "model"
MODEL_MOUNT = "/models"
"""Where a pod finds the model; inside the image the files lie under the same directory."""
STOP_MARGIN_SECONDS = 15
"""Between the end of the drain and the kill: the server closes its connections and its engine."""


def slot_name(model: str, slot: Slot) -> str:
    """Name of a slot's Deployment, Service, disruption budget and service account."""
    return f"{model}-{slot.value}"


def namespace(environment: str) -> str:
    """Where an environment's models run."""
    return f"lockgate-{environment}"
