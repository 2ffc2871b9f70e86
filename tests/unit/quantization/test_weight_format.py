"""In which form a source's weights already are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lockgate.domain.weight_format import WeightKind, recognise

FILES = ("config.json", "model.safetensors", "tokenizer.json")
INT8 = {
    "quant_method": "compressed-tensors", "format": "int-quantized",
    "config_groups": {"group_0": {
        "targets": ["Linear"],
        "weights": {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True},
        "input_activations": {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
    }},
}  # fmt: skip
INT4 = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {
        "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64, "symmetric": False},
        "input_activations": None,
    }},
}  # fmt: skip


def found(config: dict[str, Any], files: tuple[str, ...] = FILES, **others: dict[str, Any]) -> Any:
    documents = {"config.json": config, **{f"{k}.json": v for k, v in others.items()}}
    return recognise({k: json.dumps(v).encode() for k, v in documents.items()}, files)


@pytest.mark.parametrize(
    ("stated", "kind", "schemes", "detail"),
    [
        (INT8, WeightKind.COMPRESSED_TENSORS, ("w8a8-int",), "int8 weights, int8 activations"),
        (INT4, WeightKind.COMPRESSED_TENSORS, ("w4a16-int-asymmetric",), "int4 weights, groups of 64"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True}, WeightKind.GPTQ, ("w4a16-int",), "int4, groups of 128"),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1, "sym": False}, WeightKind.GPTQ, ("w8a16-int-asymmetric",), "int8, per channel"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}, WeightKind.AWQ, ("w4a16-int-asymmetric",), "int4, groups of 128"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, WeightKind.OTHER, ("w8a8-float",), ""),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, WeightKind.OTHER, (), ""),
        ({"bits": 4}, WeightKind.OTHER, (), ""),
    ],
)  # fmt: skip
def test_what_config_json_states_is_recognised(
    stated: dict[str, Any], kind: WeightKind, schemes: tuple[str, ...], detail: str
) -> None:
    format_ = found({"model_type": "llama", "quantization_config": stated})
    assert (format_.kind, format_.schemes, format_.detail) == (kind, schemes, detail)
    assert format_.quantized


def test_it_is_found_where_older_tools_and_nested_models_put_it() -> None:
    gptq = {"bits": 4, "group_size": 128, "sym": True}
    assert found({}, quantize_config=gptq).kind is WeightKind.GPTQ
    assert found({}, quant_config={"w_bit": 4, "q_group_size": 64}).kind is WeightKind.AWQ
    assert (
        found({"compression_config": {k: v for k, v in INT8.items() if k != "quant_method"}}).kind
        is WeightKind.COMPRESSED_TENSORS
    )
    assert found({"text_config": {"quantization_config": INT8}}).schemes == ("w8a8-int",)


def test_a_directory_of_gguf_files_is_recognised_and_one_beside_safetensors_is_not_its_form() -> (
    None
):
    assert recognise({}, ("README.md", "model.Q4_1.gguf")).kind is WeightKind.GGUF
    assert found({}, (*FILES, "model.gguf")).kind is WeightKind.PLAIN


@pytest.mark.parametrize("config", [{}, {"quantization_config": None}, {"quantization_config": {}}])
def test_a_model_that_states_nothing_is_plain(config: dict[str, Any]) -> None:
    assert not found(config).quantized


@pytest.mark.parametrize("groups", [None, [], {"a": 3}, {"a": {"weights": {"num_bits": "4"}}}])
def test_odd_groups_are_quantized_weights_of_an_unknown_scheme(groups: object) -> None:
    format_ = found(
        {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": groups}}
    )
    assert format_.quantized
    assert format_.schemes == ()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"[" * 100_000])
def test_a_config_that_cannot_be_read_is_not_taken_for_plain(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"config\.json"):
        recognise({"config.json": content}, FILES)
