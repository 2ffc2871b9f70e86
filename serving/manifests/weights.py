"""How the weights come into the pod: as an image volume, or by an init container where the cluster has none.

Which of the two is the environment's choice (component `init-container`), not the candidate's: the digest is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lockgate.domain.images import ImageRef
from lockgate.errors import RenderingError
from serving.manifests.names import MODEL_VOLUME

FETCHER = "fetch-model"
"""Name of the init container that the component adds."""
_UNSET = "lockgate.invalid/"


def settle(pod: dict[str, Any], model: ImageRef) -> None:
    """Where the pod has a fetcher, give it the model's reference, and make the image volume an empty one that it fills.

    `RenderingError` for a fetcher whose own image is not pinned by digest.
    """
    fetcher = _fetcher(pod)
    if fetcher is None:
        return
    image = str(fetcher.get("image", ""))
    try:
        ImageRef.parse(image)
    except ValueError as error:
        raise RenderingError(f"init container {FETCHER}: {error}") from error
    if image.startswith(_UNSET):
        raise RenderingError(
            f"init container {FETCHER} has no image yet",
            hint="set your Lockgate image, by digest, in the environment's kustomization (components/init-container)",
        )
    fetcher["args"] = ["pull", str(model), "/weights/models"]
    for volume in pod["volumes"]:
        if volume["name"] == MODEL_VOLUME:
            volume.pop("image", None)
            volume["emptyDir"] = volume.get("emptyDir") or {}


def model_reference(pod: Mapping[str, Any]) -> str:
    """The model image that the pod serves, whichever way its weights come. `LookupError` or `ValueError` without one."""
    fetcher = _fetcher(pod)
    if fetcher is not None:
        command, reference, _ = fetcher["args"]
        if command != "pull" or fetcher.get("command", ["lockgate"]) != ["lockgate"]:
            raise ValueError(f"init container {FETCHER} does something else than `lockgate pull`")
        return str(reference)
    (volume,) = (v for v in pod["volumes"] if v["name"] == MODEL_VOLUME)
    return str(volume["image"]["reference"])


def _fetcher(pod: Mapping[str, Any]) -> dict[str, Any] | None:
    found = [c for c in pod.get("initContainers") or [] if c["name"] == FETCHER]
    if not found:
        return None
    container: dict[str, Any] = found[0]
    return container
