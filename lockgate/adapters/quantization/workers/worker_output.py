"""Finishing and checking what a worker wrote: loads, every tensor finite, plausible size, generates finite logits."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from worker_channel import Unusable  # type: ignore[import-not-found]

WEIGHT_ENDINGS = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".gguf",
    ".h5",
    ".onnx",
    ".msgpack",
)
PROMPT = "The capital of France is"
GENERATED_TOKENS = 8


def be_deterministic(seed: int, threads: int) -> None:
    """Same input, same bytes: one seed, no algorithm that depends on timing."""
    os.environ["PYTHONHASHSEED"] = str(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(max(1, threads))


def make_readable(directory: Path) -> None:
    """Files 0644, directories 0755: safetensors writes 0600, which a non-root container cannot read."""
    for path in directory.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def canonical_config(directory: Path, dtype: str | None = None) -> None:
    """Rewrite the JSON files at the top so that they hold no machine's path and nothing that changes from run to run."""
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        path = directory / name
        if not path.exists():
            continue
        data = json.loads(path.read_text(encoding="utf-8"))
        for key in ("_name_or_path", "name_or_path", "_model_name_or_path"):
            data.pop(key, None)
        if name == "tokenizer_config.json":
            # Token ids are derived from the tokens; the copies written beside them may be stale.
            stale = (
                "gguf_file",
                "is_local",
                "local_files_only",
                "bos_token_id",
                "eos_token_id",
            )
            for key in (*stale, "pad_token_id", "unk_token_id"):
                data.pop(key, None)
        if name == "config.json" and dtype is not None:
            data["dtype"] = dtype
        text = json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")


def weight_bytes(directory: Path) -> int:
    """Bytes of all weight files."""
    return sum(p.stat().st_size for p in directory.iterdir() if p.suffix in WEIGHT_ENDINGS)


def check_tensors(directory: Path) -> tuple[int, int]:
    """Every tensor of every shard is finite. Returns how many tensors and elements there are."""
    tensors = elements = 0
    shards = sorted(directory.glob("*.safetensors"))
    if not shards:
        raise Unusable("no safetensors file was written")
    for shard in shards:
        with safe_open(shard, framework="pt") as reader:
            for name in reader.keys():  # noqa: SIM118 - not a dict
                tensor = reader.get_tensor(name)
                tensors += 1
                elements += tensor.numel()
                if not tensor.is_floating_point():
                    continue
                wide = tensor.float() if tensor.element_size() == 1 else tensor
                if not bool(torch.isfinite(wide).all()):
                    raise Unusable(f"tensor {name} in {shard.name} is not finite")
                if name.endswith("_scale") and bool((wide < 0).any()):
                    raise Unusable(f"scale {name} in {shard.name} is negative")
    return tensors, elements


def check_loads(directory: Path) -> dict[str, Any]:
    """The directory loads as a model, no weight missing, its answer to a prompt is finite and not constant, and it goes on."""
    from transformers import (
        AutoModelForCausalLM,
        AutoTokenizer,
    )

    tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype="auto", output_loading_info=True, trust_remote_code=False
    )
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        keys = sorted(str(k) for k in info.get(kind) or ())
        if keys:
            raise Unusable(f"the written model does not load whole: {kind}: {', '.join(keys[:5])}")
    model.eval()
    inputs = tokenizer(PROMPT, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits[0].float()
    if not bool(torch.isfinite(logits).all()):
        raise Unusable("the written model answers with logits that are not finite")
    if float(logits[-1].std()) == 0.0:
        raise Unusable("the written model gives every token the same score")
    best = int(logits[-1].argmax())
    length = int(inputs["input_ids"].shape[1])
    with torch.inference_mode():
        written = model.generate(**inputs, max_new_tokens=GENERATED_TOKENS, do_sample=False)
    if int(written.shape[1]) <= length:
        raise Unusable("the written model generates nothing")
    return {
        "prompt": PROMPT,
        "next_token": tokenizer.decode([best]),
        "generated": tokenizer.decode(written[0, length:], skip_special_tokens=True),
    }
