"""Worker: one GGUF file to a Hugging Face directory (safetensors, tokenizer, chat template)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from worker_channel import Channel, Unusable, run  # type: ignore[import-not-found]
from worker_output import (  # type: ignore[import-not-found]
    be_deterministic,
    canonical_config,
    check_loads,
    check_tensors,
    make_readable,
    weight_bytes,
)

# llama.cpp's name of a pre-tokenizer -> whether digits stand alone. transformers takes the plain GPT-2 rule for all.
DIGITS_ALONE = {"smollm": True, "starcoder": True, "refact": True, "command-r": True}
SPECIAL_TOKENS = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


def metadata(source: Path) -> dict[str, Any]:
    """The scalar metadata of a GGUF file that the tokenizer needs."""
    from gguf import GGUFReader

    fields = GGUFReader(source).fields
    names = [f"tokenizer.ggml.{kind}_token_id" for kind in SPECIAL_TOKENS.values()]
    names += ["tokenizer.ggml.pre", "tokenizer.ggml.model"]
    return {name: fields[name].contents() for name in names if name in fields}


def restore_tokenizer(tokenizer: Any, facts: dict[str, Any]) -> None:
    """Set what transformers' GGUF import loses: which token ends an answer, and how digits are split."""
    for role, kind in SPECIAL_TOKENS.items():
        token_id = facts.get(f"tokenizer.ggml.{kind}_token_id")
        if token_id is not None:
            setattr(
                tokenizer,
                f"{role}_token",
                tokenizer.convert_ids_to_tokens(int(token_id)),
            )
    # As stored it is None or true, and later versions of transformers then eat spaces before punctuation.
    tokenizer.clean_up_tokenization_spaces = False
    if facts.get("tokenizer.ggml.model") == "gpt2" and DIGITS_ALONE.get(
        facts.get("tokenizer.ggml.pre", "")
    ):
        from tokenizers import pre_tokenizers

        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
            ]
        )


def check_special_tokens(target: Path, facts: dict[str, Any]) -> None:
    """An answer must end where the GGUF file says: a wrong end token makes a model that never stops."""
    from transformers import AutoTokenizer

    eos = facts.get("tokenizer.ggml.eos_token_id")
    written = AutoTokenizer.from_pretrained(target).eos_token_id
    if eos is not None and written != int(eos):
        raise Unusable(f"the end token became {written}, the GGUF file says {int(eos)}")


def convert(job: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Job: `source` (GGUF file), `target` (empty directory), `seed`, `threads`."""
    source, target = Path(job["source"]), Path(job["target"])
    be_deterministic(job["seed"], job["threads"])
    channel.progress("import", 0.02, "loading transformers")
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    channel.progress("load", 0.1, f"dequantizing {source.name}")
    place, name = str(source.parent), source.name
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name, trust_remote_code=False)
    if not tokenizer.chat_template and job.get("require_chat_template", True):
        raise Unusable(f"{name} carries no chat template")
    facts = metadata(source)
    restore_tokenizer(tokenizer, facts)
    model = AutoModelForCausalLM.from_pretrained(
        place,
        gguf_file=name,
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.bfloat16,
    )
    if hasattr(model.config, "quantization_config"):
        # The written weights are plain bfloat16: a loader must not look for GGUF blocks in them.
        del model.config.quantization_config
    if model.config.max_position_embeddings:
        tokenizer.model_max_length = model.config.max_position_embeddings
    channel.progress("save", 0.6, "writing safetensors")
    model.save_pretrained(target, safe_serialization=True)
    tokenizer.save_pretrained(target)
    parameters = sum(p.numel() for p in model.parameters())
    del model
    canonical_config(target, dtype="bfloat16")
    make_readable(target)
    channel.progress("check", 0.8, "every tensor finite")
    tensors, elements = check_tensors(target)
    size, expected = weight_bytes(target), 2 * parameters
    if not 0.98 * expected <= size <= 1.02 * expected + 2**20:
        raise Unusable(f"{size} bytes of weights for {parameters} bfloat16 parameters")
    channel.progress("check", 0.85, "loading the result")
    answer = check_loads(target)
    check_special_tokens(target, facts)
    return {
        "tensors": tensors,
        "elements": elements,
        "weight_bytes": size,
        "expected_bytes": expected,
        "source_bytes": source.stat().st_size,
        "answer": answer,
        "details": {},
        "tools": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


if __name__ == "__main__":
    run(convert)
