"""Worker: quantize a Hugging Face directory with llm-compressor, as the recipe in the job says."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from worker_calibration import LayerProgress, sample_loader  # type: ignore[import-not-found]
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

QUANTIZE_FROM, QUANTIZE_TO = 0.15, 0.85
"""Part of the job's progress that quantization itself takes where it looks at texts."""


def linear_layers(model: Any, ignore: list[str]) -> dict[str, Any]:
    """The linear layers that are quantized, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.split(".")[-1] not in ignore
    }


def fitting_group_size(layers: dict[str, Any], sizes: list[int]) -> int | None:
    """The first of `sizes` that divides every layer's inputs (the stock 128 does not divide 576); None where none is asked for."""
    if not sizes:
        return None
    widths = {layer.in_features for layer in layers.values()}
    for size in sizes:
        if all(width % size == 0 for width in widths):
            return size
    raise Unusable(f"no group size of {sizes} divides all layer widths {sorted(widths)}")


def number_format(given: dict[str, Any] | None, group_size: int | None) -> Any:
    """compressed-tensors' words for a number format of the recipe."""
    from compressed_tensors.quantization import QuantizationArgs

    if given is None:
        return None
    words = {
        "num_bits": given["bits"],
        "type": given["kind"],
        "strategy": given["strategy"],
        "symmetric": given["symmetric"],
        "dynamic": given["dynamic"],
    }
    if given["strategy"] == "group":
        words["group_size"] = group_size
    if given["dynamic"]:
        words["observer"] = None
    return QuantizationArgs(**words)


def modifiers(recipe: dict[str, Any], group_size: int | None) -> list[Any]:
    """llm-compressor's modifiers for the recipe's steps, in order."""
    from compressed_tensors.quantization import QuantizationScheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier

    formats = recipe["scheme"]
    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=number_format(formats["weights"], group_size),
        input_activations=number_format(formats["activations"], group_size),
    )
    rounding = {"config_groups": {"group_0": scheme}, "ignore": list(recipe["ignore"])}
    operations: dict[str, Callable[..., Any]] = {
        "rtn": lambda **settings: QuantizationModifier(**rounding, **settings),
        "gptq": lambda **settings: GPTQModifier(**rounding, **settings),
        "smoothquant": SmoothQuantModifier,
        "awq": AWQModifier,
    }
    return [operations[step["operation"]](**step["settings"]) for step in recipe["steps"]]


def expected_bytes(
    model: Any, layers: dict[str, Any], weights: dict[str, Any], group_size: int | None
) -> int:
    """Predicted bytes of the weights: quantized layers with scales and zero points, the rest as it is."""
    seen: set[int] = set()
    total = 0
    quantized = {id(layer.weight) for layer in layers.values()}
    for parameter in model.parameters():
        if id(parameter) in seen or id(parameter) in quantized:
            continue
        seen.add(id(parameter))
        total += parameter.numel() * parameter.element_size()
    bits = weights["bits"]
    for layer in layers.values():
        groups = 1 if group_size is None else layer.in_features // group_size
        total += layer.weight.numel() * bits // 8
        total += layer.out_features * groups * layer.weight.element_size()
        if not weights["symmetric"]:
            # Packed into words of 32 bits along the outputs.
            total += 4 * groups * -(-layer.out_features * bits // 32)
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


def tool_warnings() -> list[str]:
    """A list that fills with what llm-compressor warns of: layers that it could not treat as the recipe says."""
    from loguru import logger  # type: ignore[import-not-found]

    heard: list[str] = []

    def hear(message: Any) -> None:
        text = str(message.record["message"])
        if text.startswith("Hessian inversion failed for"):
            heard.append(text[:300])

    logger.add(hear, level="WARNING", format="{message}")
    return heard


def pin_only_where_it_helps() -> None:
    """llm-compressor 0.14 pins AWQ's activations for the transfer to an accelerator, whether there is one or not; torch
    refuses to without."""
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not torch.accelerator.is_available():
        IntermediatesCache.pin_memory = lambda *_args, **_kwargs: None


def compress(
    model: Any,
    job: dict[str, Any],
    layers: dict[str, Any],
    group_size: int | None,
    channel: Channel,
) -> int:
    """Quantize `model` in place. Returns the number of calibration tokens that it saw."""
    import transformers
    from llmcompressor import oneshot

    pin_only_where_it_helps()
    steps = modifiers(job["recipe"], group_size)
    calibration = job["calibration"]
    if calibration is None:
        channel.progress("quantize", 0.45, f"{len(layers)} linear layers")
        oneshot(model=model, recipe=steps, log_dir=None)
        return 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(job["source"], trust_remote_code=False)
    loader, tokens = sample_loader(tokenizer, calibration["items"], calibration["max_tokens"])
    passes = sum(1 for step in steps if step.requires_calibration_data)
    progress = LayerProgress(layers, passes, channel, QUANTIZE_FROM, QUANTIZE_TO)
    with progress:
        oneshot(model=model, tokenizer=tokenizer, recipe=steps, dataset=loader, log_dir=None)
    return int(tokens)


def quantize(job: dict[str, Any], channel: Channel) -> dict[str, Any]:
    """Job: `source`, `target` (empty), `recipe` (a recipe definition), `calibration`, `seed`, `threads`."""
    source, target, recipe = Path(job["source"]), Path(job["target"]), job["recipe"]
    be_deterministic(job["seed"], job["threads"])
    channel.progress("import", 0.02, "loading llm-compressor")
    import llmcompressor
    import transformers

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if config.get("quantization_config"):
        raise Unusable("the source is quantized already")
    channel.progress("load", 0.1, "loading the source")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        source, dtype="auto", trust_remote_code=False, use_safetensors=True
    )
    layers = linear_layers(model, recipe["ignore"])
    if not layers:
        raise Unusable("the model has no linear layer to quantize")
    group_size = fitting_group_size(layers, recipe["group_sizes"])
    weights = recipe["scheme"]["weights"]
    expected = expected_bytes(model, layers, weights, group_size)
    warnings = tool_warnings()
    tokens = compress(model, job, layers, group_size, channel)
    channel.progress("save", 0.86, "writing safetensors")
    model.save_pretrained(target, save_compressed=True)
    del model
    # llm-compressor's own note of the recipe; the config holds the same, without class paths.
    (target / "recipe.yaml").unlink(missing_ok=True)
    carry_over(source, target)
    canonical_config(target)
    make_readable(target)
    channel.progress("check", 0.9, "every tensor finite")
    tensors, elements = check_tensors(target)
    size = weight_bytes(target)
    if not 0.97 * expected <= size <= 1.03 * expected + 2**20:
        raise Unusable(f"{size} bytes of weights were written, {expected} were expected")
    channel.progress("check", 0.92, "loading the result")
    answer = check_loads(target)
    details: dict[str, Any] = {
        "layers": len(layers),
        "bits": weights["bits"],
        "ignored": recipe["ignore"],
        "threads": job["threads"],
        "definition": recipe,
    }
    if group_size is not None:
        details["group_size"] = group_size
    if warnings:
        details["warnings"] = warnings
    return {
        "tensors": tensors,
        "elements": elements,
        "weight_bytes": size,
        "expected_bytes": expected,
        "source_bytes": weight_bytes(source),
        "answer": answer,
        "calibration_tokens": tokens,
        "details": details,
        "tools": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "llmcompressor": llmcompressor.__version__,
        },
    }


if __name__ == "__main__":
    run(quantize)
