"""Evaluation and benchmark of a real model served by a real vLLM, and what happens when one of them cannot be done."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pyarrow.parquet
import pytest
import yaml

from lockgate.adapters import evaluation
from lockgate.adapters.benchmark import Subject, benchmark, compare
from lockgate.adapters.evaluation import SAMPLES_FILE, evaluate
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import EvaluationEvidence
from lockgate.domain.gates.base import Decision
from lockgate.domain.gates.benchmark import benchmark_gate
from lockgate.domain.gates.evaluation import evaluation_gate
from lockgate.domain.load import ServiceLevel, Sweep
from lockgate.domain.spec import (
    BenchmarkProfile,
    BenchmarkSpec,
    EvaluationSpec,
    EvaluationTask,
    ServingSpec,
)
from lockgate.errors import BenchmarkError, EvaluationError, UsageError
from serving.candidate_server import Endpoint
from serving.ephemeral import serve
from tests.integration.evaluation.dataset_hub import dataset_hub

SUBJECT = Digest.of_bytes(b"a candidate")
SERVING = ServingSpec(
    served_model_name="smol",
    max_model_len=1024,
    dtype="bfloat16",
    args=("--enforce-eager",),
    env={"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"},
)
NUMBERS = EvaluationTask(
    name="lockgate_numbers", metric="exact_match,strip", margin=0.15, floor=0.6
)
CHOICE = EvaluationTask(name="lockgate_choice", metric="acc,none", margin=0.2, floor=0.6)
FORM = EvaluationTask(name="lockgate_json", metric="valid,none", margin=0.3, floor=0.1)


def spec(*tasks: EvaluationTask, suite: str = "builtin", limit: int = 24) -> EvaluationSpec:
    return EvaluationSpec(tasks=tasks, suite=suite, limit=limit, concurrency=8)


@pytest.fixture(scope="module")
def served(
    demo_model: Path, serving_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoint]:
    log = tmp_path_factory.mktemp("served") / "vllm.log"
    with serve(demo_model, SERVING, python=serving_python, log_path=log) as endpoint:
        yield endpoint


def scores(
    endpoint: Endpoint, asked: EvaluationSpec, logs: Path, **more: float
) -> EvaluationEvidence:
    return evaluate(
        endpoint.base_url, endpoint.model_name, asked, subject=SUBJECT, log_dir=logs, **more
    )


def test_a_model_scored_twice_agrees_with_itself_and_passes_its_own_gate(
    served: Endpoint, tmp_path: Path
) -> None:
    asked = spec(NUMBERS, CHOICE, FORM)
    told: list[tuple[float, float | None]] = []
    first = evaluate(
        served.base_url,
        served.model_name,
        asked,
        subject=SUBJECT,
        log_dir=tmp_path / "first",
        progress=lambda done, total: told.append((done, total)),
    )
    second = scores(served, asked, tmp_path / "second")
    assert {t.task: len(t.items) for t in first.tasks} == dict.fromkeys(
        ("lockgate_numbers", "lockgate_choice", "lockgate_json"), 24
    )
    assert told[-1] == (24 + 24 * 4 + 24, 24 + 24 * 4 + 24)
    assert evaluation_gate(asked, first, None).decision is Decision.PASS
    assert evaluation_gate(asked, second, first).decision is Decision.PASS
    samples = [
        json.loads(line) for line in (tmp_path / "first" / SAMPLES_FILE).read_text().splitlines()
    ]
    assert len(samples) == 72
    assert {s["item"] for s in samples if s["task"] == "lockgate_numbers"} == {
        i.item for i in first.tasks[0].items
    }


def own_arc(questions: int) -> dict[str, bytes]:
    """The data set that lm-eval's task `arc_easy` names, with questions of our own."""
    asked = [
        {
            "id": f"sum-{n}",
            "question": f"What is {n} plus one?",
            "choices": {"text": [str(n + k) for k in (1, 5, 7, 9)], "label": ["A", "B", "C", "D"]},
            "answerKey": "A",
        }
        for n in range(questions)
    ]
    table = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(asked), table)
    splits = ("train", "validation", "test")
    configured = [{"split": s, "path": f"ARC-Easy/{s}-*"} for s in splits]
    front = {"configs": [{"config_name": "ARC-Easy", "data_files": configured}]}
    return {
        "README.md": f"---\n{yaml.safe_dump(front)}---\n".encode(),
        **{f"ARC-Easy/{s}-00000-of-00001.parquet": table.getvalue() for s in splits},
    }


