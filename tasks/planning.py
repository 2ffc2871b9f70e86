"""What a release would do, said without doing it."""

from __future__ import annotations

from typing import Any, Literal

from lockgate import environments
from lockgate.adapters import sources
from lockgate.domain.base import Frozen
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.durations import Predicted
from lockgate.domain.evidence import EvaluationEvidence, ScanEvidence
from lockgate.domain.policy import Policy
from lockgate.domain.release_state import ReleaseState
from lockgate.domain.rollout.capacity import impediment
from lockgate.domain.sources import ModelRevision
from lockgate.domain.spec import Recipe, ReleaseSpec, Strategy
from lockgate.domain.steps import MeasuredBeside, Measurements, QuantizedModel, StoredModel
from lockgate.errors import EXIT_REFUSED, EXIT_USAGE, EnvironmentMissing, UsageError
from lockgate.settings import Settings
from serving.engines.registry import engine
from tasks import durations, engine_limits, evaluating, measurement
from tasks.bases import with_bases
from tasks.intake import calibration_for, fetch_key, parsed_source, quantize_key, scan_key
from tasks.measurement import benchmark_work, compare_key, measure_key
from tasks.recorded import recorded
from tasks.runtimes import verify_runtime
from tasks.servability import look_ahead
from tasks.sizing import Fit
from tasks.workspace import Workspace

Prospect = Literal["done", "to do", "unknown", "not needed", "impossible"]


class PlannedStep(Frozen):
    """One stage of a release: whether its result is there already, and what it will make."""

    step: str
    prospect: Prospect
    detail: str
    predicted: Predicted | None = None
    """Seconds that it will take; none for what is not going to be done."""
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
    sizing: tuple[str, ...] = ()
    """The arithmetic of the memory that serving takes."""

    @property
    def possible(self) -> bool:
        return all(step.prospect != "impossible" for step in self.steps)

    @property
    def exit_code(self) -> int:
        """That of the first step at which the release would end."""
        return next((step.exit_code for step in self.steps if step.exit_code), 0)

    @property
    def seconds(self) -> float:
        """All steps that are to be done, one after the other."""
        return sum(step.predicted.seconds for step in self.steps if step.predicted is not None)

    def as_text(self) -> str:
        """For the terminal."""
        width = max(len(step.step) for step in self.steps)
        lines = [
            f"{self.model} to {self.environment}: {self.revision}",
            f"candidate: {self.candidate.digest if self.candidate else 'known once the model image is made'}",
            f"state: {self.state.phase}, generation {self.state.generation}",
        ]
        for s in self.steps:
            took = f"{s.predicted.seconds:.0f} s" if s.predicted is not None else ""
            basis = f" ({s.predicted.basis})" if s.predicted is not None else ""
            lines.append(f"  {s.step:<{width}}  {s.prospect:<10}  {took:>7}  {s.detail}{basis}")
        lines += ["memory:", *(f"  {line}" for line in self.sizing)] if self.sizing else []
        lines.append(f"together: {self.seconds:.0f} s")
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
    steps = _runtime(workspace, spec, policy)
    steps += _engine(workspace, spec, state)
    predict = _Predictions(workspace, spec)

    source = recorded(
        workspace.records, fetch_key(workspace, spec.source, revision, spec.model), StoredModel
    )
    steps.append(_step("fetch", source, f"{revision}", predict("fetch")))
    model, step, fit = _quantization(workspace, spec, revision, source, predict)
    steps.append(step)
    if fit is not None and fit.refusal is not None:
        detail = "\nnext: ".join(filter(None, (fit.refusal, fit.hint)))
        steps.append(
            PlannedStep(step="size", prospect="impossible", detail=detail, exit_code=EXIT_USAGE)
        )
    scan = None
    if model is not None:
        scan = recorded(workspace.records, scan_key(model, policy.weights), ScanEvidence)
    steps.append(
        _step(
            "scan", scan, f"scanners {', '.join(policy.weights.scanners)}", predict("scan-weights")
        )
    )

    candidate = None
    if model is not None:
        runtime = spec.runtime or workspace.local_runtime(spec.serving.engine)
        candidate = Candidate(model=model.image, runtime=runtime, serving=spec.serving)
        candidate = with_bases(workspace, spec.model, spec.environment, candidate)
    stable = state.occupant(state.stable) if state.stable is not None else None
    steps += _measurement(workspace, spec, candidate, predict, stable.candidate if stable else None)
    if stable is not None and (candidate is None or stable.candidate.digest != candidate.digest):
        for step in _measurement(workspace, spec, stable.candidate, predict):
            steps.append(step.model_copy(update={"step": f"{step.step} (stable)"}))
    steps += _rollout(spec, state, candidate, predict)
    return Plan(
        model=spec.model, environment=spec.environment, revision=revision, candidate=candidate,
        state=state, steps=tuple(steps), sizing=fit.lines if fit is not None else (),
    )  # fmt: skip


