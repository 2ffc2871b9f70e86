"""The evaluation gate: is the candidate, item by item, no worse than stable by more than the margins?

Every task is a non-inferiority test on the items that both answered. The candidate passes if the lower bound of its
difference lies above minus the margin in *every* task: an intersection-union test, in which each task may use all of alpha
and the chance that a candidate which is worse than a margin anywhere passes is still at most alpha. It fails if the upper
bound lies below minus the margin in *any* task, at alpha shared out among the tasks (Bonferroni). In between the items are
too few, and the result says how many would decide.
"""

from __future__ import annotations

import math
from typing import Any

from lockgate.domain.evidence import EvaluationEvidence, TaskScore
from lockgate.domain.gates.base import Decision, GateResult
from lockgate.domain.paired import FEWEST_ITEMS, Pairs
from lockgate.domain.spec import EvaluationSpec, EvaluationTask

GATE = "evaluation"


def evaluation_gate(
    spec: EvaluationSpec,
    candidate: EvaluationEvidence | None,
    stable: EvaluationEvidence | None,
) -> GateResult:
    """Judge `candidate` against `stable`, or against the floors alone where there is no stable (a first release).

    A first release needs a floor for every task. Evidence over another suite or by another harness is not compared.
    """
    if candidate is None:
        return _result([(Decision.FAIL, "the candidate was not evaluated", None)])
    if stable is not None and (mismatch := _incomparable(candidate, stable)):
        return _result([(Decision.INSUFFICIENT_DATA, mismatch, None)])
    return _result([_judge(task, spec, candidate, stable) for task in spec.tasks])


_Judged = tuple[Decision, str, dict[str, Any] | None]


def _incomparable(candidate: EvaluationEvidence, stable: EvaluationEvidence) -> str | None:
    if candidate.suite != stable.suite:
        return (
            f"candidate and stable answered different suites ({candidate.suite.short}, {stable.suite.short}): "
            "evaluate stable on the present one"
        )
    if candidate.harness != stable.harness:
        return (
            f"candidate and stable were scored by different harnesses ({candidate.harness}, {stable.harness}): "
            "evaluate stable with the present one"
        )
    return None


def _judge(
    task: EvaluationTask,
    spec: EvaluationSpec,
    candidate: EvaluationEvidence,
    stable: EvaluationEvidence | None,
) -> _Judged:
    own = _score_of(candidate, task)
    if own is None:
        return Decision.FAIL, f"{task.name}: the candidate has no scores for {task.metric}", None
    row: dict[str, Any] = {
        "task": task.name,
        "metric": task.metric,
        "candidate": own.score,
        "margin": task.margin,
        "floor": task.floor,
        "items": len(own.items),
    }
    if candidate.samples is not None:
        row["samples"] = str(candidate.samples)
    if not math.isfinite(own.score) or not all(math.isfinite(i.score) for i in own.items):
        return Decision.FAIL, f"{task.name}: a score is not a number", row
    decision, text, row = _compare(task, spec, own, stable, row)
    if task.floor is not None and own.score < task.floor:
        floor = f"{task.name}: {own.score:.3f} is below the floor {task.floor:.3f}"
        return Decision.FAIL, f"{floor}; {text}", row
    return decision, text, row


def _compare(
    task: EvaluationTask,
    spec: EvaluationSpec,
    own: TaskScore,
    stable: EvaluationEvidence | None,
    row: dict[str, Any],
) -> tuple[Decision, str, dict[str, Any]]:
    if stable is None:
        return _judge_first(task, own, row)
    reference = _score_of(stable, task)
    if reference is None:
        text = f"{task.name}: stable has no scores for {task.metric}: evaluate it on this task"
        return Decision.INSUFFICIENT_DATA, text, row
    pairs = Pairs.of(
        {i.item: i.score for i in own.items},
        {i.item: i.score for i in reference.items},
        {i.item: i.cluster for i in own.items if i.cluster is not None},
    )
    return _judge_pairs(task, spec, pairs, row)


