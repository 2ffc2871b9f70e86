"""The demo's model, converted once for all tests of a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockgate.adapters.quantization import ModelCard, convert_gguf

CARD = ModelCard(
    name="SmolLM2-135M-Instruct",
    license="apache-2.0",
    base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
    license_text="Apache License\nVersion 2.0, January 2004\nhttp://www.apache.org/licenses/\n",
)


@pytest.fixture(scope="session")
def bf16(
    tmp_path_factory: pytest.TempPathFactory, quantization_python: Path, demo_gguf: Path
) -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face directory."""
    target = tmp_path_factory.mktemp("models") / "bf16"
    convert_gguf(
        quantization_python, demo_gguf, target, card=CARD, log=target.parent / "convert.log"
    )
    return target
