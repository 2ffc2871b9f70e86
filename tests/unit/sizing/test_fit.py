"""What a release says about the memory of its hardware before anything is downloaded."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lockgate.adapters.sources import Peek
from lockgate.domain.spec import ReleaseSpec
from lockgate.domain.weight_format import recognise
from lockgate.errors import UsageError
from tasks.sizing import Fit, fit, require_fit
from tests.unit.sizing.known_models import KNOWN


def told(name: str, *, weight_bytes: int | None = None, **spec: Any) -> Fit:
    serving = {"served_model_name": "x", **spec.pop("serving", {})}
    release = ReleaseSpec.model_validate(
        {
            "model": "x", "source": "hf://org/x", "serving": serving,
            "evaluation": {"tasks": [{"name": "t", "metric": "acc,none", "margin": 0.1}]},
            "benchmark": {"profiles": [{"name": "p"}]}, **spec,
        }
    )  # fmt: skip
    contents = {"config.json": json.dumps(KNOWN[name].config).encode()}
    seen = Peek(("config.json",), contents, weight_bytes)
    return fit(release, seen, recognise(contents, seen.files))


H100 = {"device": "cuda", "accelerator": "h100-80gb"}
TWO = {"resources": {"gpu": 2}, "parallel": {"tensor": 2}}


def test_a_declared_placement_that_fits_is_shown_line_by_line() -> None:
    found = told("Llama-3.1-70B", hardware=H100, serving={**TWO, "max_model_len": 16384})
    require_fit(found)
    assert found.lines[:3] == (
        "on 2 h100-80gb, each of:",
        "  72.77 GiB = 79.10 GiB x 0.92 (gpu-memory-utilization)",
        "- 65.71 GiB weights: 131.42 GiB / 2 devices (70.554 billion parameters)",
    )
    assert (
        "  KV cache: 80 layers x 2 x 4 heads x 128 x 2 bytes = 163840 bytes a token" in found.lines
    )


def test_one_that_does_not_fit_is_refused_with_the_numbers_and_with_one_that_does() -> None:
    found = told("Llama-3.1-70B", hardware=H100, serving={"resources": {"gpu": 1}})
    with pytest.raises(UsageError, match=r"(?s)does not fit on 1 h100-80gb.*131\.42 GiB") as caught:
        require_fit(found)
    hint = str(caught.value.hint)
    assert "it fits on 2 h100-80gb" in hint
    assert "tensor: 2" in hint


def test_a_length_that_nobody_named_is_the_models_own() -> None:
    found = told("Llama-3.1-70B", hardware=H100, serving=TWO)
    assert found.refusal == "the model does not fit on 2 h100-80gb"
    assert "max_model_len: 18432" in str(found.hint)


def test_where_nothing_fits_the_remedies_are_named() -> None:
    hardware = {**H100, "gpus_per_node": 1}
    found = told("Llama-3.1-70B", hardware=hardware, serving={"resources": {"gpu": 1}})
    assert found.refusal == "the model does not fit on 1 h100-80gb"
    assert found.hint is not None
    assert "2 h100-80gb in one node" in found.hint
    recipe = told(
        "Llama-3.1-70B",
        hardware=hardware,
        serving={"resources": {"gpu": 1}, "max_model_len": 65536},
        quantization="w4a16-gptq",
    )
    assert recipe.refusal is None


def test_gpus_that_the_engine_is_not_told_to_use_are_refused() -> None:
    idle = told("Llama-3.1-8B", hardware=H100, serving={"resources": {"gpu": 2}})
    assert idle.refusal == "vLLM is told to use 1 GPUs, the pods have 2"
    args = {"resources": {"gpu": 2}, "args": ["--tensor-parallel-size=2"]}
    assert told("Llama-3.1-8B", hardware=H100, serving=args).refusal is None


def test_arguments_of_the_engine_count() -> None:
    serving = {**TWO, "max_model_len": 32768}
    assert told("Llama-3.1-70B", hardware=H100, serving=serving).refusal is not None
    half = {**serving, "args": ["--kv-cache-dtype", "fp8"]}
    assert told("Llama-3.1-70B", hardware=H100, serving=half).refusal is None


def test_a_spec_without_gpus_on_hardware_with_them_gets_the_keys_to_write() -> None:
    found = told("Llama-3.1-8B", hardware={**H100, "mig": ["3g.40gb"]})
    assert found.refusal == "serving.resources.gpu is 0, the model fits on 1 h100-80gb MIG 3g.40gb"
    assert "gpu_resource: mig-3g.40gb" in str(found.hint)


def test_replicas_that_share_a_gpu_may_not_take_more_than_there_is() -> None:
    shared = {"resources": {"gpu": 1, "gpu_resource": "gpu.shared"}, "gpu_memory_utilization": 0.5}
    found = told("SmolLM2-135M", hardware={**H100, "time_slices": 4}, serving=shared)
    assert found.refusal is not None
    assert "4 replicas share a GPU" in found.refusal
    shared["gpu_memory_utilization"] = 0.2
    found = told("SmolLM2-135M", hardware={**H100, "time_slices": 4}, serving=shared)
    assert found.refusal is None
    assert "  15.82 GiB = 79.10 GiB x 0.2 (gpu-memory-utilization)" in found.lines


def test_on_a_cpu_the_cache_is_what_the_environment_says_and_must_hold_one_sequence() -> None:
    serving = {"env": {"VLLM_CPU_KVCACHE_SPACE": "1"}, "max_model_len": 2048}
    found = told("SmolLM2-135M", serving=serving)
    assert found.refusal is None
    assert found.lines[1] == "1.00 GiB KV cache: 46603 tokens of 23040 bytes"
    small = told("Llama-3.1-8B", serving=serving)
    assert small.refusal is not None
    assert "serving.resources.memory is 4.00 GiB" in small.refusal
    short = told("Llama-3.1-8B", serving={**serving, "max_model_len": 16384})
    assert short.refusal == "one sequence of 16384 tokens takes 2.00 GiB of KV cache"


def test_quantized_weights_are_counted_by_their_files() -> None:
    found = told(
        "DeepSeek-V3", weight_bytes=688_586_727_753, hardware={"device": "cuda", "accelerator": "h200"},
        serving={"resources": {"gpu": 8}, "parallel": {"tensor": 8}},
    )  # fmt: skip
    assert found.refusal is None
    assert "- 80.16 GiB weights: 641.30 GiB / 8 devices (size of the weight files)" in found.lines


def test_without_figures_nothing_is_claimed_and_nothing_refused() -> None:
    unknown = told("Llama-3.1-8B", serving={"resources": {"gpu": 1}})
    assert unknown.refusal is None
    assert "is not checked: hardware.accelerator is not declared" in unknown.lines[0]
