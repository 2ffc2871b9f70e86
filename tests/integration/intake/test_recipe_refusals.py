"""What cannot be served is refused at `plan`, by what the installed engine says of itself, before anything is fetched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lockgate.domain.serving_support import SCHEMES, EngineSupport
from serving.engines.registry import ENGINES
from serving.ephemeral import base_environment

SPEC: dict[str, Any] = {
    "model": "tiny",
    "serving": {"served_model_name": "tiny"},
    "evaluation": {"tasks": [{"name": "lockgate_choice", "metric": "acc,none", "margin": 0.1, "floor": 0.5}]},
    "benchmark": {"profiles": [{"name": "single"}]},
}  # fmt: skip


@pytest.fixture(scope="module")
def support(serving_python: Path) -> EngineSupport:
    return ENGINES["vllm"].support(serving_python, SCHEMES, base_environment())


def test_the_installed_engine_answers_for_every_scheme(support: EngineSupport) -> None:
    assert support.version
    assert {answer.scheme for answer in support.schemes} == set(SCHEMES)
    assert {"compressed-tensors", "gptq", "awq"} <= set(support.methods)
    kernels = {answer.scheme: answer.kernel for answer in support.schemes}
    if support.hardware.device == "cpu":
        assert kernels["w8a8-int"] == "CPUInt8ScaledMMLinearKernel"
        assert kernels["w4a16-int"] == kernels["w4a16-int-asymmetric"] == "CPUWNA16LinearKernel"
        # The name by which the domain knows that it is too slow, unless this CPU multiplies fp8 itself.
        assert kernels["w8a8-float"] in (
            "ChannelWiseTorchFP8ScaledMMLinearKernel",
            "CPUFP8W8A8ScaledMMLinearKernel",
        )


class Place:
    """A workspace and a model directory of a few bytes: enough for what must be known before a download."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = root / "model"
        self.model.mkdir()
        (self.model / "model.safetensors").write_bytes(b"")
        self.configure({})
        self.lockgate("init", check=True)

    def configure(self, config: dict[str, Any]) -> None:
        (self.model / "config.json").write_text(json.dumps({"model_type": "llama", **config}))

    def lockgate(self, *arguments: str, check: bool = False) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "LOCKGATE_WORKSPACE": str(self.root / "workspace"), "COLUMNS": "300"}  # fmt: skip
        return subprocess.run(
            [sys.executable, "-m", "lockgate.cli", *arguments],
            env=environment, capture_output=True, text=True, timeout=300, check=check,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def plan(self, **override: Any) -> subprocess.CompletedProcess[str]:
        path = self.root / "spec.yaml"
        path.write_text(yaml.safe_dump({**SPEC, "source": f"dir:{self.model}", **override}))
        return self.lockgate("plan", str(path))


def test_plan_refuses_what_cannot_be_served_and_lets_the_rest_pass(
    support: EngineSupport, quantization_python: Path, tmp_path: Path
) -> None:
    if support.hardware.device != "cpu":
        pytest.skip("these are the answers of a CPU")
    place = Place(tmp_path)

    fp8 = place.plan(quantization="fp8-dynamic")
    assert fp8.returncode == 2
    assert "ChannelWiseTorchFP8ScaledMMLinearKernel is a fallback" in fp8.stdout
    assert "1.7 tokens/s" in fp8.stdout

    elsewhere = place.plan(
        quantization="fp8-dynamic", hardware={"device": "cuda", "compute_capability": "9.0"}
    )
    assert elsewhere.returncode == 0
    assert "fp8 tensor cores" in elsewhere.stdout

    int8 = place.plan(quantization="w8a8-smoothquant-gptq")
    assert int8.returncode == 0
    assert "served well: CPUInt8ScaledMMLinearKernel" in int8.stdout

    nothing = place.plan(quantization="w8a8-gptq", calibration={"dataset": "none.jsonl"})
    assert nothing.returncode == 2
    assert "none.jsonl cannot be read" in nothing.stdout

    place.configure({"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}})
    twice = place.plan(quantization="w8a8-rtn")
    assert twice.returncode == 2
    assert "quantized already: gptq (int4, groups of 128)" in twice.stdout
    as_it_is = place.plan()
    assert as_it_is.returncode == 0
    assert "is released as it is: gptq (int4, groups of 128)" in as_it_is.stdout

    place.configure({"quantization_config": {"quant_method": "bitsandbytes"}})
    unserved = place.plan()
    assert unserved.returncode == 2
    assert "does not take bitsandbytes weights" in unserved.stdout
