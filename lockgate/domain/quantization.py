"""What a quantization or conversion did, as it goes into provenance and reports."""

from __future__ import annotations

from typing import Any

from lockgate.domain.base import Frozen


class QuantizationReport(Frozen):
    """Measured by the worker on the files it wrote, after loading them again."""

    recipe: str
    """A `Recipe` value, or `gguf-to-safetensors` for a conversion."""
    seed: int
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
    details: dict[str, Any]
    """Layers, bits, group size where the recipe has one."""
    tools: dict[str, str]
    """Versions of the libraries that did it."""
    seconds: float
