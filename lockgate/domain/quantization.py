"""What a quantization or conversion did, as it goes into provenance and reports."""

from __future__ import annotations

from typing import Any

from lockgate.domain.base import Frozen
from lockgate.domain.calibration import CalibrationRecord


class QuantizationReport(Frozen):
    """Measured by the worker on the files it wrote, after loading them again."""

    recipe: str
    """A `Recipe` value, or `gguf-to-safetensors` for a conversion."""
    seed: int
    calibration: CalibrationRecord | None = None
    """What a calibrated recipe looked at; none for the others."""
    source_bytes: int
    """Bytes of the source's weight files."""
    weight_bytes: int
    """Bytes of the written weight files."""
    expected_bytes: int
    """Bytes predicted from the layers and the recipe, before anything was written."""
    tensors: int
    elements: int
    """Tensors and elements looked at; every one of them is finite."""
    next_token: str
    """What the written model says after `The capital of France is`: for people, not judged."""
    generated: str
    """How it goes on from there, greedily, for a few tokens: likewise."""
    details: dict[str, Any]
    """Layers, bits, threads, the recipe's definition, group size where it has one, warnings of the tool where there were any."""
    tools: dict[str, str]
    """Versions of the libraries that did it."""
    seconds: float
