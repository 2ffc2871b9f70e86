"""Gather what a report is made from: Git's history, evidence in the store, traces and outcomes in the workspace."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from lockgate.adapters.report import (
    CandidateSummary,
    EvaluationRow,
    LoadPoint,
    RecipeRow,
    ReleaseStory,
    ReportInput,
    TrafficSummary,
    benchmark_rows,
    evaluation_rows,
    load_points,
    recipe_row,
    write_report,
)  # fmt: skip
from lockgate.domain.digests import Digest
from lockgate.domain.gates import GateReport, GateResult
from lockgate.domain.gitops import HistoryEntry
from lockgate.domain.release_state import Occupant, Outcome, Phase, ReleaseState, Slot
from lockgate.domain.spec import Recipe
from lockgate.domain.steps import Measurements, ReleaseOutcome
from lockgate.errors import LockgateError, UsageError
from lockgate.settings import Settings
from tasks.reported_rollout import bake_of, judge_looks, requested_approval, transition_row
from tasks.workspace import Workspace

logger = logging.getLogger("lockgate.report")

Row = TypeVar("Row")


def record_outcome(settings: Settings, outcome: ReleaseOutcome, title: str = "") -> Path:
    """Keep an outcome for reports: refusals are in no commit. One file a candidate, the newest counts."""
    directory = settings.layout.reports / "outcomes" / f"{outcome.model}-{outcome.environment}"
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{outcome.candidate.digest.hex}.json"
    row = {"title": title, "at": datetime.now(UTC).isoformat(), "outcome": outcome.to_data()}
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(row))
    temporary.replace(path)
    return path


class RecordedOutcome:
    """One file of `record_outcome`."""

    def __init__(self, path: Path) -> None:
        row = json.loads(path.read_text())
        self.title = str(row["title"])
        self.at = datetime.fromisoformat(row["at"])
        self.outcome = ReleaseOutcome.model_validate(row["outcome"])


def recorded_outcomes(
    settings: Settings, model: str | None = None, environment: str | None = None
) -> list[RecordedOutcome]:
    """All of them, or a model's, or an environment's, in the order in which they ended. A file that cannot be read is named
    and left out."""
    found = []
    # The directory's name may be cut into model and environment at several places: the outcome says where.
    name = f"{model or '*'}-{environment or '*'}"
    for path in sorted((settings.layout.reports / "outcomes").glob(f"{name}/*.json")):
        try:
            recorded = RecordedOutcome(path)
        except (OSError, ValueError, KeyError, ValidationError) as error:
            logger.warning("the outcome in %s cannot be read: %s", path, error)
            continue
        of = recorded.outcome
        if model in (None, of.model) and environment in (None, of.environment):
            found.append(recorded)
    return sorted(found, key=lambda recorded: recorded.at)


def write_model_report(
    settings: Settings,
    model: str,
    environment: str,
    out: Path | None = None,
    *,
    traffic: TrafficSummary | None = None,
    notes: tuple[str, ...] = (),
) -> Path:
    """Write the report of all releases of a model in an environment; returns where.

    Raises:
        UsageError: nothing was ever released or refused there.
    """
    report = gather(Workspace(settings), model, environment, traffic=traffic, notes=notes)
    return write_report(report, out or settings.layout.reports / f"{model}-{environment}.html")


def gather(
    workspace: Workspace,
    model: str,
    environment: str,
    *,
    traffic: TrafficSummary | None = None,
    notes: tuple[str, ...] = (),
) -> ReportInput:
    """Everything the report shows, as data."""
    repository = workspace.gitops
    repository.sync()
    state = repository.read_state(model, environment)
    entries = [e for e in repository.history(model, environment) if e.release is not None]
    outcomes = recorded_outcomes(workspace.settings, model, environment)
    stories = list(_stories(workspace, state, entries, outcomes))
    if not stories:
        raise UsageError(
            f"nothing was ever released as {model} in {environment}",
            hint="the names of models are those in `lockgate status`",
        )
    stable = state.occupant(state.stable) if state.stable is not None else None
    return ReportInput(
        recipes=tuple(_recipes(workspace, outcomes)),
        title=f"{model} in {environment}",
        generated_at=datetime.now(UTC),
        model=model,
        environment=environment,
        releases=tuple(stories),
        history=tuple(entries),
        traffic=traffic,
        stable=stable.candidate.digest if stable is not None else None,
        stable_slot=state.stable,
        denied=tuple((denied.candidate, denied.reason) for denied in state.denylist),
        notes=notes,
    )


def _measurements(workspace: Workspace, outcome: ReleaseOutcome) -> Measurements | None:
    """What was measured of the candidate; None where it was not, or where the store does not have it any more."""
    if outcome.measurements is None:
        return None
    try:
        return Measurements.model_validate(workspace.records.get_document(outcome.measurements))
    except (LockgateError, ValidationError) as error:
        logger.warning("measurements %s cannot be read: %s", outcome.measurements, error)
        return None


def _recipes(workspace: Workspace, outcomes: list[RecordedOutcome]) -> Iterable[RecipeRow]:
    for recorded in outcomes:
        outcome = recorded.outcome
        measured = _measurements(workspace, outcome)
        if measured is None:
            continue
        try:
            size = workspace.stored_model(outcome.candidate.model).size
        except LockgateError as error:
            logger.warning("the size of %s is not known: %s", outcome.candidate.model, error)
            continue
        yield recipe_row(
            measured, name=recorded.title or str(outcome.recipe), recipe=outcome.recipe,
            size_bytes=size, passed=outcome.gates.passed,
        )  # fmt: skip


def _load(
    workspace: Workspace, outcomes: list[RecordedOutcome], candidate: Digest, stable: Digest | None
) -> tuple[tuple[LoadPoint, ...], tuple[LoadPoint, ...]]:
    """The candidate's latencies by load, and stable's where they were measured on the same hardware."""
    found = {
        o.outcome.candidate.digest: measured
        for o in outcomes
        if o.outcome.candidate.digest in (candidate, stable)
        and (measured := _measurements(workspace, o.outcome)) is not None
    }
    own, reference = found.get(candidate), found.get(stable) if stable is not None else None
    if own is None:
        return (), ()
    hardware = own.benchmark.fingerprint.hardware
    if reference is None or reference.benchmark.fingerprint.hardware != hardware:
        return load_points(own.benchmark), ()
    return load_points(own.benchmark), load_points(reference.benchmark)


def _keep_answers(workspace: Workspace, rows: Iterable[EvaluationRow]) -> str:
    """Write a candidate's answers beside the reports, a JSON object a line; gives where, empty if they are not at hand."""
    digest = next((row.samples for row in rows if row.samples is not None), None)
    if digest is None:
        return ""
    path = workspace.layout.reports / "answers" / f"{digest.hex}.jsonl"
    if not path.exists():
        try:
            samples = workspace.records.get_document(digest)
        except LockgateError as error:
            logger.warning("the answers %s cannot be read: %s", digest, error)
            return ""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in samples))
        temporary.replace(path)
    return f"answers/{path.name}"


