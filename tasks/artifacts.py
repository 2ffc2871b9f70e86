"""What stages found, as tables in Prefect. They are for people: the signed evidence is what counts."""

from __future__ import annotations

import logging
import math
from typing import Any

from prefect.artifacts import create_table_artifact

from lockgate.domain.evidence import BenchmarkEvidence, EvaluationEvidence
from lockgate.domain.steps import PreparedModel, StageSeconds

logger = logging.getLogger("lockgate.artifacts")


def publish_evaluation(evidence: EvaluationEvidence) -> None:
    """Score by task, with the standard error of the mean."""
    rows = []
    for task in evidence.tasks:
        scores = [item.score for item in task.items]
        spread = math.sqrt(sum((s - task.score) ** 2 for s in scores)) / max(1, len(scores))
        rows.append(
            {
                "task": task.task,
                "metric": task.metric,
                "score": round(task.score, 4),
                "standard error": round(spread, 4),
                "items": len(scores),
            }
        )
    _publish("evaluation", evidence.subject.short, rows, f"answers: {evidence.samples}")


def publish_benchmark(evidence: BenchmarkEvidence) -> None:
    """Throughput and median latencies by load profile."""
    rows = [
        {
            "profile": profile.profile,
            "output tokens/s": round(profile.output_tokens_per_second, 2),
            "TTFT p50 ms": round(profile.ttft_ms["p50"], 1),
            "TPOT p50 ms": round(profile.tpot_ms["p50"], 1),
            "E2E p50 ms": round(profile.e2e_ms["p50"], 1),
            "completed": profile.completed,
            "failed": profile.failed,
        }
        for profile in evidence.profiles
    ]
    _publish("benchmark", evidence.subject.short, rows, evidence.generator)


def publish_preparation(prepared: PreparedModel, stages: tuple[StageSeconds, ...]) -> None:
    """What became of the source: sizes, scans, seconds."""
    rows: list[dict[str, Any]] = [
        {"what": "source", "value": str(prepared.revision)},
        {"what": "recipe", "value": str(prepared.recipe)},
        {"what": "source MB", "value": round(prepared.source.size / 1e6, 1)},
        {"what": "model MB", "value": round(prepared.model.size / 1e6, 1)},
        {"what": "model image", "value": str(prepared.model.image)},
    ]
    for scan in prepared.scans:
        done = ", ".join(f"{run.name} {run.status}" for run in scan.runs)
        rows.append(
            {"what": f"scan of {scan.subject_kind}", "value": f"{len(scan.findings)} findings ({done})"}
        )  # fmt: skip
    rows += [
        {"what": f"{s.stage} seconds", "value": "found" if s.reused else round(s.seconds, 1)}
        for s in stages
    ]
    _publish("preparation", prepared.model.snapshot.short, rows, str(prepared.revision))


def _publish(kind: str, subject: str, rows: list[dict[str, Any]], description: str) -> None:
    """Showing what was found never fails the step that found it: the server may be briefly away."""
    try:
        create_table_artifact(table=rows, key=f"{kind}-{subject}", description=description)
    except Exception as error:
        logger.warning("the artifact %s-%s could not be made: %s", kind, subject, error)