def _runtime(workspace: Workspace, spec: ReleaseSpec, policy: Policy) -> list[PlannedStep]:
    """Whether the runtime image that the spec names may be used; nothing for the embedded cluster's own."""
    if spec.runtime is None:
        return []
    report = verify_runtime(workspace, spec.runtime, policy)
    if report.ok:
        return [PlannedStep(step="runtime", prospect="done", detail=f"signed by {report.signer}")]
    detail = "; ".join(map(str, report.failures)) + ": see `lockgate runtime import`"
    return [
        PlannedStep(step="runtime", prospect="impossible", detail=detail, exit_code=EXIT_REFUSED)
    ]


def _engine(workspace: Workspace, spec: ReleaseSpec, state: ReleaseState) -> list[PlannedStep]:
    """What the engine cannot do, whether this release needs it or not; nothing for one that lacks nothing."""
    obstacles = engine_limits.obstacles(spec, state, workspace.settings)
    if obstacles:
        why = "; ".join(obstacles)
        return [PlannedStep(step="engine", prospect="impossible", detail=why, exit_code=EXIT_USAGE)]
    known = engine_limits.known_limits(spec, state, workspace.settings)
    detail = f"{spec.serving.engine}: {'; '.join(known)}"
    return [PlannedStep(step="engine", prospect="not needed", detail=detail)] if known else []


class _Predictions:
    """Seconds of the steps of one spec on this hardware."""

    def __init__(self, workspace: Workspace, spec: ReleaseSpec) -> None:
        self.workspace = workspace
        self.server = workspace.candidate_server()
        hardware = self.server.hardware(spec.serving)
        profiles = spec.benchmark.profiles
        tokens = sum(p.expected_output_tokens for p in profiles)
        items = sum(spec.evaluation.limit or 150 for _ in spec.evaluation.tasks)
        rollout = sum(s.min_seconds for s in spec.canary.steps) + spec.canary.bake_seconds
        self._known: dict[str, tuple[float, str, Any, Digest | None]] = {
            "fetch": (30, "a few hundred megabytes from near by", None, None),
            "quantize": (120, "a small model without calibration", spec.quantization, None),
            "scan-weights": (10, "some hundred megabytes", None, None),
            measurement.SERVE: (45, "a small model, not compiled", None, hardware),
            evaluating.EVALUATE: (
                0.1 * items, f"0.1 s for each of {items} items",
                evaluating.evaluation_work(spec.evaluation), hardware,
            ),
            measurement.BENCHMARK: (
                tokens / 25, f"{tokens:.0f} tokens at 25 a second",
                measurement.benchmark_work(spec.benchmark), hardware,
            ),
            "canary": (
                rollout, "the shortest time of every step, and the bake", spec.canary.to_data(), None,
            ),
            "deploy": (60, "as long as a small model loads", None, None),
        }  # fmt: skip

    def __call__(self, step: str, work: Any = None) -> Predicted:
        """`work`: where it is another than the spec alone says."""
        default, reason, known, hardware = self._known[step]
        work = known if work is None else work
        return durations.predicted(
            self.workspace.records, step, default=default, reason=reason, work=work, hardware=hardware
        )  # fmt: skip


def _step(
    name: str, found: object | None, detail: str, predicted: Predicted | None = None
) -> PlannedStep:
    if found:
        return PlannedStep(step=name, prospect="done", detail=detail)
    return PlannedStep(step=name, prospect="to do", detail=detail, predicted=predicted)


