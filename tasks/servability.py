"""Can what a release would make be served where it is meant to run? Asked before anything heavy is downloaded or computed."""

from __future__ import annotations

import os

from lockgate import environments
from lockgate.adapters import sources
from lockgate.adapters.quantization import require_plain
from lockgate.domain.base import Frozen
from lockgate.domain.recipes import definition
from lockgate.domain.serving_support import (
    SCHEMES,
    EngineSupport,
    Servability,
    recipe_support,
    source_support,
)
from lockgate.domain.sizing import ACCELERATORS
from lockgate.domain.sources import ModelRevision, Source
from lockgate.domain.spec import Hardware, Recipe, ReleaseSpec
from lockgate.domain.steps import StepKey
from lockgate.domain.weight_format import CONFIG_FILES, WeightFormat, recognise
from lockgate.errors import EnvironmentMissing, SourceError, UsageError
from serving.engines.registry import engine
from serving.ephemeral import base_environment
from serving.hardware import gpu_model, hardware_digest
from tasks.recorded import find_or_make
from tasks.sizing import Fit, fit
from tasks.workspace import Workspace

SUPPORT_VERSION = 1


class Outlook(Frozen):
    """What is known of the weights of a release before they are there."""

    source_format: WeightFormat | None
    """None where only the download will tell."""
    servability: Servability | None
    """None where there is nothing to ask yet."""
    fit: Fit | None = None
    """Whether the memory is there; none where nobody looked at the source itself."""

    def as_text(self) -> str:
        """For the plan."""
        parts = []
        if self.source_format is not None and self.source_format.quantized:
            parts.append(
                f"the source is quantized already and is released as it is: {self.source_format}"
            )
        if self.servability is not None:
            parts.append(f"served {self.servability.served}: {self.servability.reason}")
        return "; ".join(parts)


def look_ahead(
    workspace: Workspace, spec: ReleaseSpec, source: Source, revision: ModelRevision
) -> Outlook:
    """What the source's small files and the engine say. Whether the model fits is said in `fit` and refused by who asks.

    Raises:
        UsageError: the source is quantized already and a recipe is asked for, or the result could not be served, or not
            usefully, on the hardware in question.
        SourceError: the source's config files cannot be read.
    """
    seen = sources.peek(source, revision, CONFIG_FILES)
    found = _source_format(source, seen)
    outlook = require_servable(workspace, spec, found)
    return outlook.model_copy(update={"fit": fit(spec, seen, found)})


def require_servable(
    workspace: Workspace, spec: ReleaseSpec, found: WeightFormat | None
) -> Outlook:
    """The outlook for weights of this form under this spec; raises `UsageError` as `look_ahead` does."""
    if found is not None:
        require_plain(found, spec.quantization)
    if spec.quantization is not Recipe.NONE:
        what = f"recipe `{spec.quantization}`"
        answer = recipe_support(definition(spec.quantization).scheme.name, *_where(workspace, spec))
    elif found is not None and found.quantized:
        what = f"the source, quantized already: {found},"
        answer = source_support(found, *_where(workspace, spec))
    else:
        return Outlook(source_format=found, servability=None)
    if answer.refused:
        raise UsageError(
            f"{what} cannot be served here, or not usefully: {answer.reason} ({answer.source})",
            hint="choose another recipe (docs/quantization.md says which is served where), or say in `hardware` what the"
            " replicas run on if that is another kind of machine",
        )  # fmt: skip
    return Outlook(source_format=found, servability=answer)


def _where(workspace: Workspace, spec: ReleaseSpec) -> tuple[EngineSupport | None, Hardware | None]:
    support = engine_support(workspace, spec.serving.engine)
    if spec.hardware is not None:
        return support, _with_capability(spec.hardware)
    if support is not None:
        wanted = spec.serving.resources.gpu
        # A replica that asks for a GPU does not run on the CPU that was asked.
        if wanted and support.hardware.device == "cpu":
            return support, Hardware(device="cuda")
        return support, None
    return None, Hardware(device="cuda" if gpu_model() else "cpu")


def _with_capability(hardware: Hardware) -> Hardware:
    known = ACCELERATORS.get(hardware.accelerator or "")
    if hardware.compute_capability is not None or known is None:
        return hardware
    return hardware.model_copy(update={"compute_capability": known.compute_capability})


def engine_support(workspace: Workspace, name: str) -> EngineSupport | None:
    """What the installed engine says of itself, asked once for each environment and kind of machine; None without one."""
    try:
        python = environments.environment_python("serving")
    except EnvironmentMissing:
        return None
    key = StepKey(
        step="engine-support", version=SUPPORT_VERSION,
        inputs={
            "engine": name, "environment": environments.environment_digest("serving"),
            "hardware": hardware_digest(os.cpu_count() or 1), "schemes": list(SCHEMES),
        },
    )  # fmt: skip
    support, _ = find_or_make(
        workspace.records, key, EngineSupport,
        lambda: engine(name).support(python, SCHEMES, base_environment()),
    )  # fmt: skip
    return support


def _source_format(source: Source, seen: sources.Peek | None) -> WeightFormat | None:
    if seen is None:
        return None
    try:
        return recognise(seen.contents, seen.files)
    except ValueError as error:
        raise SourceError(f"{source}: {error}") from error
