"""The arithmetic against what is published: parameters of known models, and what vLLM printed when it served some of them."""

from __future__ import annotations

import pytest

from lockgate.domain.sizing import Demands, accelerator, footprint, read_shape, weights_of
from lockgate.domain.sizing.memory import GIB, kv_bytes_a_token
from tests.unit.sizing.known_models import KNOWN

TOKENS_OF_SMOLLM2_IN_A_GIB = 46_592
"""vLLM 0.32 on a CPU, VLLM_CPU_KVCACHE_SPACE=1: "CPU KV cache size: 46,592 tokens", in blocks of 128."""


@pytest.mark.parametrize("name", KNOWN)
def test_parameters_and_cache_are_those_that_the_makers_publish(name: str) -> None:
    known = KNOWN[name]
    shape = read_shape(known.config)
    assert shape.parameters is not None
    # A float is a number that its makers have rounded.
    rounded = isinstance(known.parameters, float)
    assert shape.parameters.total == pytest.approx(known.parameters, rel=1e-4 if rounded else 0)
    assert weights_of(shape).total == 2 * shape.parameters.total
    assert shape.layers * kv_bytes_a_token(shape) == known.kv_bytes


def test_a_gib_of_cache_holds_as_many_tokens_as_vllm_says() -> None:
    a_token = 30 * kv_bytes_a_token(read_shape(KNOWN["SmolLM2-135M"].config))
    assert int(GIB / (a_token * 128)) * 128 == TOKENS_OF_SMOLLM2_IN_A_GIB


def test_cache_of_few_heads_on_many_gpus_is_what_vllm_reports_for_a_large_mixture() -> None:
    # vllm#21348: Qwen3-235B-A22B on 4 H100: "Available KV cache memory: 8.11 GiB", "GPU KV cache size: 178,880 tokens"; the
    # memory is that of one rank, the tokens are those of the rank that has least.
    config = {**KNOWN["Qwen3-30B-A3B"].config, "num_hidden_layers": 94, "hidden_size": 4096,
              "num_attention_heads": 64, "moe_intermediate_size": 1536}  # fmt: skip
    shape = read_shape(config)
    assert shape.parameters is not None
    assert shape.parameters.total == pytest.approx(235.1e9, rel=0.001)
    tokens = 8.11 * GIB / (94 * kv_bytes_a_token(shape, tensor=4))
    assert tokens == pytest.approx(178_880, rel=0.015)


def test_a_latent_cache_is_repeated_on_every_gpu_and_heads_are_not() -> None:
    latent, heads = (
        read_shape(KNOWN["DeepSeek-V3"].config),
        read_shape(KNOWN["Llama-3.1-70B"].config),
    )
    assert kv_bytes_a_token(latent, tensor=8) == kv_bytes_a_token(latent) == 576 * 2
    assert kv_bytes_a_token(heads, tensor=8) * 8 == kv_bytes_a_token(heads)
    # Eight heads on sixteen GPUs: each one lies on two of them.
    assert kv_bytes_a_token(heads, tensor=16) == kv_bytes_a_token(heads, tensor=8)


def test_layers_with_a_window_keep_no_more_than_that_and_what_is_in_work() -> None:
    shape = read_shape(KNOWN["Gemma-2-9B"].config)
    assert shape.windows[:2] == (4096, None)
    assert sum(window is None for window in shape.windows) == 21
    device = accelerator("l40s")
    a_layer = kv_bytes_a_token(shape)

    def sequence(length: int) -> int:
        demands = Demands(max_model_len=length, batched_tokens=1024)
        return footprint(shape, weights_of(shape), device, demands).kv_sequence

    assert sequence(4096) == 42 * a_layer * 4096
    assert sequence(65536) == 21 * a_layer * 65536 + 21 * a_layer * (4095 + 2 * 1024)


def test_recipes_leave_embedding_and_head_alone() -> None:
    shape = read_shape(KNOWN["Llama-3.1-8B"].config)
    whole, ends = weights_of(shape), 2 * 2 * 128256 * 4096
    assert weights_of(shape, bits=8).total == pytest.approx(
        ends + (whole.total - ends) / 2, rel=1e-4
    )
    # The Hub's Meta-Llama-3.1-8B-Instruct-quantized.w4a16 is 5.7 GB.
    assert weights_of(shape, bits=4, group=128).total == pytest.approx(5.7e9, rel=0.02)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"hidden_size": "4096"}, "hidden_size"),
        ({"vocab_size": 1 << 40}, "vocab_size"),
        ({"num_key_value_heads": 0}, "num_key_value_heads"),
    ],
)
def test_a_configuration_that_lacks_a_figure_is_refused_by_name(
    change: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        read_shape({**KNOWN["Llama-3.1-8B"].config, **change})


def test_an_unknown_family_is_sized_by_its_files_and_by_nothing_else() -> None:
    shape = read_shape({**KNOWN["Mistral-7B-v0.1"].config, "model_type": "brand_new"})
    assert shape.parameters is None
    with pytest.raises(ValueError, match="brand_new"):
        weights_of(shape)
    files = 2 * 7_241_732_096
    assert weights_of(shape, stored_bytes=files).total == files
