"""What families of models have in common that their `config.json` does not say: transformers writes only what differs from a
class's defaults."""

from __future__ import annotations

from lockgate.domain.base import Frozen


class Family(Frozen):
    tied: bool = False
    """Default of `tie_word_embeddings`."""
    norms: int = 2
    """Norms of the hidden size in one layer."""
    attention_bias: bool = False
    """Biases of the query, key and value projections, unless the configuration says otherwise."""
    output_bias: bool = False
    """Whether the output projection has one as well where there are biases."""
    query_key_norm: bool = False
    """A norm over each head's queries and one over its keys."""
    head_dim: int | None = None
    """Default where it is not the hidden size by the number of heads."""
    experts_key: str | None = None


_LLAMA = Family(output_bias=True)
_GEMMA = Family(tied=True, head_dim=256)
FAMILIES: dict[str, Family] = {
    "llama": _LLAMA,
    "mistral": Family(),
    "mixtral": Family(experts_key="num_local_experts"),
    "phi3": Family(),
    "granite": Family(tied=True),
    "smollm3": Family(tied=True),
    "gemma": _GEMMA,
    "gemma2": _GEMMA.model_copy(update={"norms": 4}),
    "gemma3_text": _GEMMA.model_copy(update={"norms": 4, "query_key_norm": True}),
    "qwen2": Family(attention_bias=True),
    "qwen2_moe": Family(attention_bias=True, experts_key="num_experts"),
    "qwen3": Family(query_key_norm=True, output_bias=True, head_dim=128),
    "qwen3_moe": Family(query_key_norm=True, output_bias=True, experts_key="num_experts"),
    "deepseek_v2": Family(experts_key="n_routed_experts"),
    "deepseek_v3": Family(experts_key="n_routed_experts"),
}
