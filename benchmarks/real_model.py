"""The evaluation gate on a real model: `python -m benchmarks.real_model score|agree|table …`.

`score` serves a model directory once and evaluates it, as often as asked; every evaluation is a file of evidence, so a run
that was cut off goes on where it stopped. `agree` takes the evaluations of two servers of the same model in pairs and judges
each against the other: an A/A test of the whole chain (engine, harness, gate). `table` holds models against a reference.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path

from lockgate import environments
from lockgate.adapters.evaluation import evaluate
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import EvaluationEvidence
from lockgate.domain.gates.base import Decision, GateResult
from lockgate.domain.gates.evaluation import evaluation_gate
from lockgate.domain.spec import EvaluationSpec, EvaluationTask, ServingSpec
from serving.ephemeral import serve

MARGINS = {
    "lockgate_numbers": ("exact_match,strip", 0.12),
    "lockgate_choice": ("acc,none", 0.10),
    "lockgate_words": ("exact_match,strip", 0.15),
    "lockgate_json": ("followed,none", 0.20),
    "lockgate_instructions": ("followed,none", 0.15),
    "lockgate_refusal": ("right,none", 0.20),
    "lockgate_long_context": ("exact_match,strip", 0.15),
}
"""Every task of the suite with its metric, and a margin that its items can show for a model of this size."""

SERVING = ServingSpec(
    served_model_name="measured",
    max_model_len=2048,
    max_num_seqs=16,
    dtype="bfloat16",
    args=("--enforce-eager",),
    env={"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"},
)


def spec_of(tasks: list[str], limit: int | None, concurrency: int = 4) -> EvaluationSpec:
    """These tasks of the suite with their margins."""
    return EvaluationSpec(
        tasks=tuple(
            EvaluationTask(name=name, metric=MARGINS[name][0], margin=MARGINS[name][1])
            for name in tasks
        ),
        limit=limit,
        concurrency=concurrency,
    )


def score(model: Path, spec: EvaluationSpec, out: Path, repeat: int = 1) -> None:
    """Serve `model` and evaluate it until `out` holds `repeat` evaluations (`0.json`, `1.json`, …)."""
    out.mkdir(parents=True, exist_ok=True)
    wanted = [out / f"{number}.json" for number in range(repeat)]
    missing = [path for path in wanted if not path.exists()]
    if not missing:
        return
    python = environments.environment_python("serving")
    started = time.monotonic()
    with serve(model, SERVING, python=python, log_path=out / "server.log") as endpoint:
        print(f"{out.name}: served after {time.monotonic() - started:.0f} s", flush=True)
        for path in missing:
            evidence = evaluate(
                endpoint.base_url,
                endpoint.model_name,
                spec,
                subject=Digest.of_bytes(str(model).encode()),
                log_dir=out / path.stem,
            )
            path.with_suffix(".part").write_text(evidence.model_dump_json())
            os.replace(path.with_suffix(".part"), path)
            scores = ", ".join(f"{t.task} {t.score:.3f}" for t in evidence.tasks)
            print(f"{out.name}/{path.stem}: {evidence.seconds:.0f} s, {scores}", flush=True)


def evaluations(directory: Path) -> list[EvaluationEvidence]:
    """What `score` left, in order."""
    paths = sorted(directory.glob("[0-9]*.json"), key=lambda path: int(path.stem))
    return [EvaluationEvidence.model_validate_json(path.read_text()) for path in paths]


def judge(candidate: EvaluationEvidence, stable: EvaluationEvidence) -> GateResult:
    """The gate over the tasks that the candidate was asked, with the margins of this module."""
    return evaluation_gate(spec_of([t.task for t in candidate.tasks], None), candidate, stable)


def agree(first: list[EvaluationEvidence], second: list[EvaluationEvidence]) -> str:
    """A/A: decisions of the gate over the pairs that are whole, and on how many items both answers scored the same."""
    decisions: Counter[Decision] = Counter()
    same = asked = 0
    for one, other in zip(first, second, strict=False):
        result = judge(one, other)
        decisions[result.decision] += 1
        for row in result.measurements:
            asked += row["items"]
            same += row["items"] - row["better"] - row["worse"]
    counts = ", ".join(f"{decisions[d]} {d}" for d in Decision)
    return f"{sum(decisions.values())} pairs: {counts}; {same} of {asked} items scored the same"


def rows(name: str, candidate: EvaluationEvidence, stable: EvaluationEvidence) -> list[str]:
    """Lines of a Markdown table: one a task."""
    result = judge(candidate, stable)
    return [
        f"| {name} | `{row['task']}` | {row['stable']:.3f} | {row['candidate']:.3f} "
        f"| {row['difference']:+.3f} ({row['lower']:+.3f} to {row['upper']:+.3f}) "
        f"| {row['margin']:.2f} | {row['decision']} |"
        for row in result.measurements
    ]


HEADER = (
    "| model | task | bf16 | score | difference | margin | gate |\n|---|---|---|---|---|---|---|"
)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    scoring = commands.add_parser("score")
    scoring.add_argument("model", type=Path)
    scoring.add_argument("out", type=Path)
    scoring.add_argument("--tasks", nargs="+", default=list(MARGINS), choices=list(MARGINS))
    scoring.add_argument("--limit", type=int)
    scoring.add_argument("--repeat", type=int, default=1)
    agreeing = commands.add_parser("agree")
    agreeing.add_argument("directories", nargs="+", type=Path, help="of servers, two by two")
    table = commands.add_parser("table")
    table.add_argument("reference", type=Path)
    table.add_argument("models", nargs="+", type=Path)
    chosen = parser.parse_args(arguments)
    if chosen.command == "score":
        score(chosen.model, spec_of(chosen.tasks, chosen.limit), chosen.out, chosen.repeat)
    elif chosen.command == "agree":
        pairs = chosen.directories
        first = [e for directory in pairs[0::2] for e in evaluations(directory)]
        second = [e for directory in pairs[1::2] for e in evaluations(directory)]
        print(agree(first, second))
    else:
        print(HEADER)
        (stable,) = evaluations(chosen.reference)[:1]
        for directory in chosen.models:
            for evidence in evaluations(directory)[:1]:
                print("\n".join(rows(directory.name, evidence, stable)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
