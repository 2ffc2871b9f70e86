"""How often the offline gates are wrong, by simulation: `python -m benchmarks.gate_calibration [--repetitions N] [--json]`.

Each row is a world whose truth is known, judged by the real gate again and again. Columns: share of `pass`, `fail` and
`insufficient_data`, and what is promised where a promise applies. False pass: a candidate exactly at the margin, at most
alpha. False alarm: a candidate within the margin fails, at most alpha. A/A: stable against itself, measured twice; what does
not pass is undecided for want of items, and the rows show how many are enough. Power: a planted damage is refused.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.benchmark_worlds import benchmark_worlds
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import EvaluationEvidence, ItemScore, TaskScore
from lockgate.domain.gates.base import Decision
from lockgate.domain.gates.evaluation import evaluation_gate
from lockgate.domain.spec import EvaluationSpec, EvaluationTask

NOWHERE = Digest.of_bytes(b"simulated")
Random = np.random.Generator
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """One row: what is true, and one draw from it, judged."""

    gate: str
    truth: str
    promise: str
    """`pass <= X` or `fail <= X`; both, joined by `, `; or empty where only the power is shown."""
    draw: Callable[[Random], Decision]


# --- evaluation -------------------------------------------------------------------------------------------------------


def _evidence(tasks: list[Scores], size: int | None = None) -> EvaluationEvidence:
    """`size` items in a row are about one document; None: every item stands alone."""
    return EvaluationEvidence(
        subject=NOWHERE,
        suite=NOWHERE,
        harness="simulated",
        tasks=tuple(
            TaskScore(
                task=f"task{t}",
                metric="m",
                score=float(scores.mean()),
                items=tuple(
                    ItemScore(
                        item=f"{k:04}", score=float(s), cluster=str(k // size) if size else None
                    )
                    for k, s in enumerate(scores)
                ),
            )
            for t, scores in enumerate(tasks)
        ),
        seconds=0,
    )


def _answers(
    random: Random, items: int, right: float, swapped: float, loss: float
) -> tuple[Scores, Scores]:
    """Right-or-wrong answers of candidate and stable: `swapped` of the items change each way, `loss` more are lost."""
    stable = random.random(items) < right
    drawn = random.random(items)
    candidate = np.where(stable, drawn >= (swapped + loss) / right, drawn < swapped / (1 - right))
    return candidate.astype(float), stable.astype(float)


def _by_document(
    random: Random,
    documents: int,
    size: int,
    right: float,
    swapped: float,
    loss: float,
    whole: bool,
) -> tuple[Scores, Scores]:
    """As `_answers`, but stable's right answers come by document, and with `whole` the candidate loses whole documents."""
    easy = np.repeat(random.beta(4 * right, 4 * (1 - right), documents), size)
    stable = random.random(documents * size) < easy
    unit = np.repeat(random.random(documents), size) if whole else random.random(documents * size)
    lost = (unit < loss / right) | (random.random(documents * size) < swapped / right)
    gained = random.random(documents * size) < swapped / (1 - right)
    return np.where(stable, ~lost, gained).astype(float), stable.astype(float)


def _graded(random: Random, items: int, spread: float, loss: float) -> tuple[Scores, Scores]:
    """Scores between 0 and 1 (overlap with a reference, say) with noise of their own."""
    base = random.beta(5, 2, items)
    noise = spread * random.standard_normal((2, items))
    return base + noise[0] - loss, base + noise[1]


