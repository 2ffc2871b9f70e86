"""Worker: quantize a Hugging Face directory with llm-compressor, round-to-nearest, without calibration data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from worker_channel import Channel, Unusable, run  # type: ignore[import-not-found]
from worker_output import (  # type: ignore[import-not-found]
    WEIGHT_ENDINGS,
    be_deterministic,
    canonical_config,
    check_loads,
    check_tensors,
    make_readable,
    weight_bytes,
)

GROUP_SIZES = (128, 64, 32)
IGNORED = ("lm_head",)


def linear_layers(model: Any) -> dict[str, Any]:
    """The linear layers that are quantized, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.split(".")[-1] not in IGNORED
    }


def fitting_group_size(layers: dict[str, Any]) -> int:
    """The largest group size that divides every layer's inputs (the stock 128 does not divide 576)."""
    widths = {layer.in_features for layer in layers.values()}
    for size in GROUP_SIZES:
        if all(width % size == 0 for width in widths):
            return size
    raise Unusable(f"no group size of {GROUP_SIZES} divides all layer widths {sorted(widths)}")


def scheme(recipe: str, group_size: int | None) -> Any:
    """The quantization scheme of a recipe; all are symmetric, dynamic where activations are quantized."""
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationScheme,
    )

    per_token = {
        "strategy": "token",
        "symmetric": True,
        "dynamic": True,
        "observer": None,
    }
    if recipe == "w8a8-rtn":
        weights = QuantizationArgs(num_bits=8, type="int", strategy="channel", symmetric=True)
        activations = QuantizationArgs(num_bits=8, type="int", **per_token)
    elif recipe == "fp8-dynamic":
        weights = QuantizationArgs(num_bits=8, type="float", strategy="channel", symmetric=True)
        activations = QuantizationArgs(num_bits=8, type="float", **per_token)
    elif recipe == "w4a16-rtn":
        weights = QuantizationArgs(
            num_bits=4,
            type="int",
            strategy="group",
            group_size=group_size,
            symmetric=True,
        )
        activations = None
    else:
        raise Unusable(f"unknown recipe {recipe!r}")
    return QuantizationScheme(targets=["Linear"], weights=weights, input_activations=activations)


def expected_bytes(model: Any, layers: dict[str, Any], bits: int, group_size: int | None) -> int:
    """Predicted bytes of the weights: quantized layers at `bits`, their scales and shapes, the rest as it is."""
    seen: set[int] = set()
    total = 0
    quantized = {id(layer.weight) for layer in layers.values()}
    for parameter in model.parameters():
        if id(parameter) in seen or id(parameter) in quantized:
            continue
        seen.add(id(parameter))
        total += parameter.numel() * parameter.element_size()
    for layer in layers.values():
        groups = 1 if group_size is None else layer.in_features // group_size
        total += layer.weight.numel() * bits // 8
        total += layer.out_features * groups * layer.weight.element_size()
    return total


def carry_over(source: Path, target: Path) -> None:
    """Take everything but weights and what was just written from the source, byte for byte: tokenizer, license, card."""
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source)
        if not path.is_file() or path.is_symlink():
            continue
        if path.suffix in WEIGHT_ENDINGS or path.name.endswith(".safetensors.index.json"):
            continue
        if str(relative) == "config.json":
            continue
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / relative)


def quantize(job: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Job: `source`, `target` (empty), `recipe`, `seed`, `threads`."""
    source, target, recipe = Path(job["source"]), Path(job["target"]), job["recipe"]
    be_deterministic(job["seed"], job["threads"])
    channel.progress("import", 0.02, "loading llm-compressor")
    import llmcompressor
    import transformers
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import (
        QuantizationModifier,
    )

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config"):
        raise Unusable("the source is quantized already")
    channel.progress("load", 0.3, "loading the source")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source, dtype="auto", trust_remote_code=False, use_safetensors=True
    )
    layers = linear_layers(model)
    if not layers:
        raise Unusable("the model has no linear layer to quantize")
    group_size = fitting_group_size(layers) if recipe == "w4a16-rtn" else None
    bits = 4 if recipe == "w4a16-rtn" else 8
    expected = expected_bytes(model, layers, bits, group_size)
    channel.progress("quantize", 0.45, f"{len(layers)} linear layers")
    modifier = QuantizationModifier(
        config_groups={"group_0": scheme(recipe, group_size)}, ignore=list(IGNORED)
    )
    oneshot(model=model, recipe=modifier, log_dir=None)
    channel.progress("save", 0.65, "writing safetensors")
    model.save_pretrained(target, save_compressed=True)
    del model
    # llm-compressor's own note of the recipe; the config holds the same, without class paths.
    (target / "recipe.yaml").unlink(missing_ok=True)
    carry_over(source, target)
    canonical_config(target)
    make_readable(target)
    channel.progress("check", 0.75, "every tensor finite")
    tensors, elements = check_tensors(target)
    size = weight_bytes(target)
    if not 0.97 * expected <= size <= 1.03 * expected + 2**20:
        raise Unusable(f"{size} bytes of weights were written, {expected} were expected")
    channel.progress("check", 0.8, "loading the result")
    answer = check_loads(target)
    details: dict[str, Any] = {
        "layers": len(layers),
        "bits": bits,
        "ignored": list(IGNORED),
    }
    if group_size is not None:
        details["group_size"] = group_size
    return {
        "tensors": tensors,
        "elements": elements,
        "weight_bytes": size,
        "expected_bytes": expected,
        "source_bytes": weight_bytes(source),
        "answer": answer,
        "details": details,
        "tools": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "llmcompressor": llmcompressor.__version__,
        },
    }


if __name__ == "__main__":
    run(quantize)
