"""Serve a candidate as it would be served, evaluate it and put it under load, in turn with stable where there is one.

Holds no signing key and no Git token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from prefect import task
from prefect.cache_policies import NO_CACHE

from lockgate import environments
from lockgate.adapters import benchmark, evaluation
from lockgate.domain.candidates import Candidate
from lockgate.domain.evidence import EvaluationEvidence
from lockgate.domain.spec import BenchmarkSpec, EvaluationSpec
from lockgate.domain.steps import MeasuredBeside, Measurements, StageSeconds, StepKey
from lockgate.errors import ServingError
from serving import ephemeral
from serving.ephemeral import Endpoint
from serving.hardware import hardware_digest, no_room_for
from serving.local.cpu_pool import CpuPool, SharedCores
from tasks.progress import progress
from tasks.recorded import find_or_make, recorded
from tasks.workspace import Workspace

MEASURE_VERSION = 2
COMPARE_VERSION = 1


@task(name="measure-candidate", cache_policy=NO_CACHE)
def measure_candidate(
    candidate: Candidate,
    evaluation_spec: EvaluationSpec,
    benchmark_spec: BenchmarkSpec,
    stable: Candidate | None = None,
) -> tuple[MeasuredBeside, StageSeconds]:
    """Evaluation and benchmark of a candidate, once: the same candidate measured the same way is looked up.

    With `stable`, both are put under load in turn on the same cores; that too is looked up, by both. Where the two cannot be
    up at once the candidate is measured alone and the result says why.
    """
    workspace = Workspace.current()
    key = measure_key(candidate, evaluation_spec, benchmark_spec)
    if stable is None or stable.digest == candidate.digest:
        found, stage = find_or_make(
            workspace.records, key, Measurements,
            lambda: _measure(workspace, candidate, evaluation_spec, benchmark_spec).measurements,
        )  # fmt: skip
        return MeasuredBeside(measurements=found), stage

    def make() -> MeasuredBeside:
        earlier = recorded(workspace.records, key, Measurements)
        made = _measure(
            workspace, candidate, evaluation_spec, benchmark_spec, stable=stable, earlier=earlier
        )
        if earlier is None:
            value = {"key": key.to_data(), "result": made.measurements.to_data()}
            workspace.records.record(key.content_digest(), value)
        return made

    return find_or_make(
        workspace.records, compare_key(candidate, stable, evaluation_spec, benchmark_spec),
        MeasuredBeside, make, usable=lambda result: result.comparison is not None,
    )  # fmt: skip


def _measure(
    workspace: Workspace,
    candidate: Candidate,
    evaluation_spec: EvaluationSpec,
    benchmark_spec: BenchmarkSpec,
    *,
    stable: Candidate | None = None,
    earlier: Measurements | None = None,
) -> MeasuredBeside:
    """Stable's server starts while the candidate is evaluated, which no clock measures."""
    apart = stable and no_room_for([candidate.serving, stable.serving])
    if apart and earlier:
        return MeasuredBeside(measurements=earlier, apart=_why(apart))
    directory = workspace.materialise(workspace.stored_model(candidate.model))
    logs = workspace.layout.logs / f"measure-{candidate.digest.short}"
    logs.mkdir(parents=True, exist_ok=True)
    python = environments.environment_python("serving")
    servings = [candidate.serving, *([stable.serving] if stable else [])]
    with contextlib.ExitStack() as stack:
        evaluating = stack.enter_context(progress(f"evaluate {candidate.digest.short}"))
        benching = stack.enter_context(progress(f"benchmark {candidate.digest.short}"))
        lease = stack.enter_context(CpuPool().acquire(max(s.resources.cpu for s in servings)))
        cores = SharedCores(lease)
        endpoint = stack.enter_context(
            ephemeral.serve(
                directory, candidate.serving, python=python, log_path=logs / "vllm.log",
                cpu_pool=cores,
            )
        )  # fmt: skip
        subject = benchmark.Subject(candidate.digest, endpoint, endpoint.fingerprint)
        starting: Future[Endpoint] | None = None
        if stable is not None and not apart:
            other = workspace.materialise(workspace.stored_model(stable.model))
            opened = ephemeral.serve(
                other, stable.serving, python=python, log_path=logs / "stable-vllm.log",
                cpu_pool=cores,
            )  # fmt: skip
            starting = stack.enter_context(_started_beside(opened))
        scores: EvaluationEvidence = (
            earlier.evaluation if earlier else evaluation.evaluate(
                endpoint.base_url, endpoint.model_name, evaluation_spec,
                subject=candidate.digest, log_dir=logs / "evaluation", progress=evaluating,
            )
        )  # fmt: skip
        if stable is not None and starting is not None:
            try:
                beside = starting.result()
            except ServingError as error:
                apart = f"stable could not be served beside the candidate: {error.message}"
            else:
                measured = benchmark.compare(
                    subject, benchmark.Subject(stable.digest, beside, beside.fingerprint),
                    benchmark_spec, serving_python=python, model_dir=directory,
                    log_dir=logs / "benchmark", progress=benching,
                )  # fmt: skip
                measurements = Measurements(
                    candidate=candidate, evaluation=scores, benchmark=measured.candidate
                )
                return MeasuredBeside(measurements=measurements, comparison=measured.comparison)
        load = benchmark.benchmark(
            endpoint, benchmark_spec, subject=candidate.digest, fingerprint=endpoint.fingerprint,
            serving_python=python, model_dir=directory, log_dir=logs / "benchmark",
            progress=benching,
        )  # fmt: skip
    measurements = Measurements(candidate=candidate, evaluation=scores, benchmark=load)
    return MeasuredBeside(measurements=measurements, apart=_why(apart) if apart else None)


@contextlib.contextmanager
def _started_beside(
    opened: contextlib.AbstractContextManager[Endpoint],
) -> Iterator[Future[Endpoint]]:
    """A server that starts while other work goes on, and is ended with this context, however far it got."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(1) as thread:
        enter: Callable[[], Endpoint] = lambda: stack.enter_context(opened)  # noqa: E731
        yield thread.submit(enter)


def _why(apart: str) -> str:
    return f"candidate and stable were measured apart, {apart}"


def measure_key(
    candidate: Candidate, evaluation_spec: EvaluationSpec, benchmark_spec: BenchmarkSpec
) -> StepKey:
    """What measurements depend on. Limits and margins are the gates' business: only what is run counts."""
    level = benchmark_spec.service_level
    return StepKey(
        step="measure", version=MEASURE_VERSION,
        inputs={
            "candidate": candidate.digest,
            "tasks": [[task.name, task.metric] for task in evaluation_spec.tasks],
            "limit": evaluation_spec.limit,
            "suite": evaluation.suite_digest(evaluation_spec),
            "profiles": benchmark.profile_identities(benchmark_spec),
            "service_level": level.to_data() if level else None,
            "hardware": hardware_digest(candidate.serving.resources.cpu),
        },
    )  # fmt: skip


def compare_key(
    candidate: Candidate,
    stable: Candidate,
    evaluation_spec: EvaluationSpec,
    benchmark_spec: BenchmarkSpec,
) -> StepKey:
    """What the comparison of two candidates in turn depends on."""
    alone = measure_key(candidate, evaluation_spec, benchmark_spec)
    return StepKey(
        step="compare", version=COMPARE_VERSION,
        inputs={
            **alone.inputs, "measure": alone.version, "stable": stable.digest,
            "blocks": benchmark_spec.blocks,
        },
    )  # fmt: skip
