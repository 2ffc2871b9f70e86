"""The evaluation gate over literal scores."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lockgate.domain.digests import Digest
from lockgate.domain.evidence import EvaluationEvidence, ItemScore, TaskScore
from lockgate.domain.gates.base import Decision
from lockgate.domain.gates.evaluation import evaluation_gate
from lockgate.domain.paired import Pairs
from lockgate.domain.spec import EvaluationSpec, EvaluationTask

SUITE = Digest.of_bytes(b"suite")


def spec(*, margin: float = 0.1, floor: float | None = 0.5, tasks: int = 1) -> EvaluationSpec:
    return EvaluationSpec(
        tasks=tuple(
            EvaluationTask(name=f"task{k}", metric="acc,none", margin=margin, floor=floor)
            for k in range(tasks)
        )
    )


def task_score(scores: list[float], task: str = "task0") -> TaskScore:
    items = tuple(ItemScore(item=f"q/{k}", score=score) for k, score in enumerate(scores))
    return TaskScore(task=task, metric="acc,none", score=sum(scores) / len(scores), items=items)


def evidence(
    *tasks: TaskScore, suite: Digest = SUITE, harness: str = "lm-eval 0"
) -> EvaluationEvidence:
    return EvaluationEvidence(
        subject=Digest.of_bytes(b"candidate"), suite=suite, harness=harness, tasks=tasks, seconds=1
    )


def answers(right: int, wrong: int) -> list[float]:
    return [1.0] * right + [0.0] * wrong


GOOD = evidence(task_score(answers(180, 20)))


def test_a_candidate_that_answers_like_stable_passes() -> None:
    result = evaluation_gate(spec(), GOOD, GOOD)
    assert result.decision is Decision.PASS
    assert result.measurements[0]["lower"] > -0.1


def test_a_candidate_worse_than_the_margin_fails_with_both_scores_named() -> None:
    result = evaluation_gate(spec(), evidence(task_score(answers(130, 70))), GOOD)
    assert result.decision is Decision.FAIL
    assert "0.650 against stable's 0.900" in result.reasons[0]


def test_few_items_do_not_decide_and_the_result_says_how_many_would() -> None:
    few = evidence(task_score([1.0, 0.0] * 15))
    reference = evidence(task_score([1.0, 0.0, 0.0, 1.0, 1.0] * 6))
    result = evaluation_gate(spec(margin=0.05, floor=0.1), few, reference)
    assert result.decision is Decision.INSUFFICIENT_DATA
    assert result.measurements[0]["items_needed"] > 30


def test_a_handful_of_perfect_answers_never_passes() -> None:
    tiny = evidence(task_score(answers(5, 0)))
    assert evaluation_gate(spec(), tiny, tiny).decision is Decision.INSUFFICIENT_DATA
    assert evaluation_gate(spec(), tiny, None).decision is Decision.INSUFFICIENT_DATA


def test_a_first_release_is_judged_by_its_floors() -> None:
    assert evaluation_gate(spec(floor=0.85), GOOD, None).decision is Decision.PASS
    assert evaluation_gate(spec(floor=0.95), GOOD, None).decision is Decision.FAIL


def test_a_first_release_without_a_floor_does_not_pass() -> None:
    result = evaluation_gate(spec(floor=None), GOOD, None)
    assert result.decision is Decision.INSUFFICIENT_DATA
    assert "without a floor" in result.reasons[0]


def test_a_missed_floor_fails_even_where_stable_is_no_better() -> None:
    assert evaluation_gate(spec(floor=0.95), GOOD, GOOD).decision is Decision.FAIL


def test_scores_of_another_suite_or_harness_are_not_compared() -> None:
    for other in (
        evidence(task_score(answers(180, 20)), suite=Digest.of_bytes(b"other")),
        evidence(task_score(answers(180, 20)), harness="lm-eval 1"),
    ):
        assert evaluation_gate(spec(), GOOD, other).decision is Decision.INSUFFICIENT_DATA


def test_what_was_not_evaluated_does_not_pass() -> None:
    assert evaluation_gate(spec(), None, GOOD).decision is Decision.FAIL
    two = spec(tasks=2)
    both = evidence(task_score(answers(180, 20)), task_score(answers(180, 20), "task1"))
    missing = evaluation_gate(two, GOOD, both)
    assert missing.decision is Decision.FAIL
    assert "task1" in missing.reasons[0]
    assert evaluation_gate(two, both, GOOD).decision is Decision.INSUFFICIENT_DATA


def test_one_bad_task_refuses_and_is_named_first() -> None:
    candidate = evidence(task_score(answers(190, 10)), task_score(answers(120, 80), "task1"))
    stable = evidence(task_score(answers(180, 20)), task_score(answers(180, 20), "task1"))
    result = evaluation_gate(spec(tasks=2), candidate, stable)
    assert result.decision is Decision.FAIL
    assert result.reasons[0].startswith("task1")


def test_only_items_that_both_answered_are_compared() -> None:
    longer = evidence(task_score(answers(180, 20) + [0.0] * 100))
    result = evaluation_gate(spec(floor=None), longer, GOOD)
    assert result.decision is Decision.PASS
    assert result.measurements[0]["items"] == 200


def test_graded_scores_that_agree_everywhere_still_have_an_interval_of_some_width() -> None:
    scores = [0.25, 0.5, 0.75] * 20
    pairs = Pairs.of(*({str(k): s for k, s in enumerate(scores)},) * 2)
    assert -0.1 < pairs.lower(0.05) < 0 < pairs.upper(0.05) < 0.1


def by_document(scores: list[float], size: int) -> TaskScore:
    """Items in order, `size` to a document."""
    items = tuple(
        ItemScore(item=f"q/{k}", score=score, cluster=f"d/{k // size}")
        for k, score in enumerate(scores)
    )
    return TaskScore(task="task0", metric="acc,none", score=sum(scores) / len(scores), items=items)


def test_answers_that_rise_and_fall_by_document_are_worth_fewer_items() -> None:
    """Three documents lost whole, or as many answers spread over twelve documents: the same score, not the same proof."""
    stable = [1.0] * 160
    whole = [0.0] * 12 + [1.0] * 148
    spread = [0.0 if k % 4 == 0 and k < 48 else 1.0 for k in range(160)]
    widths = []
    for lost in (whole, spread):
        result = evaluation_gate(
            spec(margin=0.12), evidence(by_document(lost, 4)), evidence(by_document(stable, 4))
        )
        (row,) = result.measurements
        assert (row["items"], row["clusters"]) == (160, 40)
        widths.append(row["difference"] - row["lower"])
    assert widths[0] > 1.3 * widths[1]
    alone = evaluation_gate(
        spec(margin=0.12), evidence(task_score(whole)), evidence(task_score(stable))
    )
    assert widths[1] > alone.measurements[0]["difference"] - alone.measurements[0]["lower"]
    few = evidence(by_document([1.0] * 160, 10))
    assert evaluation_gate(spec(), few, few).decision is Decision.INSUFFICIENT_DATA


def test_documents_of_one_item_each_change_nothing() -> None:
    mine, theirs = answers(150, 50), answers(180, 20)
    rows = [
        evaluation_gate(spec(), evidence(make(mine)), evidence(make(theirs))).measurements
        for make in (task_score, lambda scores: by_document(scores, 1))
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize("graded", [False, True])
def test_a_clustered_candidate_exactly_at_the_margin_seldom_passes(graded: bool) -> None:
    """Answers are lost in whole documents: counted one by one, far more than alpha (0.05) would pass."""
    random = np.random.default_rng(2)
    margin, documents, size, alpha = 0.1, 60, 4, 0.05
    passed = naive = 0
    for _ in range(400):
        number = np.repeat(np.arange(documents), size)
        stable = (random.random(documents * size) < 0.8).astype(float)
        hit = np.repeat(random.random(documents) < margin / 0.8, size)
        candidate = np.where(hit, 0.0, stable)
        if graded:
            candidate, stable = candidate / 2 + 0.25, stable / 2 + 0.25
        bound = margin / 2 if graded else margin
        passed += Pairs(candidate, stable, number).lower(alpha) > -bound
        naive += Pairs(candidate, stable).lower(alpha) > -bound
    assert naive / 400 > 0.09
    assert passed / 400 < alpha + 3 * math.sqrt(alpha * (1 - alpha) / 400)


def test_a_score_that_is_not_a_number_fails() -> None:
    items = tuple(ItemScore(item=str(k), score=1.0) for k in range(30))
    broken = ItemScore.model_construct(item="x", score=math.nan)
    bad = TaskScore.model_construct(
        task="task0", metric="acc,none", score=math.nan, items=(*items, broken)
    )
    candidate = EvaluationEvidence.model_construct(
        subject=GOOD.subject, suite=SUITE, harness="lm-eval 0", tasks=(bad,), seconds=1.0
    )
    assert evaluation_gate(spec(), candidate, GOOD).decision is Decision.FAIL


@pytest.mark.parametrize(("right", "swapped"), [(0.9, 0.04), (0.7, 0.15), (0.97, 0.01)])
def test_a_candidate_exactly_at_the_margin_seldom_passes(right: float, swapped: float) -> None:
    """The gate's promise, simulated: at most alpha (0.05), give or take the noise of 500 repetitions."""
    random = np.random.default_rng(1)
    margin, items, alpha = 0.1, 200, 0.05
    passed = 0
    for _ in range(500):
        stable = random.random(items) < right
        drawn = random.random(items)
        lost = (swapped + margin) / right
        gained = swapped / (1 - right)
        candidate = np.where(stable, drawn >= lost, drawn < gained)
        pairs = Pairs(candidate.astype(float), stable.astype(float))
        passed += pairs.lower(alpha) > -margin
    assert passed / 500 < alpha + 3 * math.sqrt(alpha * (1 - alpha) / 500)
