"""The one schema of everything that a gate attestation rests on.

The attestation's predicate (`GatePredicate`) names its documents by kind and digest; here is what a document of each kind
holds, as types and as JSON Schema, for whoever reads an attestation without this code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from lockgate.domain.attestation import GATE_TYPE, GatePredicate
from lockgate.domain.base import Frozen
from lockgate.domain.evidence import (
    BenchmarkComparison,
    BenchmarkEvidence,
    EvaluationEvidence,
    ScanEvidence,
)
from lockgate.domain.gates import GateReport
from lockgate.domain.quantization import QuantizationReport

KINDS: Mapping[str, type[Frozen]] = {
    "gates": GateReport,
    "scan": ScanEvidence,
    "quantization": QuantizationReport,
    "evaluation": EvaluationEvidence,
    "benchmark": BenchmarkEvidence,
    "benchmark-comparison": BenchmarkComparison,
}

_NUMBERED = re.compile(r"(scan)-\d+-[a-z]+")


def kind_of(name: str) -> str:
    """The kind behind a document's name in the predicate: `scan-0-weights` is a `scan`."""
    match = _NUMBERED.fullmatch(name)
    return match[1] if match else name


def read_evidence(name: str, document: Any) -> Frozen:
    """A document of the predicate as what it is. `ValueError` for an unknown kind, or if it is not what its kind says."""
    kind = KINDS.get(kind_of(name))
    if kind is None:
        raise ValueError(f"unknown kind of evidence: {name!r}")
    return kind.model_validate(document)


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the predicate, with one of each kind of document among its definitions."""
    models: list[type[Frozen]] = [GatePredicate, *KINDS.values()]
    references, together = models_json_schema(
        [(model, "serialization") for model in models], ref_template="#/$defs/{model}"
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": GATE_TYPE,
        "title": "Predicate of a gate attestation; `documents` says what its evidence holds, by kind.",
        **references[GatePredicate, "serialization"],
        "documents": {
            name: references[model, "serialization"] for name, model in sorted(KINDS.items())
        },
        "$defs": together["$defs"],
    }
