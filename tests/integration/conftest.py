"""What integration tests of several areas share."""

from __future__ import annotations

from pathlib import Path

import pytest

from lockgate.adapters.quantization import ModelCard, convert_gguf


@pytest.fixture(scope="session")
def demo_model(demo_gguf: Path, quantization_python: Path) -> Path:
    """A real small instruct model as a directory. Made once a machine, beside the file that it is made from."""
    target = demo_gguf.parent / "SmolLM2-135M-Instruct-for-tests"
    if not (target / "config.json").exists():
        card = ModelCard(
            name="SmolLM2-135M-Instruct",
            license="apache-2.0",
            base_model="HuggingFaceTB/SmolLM2-135M-Instruct",
        )
        log = demo_gguf.parent / "convert-for-tests.log"
        convert_gguf(quantization_python, demo_gguf, target, card=card, log=log)
    return target
