"""The evidence of two releases, read from the store and put side by side. Nothing is measured."""

from __future__ import annotations

import logging
from typing import Any, TypeVar

from pydantic import ValidationError

from lockgate.domain.base import Frozen
from lockgate.domain.comparison import CandidateEvidence, Comparison, compare
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import BenchmarkEvidence, EvaluationEvidence, ScanEvidence
from lockgate.domain.quantization import QuantizationReport
from lockgate.domain.spec import Recipe
from lockgate.domain.steps import Measurements
from lockgate.errors import LockgateError, UsageError
from tasks.known_releases import KnownRelease, ReleaseIndex
from tasks.workspace import Workspace

logger = logging.getLogger("lockgate.explain")

T = TypeVar("T", bound=Frozen)


def compare_releases(
    workspace: Workspace, a: str, b: str, environment: str | None = None
) -> Comparison:
    """Side by side what is kept of the releases that `a` and `b` name. Raises `UsageError` where there is none."""
    index = ReleaseIndex(workspace, environment)
    return compare(evidence_of(index, index.find(a)), evidence_of(index, index.find(b)))


def evidence_of(index: ReleaseIndex, known: KnownRelease) -> CandidateEvidence:
    """What the signed predicate names, else what the workspace remembers of a refusal. Raises `UsageError` for a release that
    failed before there was a candidate."""
    candidate = index.candidate(known)
    if candidate is None:
        raise UsageError(
            f"{known.name} has no candidate: it failed before there was one",
            hint=f"`lockgate explain {known.name}` says why",
        )
    workspace, outcome = index.workspace, known.outcome
    found = CandidateEvidence(
        name=known.name, candidate=candidate.digest, serving=candidate.serving,
        recipe=str(outcome.recipe) if outcome is not None else None,
        size_bytes=_size(workspace, known, index),
    )  # fmt: skip
    occupant = index.occupant(known)
    if occupant is not None:
        return found.model_copy(
            update={"evidence": occupant.evidence, **_attested(workspace, occupant.evidence, found)}
        )
    if outcome is None:
        return found
    update: dict[str, Any] = {}
    if outcome.measurements is not None:
        measured = _document(workspace, outcome.measurements, Measurements)
        if measured is not None:
            update |= {"evaluation": measured.evaluation, "benchmark": measured.benchmark}
    scans = [_document(workspace, digest, ScanEvidence) for digest in outcome.scans]
    if scans and None not in scans:
        update["scans"] = tuple(scans)
    return found.model_copy(update=update)


def _attested(workspace: Workspace, evidence: Digest, found: CandidateEvidence) -> dict[str, Any]:
    """The documents that a gate predicate lists, by what they are."""
    try:
        listed = {
            str(ref["kind"]): Digest(ref["digest"])
            for ref in workspace.records.get_document(evidence)["evidence"]
        }
    except (LockgateError, KeyError, TypeError, ValueError) as error:
        logger.warning("evidence %s cannot be read: %s", evidence, error)
        return {}
    update: dict[str, Any] = {}
    if "evaluation" in listed:
        update["evaluation"] = _document(workspace, listed["evaluation"], EvaluationEvidence)
    if "benchmark" in listed:
        update["benchmark"] = _document(workspace, listed["benchmark"], BenchmarkEvidence)
    scans = [
        _document(workspace, digest, ScanEvidence)
        for kind, digest in listed.items()
        if kind.startswith("scan-")
    ]
    if scans and None not in scans:
        update["scans"] = tuple(scans)
    if found.recipe is None:
        report = None
        if "quantization" in listed:
            report = _document(workspace, listed["quantization"], QuantizationReport)
        if report is not None or "quantization" not in listed:
            update["recipe"] = report.recipe if report is not None else str(Recipe.NONE)
    return update


def _size(workspace: Workspace, known: KnownRelease, index: ReleaseIndex) -> int | None:
    candidate = index.candidate(known)
    assert candidate is not None
    try:
        return workspace.stored_model(candidate.model).size
    except LockgateError as error:
        logger.warning("the size of %s is not known: %s", candidate.model, error.message)
        return None


def _document(workspace: Workspace, digest: Digest, kind: type[T]) -> T | None:
    try:
        return kind.model_validate(workspace.records.get_document(digest))
    except (LockgateError, ValidationError) as error:
        logger.warning("%s cannot be read as %s: %s", digest, kind.__name__, error)
        return None
