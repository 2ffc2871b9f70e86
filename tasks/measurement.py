"""Serve a candidate as it would be served, evaluate it and put it under load, in turn with stable where there is one.

Holds no signing key and no Git token.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

from prefect.cache_policies import NO_CACHE

from lockgate import environments
from lockgate.adapters import benchmark
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import EvaluationEvidence
from lockgate.domain.spec import BenchmarkSpec, EvaluationSpec
from lockgate.domain.steps import MeasuredBeside, Measurements, StageSeconds, StepKey
from lockgate.errors import ServingError
from serving.candidate_server import CandidateServer, Endpoint
from serving.hardware import no_room_for
from serving.local.cpu_pool import Cores, CpuPool, SharedCores
from tasks import artifacts, durations
from tasks.evaluating import evaluate_endpoint, evaluation_work
from tasks.progress import Report, progress
from tasks.recorded import find_or_make, recorded
from tasks.steps import step
from tasks.workspace import Workspace

MEASURE_VERSION = 2
COMPARE_VERSION = 1

SERVE, BENCHMARK = "serve", "benchmark"
"""Parts of a measurement, as their durations are remembered."""


@step(name="measure-candidate", cache_policy=NO_CACHE)
def measure_candidate(
    candidate: Candidate,
    evaluation_spec: EvaluationSpec,
    benchmark_spec: BenchmarkSpec,
    stable: Candidate | None = None,
    pod_templates: Mapping[str, dict[str, Any]] | None = None,
) -> tuple[MeasuredBeside, StageSeconds]:
    """Evaluation and benchmark of a candidate, once: the same candidate measured the same way is looked up.

    With `stable`, both are put under load in turn on the same cores; that too is looked up, by both. Where the two cannot be
    up at once the candidate is measured alone and the result says why. `pod_templates` are the slots', by candidate digest,
    where candidates are served for tests in a cluster.
    """
    measuring = _Measuring(
        Workspace.current(), candidate, evaluation_spec, benchmark_spec, pod_templates or {}
    )
    in_turn = stable is not None and benchmark_spec.compare == "in_turn"
    measured, stage = measuring.beside(stable) if stable and in_turn else measuring.alone()
    artifacts.publish_evaluation(measured.measurements.evaluation)
    artifacts.publish_benchmark(measured.measurements.benchmark)
    return measured, stage


@dataclass(frozen=True)
class _Measuring:
    """One candidate's measurements, looked up or made."""

    workspace: Workspace
    candidate: Candidate
    evaluation: EvaluationSpec
    benchmark: BenchmarkSpec
    pod_templates: Mapping[str, dict[str, Any]]

    def server(self, candidate: Candidate, cores: Cores | None = None) -> CandidateServer:
        return self.workspace.candidate_server(self.pod_templates.get(str(candidate.digest)), cores)

    @cached_property
    def hardware(self) -> Digest:
        return self.server(self.candidate).hardware(self.candidate.serving)

    @property
    def key(self) -> StepKey:
        return measure_key(
            self.server(self.candidate), self.candidate, self.evaluation, self.benchmark
        )

    @property
    def logs(self) -> Path:
        directory = self.workspace.layout.logs / f"measure-{self.candidate.digest.short}"
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def alone(self) -> tuple[MeasuredBeside, StageSeconds]:
        found, stage = find_or_make(
            self.workspace.records, self.key, Measurements, lambda: self.make(None).measurements,
            hardware=self.hardware,
        )  # fmt: skip
        return MeasuredBeside(measurements=found), stage

    def beside(self, stable: Candidate) -> tuple[MeasuredBeside, StageSeconds]:
        if stable.digest == self.candidate.digest:
            return self.alone()
        records = self.workspace.records

        def make() -> MeasuredBeside:
            earlier = recorded(records, self.key, Measurements)
            apart = self.no_room_for(stable)
            if apart and earlier:
                return MeasuredBeside(measurements=earlier, apart=_why(apart))
            made = self.make(None if apart else stable)
            if earlier is None:
                value = {"key": self.key.to_data(), "result": made.measurements.to_data()}
                records.record(self.key.content_digest(), value)
            return made.model_copy(update={"apart": _why(apart)}) if apart else made

        key = compare_key(
            self.server(self.candidate), self.candidate, stable, self.evaluation, self.benchmark
        )
        return find_or_make(
            records, key, MeasuredBeside, make, hardware=self.hardware,
            usable=lambda result: result.comparison is not None,
        )  # fmt: skip

    def no_room_for(self, stable: Candidate) -> str | None:
        """Why the two cannot be up at once. In a cluster the scheduler says so, and a Job that stays pending."""
        if self.workspace.settings.test_server != "process":
            return None
        return no_room_for([self.candidate.serving, stable.serving])

    def make(self, stable: Candidate | None) -> MeasuredBeside:
        """Stable's server starts while the candidate is evaluated, which no clock measures."""
        servings = [c.serving for c in (self.candidate, stable) if c is not None]
        apart: str | None = None
        with contextlib.ExitStack() as stack:
            evaluating = stack.enter_context(progress(f"evaluate {self.candidate.digest.short}"))
            benching = stack.enter_context(progress(f"benchmark {self.candidate.digest.short}"))
            lease = stack.enter_context(CpuPool().acquire(max(s.resources.cpu for s in servings)))
            cores = SharedCores(lease)
            started = time.monotonic()
            server = self.server(self.candidate, cores)
            endpoint = stack.enter_context(
                server.serve(self.candidate, log_path=self.logs / "vllm.log")
            )
            self.remember(SERVE, time.monotonic() - started)
            starting: Future[Endpoint] | None = None
            if stable is not None:
                opened = self.server(stable, cores).serve(
                    stable, log_path=self.logs / "stable-vllm.log"
                )
                starting = stack.enter_context(_started_beside(opened))
            scores = evaluate_endpoint(
                self.workspace, self.candidate, self.evaluation, endpoint, self.logs / "evaluation",
                hardware=self.hardware, progress=evaluating,
            )  # fmt: skip
            if stable is not None and starting is not None:
                try:
                    other = starting.result()
                except ServingError as error:
                    apart = f"stable could not be served beside the candidate: {error.message}"
                else:
                    return self.compare(endpoint, stable, other, scores, benching)
            load = benchmark.benchmark(
                endpoint, self.benchmark, subject=self.candidate.digest,
                fingerprint=endpoint.fingerprint, **self.generator, progress=benching,
            )  # fmt: skip
            self.remember(BENCHMARK, load.seconds, benchmark_work(self.benchmark))
        measurements = Measurements(candidate=self.candidate, evaluation=scores, benchmark=load)
        return MeasuredBeside(measurements=measurements, apart=_why(apart) if apart else None)

    def compare(
        self,
        endpoint: Endpoint,
        stable: Candidate,
        other: Endpoint,
        scores: EvaluationEvidence,
        report: Report,
    ) -> MeasuredBeside:
        """Both under load in turn."""
        started = time.monotonic()
        measured = benchmark.compare(
            benchmark.Subject(self.candidate.digest, endpoint, endpoint.fingerprint),
            benchmark.Subject(stable.digest, other, other.fingerprint),
            self.benchmark, **self.generator, progress=report,
        )  # fmt: skip
        self.remember(
            BENCHMARK, time.monotonic() - started, benchmark_work(self.benchmark, in_turn=True)
        )
        measurements = Measurements(
            candidate=self.candidate, evaluation=scores, benchmark=measured.candidate
        )
        return MeasuredBeside(measurements=measurements, comparison=measured.comparison)

    @property
    def generator(self) -> _Generator:
        """What the load generator works with: it runs on this machine, wherever the servers do."""
        return {
            "serving_python": environments.environment_python("serving"),
            "model_dir": self.workspace.materialise(
                self.workspace.stored_model(self.candidate.model)
            ),
            "log_dir": self.logs / "benchmark",
        }

    def remember(self, step: str, seconds: float, work: Any = None) -> None:
        durations.remember(self.workspace.records, step, seconds, work=work, hardware=self.hardware)


class _Generator(TypedDict):
    serving_python: Path
    model_dir: Path
    log_dir: Path


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


def benchmark_work(spec: BenchmarkSpec, *, in_turn: bool = False) -> dict[str, Any]:
    """What load is sent. Limits and margins are the gate's business and left out."""
    level = spec.service_level
    return {
        "profiles": benchmark.profile_identities(spec),
        "service_level": level.to_data() if level else None,
        **({"blocks": spec.blocks} if in_turn else {}),
    }


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


def compare_key(
    server: CandidateServer,
    candidate: Candidate,
    stable: Candidate,
    evaluation_spec: EvaluationSpec,
    benchmark_spec: BenchmarkSpec,
) -> StepKey:
    """What the comparison of two candidates in turn depends on."""
    alone = measure_key(server, candidate, evaluation_spec, benchmark_spec)
    return StepKey(
        step="compare", version=COMPARE_VERSION,
        inputs={
            **alone.inputs, "measure": alone.version, "stable": stable.digest,
            "blocks": benchmark_spec.blocks,
        },
    )  # fmt: skip
