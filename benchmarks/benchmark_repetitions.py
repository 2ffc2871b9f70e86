"""The benchmark gate on a real model against itself: `python -m benchmarks.benchmark_repetitions MODEL_DIR --out FILE`.

Two servers of the same weights share one lease of cores and are put under load in turn, again and again, as a release does;
`--candidate` puts another model in the first one's place. Every repetition is a line of JSON in FILE, to which later calls add. Without
MODEL_DIR the lines of FILE are summed up.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np

from lockgate import environments
from lockgate.adapters.benchmark import Subject, compare
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import BenchmarkComparison, BenchmarkEvidence
from lockgate.domain.gates.benchmark import benchmark_gate
from lockgate.domain.spec import BenchmarkProfile, BenchmarkSpec, ServingSpec
from serving.ephemeral import serve
from serving.local.cpu_pool import CpuPool, SharedCores

MARGINS = (0.15, 0.3, 1.5)
BLOCKS = 8


def spec(number: int, margin: float = 0.15) -> BenchmarkSpec:
    # Named by its number: no repetition asks what an earlier one left in a server's prefix cache.
    profile = BenchmarkProfile(
        name=f"repetition-{number}", requests=BLOCKS, prompt_tokens=32, output_tokens=16
    )
    return BenchmarkSpec(profiles=(profile,), margin=margin, blocks=BLOCKS, max_ttft_p50_ms=60_000)


def serving(name: str) -> ServingSpec:
    return ServingSpec(
        served_model_name=name,
        max_model_len=1024,
        dtype="bfloat16",
        args=("--enforce-eager",),
        env={"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"},
    )


def measure(model: Path, candidate: Path, first: int, seconds: float, out: Path) -> None:
    """Repetitions from number `first` on until `seconds` are over."""
    python = environments.environment_python("serving")
    logs = out.parent / "logs"
    ends = time.monotonic() + seconds
    with CpuPool().acquire(1) as lease:
        cores = SharedCores(lease)
        with (
            serve(candidate, serving("a"), python=python, log_path=logs / "a.log",
                  cpu_pool=cores) as mine,
            serve(model, serving("b"), python=python, log_path=logs / "b.log",
                  cpu_pool=cores) as theirs,
            out.open("a") as lines,
        ):  # fmt: skip
            number, longest = first, 0.0
            while time.monotonic() + longest < ends:
                began = time.monotonic()
                digests = [Digest.of_bytes(f"{side} {number}".encode()) for side in "ab"]
                measured = compare(
                    Subject(digests[0], mine, mine.fingerprint),
                    Subject(digests[1], theirs, theirs.fingerprint),
                    spec(number), serving_python=python, model_dir=model, log_dir=logs / "load",
                )  # fmt: skip
                longest = max(longest, time.monotonic() - began)
                row = {
                    "number": number,
                    "seconds": round(time.monotonic() - began, 1),
                    "comparison": measured.comparison.to_data(),
                    "candidate": measured.candidate.to_data(),
                }
                lines.write(json.dumps(row) + "\n")
                lines.flush()
                number += 1


def summed_up(out: Path) -> None:
    """What the gate says of each repetition at several margins, and how large the noise is."""
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    print(f"{len(rows)} repetitions, {sum(r['seconds'] for r in rows) / len(rows):.1f} s each")
    comparisons = [BenchmarkComparison.model_validate(row["comparison"]) for row in rows]
    for margin in MARGINS:
        decisions = Counter(
            str(
                benchmark_gate(
                    spec(row["number"], margin),
                    BenchmarkEvidence.model_validate(row["candidate"]),
                    None,
                    comparison,
                ).decision
            )
            for row, comparison in zip(rows, comparisons, strict=True)
        )
        print(f"margin {margin}: {dict(decisions)}")
    for metric in ("ttft", "tpot", "e2e"):
        ratios = np.array(
            [
                [getattr(p.candidate, metric) / getattr(p.stable, metric) for p in c.pairs]
                for c in comparisons
            ]
        )
        stable = np.array([[getattr(p.stable, metric) for p in c.pairs] for c in comparisons])
        print(
            f"{metric}: median ratio {np.median(ratios):.3f}; a pair's logarithm spreads by "
            f"{np.log(ratios).std(axis=1, ddof=1).mean():.3f} within a repetition; medians of repetitions "
            f"{np.median(ratios, axis=1).min():.3f} to {np.median(ratios, axis=1).max():.3f}; stable alone "
            f"{np.median(stable, axis=1).min():.1f} to {np.median(stable, axis=1).max():.1f} ms"
        )


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--candidate", type=Path, help="another model's directory: no longer A/A")
    parser.add_argument("--first", type=int, default=0, help="number of the first repetition")
    parser.add_argument("--seconds", type=float, default=400.0)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    if chosen.model is not None:
        chosen.out.parent.mkdir(parents=True, exist_ok=True)
        candidate = chosen.candidate or chosen.model
        measure(chosen.model, candidate, chosen.first, chosen.seconds, chosen.out)
    summed_up(chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
