"""Which scores are looked up and which are asked for again: stable is found, and nothing else is taken for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lockgate.adapters import evaluation
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import EvaluationEvidence, Fingerprint, ItemScore, TaskScore
from lockgate.domain.images import ImageRef
from lockgate.domain.spec import EvaluationSpec, EvaluationTask, ServingSpec
from lockgate.settings import Settings
from serving.candidate_server import Endpoint
from tasks.evaluating import evaluate_endpoint
from tasks.workspace import Workspace

HARDWARE = Digest.of_bytes(b"hardware")
TASK = EvaluationTask(name="lockgate_numbers", metric="exact_match,strip", margin=0.1, floor=0.5)
SPEC = EvaluationSpec(tasks=(TASK,), limit=20)


def candidate(repository: str = "lockgate.local/smol", **serving: Any) -> Candidate:
    return Candidate(
        model=ImageRef.parse(f"{repository}@" + Digest.of_bytes(b"model")),
        runtime=ImageRef.parse("lockgate.local/vllm@" + Digest.of_bytes(b"runtime")),
        serving=ServingSpec.model_validate({"served_model_name": "smol", **serving}),
    )


Ask = Callable[..., EvaluationEvidence]


@pytest.fixture
def asked() -> list[Digest]:
    """Candidates whose servers were really asked."""
    return []


@pytest.fixture
def ask(tmp_path: Path, asked: list[Digest], monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Scores of a candidate; in the harness's place something that writes one answer."""
    workspace = Workspace(Settings(workspace=tmp_path / "workspace"))
    mark = Fingerprint(
        hardware=HARDWARE, cpu="c", cores=1, engine="e", engine_version="0", arguments=()
    )
    endpoint = Endpoint("http://unused", "smol", mark, tmp_path / "log", exclusive_cores=True)

    def harness(
        url: str,
        name: str,
        spec: EvaluationSpec,
        *,
        subject: Digest,
        log_dir: Path,
        progress: object,
    ) -> EvaluationEvidence:
        asked.append(subject)
        log_dir.mkdir(exist_ok=True)
        (log_dir / evaluation.SAMPLES_FILE).write_text(
            json.dumps({"item": "1", "answer": subject}) + "\n"
        )
        item = ItemScore(item="1", score=1.0)
        return EvaluationEvidence(
            subject=subject, suite=evaluation.suite_digest(spec), harness="h", seconds=1,
            tasks=(TaskScore(task=TASK.name, metric=TASK.metric, score=1.0, items=(item,)),),
            samples=Digest.of_json(evaluation.read_samples(log_dir)),
        )  # fmt: skip

    monkeypatch.setattr(evaluation, "evaluate", harness)

    def run(
        who: Candidate, spec: EvaluationSpec = SPEC, hardware: Digest = HARDWARE
    ) -> EvaluationEvidence:
        scores = evaluate_endpoint(
            workspace, who, spec, endpoint, tmp_path / who.digest.short, hardware=hardware,
            progress=lambda done, total: None,
        )  # fmt: skip
        assert scores.samples is not None
        assert workspace.records.get_document(scores.samples)[0]["answer"] == who.digest
        return scores

    run.workspace = workspace  # type: ignore[attr-defined]
    return run


def test_stable_is_found_by_its_digest_wherever_its_image_lies_and_whatever_the_gate_allows(
    ask: Ask, asked: list[Digest]
) -> None:
    first = ask(candidate())
    stricter = TASK.model_copy(update={"margin": 0.01, "floor": None})
    assert ask(candidate()) == first
    assert ask(candidate("mirror.example.com/smol")) == first
    assert ask(candidate(), SPEC.model_copy(update={"tasks": (stricter,), "alpha": 0.01})) == first
    assert len(asked) == 1


@pytest.mark.parametrize(
    "change", ["arguments", "limit", "metric", "concurrency", "hardware", "harness"]
)
def test_what_may_change_an_answer_is_asked_for_again(
    ask: Ask, asked: list[Digest], change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(candidate())
    who, spec, hardware = candidate(), SPEC, HARDWARE
    if change == "arguments":
        who = candidate(args=["--enforce-eager"])
    elif change == "hardware":
        hardware = Digest.of_bytes(b"another machine")
    elif change == "harness":
        monkeypatch.setattr(evaluation, "harness", lambda: "lm-eval 99")
    elif change == "metric":
        spec = SPEC.model_copy(
            update={"tasks": (TASK.model_copy(update={"metric": "other,none"}),)}
        )
    else:
        spec = SPEC.model_copy(update={change: 7})
    ask(who, spec, hardware)
    assert len(asked) == 2


def test_scores_whose_answers_are_gone_are_no_evidence_any_more(
    ask: Ask, asked: list[Digest]
) -> None:
    scores = ask(candidate())
    assert scores.samples is not None
    root = ask.workspace.layout.store  # type: ignore[attr-defined]
    (blob,) = root.rglob(scores.samples.hex)
    blob.unlink()
    assert ask(candidate()) == scores
    assert len(asked) == 2
