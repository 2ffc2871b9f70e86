"""The bill of materials of a model image: which files, under which license, from where, how good.

Source: CycloneDX 1.6, component type `machine-learning-model` with `modelCard`. It is plain JSON: the Python library of
CycloneDX drops model cards.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from lockgate.domain.evidence import EvaluationEvidence
from lockgate.domain.images import ImageRef
from lockgate.domain.sources import ModelRevision, Snapshot, SourceKind
from lockgate.domain.spec import Recipe

_NAMESPACE = uuid.UUID("8f0c2f0e-5a3c-5d0e-9b57-6f1f3f2b7c11")
_SPDX = {
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
    "bsd-3-clause": "BSD-3-Clause",
    "cc-by-4.0": "CC-BY-4.0",
}
"""Hub license tags that are SPDX identifiers in another spelling; the others are given by name."""


def ml_bom(
    *,
    image: ImageRef,
    name: str,
    revision: ModelRevision,
    snapshot: Snapshot,
    recipe: Recipe,
    licenses: Sequence[str],
    architecture: str | None = None,
    evaluation: EvaluationEvidence | None = None,
    source_weights: str | None = None,
    source_kind: SourceKind | None = None,
    timestamp: str,
    version: str,
) -> dict[str, Any]:
    """CycloneDX 1.6 ML-BOM of a model image. `timestamp` is RFC 3339, `version` Lockgate's; `source_weights` says in which form
    the source's weights were. A model that was quantized names the one it was made of as its ancestor."""
    parameters: dict[str, Any] = {"task": "text-generation"}
    if architecture:
        parameters["modelArchitecture"] = architecture
    card: dict[str, Any] = {"modelParameters": parameters}
    if evaluation is not None:
        card["quantitativeAnalysis"] = {
            "performanceMetrics": [
                {"type": f"{t.task}/{t.metric}", "value": repr(t.score)} for t in evaluation.tasks
            ]
        }
    model: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": str(image),
        "name": name,
        "version": revision.commit,
        "hashes": [{"alg": "SHA-256", "content": image.digest.hex}],
        "modelCard": card,
        "properties": [
            {"name": "lockgate:source", "value": str(revision)},
            {"name": "lockgate:snapshot", "value": str(snapshot.digest)},
            {"name": "lockgate:quantization", "value": recipe.value},
            *(
                {"name": "lockgate:source-weights", "value": text}
                for text in (source_weights,)
                if text is not None
            ),
        ],
    }
    origin = {}
    if source_kind is SourceKind.HUB:
        origin["purl"] = f"pkg:huggingface/{revision.repo}@{revision.commit}"
    if recipe is Recipe.NONE:
        model |= origin
    else:
        ancestor = {"type": model["type"], "name": revision.repo, "version": revision.commit}
        model["pedigree"] = {"ancestors": [ancestor | origin]}
    if licenses:
        model["licenses"] = [{"license": _license(tag)} for tag in licenses]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, str(image.digest))}",
        "version": 1,
        "metadata": {
            "timestamp": timestamp,
            "tools": {
                "components": [{"type": "application", "name": "lockgate", "version": version}]
            },
            "component": model,
        },
        "components": [
            {
                "type": "file",
                "bom-ref": f"file:{file.path}",
                "name": file.path,
                "hashes": [{"alg": "SHA-256", "content": file.digest.hex}],
            }
            for file in snapshot.files
        ],
        "dependencies": [
            {"ref": str(image), "dependsOn": [f"file:{file.path}" for file in snapshot.files]}
        ],
    }


def _license(tag: str) -> dict[str, str]:
    spdx = _SPDX.get(tag.lower())
    return {"id": spdx} if spdx else {"name": tag}