def evaluation_worlds() -> Iterator[World]:
    def judged(
        draw: Callable[[Random, float], tuple[Scores, Scores]],
        margin: float,
        losses: list[float],
        size: int | None = None,
    ) -> Callable[[Random], Decision]:
        spec = EvaluationSpec(
            tasks=tuple(
                EvaluationTask(name=f"task{t}", metric="m", margin=margin)
                for t in range(len(losses))
            )
        )

        def once(random: Random) -> Decision:
            pairs = [draw(random, loss) for loss in losses]
            return evaluation_gate(
                spec, _evidence([c for c, _ in pairs], size), _evidence([s for _, s in pairs], size)
            ).decision

        return once

    for items, right, swapped in (
        (60, 0.9, 0.03), (160, 0.9, 0.0), (160, 0.9, 0.03), (160, 0.7, 0.1), (400, 0.85, 0.05), (400, 0.97, 0.01),
    ):  # fmt: skip

        def draw(
            random: Random,
            loss: float,
            items: int = items,
            right: float = right,
            swapped: float = swapped,
        ) -> tuple[Scores, Scores]:
            return _answers(random, items, right, swapped, loss)

        about = f"{items} items, stable right {right:.0%}, {2 * swapped:.0%} differ by chance"
        yield World(
            "evaluation",
            f"exactly at the margin 0.10; {about}",
            "pass <= 0.05, fail <= 0.05",
            judged(draw, 0.1, [0.1]),
        )
        yield World(
            "evaluation", f"A/A, margin 0.10; {about}", "fail <= 0.05", judged(draw, 0.1, [0.0])
        )
        yield World("evaluation", f"loses 0.20, margin 0.10; {about}", "", judged(draw, 0.1, [0.2]))

    def three(random: Random, loss: float) -> tuple[Scores, Scores]:
        return _answers(random, 200, 0.85, 0.03, loss)

    yield World("evaluation", "three tasks, one exactly at the margin 0.10, 200 items each", "pass <= 0.05, fail <= 0.05",
                judged(three, 0.1, [0.0, 0.0, 0.1]))  # fmt: skip
    yield World("evaluation", "three tasks, all exactly at the margin 0.10, 200 items each", "fail <= 0.05",
                judged(three, 0.1, [0.1, 0.1, 0.1]))  # fmt: skip
    yield World("evaluation", "A/A, three tasks, margin 0.10, 200 items each", "fail <= 0.05",
                judged(three, 0.1, [0.0, 0.0, 0.0]))  # fmt: skip

    for documents, size, right, swapped, whole in (
        (33, 3, 0.7, 0.02, True), (33, 3, 0.7, 0.02, False), (33, 3, 0.9, 0.0, True), (60, 4, 0.8, 0.03, True),
    ):  # fmt: skip

        def clustered(
            random: Random,
            loss: float,
            documents: int = documents,
            size: int = size,
            right: float = right,
            swapped: float = swapped,
            whole: bool = whole,
        ) -> tuple[Scores, Scores]:
            return _by_document(random, documents, size, right, swapped, loss, whole)

        how = "lost by whole documents" if whole else "lost one by one"
        about = f"{documents} documents of {size} items, stable right {right:.0%}, {2 * swapped:.0%} differ by chance"
        at = "pass <= 0.05, fail <= 0.05"
        yield World("evaluation", f"exactly at the margin 0.10, {how}; {about}", at,
                    judged(clustered, 0.1, [0.1], size))  # fmt: skip
        yield World("evaluation", f"A/A, margin 0.10; {about}", "fail <= 0.05",
                    judged(clustered, 0.1, [0.0], size))  # fmt: skip
        yield World("evaluation", f"loses 0.30, margin 0.10, {how}; {about}", "",
                    judged(clustered, 0.1, [0.3], size))  # fmt: skip

    def graded(random: Random, loss: float) -> tuple[Scores, Scores]:
        return _graded(random, 100, 0.1, loss)

    yield World("evaluation", "graded scores exactly at the margin 0.05, 100 items", "pass <= 0.05, fail <= 0.05",
                judged(graded, 0.05, [0.05]))  # fmt: skip
    yield World("evaluation", "A/A, graded scores, margin 0.05, 100 items", "fail <= 0.05",
                judged(graded, 0.05, [0.0]))  # fmt: skip


# --- table ------------------------------------------------------------------------------------------------------------


def _kept(promise: str, shares: dict[Decision, float], repetitions: int) -> str:
    """`yes`, `no`, or `noise` where a share is above its promise by no more than three standard errors."""
    said = "yes" if promise else ""
    for part in promise.split(", ") if promise else ():
        what, limit_text = part.split(" <= ")
        limit, share = float(limit_text), shares[Decision(what)]
        if share > limit + 3 * math.sqrt(limit * (1 - limit) / repetitions):
            return "no"
        if share > limit:
            said = "noise"
    return said


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--gate", choices=("evaluation", "benchmark"), help="this one alone")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    if not chosen.json:
        print(
            "| gate | truth | pass | fail | undecided | promised | kept |\n|---|---|---|---|---|---|---|"
        )
    broken = 0
    worlds = [*evaluation_worlds(), *(World("benchmark", *world) for world in benchmark_worlds())]
    for world in worlds:
        if chosen.gate not in (None, world.gate):
            continue
        random = np.random.default_rng(chosen.seed)
        counts = Counter(world.draw(random) for _ in range(chosen.repetitions))
        shares = {d: counts[d] / chosen.repetitions for d in Decision}
        kept = _kept(world.promise, shares, chosen.repetitions)
        broken += kept == "no"
        if chosen.json:
            row = {"gate": world.gate, "truth": world.truth, "promise": world.promise, "kept": kept}
            print(json.dumps({**row, **{str(d): s for d, s in shares.items()}}), flush=True)
        else:
            numbers = " | ".join(f"{shares[d]:.3f}" for d in Decision)
            print(
                f"| {world.gate} | {world.truth} | {numbers} | {world.promise} | {kept} |",
                flush=True,
            )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
