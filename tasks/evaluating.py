"""Scores of a candidate that is served: looked up where it answered the same questions before, else asked now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lockgate.adapters import evaluation
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import EvaluationEvidence
from lockgate.domain.spec import EvaluationSpec
from lockgate.domain.steps import StepKey
from lockgate.errors import EvaluationError, RegistryError
from serving.candidate_server import Endpoint
from tasks.progress import Report
from tasks.recorded import find_or_make
from tasks.workspace import Workspace

EVALUATE = "evaluate"
EVALUATE_VERSION = 1


def evaluate_endpoint(
    workspace: Workspace,
    candidate: Candidate,
    spec: EvaluationSpec,
    endpoint: Endpoint,
    log_dir: Path,
    *,
    hardware: Digest,
    progress: Report,
) -> EvaluationEvidence:
    """The candidate's scores: looked up, where it was asked the same questions before, else asked now.

    Every answer is kept in the store, by the digest that the evidence names.
    """

    def make() -> EvaluationEvidence:
        scores = evaluation.evaluate(
            endpoint.base_url, endpoint.model_name, spec, subject=candidate.digest, log_dir=log_dir,
            progress=progress,
        )  # fmt: skip
        kept = workspace.records.put_document(evaluation.read_samples(log_dir))
        if kept != scores.samples:
            raise EvaluationError(
                f"the answers in {log_dir} changed while they were stored ({kept}, not {scores.samples})",
                hint="is a second evaluation of this candidate writing there?",
            )
        return scores

    def usable(scores: EvaluationEvidence) -> bool:
        if scores.samples is None:
            return False
        try:
            workspace.records.get_document(scores.samples)
        except RegistryError:
            return False
        return True

    scores, _ = find_or_make(
        workspace.records, evaluation_key(candidate, spec, hardware), EvaluationEvidence, make,
        usable=usable, work=evaluation_work(spec), hardware=hardware,
    )  # fmt: skip
    return scores


def evaluation_work(spec: EvaluationSpec) -> dict[str, Any]:
    """What is asked and how it is scored. Margins, floors and alpha are the gate's business and left out."""
    return {
        "tasks": [[task.name, task.metric] for task in spec.tasks],
        "limit": spec.limit,
        "suite": evaluation.suite_digest(spec),
        "harness": evaluation.harness(),
        # Requests in one batch change the order of additions, and so, now and then, an answer.
        "concurrency": spec.concurrency,
    }


def evaluation_key(candidate: Candidate, spec: EvaluationSpec, hardware: Digest) -> StepKey:
    """What scores depend on: the candidate (weights, runtime, arguments), the questions, and the hardware's arithmetic."""
    return StepKey(
        step=EVALUATE, version=EVALUATE_VERSION,
        inputs={
            "candidate": candidate.digest, "hardware": hardware, **evaluation_work(spec),
        },
    )  # fmt: skip
