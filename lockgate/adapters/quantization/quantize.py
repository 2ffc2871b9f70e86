"""Quantize a Hugging Face directory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lockgate.adapters.quantization.staging import staged
from lockgate.adapters.quantization.worker_process import Progress, run_worker
from lockgate.domain.quantization import QuantizationReport
from lockgate.domain.spec import Recipe
from lockgate.errors import QuantizationError, UsageError


def report_of(
    recipe: str, seed: int, result: dict[str, Any], seconds: float, log: Path
) -> QuantizationReport:
    """The worker's result as a report; a malformed one is a failure like any other."""
    try:
        answer = result.pop("answer")
        return QuantizationReport.model_validate(
            {
                **result,
                "recipe": recipe,
                "seed": seed,
                "next_token": answer["next_token"],
                "seconds": seconds,
            }
        )
    except (ValidationError, KeyError, TypeError) as error:
        raise QuantizationError("the worker's result cannot be read", log=log) from error


def quantize(
    python: Path,
    source_dir: Path,
    target_dir: Path,
    recipe: Recipe,
    *,
    log: Path,
    progress: Progress | None = None,
    seed: int = 0,
    threads: int | None = None,
    timeout: float = 3600.0,
) -> QuantizationReport:
    """Write `source_dir` quantized by `recipe` to `target_dir`, which appears whole or not at all.

    `python` is the quantization environment's. Tokenizer, chat template, model card and license are carried over byte for
    byte. The same source, recipe, seed and environment give the same bytes. The output was loaded, answered a prompt, every
    tensor is finite and the size is as predicted, or `QuantizationError` is raised.
    """
    if recipe is Recipe.NONE:
        raise UsageError("recipe `none` quantizes nothing: use the source as it is")
    if not (source_dir / "config.json").is_file():
        raise QuantizationError(f"{source_dir} has no config.json: not a Hugging Face directory")
    began = time.monotonic()
    with staged(target_dir) as staging:
        result = run_worker(
            python,
            "quantize_weights.py",
            {
                "source": str(source_dir.resolve()),
                "target": str(staging.resolve()),
                "recipe": recipe.value,
            },
            log=log,
            progress=progress,
            seed=seed,
            threads=threads,
            timeout=timeout,
        )
        return report_of(recipe.value, seed, result, time.monotonic() - began, log)
