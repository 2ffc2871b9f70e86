"""Measuring a candidate beside stable: what is run once, what is found again, and what happens where both cannot be up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lockgate.adapters.oci import open_store
from lockgate.adapters.oci.records import StepRecords
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import (
    BenchmarkComparison,
    BenchmarkEvidence,
    EvaluationEvidence,
    Fingerprint,
)
from lockgate.domain.images import ImageRef
from lockgate.domain.spec import BenchmarkSpec, EvaluationSpec, ServingSpec
from lockgate.domain.steps import MeasuredBeside
from lockgate.errors import ServingError
from tasks import evaluating, measurement

EVALUATION = EvaluationSpec.model_validate(
    {"tasks": [{"name": "lockgate_choice", "metric": "acc,none", "margin": 0.1}]}
)
BENCHMARK = BenchmarkSpec.model_validate({"profiles": [{"name": "single"}]})
MARK = Fingerprint(
    hardware=Digest.of_bytes(b"here"),
    cpu="p",
    cores=1,
    engine="e",
    engine_version="0",
    arguments=(),
)


def candidate(name: str) -> Candidate:
    def image(kind: str) -> ImageRef:
        return ImageRef(repository=kind, digest=Digest.of_bytes(f"{kind} {name}".encode()))

    return Candidate(
        model=image("model"), runtime=image("runtime"), serving=ServingSpec(served_model_name=name)
    )


NEW, STABLE = candidate("new"), candidate("stable")


class Bench:
    """What the measurement runs, counted, with nothing behind it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.done: list[str] = []
        self.up: set[str] = set()
        self.broken: set[str] = set()
        self.room: str | None = None
        store = open_store(f"oci:{tmp_path}/store")
        workspace = SimpleNamespace(
            records=StepRecords(store, "records"),
            stored_model=lambda image: image,
            materialise=lambda model: tmp_path,
            layout=SimpleNamespace(logs=tmp_path),
            settings=SimpleNamespace(test_server="process"),
            candidate_server=self.server,
        )
        monkeypatch.setattr(measurement.Workspace, "current", lambda: workspace)
        monkeypatch.setattr(
            measurement.environments, "environment_python", lambda name: Path("python")
        )
        monkeypatch.setattr(measurement, "no_room_for", lambda servings: self.room)
        monkeypatch.setattr(measurement, "CpuPool", lambda: SimpleNamespace(acquire=self.acquire))
        monkeypatch.setattr(evaluating.evaluation, "evaluate", self.evaluate)
        monkeypatch.setattr(measurement.artifacts, "publish_evaluation", lambda evidence: None)
        monkeypatch.setattr(measurement.artifacts, "publish_benchmark", lambda evidence: None)
        monkeypatch.setattr(measurement.benchmark, "benchmark", self.benchmark)
        monkeypatch.setattr(measurement.benchmark, "compare", self.compare)

    @contextlib.contextmanager
    def acquire(self, count: int) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(cores=(0,), exclusive=True, fds=())

    def server(self, pod_template: object, cores: object = None) -> Any:
        return SimpleNamespace(serve=self.serve, hardware=lambda serving: MARK.hardware)

    @contextlib.contextmanager
    def serve(self, candidate: Candidate, log_path: Path) -> Iterator[Any]:
        name = candidate.serving.served_model_name
        if name in self.broken:
            raise ServingError("out of memory")
        self.up.add(name)
        yield SimpleNamespace(base_url="", model_name=name, fingerprint=MARK)
        self.up.remove(name)

    def evaluate(
        self, *args: Any, subject: Digest, log_dir: Path, **more: Any
    ) -> EvaluationEvidence:
        self.done.append("evaluate")
        log_dir.mkdir(exist_ok=True)
        (log_dir / "samples.jsonl").write_text("")
        return EvaluationEvidence(
            subject=subject, suite=subject, harness="h", tasks=(), samples=Digest.of_json([]), seconds=1
        )  # fmt: skip

    def benchmark(self, *args: Any, subject: Digest, **more: Any) -> BenchmarkEvidence:
        self.done.append("benchmark")
        return BenchmarkEvidence(
            subject=subject, generator="g", fingerprint=MARK, profiles=(), seconds=1
        )

    def compare(self, mine: Any, theirs: Any, spec: BenchmarkSpec, **more: Any) -> Any:
        assert len(self.up) == 2
        self.done.append("compare")
        own, other = (
            BenchmarkEvidence(
                subject=side.digest, generator="g", fingerprint=MARK, profiles=(), seconds=1
            )
            for side in (mine, theirs)
        )
        found = BenchmarkComparison(
            candidate=mine.digest,
            stable=theirs.digest,
            generator="g",
            fingerprint=MARK,
            stable_benchmark=other,
            pairs=(),
            seconds=1,
        )
        return SimpleNamespace(comparison=found, candidate=own)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    return Bench(monkeypatch, tmp_path)


def measured(stable: Candidate | None = STABLE) -> MeasuredBeside:
    found, _ = measurement.measure_candidate.fn(NEW, EVALUATION, BENCHMARK, stable)
    return found


def test_both_are_measured_in_turn_once_and_found_again(bench: Bench) -> None:
    first = measured()
    assert bench.done == ["evaluate", "compare"]
    assert first.comparison is not None and first.apart is None
    assert first.comparison.stable == STABLE.digest
    assert measured() == first
    assert measured(None).measurements == first.measurements
    assert bench.done == ["evaluate", "compare"]
    assert not bench.up


def test_against_another_stable_the_evaluation_is_found_and_the_comparison_made(
    bench: Bench,
) -> None:
    measured(None)
    assert bench.done == ["evaluate", "benchmark"]
    assert measured().comparison is not None
    assert bench.done == ["evaluate", "benchmark", "compare"]
    assert measured(candidate("third")).comparison is not None
    assert bench.done == ["evaluate", "benchmark", "compare", "compare"]


def test_without_room_for_both_the_candidate_is_measured_alone_and_the_result_says_why(
    bench: Bench,
) -> None:
    bench.room = "8.0 GiB of memory are needed, 5.0 GiB are free"
    alone = measured()
    assert bench.done == ["evaluate", "benchmark"]
    assert alone.comparison is None and "5.0 GiB are free" in (alone.apart or "")
    assert measured().apart == alone.apart
    assert bench.done == ["evaluate", "benchmark"]
    bench.room = None
    assert measured().comparison is not None


def test_a_stable_that_cannot_be_served_is_no_failure_of_the_candidate(bench: Bench) -> None:
    bench.broken = {"stable"}
    alone = measured()
    assert "out of memory" in (alone.apart or "")
    assert bench.done == ["evaluate", "benchmark"]
    bench.broken = {"new"}
    with pytest.raises(ServingError):
        measurement.measure_candidate.fn(NEW, EVALUATION, BENCHMARK, candidate("third"))


def test_a_candidate_that_is_stable_itself_is_not_compared(bench: Bench) -> None:
    assert measured(NEW).comparison is None
    assert bench.done == ["evaluate", "benchmark"]
