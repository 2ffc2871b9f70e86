"""What a release would do, said without doing it."""

from __future__ import annotations

from typing import Literal

from lockgate import environments
from lockgate.adapters import sources
from lockgate.domain.base import Frozen
from lockgate.domain.candidates import Candidate
from lockgate.domain.evidence import ScanEvidence
from lockgate.domain.release_state import ReleaseState
from lockgate.domain.sources import ModelRevision
from lockgate.domain.spec import Recipe, ReleaseSpec
from lockgate.domain.steps import MeasuredBeside, Measurements, QuantizedModel, StoredModel
from lockgate.errors import EXIT_REFUSED, EnvironmentMissing, UsageError
from lockgate.settings import Settings
from serving.engines.registry import engine
from tasks.intake import calibration_for, fetch_key, parsed_source, quantize_key, scan_key
from tasks.measurement import compare_key, measure_key
from tasks.recorded import recorded
from tasks.servability import look_ahead
from tasks.workspace import Workspace

Prospect = Literal["done", "to do", "unknown", "not needed", "impossible"]


class PlannedStep(Frozen):
    """One stage of a release: whether its result is there already, and what it will make."""

    step: str
    prospect: Prospect
    detail: str
    exit_code: int = 0
    """What the release would end with at this step; 0 where nothing speaks against it."""


class Plan(Frozen):
    model: str
    environment: str
    revision: ModelRevision
    candidate: Candidate | None
    """None while the model image does not exist yet."""
    state: ReleaseState
    steps: tuple[PlannedStep, ...]

    @property
    def possible(self) -> bool:
        return all(step.prospect != "impossible" for step in self.steps)

    @property
    def exit_code(self) -> int:
        """That of the first step at which the release would end."""
        return next((step.exit_code for step in self.steps if step.exit_code), 0)

    def as_text(self) -> str:
        """For the terminal."""
        width = max(len(step.step) for step in self.steps)
        lines = [
            f"{self.model} to {self.environment}: {self.revision}",
            f"candidate: {self.candidate.digest if self.candidate else 'known once the model image is made'}",
            f"state: {self.state.phase}, generation {self.state.generation}",
        ]
        lines += [f"  {s.step:<{width}}  {s.prospect:<10}  {s.detail}" for s in self.steps]
        return "\n".join(lines)


def plan_release(spec: ReleaseSpec) -> Plan:
    """Look at source, store and GitOps repository and say which steps would be found and which made.

    Raises:
        UsageError: the spec cannot be released as it stands.
        SourceError: the source cannot be resolved.
    """
    workspace = Workspace(Settings())
    repository = workspace.gitops
    repository.sync()
    policy = repository.read_policy()
    state = repository.read_state(spec.model, spec.environment)
    # Refuses arguments that Lockgate owns, before anything is downloaded.
    engine(spec.serving.engine).arguments(
        spec.serving, model_path="/models", host="127.0.0.1", port=8000
    )
    revision = sources.resolve(parsed_source(spec.source))
    steps: list[PlannedStep] = []

    source = recorded(workspace.records, fetch_key(workspace, revision, spec.model), StoredModel)
    steps.append(_step("fetch", source, f"{revision}"))
    model, step = _quantization(workspace, spec, revision, source)
    steps.append(step)
    scan = None
    if model is not None:
        scan = recorded(workspace.records, scan_key(model, policy.weights), ScanEvidence)
    steps.append(_step("scan", scan, f"scanners {', '.join(policy.weights.scanners)}"))

    candidate = None
    if model is not None:
        runtime = spec.runtime or workspace.local_runtime(spec.serving.engine)
        candidate = Candidate(model=model.image, runtime=runtime, serving=spec.serving)
    stable = state.occupant(state.stable) if state.stable is not None else None
    steps.append(_measurement(workspace, spec, candidate, stable.candidate if stable else None))
    steps += _rollout(spec, state, candidate)
    return Plan(
        model=spec.model, environment=spec.environment, revision=revision, candidate=candidate,
        state=state, steps=tuple(steps),
    )  # fmt: skip


def _step(name: str, found: object | None, detail: str) -> PlannedStep:
    return PlannedStep(step=name, prospect="done" if found else "to do", detail=detail)


def _quantization(
    workspace: Workspace, spec: ReleaseSpec, revision: ModelRevision, source: StoredModel | None
) -> tuple[StoredModel | None, PlannedStep]:
    """What is released, where it is there already, and the step that makes it; impossible where it could not be served."""
    recipe = spec.quantization
    try:
        calibration = calibration_for(recipe, spec.calibration)
        outlook = look_ahead(workspace, spec, parsed_source(spec.source), revision)
        if recipe is not Recipe.NONE:
            environments.environment_python("quantization")
    except (UsageError, EnvironmentMissing) as error:
        return None, PlannedStep(
            step="quantize", prospect="impossible", detail=error.diagnostics(),
            exit_code=error.exit_code,
        )  # fmt: skip
    detail = "; ".join(filter(None, (f"recipe {recipe}", outlook.as_text())))
    if recipe is Recipe.NONE:
        return source, PlannedStep(step="quantize", prospect="not needed", detail=detail)
    if source is None:
        return None, _step("quantize", None, detail)
    key = quantize_key(workspace, source, recipe, calibration, spec.model)
    made = recorded(workspace.records, key, QuantizedModel)
    return made.model if made is not None else None, _step("quantize", made, detail)


def _measurement(
    workspace: Workspace, spec: ReleaseSpec, candidate: Candidate | None, stable: Candidate | None
) -> PlannedStep:
    tasks = ", ".join(task.name for task in spec.evaluation.tasks)
    profiles = ", ".join(profile.name for profile in spec.benchmark.profiles)
    detail = f"evaluation {tasks}; benchmark {profiles}{', in turn with stable' if stable else ''}"
    try:
        environments.environment_python("serving")
    except EnvironmentMissing as error:
        return PlannedStep(
            step="measure", prospect="impossible", detail=error.diagnostics(),
            exit_code=error.exit_code,
        )  # fmt: skip
    if candidate is None:
        return PlannedStep(step="measure", prospect="to do", detail=detail)
    if stable is not None and stable.digest != candidate.digest:
        key = compare_key(candidate, stable, spec.evaluation, spec.benchmark)
        beside = recorded(workspace.records, key, MeasuredBeside)
        return _step("measure", beside and beside.comparison, detail)
    key = measure_key(candidate, spec.evaluation, spec.benchmark)
    return _step("measure", recorded(workspace.records, key, Measurements), detail)


def _rollout(
    spec: ReleaseSpec, state: ReleaseState, candidate: Candidate | None
) -> list[PlannedStep]:
    denied = state.is_denied(candidate.digest) if candidate is not None else None
    if denied is not None:
        why = f"denylisted at {denied.at}: {denied.reason}"
        return [
            PlannedStep(step="canary", prospect="impossible", detail=why, exit_code=EXIT_REFUSED)
        ]
    under_way = state.release_under_way
    if under_way is not None:
        why = f"release {under_way} is under way ({state.phase})"
        return [PlannedStep(step="canary", prospect="unknown", detail=why)]
    if state.stable is None:
        return [PlannedStep(step="deploy", prospect="to do", detail="first release: all traffic")]
    weights = " → ".join(
        f"{step.weight}%" + (" after approval" if step.approval else "")
        for step in spec.canary.steps
    )
    total = sum(step.min_seconds for step in spec.canary.steps) + spec.canary.bake_seconds
    return [
        PlannedStep(
            step="canary", prospect="to do", detail=f"{weights} → 100%, {total:.0f} s at least"
        )
    ]
