"""Serve a candidate as it would be served, evaluate it and put it under load. Holds no signing key and no Git token."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from lockgate import environments
from lockgate.adapters import benchmark, evaluation
from lockgate.domain.candidates import Candidate
from lockgate.domain.spec import BenchmarkSpec, EvaluationSpec
from lockgate.domain.steps import Measurements, StageSeconds, StepKey
from serving import ephemeral
from serving.hardware import hardware_digest
from serving.local.cpu_pool import CpuPool
from tasks.progress import progress
from tasks.recorded import find_or_make
from tasks.workspace import Workspace

MEASURE_VERSION = 1


@task(name="measure-candidate", cache_policy=NO_CACHE)
def measure_candidate(
    candidate: Candidate, evaluation_spec: EvaluationSpec, benchmark_spec: BenchmarkSpec
) -> tuple[Measurements, StageSeconds]:
    """Evaluation and benchmark of a candidate, once: the same candidate measured the same way is looked up."""
    workspace = Workspace.current()

    def make() -> Measurements:
        model = workspace.stored_model(candidate.model)
        directory = workspace.materialise(model)
        logs = workspace.layout.logs / f"measure-{candidate.digest.short}"
        logs.mkdir(parents=True, exist_ok=True)
        python = environments.environment_python("serving")
        with (
            progress(f"evaluate {candidate.digest.short}") as evaluating,
            progress(f"benchmark {candidate.digest.short}") as benching,
            ephemeral.serve(
                directory, candidate.serving, python=python, log_path=logs / "vllm.log",
                cpu_pool=CpuPool(),
            ) as endpoint,
        ):  # fmt: skip
            scores = evaluation.evaluate(
                endpoint.base_url, endpoint.model_name, evaluation_spec,
                subject=candidate.digest, log_dir=logs / "evaluation", progress=evaluating,
            )  # fmt: skip
            load = benchmark.benchmark(
                endpoint, benchmark_spec, subject=candidate.digest,
                fingerprint=endpoint.fingerprint, serving_python=python, model_dir=directory,
                log_dir=logs / "benchmark", progress=benching,
            )  # fmt: skip
        return Measurements(candidate=candidate, evaluation=scores, benchmark=load)

    key = measure_key(candidate, evaluation_spec, benchmark_spec)
    return find_or_make(workspace.records, key, Measurements, make)


def measure_key(
    candidate: Candidate, evaluation_spec: EvaluationSpec, benchmark_spec: BenchmarkSpec
) -> StepKey:
    """What measurements depend on. Limits and margins are the gates' business: only what is run counts."""
    return StepKey(
        step="measure", version=MEASURE_VERSION,
        inputs={
            "candidate": candidate.digest,
            "tasks": [[task.name, task.metric] for task in evaluation_spec.tasks],
            "limit": evaluation_spec.limit,
            "suite": evaluation.suite_digest(evaluation_spec),
            "profiles": [profile.to_data() for profile in benchmark_spec.profiles],
            "hardware": hardware_digest(candidate.serving.resources.cpu),
        },
    )  # fmt: skip
