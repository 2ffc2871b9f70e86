"""Quantize a Hugging Face directory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lockgate.adapters.quantization.calibration import read_calibration
from lockgate.adapters.quantization.staging import staged
from lockgate.adapters.quantization.worker_process import Progress, run_worker
from lockgate.domain.calibration import CalibrationRecord, CalibrationSet
from lockgate.domain.quantization import QuantizationReport
from lockgate.domain.recipes import definition
from lockgate.domain.spec import CalibrationSpec, Recipe
from lockgate.domain.weight_format import CONFIG_FILES, WeightFormat, recognise
from lockgate.errors import QuantizationError, UsageError


def report_of(
    recipe: str,
    seed: int,
    result: dict[str, Any],
    seconds: float,
    log: Path,
    calibration: CalibrationSet | None = None,
) -> QuantizationReport:
    """The worker's result as a report; a malformed one is a failure like any other."""
    try:
        answer = result.pop("answer")
        tokens = result.pop("calibration_tokens", 0)
        record = None
        if calibration is not None:
            record = CalibrationRecord(
                **dict(calibration.identity), dataset=calibration.name, tokens=tokens
            )
        return QuantizationReport.model_validate(
            {
                **result,
                "recipe": recipe,
                "seed": seed,
                "calibration": record,
                "next_token": answer["next_token"],
                "generated": answer["generated"],
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
    calibration: CalibrationSet | None = None,
    progress: Progress | None = None,
    seed: int = 0,
    threads: int | None = None,
    timeout: float = 3600.0,
) -> QuantizationReport:
    """Write `source_dir` quantized by `recipe` to `target_dir`, which appears whole or not at all.

    `python` is the quantization environment's. `calibration` is what a calibrated recipe looks at (without it: the set that
    ships); the others never see it. Tokenizer, chat template, model card and license are carried over byte for byte. The same
    source, recipe, seed, calibration, number of threads and environment give the same bytes. The output was loaded, went on from
    a prompt, every tensor is finite and the size is as predicted, or `QuantizationError` is raised. A source that is quantized
    already is a `UsageError`, before any process is started.
    """
    if recipe is Recipe.NONE:
        raise UsageError("recipe `none` quantizes nothing: use the source as it is")
    if not (source_dir / "config.json").is_file():
        raise QuantizationError(f"{source_dir} has no config.json: not a Hugging Face directory")
    require_plain(weight_format(source_dir), recipe)
    plan = definition(recipe)
    if not plan.calibrated:
        calibration = None
    elif calibration is None:
        calibration = read_calibration(CalibrationSpec())
    began = time.monotonic()
    with staged(target_dir) as staging:
        result = run_worker(
            python,
            "quantize_weights.py",
            {
                "source": str(source_dir.resolve()),
                "target": str(staging.resolve()),
                "recipe": plan.to_data(),
                "calibration": _job(calibration),
            },
            log=log,
            progress=progress,
            seed=seed,
            threads=threads,
            timeout=timeout,
        )
        seconds = time.monotonic() - began
        return report_of(recipe.value, seed, result, seconds, log, calibration)


def require_plain(found: WeightFormat, recipe: Recipe) -> None:
    """Raises `UsageError` where the weights are quantized already: rounding twice is never what was meant."""
    if found.quantized and recipe is not Recipe.NONE:
        raise UsageError(
            f"the source is quantized already: {found}; recipe `{recipe}` cannot be applied to it",
            hint="set `quantization: none` to release it as it is, or name an unquantized source",
        )


def weight_format(directory: Path) -> WeightFormat:
    """In which form the weights in a directory are. Reads small files only."""
    try:
        files = [path.name for path in directory.iterdir() if path.is_file()]
        configs = {name: (directory / name).read_bytes() for name in CONFIG_FILES if name in files}
        return recognise(configs, files)
    except (OSError, ValueError) as error:
        raise QuantizationError(f"{directory} cannot be read: {error}") from error


def _job(calibration: CalibrationSet | None) -> dict[str, Any] | None:
    if calibration is None:
        return None
    return {
        "max_tokens": calibration.identity.max_tokens,
        "items": [item.model_dump(exclude_none=True) for item in calibration.items],
    }
