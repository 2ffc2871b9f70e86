"""On what a model fits, and what is said where it does not."""

from __future__ import annotations

from typing import Any

import pytest

from lockgate.domain.sizing import (
    Demands,
    Placement,
    Sizing,
    choose,
    examine,
    read_shape,
    weights_of,
)
from lockgate.domain.spec import Hardware, Resources, ServingSpec
from serving.engines.registry import engine
from tests.unit.sizing.known_models import KNOWN


def chosen(name: str, accelerator: str, demands: Demands | None = None, **hardware: Any) -> Sizing:
    shape = read_shape(KNOWN[name].config)
    declared = Hardware(device="cuda", accelerator=accelerator, **hardware)
    return choose(shape, weights_of(shape), declared, demands or Demands())


@pytest.mark.parametrize(
    ("name", "accelerator", "hardware", "placement"),
    [
        ("SmolLM2-135M", "h100-80gb", {"mig": ("1g.10gb", "3g.40gb")}, "1 h100-80gb MIG 1g.10gb"),
        ("Llama-3.1-8B", "h100-80gb", {"mig": ("1g.10gb", "3g.40gb")}, "1 h100-80gb MIG 3g.40gb"),
        ("Llama-3.1-8B", "h100-80gb", {"time_slices": 2}, "1/2 of a h100-80gb (time slice)"),
        ("Qwen2.5-7B", "l4", {}, "1 l4"),
        ("Mixtral-8x7B", "a100-80gb", {}, "2 a100-80gb"),
        ("Llama-3.1-70B", "h200", {}, "2 h200"),
        ("Llama-3.1-405B", "h200", {}, "8 h200"),
        ("Llama-3.1-405B", "h100-80gb", {"nodes": 4}, "2 nodes of 8 h100-80gb"),
        ("DeepSeek-V3", "h100-80gb", {"nodes": 8}, "3 nodes of 8 h100-80gb"),
    ],
)
def test_the_smallest_share_of_the_hardware_that_holds_the_model_is_taken(
    name: str, accelerator: str, hardware: dict[str, Any], placement: str
) -> None:
    sizing = chosen(name, accelerator, **hardware)
    assert sizing.fits
    assert str(sizing.placement) == placement


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("accelerator", ["l4", "a100-80gb", "h200", "b200"])
def test_what_is_chosen_adds_up_and_is_a_spec_that_the_engine_takes(
    name: str, accelerator: str
) -> None:
    sizing = chosen(name, accelerator, nodes=16)
    assert sizing.fits
    found = sizing.footprint
    assert found.fixed + found.kv == found.budget
    assert found.kv >= found.kv_sequence > 0
    assert 0 < found.max_model_len <= read_shape(KNOWN[name].config).context
    serving = ServingSpec.model_validate({"served_model_name": "x", **sizing.serving()})
    arguments = engine("vllm").arguments(serving, model_path="/models", host="0.0.0.0", port=8000)
    tensor = str(sizing.placement.tensor)
    if sizing.placement.devices > 1:
        assert arguments[arguments.index("--tensor-parallel-size") + 1] == tensor
    assert f"= {found.kv / 2**30:.2f} GiB for the KV cache" in sizing.lines


def test_every_remedy_that_is_named_makes_it_fit() -> None:
    name, length = "Llama-3.1-70B", 131072
    refused = chosen(name, "h100-80gb", Demands(max_model_len=length), gpus_per_node=2)
    assert not refused.fits
    assert "GiB left for the KV cache" in "\n".join(refused.lines)
    shorter = next(int(r.split()[1]) for r in refused.remedies if r.startswith("max_model_len"))
    assert 0 < shorter < length
    assert chosen(name, "h100-80gb", Demands(max_model_len=shorter), gpus_per_node=2).fits
    assert not chosen(
        name, "h100-80gb", Demands(max_model_len=shorter + 1024), gpus_per_node=2
    ).fits
    assert any(r.startswith("quantization fp8-dynamic") for r in refused.remedies)
    shape = read_shape(KNOWN[name].config)
    at_8_bits = weights_of(shape, bits=8)
    hardware = Hardware(device="cuda", accelerator="h100-80gb", gpus_per_node=2)
    assert choose(shape, at_8_bits, hardware, Demands(max_model_len=length)).fits
    assert "4 h100-80gb in one node" in refused.remedies
    assert chosen(name, "h100-80gb", Demands(max_model_len=length), gpus_per_node=4).fits
    assert "2 nodes of 2 h100-80gb" in refused.remedies
    assert chosen(name, "h100-80gb", Demands(max_model_len=length), gpus_per_node=2, nodes=2).fits


def test_a_number_of_gpus_that_divides_no_heads_is_not_taken() -> None:
    shape = read_shape(KNOWN["Qwen2.5-7B"].config)
    sizing = chosen("Qwen2.5-7B", "t4", gpus_per_node=8)
    assert shape.heads == 28
    assert sizing.placement.tensor in (2, 4)
    three = Placement(device=sizing.placement.device, tensor=8)
    refused = examine(shape, weights_of(shape), three, Demands())
    assert not refused.fits
    assert "28 attention heads are not divisible by 8" in "\n".join(refused.lines)


def test_an_accelerator_that_is_not_listed_needs_its_memory() -> None:
    with pytest.raises(ValueError, match="memory_gib"):
        chosen("SmolLM2-135M", "gb999")
    assert chosen("SmolLM2-135M", "gb999", memory_gib=4.0).fits


def test_resources_take_one_slice_and_no_more() -> None:
    assert Resources(gpu=1, gpu_resource="mig-3g.40gb").to_data()["gpu_resource"] == "mig-3g.40gb"
    with pytest.raises(ValueError, match="one slice"):
        Resources(gpu=2, gpu_resource="mig-3g.40gb")
    assert "gpu_resource" not in Resources(gpu=2).to_data()
