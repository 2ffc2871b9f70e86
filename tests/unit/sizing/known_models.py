"""Configurations of well-known models, by hand from public facts, with what their makers publish about their sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Known:
    config: dict[str, Any]
    parameters: float
    """As published: by the model card, the paper, or the number that the Hub shows for the safetensors."""
    kv_bytes: int
    """A token, at 16 bits, all layers looking back at everything."""


def _llama(layers: int, hidden: int, heads: int, kv: int, width: int, vocabulary: int, **more: Any) -> dict[str, Any]:  # fmt: skip
    return {
        "model_type": "llama", "torch_dtype": "bfloat16", "num_hidden_layers": layers, "hidden_size": hidden,
        "num_attention_heads": heads, "num_key_value_heads": kv, "intermediate_size": width,
        "vocab_size": vocabulary, "max_position_embeddings": 131072, "tie_word_embeddings": False, **more,
    }  # fmt: skip


_LLAMA3_ROPE = {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}
KNOWN: dict[str, Known] = {
    "Llama-3.1-8B": Known(
        _llama(32, 4096, 32, 8, 14336, 128256, rope_scaling=_LLAMA3_ROPE), 8_030_261_248, 131_072
    ),
    "Llama-3.1-70B": Known(
        _llama(80, 8192, 64, 8, 28672, 128256, rope_scaling=_LLAMA3_ROPE), 70_553_706_496, 327_680
    ),
    "Llama-3.1-405B": Known(
        _llama(126, 16384, 128, 8, 53248, 128256, rope_scaling=_LLAMA3_ROPE), 405.85e9, 516_096
    ),
    "SmolLM2-135M": Known(
        _llama(30, 576, 9, 3, 1536, 49152, max_position_embeddings=8192, tie_word_embeddings=True),
        134_515_008, 23_040,
    ),
    "Mistral-7B-v0.1": Known(
        _llama(32, 4096, 32, 8, 14336, 32000, model_type="mistral", sliding_window=4096,
               max_position_embeddings=32768),
        7_241_732_096, 131_072,
    ),
    "Mixtral-8x7B": Known(
        _llama(32, 4096, 32, 8, 14336, 32000, model_type="mixtral", num_local_experts=8,
               num_experts_per_tok=2, sliding_window=None, max_position_embeddings=32768),
        46_702_792_704, 131_072,
    ),
    "Qwen2.5-7B": Known(
        _llama(28, 3584, 28, 4, 18944, 152064, model_type="qwen2", sliding_window=131072,
               use_sliding_window=False, max_window_layers=28, max_position_embeddings=32768),
        7_615_616_512, 57_344,
    ),
    "Qwen2.5-72B": Known(
        _llama(80, 8192, 64, 8, 29568, 152064, model_type="qwen2", sliding_window=131072,
               use_sliding_window=False, max_window_layers=70, max_position_embeddings=32768),
        72_706_203_648, 327_680,
    ),
    "Qwen3-8B": Known(
        _llama(36, 4096, 32, 8, 12288, 151936, model_type="qwen3", head_dim=128, attention_bias=False,
               max_position_embeddings=40960),
        8_190_735_360, 147_456,
    ),
    "Qwen3-30B-A3B": Known(
        _llama(48, 2048, 32, 4, 6144, 151936, model_type="qwen3_moe", head_dim=128, num_experts=128,
               num_experts_per_tok=8, moe_intermediate_size=768, max_position_embeddings=40960),
        30_532_122_624, 98_304,
    ),
    # The card's `config.json` leaves `tie_word_embeddings` and nothing else to the class's default.
    "Gemma-2-9B": Known(
        {
            "model_type": "gemma2", "torch_dtype": "float32", "num_hidden_layers": 42, "hidden_size": 3584,
            "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 256, "intermediate_size": 14336,
            "vocab_size": 256000, "max_position_embeddings": 8192, "sliding_window": 4096,
        },
        9_241_705_984, 344_064,
    ),
    "Phi-3-mini-4k": Known(
        _llama(32, 3072, 32, 32, 8192, 32064, model_type="phi3", sliding_window=2047,
               max_position_embeddings=4096),
        3_821_079_552, 393_216,
    ),
    # The paper counts 671 billion without the layer that predicts a second token, which is served only by request.
    "DeepSeek-V3": Known(
        {
            "model_type": "deepseek_v3", "torch_dtype": "bfloat16", "num_hidden_layers": 61, "hidden_size": 7168,
            "num_attention_heads": 128, "num_key_value_heads": 128, "intermediate_size": 18432,
            "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1,
            "num_experts_per_tok": 8, "first_k_dense_replace": 3, "kv_lora_rank": 512, "q_lora_rank": 1536,
            "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "vocab_size": 129280,
            "topk_method": "noaux_tc", "max_position_embeddings": 163840, "tie_word_embeddings": False,
            "num_nextn_predict_layers": 1,
            "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096},
            "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
        },
        671.03e9, 70_272,
    ),
}  # fmt: skip
