"""What stages show in Prefect: the figures of the evidence, and never a failure of their own."""

from __future__ import annotations

from typing import Any

import pytest

from lockgate.domain.digests import Digest
from lockgate.domain.evidence import EvaluationEvidence, ItemScore, TaskScore
from tasks import artifacts

SCORES = tuple(ItemScore(item=str(k), score=float(k < 3)) for k in range(4))
EVIDENCE = EvaluationEvidence(
    subject=Digest.of_bytes(b"candidate"), suite=Digest.of_bytes(b"suite"), harness="h", seconds=1,
    tasks=(TaskScore(task="numbers", metric="m", score=0.75, items=SCORES),),
    samples=Digest.of_bytes(b"answers"),
)  # fmt: skip


def test_an_evaluation_is_shown_by_task_with_its_error_and_where_the_answers_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[dict[str, Any]] = []
    monkeypatch.setattr(artifacts, "create_table_artifact", lambda **given: shown.append(given))
    artifacts.publish_evaluation(EVIDENCE)
    (artifact,) = shown
    (row,) = artifact["table"]
    assert (row["task"], row["score"], row["items"]) == ("numbers", 0.75, 4)
    assert row["standard error"] == pytest.approx(0.2165, abs=1e-4)
    assert str(EVIDENCE.samples) in artifact["description"]
    assert artifact["key"] == f"evaluation-{EVIDENCE.subject.short}"


def test_a_server_that_is_away_does_not_fail_the_step_that_found_something(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(**_: Any) -> None:
        raise ConnectionError("nobody listens")

    monkeypatch.setattr(artifacts, "create_table_artifact", away)
    artifacts.publish_evaluation(EVIDENCE)
    assert "nobody listens" in caplog.text
