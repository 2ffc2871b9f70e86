"""The shape of a decoder-only transformer as its `config.json` states it, and how many parameters that makes.

Sources: the configuration and modelling classes of transformers (names and defaults of the keys); DeepSeek-V2, arXiv:2405.04434
(multi-head latent attention: one compressed vector and one rotary key a token, whatever the number of heads).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lockgate.domain.base import Frozen
from lockgate.domain.sizing.families import FAMILIES, Family

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1}
_LARGEST = 1 << 28
"""Of any number in a configuration that is believed."""


class Parameters(Frozen):
    """Numbers of parameters. Recipes quantize `linear` and leave the rest at 16 bits."""

    embedding: int
    head: int
    """The output projection; 0 where it is the embedding (tied)."""
    linear: int
    other: int
    """Norms and biases: not split by tensor parallelism."""

    @property
    def total(self) -> int:
        return self.embedding + self.head + self.linear + self.other


class ModelShape(Frozen):
    """What decides how much memory serving takes."""

    family: str
    """`model_type`."""
    layers: int
    hidden: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    latent: int | None
    """Numbers kept a token and layer by multi-head latent attention; none for keys and values by head."""
    windows: tuple[int | None, ...]
    """Of each layer with a KV cache: how many tokens it looks back at; none for all."""
    width: int
    """Widest intermediate activation of one token: MLP, or all the experts that it goes through."""
    context: int
    """Longest context in tokens that the model was made for."""
    dtype_bytes: int
    tied: bool
    parameters: Parameters | None
    """None for a family whose layers are not known here: then only the bytes of the weights tell."""

    @property
    def embedding(self) -> int:
        return self.vocabulary * self.hidden


def read_shape(config: Mapping[str, Any]) -> ModelShape:
    """The shape that a parsed `config.json` states.

    `ValueError`, naming the key, for a configuration that lacks what sizing needs or states nonsense.
    """
    text = config
    for key in ("text_config", "llm_config", "language_config"):
        if isinstance(config.get(key), Mapping):
            text = config[key]
    name = str(text.get("model_type") or config.get("model_type") or "")
    family = FAMILIES.get(name)
    with_towers = text is not config and any("vision" in key or "audio" in key for key in config)
    layers = _whole(text, "num_hidden_layers")
    hidden = _whole(text, "hidden_size")
    heads = _whole(text, "num_attention_heads")
    kv_heads = _whole(text, "num_key_value_heads", heads)
    head_dim = _whole(
        text, "head_dim", family.head_dim if family and family.head_dim else hidden // heads
    )
    latent = None
    if text.get("kv_lora_rank"):
        latent = _whole(text, "kv_lora_rank") + _whole(text, "qk_rope_head_dim")
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    if tied is None:
        tied = family.tied if family else True
    dtype = (
        text.get("dtype")
        or text.get("torch_dtype")
        or config.get("dtype")
        or config.get("torch_dtype")
    )
    shape = ModelShape(
        family=name,
        layers=layers,
        hidden=hidden,
        vocabulary=_whole(text, "vocab_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        latent=latent,
        windows=_windows(text, name, layers),
        width=_width(text),
        context=_context(text),
        dtype_bytes=_DTYPE_BYTES.get(str(dtype), 2),
        tied=bool(tied),
        parameters=None,
    )
    if family is None or with_towers:
        return shape
    return shape.model_copy(update={"parameters": _parameters(text, shape, family)})


def _whole(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < _LARGEST:
        raise ValueError(f"config.json: {key} is {value!r}, not a number of a usual size")
    return value


def _number(config: Mapping[str, Any], key: str) -> int:
    """A number that may be absent or 0."""
    return _whole(config, key) if config.get(key) else 0


def _windows(config: Mapping[str, Any], name: str, layers: int) -> tuple[int | None, ...]:
    """transformers' rules, by which vLLM makes its KV cache groups."""
    window = config.get("sliding_window")
    if not isinstance(window, int) or isinstance(window, bool) or window <= 0:
        return (None,) * layers
    kinds = config.get("layer_types")
    if isinstance(kinds, Sequence) and len(kinds) == layers:
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    if name.startswith(("qwen2", "qwen3")):
        if not config.get("use_sliding_window"):
            return (None,) * layers
        first = _whole(config, "max_window_layers", layers)
        return tuple(window if n >= first else None for n in range(layers))
    every = {"gemma2": 2, "gemma3_text": _number(config, "sliding_window_pattern") or 6}.get(name)
    if every is not None:
        return tuple(None if (n + 1) % every == 0 else window for n in range(layers))
    return (window,) * layers


