"""Serve a candidate as it would be served, evaluate it and put it under load. Holds no signing key and no Git token."""

from __future__ import annotations

import time
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from lockgate import environments
from lockgate.adapters import benchmark
from lockgate.domain.candidates import Candidate
from lockgate.domain.spec import BenchmarkSpec, EvaluationSpec
from lockgate.domain.steps import Measurements, StageSeconds, StepKey
from serving.candidate_server import CandidateServer
from tasks import artifacts, durations
from tasks.evaluating import evaluate_endpoint, evaluation_work
from tasks.progress import progress
from tasks.recorded import find_or_make
from tasks.workspace import Workspace

MEASURE_VERSION = 2

SERVE, BENCHMARK = "serve", "benchmark"
"""Parts of a measurement, as their durations are remembered."""


@task(name="measure-candidate", cache_policy=NO_CACHE)
def measure_candidate(
    candidate: Candidate,
    evaluation_spec: EvaluationSpec,
    benchmark_spec: BenchmarkSpec,
    pod_template: dict[str, Any] | None = None,
) -> tuple[Measurements, StageSeconds]:
    """Evaluation and benchmark of a candidate, once: the same candidate measured the same way is looked up.

    `pod_template` is the slot's, where candidates are served for tests in a cluster.
    """
    workspace = Workspace.current()
    server = workspace.candidate_server(pod_template)
    hardware = server.hardware(candidate.serving)

    def make() -> Measurements:
        directory = workspace.materialise(workspace.stored_model(candidate.model))
        logs = workspace.layout.logs / f"measure-{candidate.digest.short}"
        logs.mkdir(parents=True, exist_ok=True)
        python = environments.environment_python("serving")
        started = time.monotonic()
        with (
            progress(f"evaluate {candidate.digest.short}") as evaluating,
            progress(f"benchmark {candidate.digest.short}") as benching,
            server.serve(candidate, log_path=logs / "vllm.log") as endpoint,
        ):
            durations.remember(
                workspace.records, SERVE, time.monotonic() - started, hardware=hardware
            )
            scores = evaluate_endpoint(
                workspace, candidate, evaluation_spec, endpoint, logs / "evaluation",
                hardware=hardware, progress=evaluating,
            )  # fmt: skip
            load = benchmark.benchmark(
                endpoint, benchmark_spec, subject=candidate.digest,
                fingerprint=endpoint.fingerprint, serving_python=python, model_dir=directory,
                log_dir=logs / "benchmark", progress=benching,
            )  # fmt: skip
            durations.remember(
                workspace.records, BENCHMARK, load.seconds, work=benchmark_work(benchmark_spec), hardware=hardware
            )  # fmt: skip
        return Measurements(candidate=candidate, evaluation=scores, benchmark=load)

    key = measure_key(server, candidate, evaluation_spec, benchmark_spec)
    measured, stage = find_or_make(workspace.records, key, Measurements, make, hardware=hardware)
    artifacts.publish_evaluation(measured.evaluation)
    artifacts.publish_benchmark(measured.benchmark)
    return measured, stage


def benchmark_work(spec: BenchmarkSpec) -> dict[str, Any]:
    """What load is sent. Limits and margins are the gate's business and left out."""
    return {"profiles": [profile.to_data() for profile in spec.profiles]}


def measure_key(
    server: CandidateServer,
    candidate: Candidate,
    evaluation_spec: EvaluationSpec,
    benchmark_spec: BenchmarkSpec,
) -> StepKey:
    """What measurements depend on. Limits and margins are the gates' business: only what is run counts."""
    return StepKey(
        step="measure", version=MEASURE_VERSION,
        inputs={
            "candidate": candidate.digest,
            **evaluation_work(evaluation_spec),
            **benchmark_work(benchmark_spec),
            "hardware": server.hardware(candidate.serving),
        },
    )  # fmt: skip