def test_a_task_of_the_harness_is_asked_over_data_from_the_hub_and_its_data_count(
    served: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arc = EvaluationTask(name="arc_easy", metric="acc,none", margin=0.3, floor=0.1)
    asked = spec(arc, suite="lm-eval", limit=8)
    suites = []
    for questions in (8, 9):
        with dataset_hub("allenai/ai2_arc", own_arc(questions)) as url:
            monkeypatch.setenv("HF_ENDPOINT", url)
            monkeypatch.setenv("HF_HOME", str(tmp_path / f"hub-{questions}"))
            evaluation._harness_data.cache_clear()
            suites.append(evaluation.suite_digest(asked))
            if questions == 8:
                found = scores(served, asked, tmp_path / "arc")
    assert [item.item for item in found.tasks[0].items] == [f"sum-{n}" for n in range(8)]
    assert found.suite == suites[0]
    assert suites[0] != suites[1], "a changed data set is another suite"


def test_loads_are_measured_in_turn_and_a_model_passes_against_itself(
    served: Endpoint, serving_python: Path, demo_model: Path, tmp_path: Path
) -> None:
    lengths = {"prompt_tokens": 32, "output_tokens": 4}
    closed = BenchmarkProfile(name="closed", requests=6, **lengths)
    opened = BenchmarkProfile(name="open", requests=12, rate=4.0, burstiness=0.5, **lengths)
    curve = BenchmarkProfile(
        name="curve", requests=4, sweep=Sweep(concurrency=(1, 2, 4), growth=0.9), **lengths
    )
    asked = BenchmarkSpec(
        profiles=(closed, opened, curve),
        blocks=6,
        margin=9.0,
        service_level=ServiceLevel(e2e_ms=60_000),
        max_ttft_p50_ms=60_000,
    )
    measured = compare(
        Subject(SUBJECT, served, served.fingerprint),
        Subject(Digest.of_bytes(b"stable"), served, served.fingerprint),
        asked,
        serving_python=serving_python,
        model_dir=demo_model,
        log_dir=tmp_path,
    )
    results = {result.profile: result for result in measured.candidate.profiles}
    assert {name: (r.completed, r.failed) for name, r in results.items()} == {
        "closed": (6, 0), "open": (12, 0), "curve": (4, 0),
    }  # fmt: skip
    assert all(len(results["open"].requests[key]) == 12 for key in ("ttft_ms", "tpot_ms", "e2e_ms"))
    assert 2 <= len(results["curve"].curve) <= 3
    assert len(measured.comparison.pairs) == 12
    gated = benchmark_gate(asked, measured.candidate, None, measured.comparison)
    assert gated.decision is Decision.PASS, gated.reasons
    assert benchmark_gate(asked, measured.candidate, None).decision is Decision.PASS
    marks = served.fingerprint
    assert marks.versions["torch"] and marks.environment["VLLM_CPU_KVCACHE_SPACE"] == "1"


def test_a_task_or_a_metric_that_is_not_there_is_the_users_error(
    served: Endpoint, tmp_path: Path
) -> None:
    unknown = NUMBERS.model_copy(update={"name": "lockgate_nothing"})
    with pytest.raises(UsageError, match=r"lockgate_nothing.*lockgate_choice"):
        scores(served, spec(unknown), tmp_path)
    wrong = NUMBERS.model_copy(update={"metric": "acc,none"})
    with pytest.raises(UsageError, match="exact_match,strip"):
        scores(served, spec(wrong, limit=2), tmp_path)


def test_a_server_of_another_model_is_not_evaluated(served: Endpoint, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="not 'another'"):
        evaluate(served.base_url, "another", spec(NUMBERS), subject=SUBJECT, log_dir=tmp_path)


def test_an_item_longer_than_the_context_is_an_error_and_not_a_wrong_answer(
    served: Endpoint, tmp_path: Path
) -> None:
    suite = tmp_path / "suite"
    suite.mkdir()
    item = {"id": "long", "prompt": "again and " * 1200, "answer": "again"}
    (suite / "items.jsonl").write_text(json.dumps(item) + "\n")
    task = {
        "task": "long",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": "items.jsonl"}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match"}],
    }
    (suite / "long.yaml").write_text(yaml.safe_dump(task))
    long = EvaluationTask(name="long", metric="exact_match,none", margin=0.1)
    with pytest.raises(EvaluationError, match="does not fit into the 1024 tokens"):
        scores(served, spec(long, suite=str(suite)), tmp_path / "logs")


def test_an_evaluation_that_takes_too_long_is_ended(served: Endpoint, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="did not end within 3 s"):
        scores(served, spec(NUMBERS, limit=200), tmp_path, timeout=3.0)


def test_a_load_generator_without_a_tokenizer_says_where_its_log_is(
    served: Endpoint, serving_python: Path, tmp_path: Path
) -> None:
    asked = BenchmarkSpec(profiles=(BenchmarkProfile(name="single", requests=8),))
    with pytest.raises(BenchmarkError) as caught:
        benchmark(
            served,
            asked,
            subject=SUBJECT,
            fingerprint=served.fingerprint,
            serving_python=serving_python,
            model_dir=tmp_path / "nothing",
            log_dir=tmp_path,
        )
    assert caught.value.log == tmp_path / "benchmark.log"


def test_a_server_that_dies_in_the_middle_is_an_error_and_not_a_score(
    served: Endpoint, tmp_path: Path
) -> None:
    """Last in this file: it ends the server of all of them."""

    def kill_server() -> None:
        for process in psutil.Process(served.pid).children(recursive=True):
            process.kill()

    def once_answers_come(done: float, total: float | None) -> None:
        if done >= 8 and not killed:
            killed.append(threading.Thread(target=kill_server))
            killed[0].start()

    killed: list[threading.Thread] = []
    with pytest.raises(EvaluationError):
        evaluate(
            served.base_url,
            served.model_name,
            spec(NUMBERS, limit=200),
            subject=SUBJECT,
            log_dir=tmp_path,
            progress=once_answers_come,
        )
    killed[0].join()