def _width(config: Mapping[str, Any]) -> int:
    experts = _number(config, "num_experts_per_tok")
    each = _number(config, "moe_intermediate_size") or _number(config, "intermediate_size")
    dense = _number(config, "intermediate_size") or 4 * _whole(config, "hidden_size")
    shared = _number(config, "n_shared_experts") * each
    return max(dense, experts * each + shared)


def _context(config: Mapping[str, Any]) -> int:
    longest = _whole(config, "max_position_embeddings", 2048)
    scaling = config.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    factor = scaling.get("factor")
    if kind not in ("linear", "dynamic", "yarn") or not isinstance(factor, (int, float)):
        return longest
    original = scaling.get("original_max_position_embeddings")
    if kind == "yarn" and isinstance(original, int):
        return int(original * factor)
    return int(longest * factor)


def _parameters(config: Mapping[str, Any], shape: ModelShape, family: Family) -> Parameters:
    attention, attention_other = _attention(config, shape, family)
    linear = shape.layers * attention
    other = shape.layers * (attention_other + family.norms * shape.hidden) + shape.hidden
    for number, (weights, biases) in _feed_forward(config, shape, family):
        linear += number * weights
        other += number * biases
    return Parameters(
        embedding=shape.embedding,
        head=0 if shape.tied else shape.embedding,
        linear=linear,
        other=other,
    )


def _attention(config: Mapping[str, Any], shape: ModelShape, family: Family) -> tuple[int, int]:
    """Weights, and norms and biases, of one layer's attention."""
    hidden, heads = shape.hidden, shape.heads
    if shape.latent is not None:
        rank, rotary = _whole(config, "kv_lora_rank"), _whole(config, "qk_rope_head_dim")
        plain, value = _whole(config, "qk_nope_head_dim"), _whole(config, "v_head_dim")
        query_rank = _number(config, "q_lora_rank")
        query = heads * (plain + rotary)
        weights = hidden * query
        if query_rank:
            weights = hidden * query_rank + query_rank * query
        weights += (
            hidden * (rank + rotary) + rank * heads * (plain + value) + heads * value * hidden
        )
        return weights, query_rank + rank
    query, key = heads * shape.head_dim, shape.kv_heads * shape.head_dim
    weights = hidden * (query + 2 * key) + query * hidden
    other = 2 * shape.head_dim if family.query_key_norm else 0
    biased = config.get("attention_bias", family.attention_bias)
    if biased:
        other += query + 2 * key + (hidden if family.output_bias else 0)
    return weights, other


def _feed_forward(
    config: Mapping[str, Any], shape: ModelShape, family: Family
) -> list[tuple[int, tuple[int, int]]]:
    """How many layers have which feed-forward: weights, and what is not split."""
    hidden = shape.hidden
    experts = _number(config, family.experts_key) if family.experts_key else 0
    if not experts:
        return [(shape.layers, (3 * hidden * _whole(config, "intermediate_size"), 0))]
    each = _number(config, "moe_intermediate_size") or _whole(config, "intermediate_size")
    dense_layers = min(_number(config, "first_k_dense_replace"), shape.layers)
    one_expert = 3 * hidden * each
    shared = _number(config, "n_shared_experts") * one_expert
    correction = experts if config.get("topk_method") == "noaux_tc" else 0
    if config.get("shared_expert_intermediate_size"):
        # Qwen2-MoE's shared expert has a gate of its own.
        shared += 3 * hidden * _whole(config, "shared_expert_intermediate_size") + hidden
    sparse = (experts * one_expert + shared + hidden * experts, correction)
    dense = (3 * hidden * _number(config, "intermediate_size"), 0)
    return [(dense_layers, dense), (shape.layers - dense_layers, sparse)]