def _quantization(
    workspace: Workspace,
    spec: ReleaseSpec,
    revision: ModelRevision,
    source: StoredModel | None,
    predict: _Predictions,
) -> tuple[StoredModel | None, PlannedStep, Fit | None]:
    """What is released, where it is there already, and the step that makes it, impossible where it could not be served; and
    what is known of its memory."""
    recipe = spec.quantization
    try:
        calibration = calibration_for(recipe, spec.calibration)
        outlook = look_ahead(workspace, spec, parsed_source(spec.source), revision)
        if recipe is not Recipe.NONE:
            environments.environment_python("quantization")
    except (UsageError, EnvironmentMissing) as error:
        step = PlannedStep(
            step="quantize", prospect="impossible", detail=error.diagnostics(),
            exit_code=error.exit_code,
        )  # fmt: skip
        return None, step, None
    detail = "; ".join(filter(None, (f"recipe {recipe}", outlook.as_text())))
    if recipe is Recipe.NONE:
        step = PlannedStep(step="quantize", prospect="not needed", detail=detail)
        return source, step, outlook.fit
    predicted = predict("quantize")
    if source is None:
        return None, _step("quantize", None, detail, predicted), outlook.fit
    key = quantize_key(workspace, source, recipe, calibration, spec.model)
    made = recorded(workspace.records, key, QuantizedModel)
    step = _step("quantize", made, detail, predicted)
    return made.model if made is not None else None, step, outlook.fit


def _measurement(
    workspace: Workspace,
    spec: ReleaseSpec,
    candidate: Candidate | None,
    predict: _Predictions,
    stable: Candidate | None = None,
) -> list[PlannedStep]:
    """Serving, evaluation and benchmark of a candidate; `stable`: beside it, in turn."""
    tasks = ", ".join(task.name for task in spec.evaluation.tasks)
    profiles = ", ".join(profile.name for profile in spec.benchmark.profiles)
    in_turn = (
        spec.benchmark.compare == "in_turn"
        and stable is not None
        and (candidate is None or stable.digest != candidate.digest)
    )
    if in_turn:
        profiles += ", in turn with stable"
    try:
        # The load generator runs there, wherever the server does.
        environments.environment_python("serving")
    except EnvironmentMissing as error:
        return [
            PlannedStep(
                step="measure", prospect="impossible", detail=error.diagnostics(),
                exit_code=error.exit_code,
            )
        ]  # fmt: skip
    evaluated: object | None = None
    measured: object | None = None
    if candidate is not None:
        server, records = predict.server, workspace.records
        key = measure_key(server, candidate, spec.evaluation, spec.benchmark)
        found = recorded(records, key, Measurements)
        measured = found
        if stable is not None and in_turn:
            key = compare_key(server, candidate, stable, spec.evaluation, spec.benchmark)
            beside = recorded(records, key, MeasuredBeside)
            measured = beside and beside.comparison
        hardware = server.hardware(candidate.serving)
        key = evaluating.evaluation_key(candidate, spec.evaluation, hardware)
        evaluated = found or recorded(records, key, EvaluationEvidence)
    return [
        _step("serve", measured, "for evaluation and benchmark", predict(measurement.SERVE)),
        _step("evaluate", evaluated, tasks, predict(evaluating.EVALUATE)),
        _step(
            "benchmark", measured, profiles,
            predict(measurement.BENCHMARK, benchmark_work(spec.benchmark, in_turn=in_turn)),
        ),
    ]  # fmt: skip


def _rollout(
    spec: ReleaseSpec, state: ReleaseState, candidate: Candidate | None, predict: _Predictions
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
        return [_step("deploy", None, "first release: all traffic", predict("deploy"))]
    why_not = candidate and impediment(state, candidate, spec.canary)
    if why_not:
        why = f"strategy {spec.canary.strategy}: {why_not}"
        return [
            PlannedStep(step="canary", prospect="impossible", detail=why, exit_code=EXIT_REFUSED)
        ]
    if spec.canary.strategy is Strategy.RECREATE:
        what = (
            "recreate: replaces stable on offline evidence; no live evidence is gathered, nothing serves while it "
            "starts, and a rollback deploys the old version anew"
        )
        return [_step("replace", None, what, predict("deploy"))]
    weights = " → ".join(
        f"{step.weight}%" + (" after approval" if step.approval else "")
        for step in spec.canary.steps
    )
    borrowed = ""
    if spec.canary.baseline == "fresh":
        borrowed = f"; beside it {spec.serving.replicas} fresh replicas of stable as baseline"
    if spec.canary.strategy is Strategy.BORROW:
        borrowed = f"; one of stable's {spec.serving.replicas} replicas is borrowed, the others follow one by one"
    return [_step("canary", None, f"{weights} → 100%{borrowed}", predict("canary"))]
