"""What `release` and `plan` are given: a spec, or a model's directory, of which a first spec is written for its owner to edit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from lockgate.cli import console
from lockgate.cli.documents import read_spec
from lockgate.domain.spec import Recipe, ReleaseSpec
from lockgate.errors import UsageError
from lockgate.settings import Settings
from serving.hardware import gpu_count

BASE = Path(__file__).parent.parent / "demo" / "base.yaml"
FLOOR = 0.3
"""Of every task in a first spec: any instruct model that answers at all is above it."""
SHORT = {"int8": Recipe.W8A8_RTN, "int4": Recipe.W4A16_RTN, "fp8": Recipe.FP8_DYNAMIC}
"""For what a recipe with calibration is named in full."""

Quantize = Annotated[
    str | None,
    typer.Option(help="Instead of the spec's recipe: int8, int4, fp8, none, or a recipe's name."),
]
Target = Annotated[str | None, typer.Option(help="Instead of the spec's environment.")]


def given_spec(path: Path, quantize: str | None, target: str | None) -> ReleaseSpec:
    """The spec in `path`, or of the model in that directory, with recipe and environment replaced where they are given.

    The spec of a directory is written once, into the workspace's `specs/`, and read from there from then on: what its owner
    changes in it counts.
    """
    if path.is_dir():
        path = first_spec(path, Settings().layout.root / "specs")
    spec = read_spec(path)
    changes: dict[str, Any] = {}
    if quantize is not None:
        changes["quantization"] = _recipe(quantize)
    if target is not None:
        changes["environment"] = target
    try:
        return spec.merged(changes) if changes else spec
    except ValueError as error:
        raise UsageError(f"--target {target} --quantize {quantize}: {error}") from error


def first_spec(directory: Path, specs: Path) -> Path:
    """Where the spec of a model's directory is. Written if it is not there; one that is of another directory is not touched."""
    source = directory.absolute().resolve()
    model = re.sub(r"[^a-z0-9]+", "-", source.name.lower())[:40].strip("-")
    if not model:
        raise UsageError(f"{directory} has no name to call the model by", hint="write a spec")
    path = specs / f"{model}.yaml"
    if path.exists():
        known = read_spec(path).source
        if known != f"dir:{source}":
            raise UsageError(
                f"{path} is the spec of {known}", hint=f"release that file, or rename {directory}"
            )
        return path
    try:
        specs.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(_document(model, source), sort_keys=False))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    console.err.print(
        f"wrote {path}: read its limits, floors and canary, and change them to what this model has to be",
        markup=False, highlight=False,
    )  # fmt: skip
    return path


def _document(model: str, source: Path) -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load(BASE.read_text())
    data |= {"model": model, "source": f"dir:{source}"}
    serving = {**data["serving"], "served_model_name": model}
    if gpu_count():
        for key in ("args", "env", "dtype"):
            serving.pop(key)
        serving["resources"] = {"cpu": 4, "memory": "16Gi", "gpu": 1}
    tasks = [{**task, "floor": FLOOR} for task in data["evaluation"]["tasks"]]
    return {**data, "serving": serving, "evaluation": {**data["evaluation"], "tasks": tasks}}


def _recipe(name: str) -> Recipe:
    try:
        return SHORT[name] if name in SHORT else Recipe(name)
    except ValueError as error:
        known = ", ".join([*SHORT, *Recipe])
        raise UsageError(f"no recipe is named {name}", hint=f"there are {known}") from error