def _stories(
    workspace: Workspace,
    state: ReleaseState,
    entries: list[HistoryEntry],
    outcomes: list[RecordedOutcome],
) -> Iterable[ReleaseStory]:
    """In the order in which they were started; refused ones, which Git does not know, by the time of their refusal."""
    by_release: dict[str, list[HistoryEntry]] = {}
    for entry in reversed(entries):
        if entry.release is not None:
            by_release.setdefault(entry.release, []).append(entry)
    dated = [
        (
            datetime.fromisoformat(commits[0].at),
            _story(workspace, state, release, commits, outcomes),
        )
        for release, commits in by_release.items()
    ]
    dated += [
        (recorded.at, _refused_story(workspace, recorded, outcomes))
        for recorded in outcomes
        if recorded.outcome.result == "refused"
    ]
    return [story for _, story in sorted(dated, key=lambda pair: pair[0])]


def _story(
    workspace: Workspace,
    state: ReleaseState,
    release: str,
    commits: list[HistoryEntry],
    outcomes: list[RecordedOutcome],
) -> ReleaseStory:
    states = [
        workspace.gitops.state_at(commit.commit, state.model, state.environment)
        for commit in commits
    ]
    occupant = _occupant(states, release)
    last = next((s.last for s in reversed(states) if s.last and s.last.release == release), None)
    mine = [o for o in outcomes if o.outcome.candidate.digest == occupant.candidate.digest]
    recorded = mine[-1] if mine else None
    gates = _gates(workspace, occupant, recorded)
    layout = workspace.layout
    steps = [s for s in states if s.phase is Phase.CANARY and s.generation == s.began]
    rows = tuple(
        transition_row(commit, at, occupant) for commit, at in zip(commits, states, strict=True)
    )
    before = states[0].occupant(states[0].stable) if states[0].stable is not None else None
    evaluation = _rows(gates, "evaluation", evaluation_rows)
    load, stable_load = _load(
        workspace,
        outcomes,
        occupant.candidate.digest,
        before.candidate.digest if before is not None else None,
    )
    # That a bake showed nothing does not take back what the steps before it showed.
    verdicts = [
        v
        for s in states
        for v in s.verdicts
        if v.verdict == "fail" or s.canary is None or v.step < len(s.canary.steps)
    ]
    return ReleaseStory(
        release=release,
        title=recorded.title if recorded is not None else "",
        candidate=CandidateSummary.of(
            occupant.candidate,
            recipe=recorded.outcome.recipe if recorded is not None else Recipe.NONE,
        ),
        first=states[0].stable is None,
        gates=gates,
        scan_notes=_scan_notes(gates),
        evaluation=evaluation,
        benchmark=_rows(gates, "benchmark", benchmark_rows),
        load=load,
        stable_load=stable_load,
        answers=_keep_answers(workspace, evaluation),
        outcome=Outcome(last.outcome) if last is not None else None,
        phase=states[-1].phase,
        verdict=verdicts[-1].verdict if verdicts else None,
        reasons=(last.reason,) if last is not None else (),
        denylisted=state.is_denied(occupant.candidate.digest) is not None,
        approval=requested_approval(workspace, state, release),
        started_at=datetime.fromisoformat(commits[0].at),
        stages=recorded.outcome.stages if recorded is not None else (),
        transitions=rows,
        stable_slot=Slot.BASELINE if states[0].fresh_baseline else states[0].stable,
        canary_slot=states[0].free_slot,
        looks=tuple(
            look
            for step in steps
            for look in judge_looks(layout.looks(state.model, state.environment, step.began))
        ),
        traces=tuple(
            path
            for step in steps
            if (path := layout.trace(state.model, state.environment, step.began)).exists()
        ),
        bake=bake_of(workspace, states, rows),
    )