def _judge_first(
    task: EvaluationTask, own: TaskScore, row: dict[str, Any]
) -> tuple[Decision, str, dict[str, Any]]:
    if task.floor is None:
        text = f"{task.name}: first release without a floor: there is nothing to compare with"
        return Decision.INSUFFICIENT_DATA, text, row
    if len(own.items) < FEWEST_ITEMS:
        text = f"{task.name}: {len(own.items)} items are too few (at least {FEWEST_ITEMS})"
        return Decision.INSUFFICIENT_DATA, text, {**row, "items_needed": FEWEST_ITEMS}
    text = f"{task.name}: {own.score:.3f}, floor {task.floor:.3f} (first release)"
    return Decision.PASS, text, row


def _judge_pairs(
    task: EvaluationTask, spec: EvaluationSpec, pairs: Pairs, row: dict[str, Any]
) -> tuple[Decision, str, dict[str, Any]]:
    if pairs.items < FEWEST_ITEMS:
        text = f"{task.name}: {pairs.items} items in common are too few (at least {FEWEST_ITEMS})"
        return Decision.INSUFFICIENT_DATA, text, {**row, "items_needed": FEWEST_ITEMS}
    if pairs.units < FEWEST_ITEMS:
        text = (
            f"{task.name}: {pairs.units} documents in common are too few (at least {FEWEST_ITEMS})"
        )
        enough = math.ceil(FEWEST_ITEMS * pairs.items / pairs.units)
        return Decision.INSUFFICIENT_DATA, text, {**row, "items_needed": enough}
    lower = pairs.lower(spec.alpha)
    upper = pairs.upper(spec.alpha / len(spec.tasks))
    row = {
        **row,
        "candidate": float(pairs.candidate.mean()),
        "stable": float(pairs.stable.mean()),
        "difference": pairs.difference,
        "lower": lower,
        "upper": upper,
        "items": pairs.items,
        "better": pairs.better,
        "worse": pairs.worse,
        "p_same": pairs.sign_test(),
    }
    counted = f"{pairs.items} items"
    if pairs.clustered:
        row |= {"clusters": pairs.units, "design_effect": pairs.design_effect}
        counted += f" over {pairs.units} documents"
    said = (
        f"{task.name}: {row['candidate']:.3f} against stable's {row['stable']:.3f} on {counted}, "
        f"difference {pairs.difference:+.3f} ({lower:+.3f} to {upper:+.3f}), margin {task.margin:.3f}"
    )
    if lower > -task.margin:
        return Decision.PASS, f"{said}: no worse than the margin", row
    if upper < -task.margin:
        return Decision.FAIL, f"{said}: worse than the margin", row
    needed = pairs.items_to_decide(task.margin, spec.alpha)
    advice = "no number of items would decide" if needed is None else f"about {needed} items would"
    text = f"{said}: undecided; if both score like this, {advice}"
    return Decision.INSUFFICIENT_DATA, text, {**row, "items_needed": needed}


def _score_of(evidence: EvaluationEvidence, task: EvaluationTask) -> TaskScore | None:
    for scored in evidence.tasks:
        if scored.task == task.name and scored.metric == task.metric and scored.items:
            return scored
    return None


def _result(judged: list[_Judged]) -> GateResult:
    decisions = [decision for decision, _, _ in judged]
    if Decision.FAIL in decisions:
        decision = Decision.FAIL
    elif Decision.INSUFFICIENT_DATA in decisions:
        decision = Decision.INSUFFICIENT_DATA
    else:
        decision = Decision.PASS
    rows = tuple({**row, "decision": str(d)} for d, _, row in judged if row is not None)
    # What keeps the candidate out comes first.
    order = [Decision.FAIL, Decision.INSUFFICIENT_DATA, Decision.PASS]
    reasons = tuple(text for _, text, _ in sorted(judged, key=lambda j: order.index(j[0])))
    return GateResult(gate=GATE, decision=decision, reasons=reasons, measurements=rows)