def _refused_story(
    workspace: Workspace, recorded: RecordedOutcome, outcomes: list[RecordedOutcome]
) -> ReleaseStory:
    outcome = recorded.outcome
    gates = outcome.gates.results
    evaluation = _rows(gates, "evaluation", evaluation_rows)
    load, stable_load = _load(workspace, outcomes, outcome.candidate.digest, outcome.compared_with)
    return ReleaseStory(
        release=f"{outcome.model}-{outcome.candidate.digest.short}",
        title=recorded.title,
        candidate=CandidateSummary.of(outcome.candidate, recipe=outcome.recipe),
        gates=gates,
        required_gates=outcome.gates.required,
        scan_notes=_scan_notes(gates),
        evaluation=evaluation,
        benchmark=_rows(gates, "benchmark", benchmark_rows),
        load=load,
        stable_load=stable_load,
        answers=_keep_answers(workspace, evaluation),
        reasons=outcome.gates.refusals,
        started_at=recorded.at,
        stages=outcome.stages,
    )


def _occupant(states: list[ReleaseState], release: str) -> Occupant:
    for state in states:
        for occupant in (state.a, state.b):
            if occupant is not None and occupant.release == release:
                return occupant
    raise LockgateError(f"release {release} is named by a commit but stands in no state")


def _gates(
    workspace: Workspace, occupant: Occupant, recorded: RecordedOutcome | None
) -> tuple[GateResult, ...]:
    """As attested; where the store does not have the evidence any more, as the workspace remembers them."""
    try:
        predicate = workspace.records.get_document(occupant.evidence)
        return GateReport.model_validate(predicate["report"]).results
    except (LockgateError, ValidationError, KeyError, TypeError) as error:
        logger.warning("evidence %s cannot be read: %s", occupant.evidence, error)
    return recorded.outcome.gates.results if recorded is not None else ()


def _rows(
    gates: Iterable[GateResult], name: str, read: Callable[[GateResult], Iterable[Row]]
) -> tuple[Row, ...]:
    return tuple(row for gate in gates if gate.gate == name for row in read(gate))


def _scan_notes(gates: Iterable[GateResult]) -> tuple[str, ...]:
    return tuple(
        reason
        for gate in gates
        if gate.gate == "scan"
        for reason in gate.reasons
        if "NOT SCANNED" in reason
    )
