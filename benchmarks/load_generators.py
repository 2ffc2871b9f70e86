"""Our load generator, plain `vllm bench serve` and guidellm on the same server in the same run, in rotating order.

    python -m benchmarks.load_generators MODEL_DIR --guidellm PATH_TO_GUIDELLM --out FILE [--rounds N]

guidellm stands in an environment of its own (`pip install torch==2.13.0`, then `guidellm==0.8.1`); without `--guidellm` it
is left out. Every measurement is a line of JSON in FILE, to which later calls add; at the end all of FILE is summed up: each
generator's mean over the rounds, the spread of its rounds, and how far it is from plain `vllm bench serve`. Closed loops of
the same lengths: random prompts of 64 tokens, answers of 24 that run to their full length.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from lockgate import environments
from lockgate.adapters.benchmark import benchmark
from lockgate.domain.digests import Digest
from lockgate.domain.spec import BenchmarkProfile, BenchmarkSpec, ServingSpec
from serving.ephemeral import Endpoint, serve
from serving.local.cpu_pool import CpuPool

PROMPT, ANSWER, SECONDS = 64, 24, 240
LOADS = {1: 12, 4: 24}
"""Requests at each concurrency."""
METRICS = ("ttft p50 (ms)", "tpot p50 (ms)", "e2e mean (ms)", "output tokens/s")
SERVING = ServingSpec(
    served_model_name="smol",
    max_model_len=1024,
    dtype="bfloat16",
    args=("--enforce-eager",),
    env={"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"},
)
PLAIN = (
    "from vllm.benchmarks.serve import add_cli_args, main; "
    "from vllm.utils.argparse_utils import FlexibleArgumentParser as P; "
    "p = P(); add_cli_args(p); main(p.parse_args())"
)
Figures = tuple[float, float, float, float]


def ours(server: Endpoint, model: Path, number: int, scratch: Path) -> dict[int, Figures]:
    # Named by the round: its prompts are not in the server's prefix cache.
    profiles = tuple(
        BenchmarkProfile(
            name=f"c{c}-{number}",
            requests=n,
            prompt_tokens=PROMPT,
            output_tokens=ANSWER,
            concurrency=c,
        )
        for c, n in LOADS.items()
    )
    found = benchmark(
        server,
        BenchmarkSpec(profiles=profiles),
        subject=Digest.of_bytes(b"load generators"),
        fingerprint=server.fingerprint,
        serving_python=environments.environment_python("serving"),
        model_dir=model,
        log_dir=scratch,
        timeout=SECONDS,
    )
    return {
        c: (
            result.ttft_ms["p50"],
            result.tpot_ms["p50"],
            result.e2e_ms["mean"],
            result.output_tokens_per_second,
        )
        for c, result in zip(LOADS, found.profiles, strict=True)
    }


def plain(server: Endpoint, model: Path, number: int, scratch: Path) -> dict[int, Figures]:
    figures = {}
    for c, n in LOADS.items():
        _run(
            [str(environments.environment_python("serving")), "-c", PLAIN,
             "--backend", "openai", "--endpoint", "/v1/completions", "--base-url", server.base_url,
             "--model", server.model_name, "--tokenizer", str(model), "--dataset-name", "random",
             "--random-input-len", str(PROMPT), "--random-output-len", str(ANSWER), "--ignore-eos",
             "--num-prompts", str(n), "--max-concurrency", str(c), "--num-warmups", str(c),
             "--seed", str(1000 * number + c), "--temperature", "0", "--disable-tqdm",
             "--percentile-metrics", "ttft,tpot,e2el", "--save-result",
             "--result-dir", str(scratch), "--result-filename", "plain.json"],
            scratch / "plain.log",
        )  # fmt: skip
        raw = json.loads((scratch / "plain.json").read_text())
        names = ("median_ttft_ms", "median_tpot_ms", "mean_e2el_ms", "output_throughput")
        a, b, e, t = (float(raw[name]) for name in names)
        figures[c] = (a, b, e, t)
    return figures


def guidellm(
    program: Path,
) -> Callable[[Endpoint, Path, int, Path], dict[int, Figures]]:
    def run(server: Endpoint, model: Path, number: int, scratch: Path) -> dict[int, Figures]:
        figures = {}
        for c, n in LOADS.items():
            out = scratch / "guidellm.json"
            _run(
                [str(program), "run", "--disable-console",
                 "--backend", f"kind=openai_http,target={server.base_url},model={server.model_name},"
                 "request_format=/v1/completions",
                 "--profile", f"kind=concurrent,streams={c}",
                 "--constraint", f"kind=max_requests,count={n}",
                 "--tokenizer", f"kind=huggingface_auto,model={model}",
                 "--data", f"kind=synthetic_text,prompt_tokens={PROMPT},output_tokens={ANSWER}",
                 "--seed", f"kind=static,value={1000 * number + c}",
                 "--output", f"kind=json,path={out}"],
                scratch / "guidellm.log",
            )  # fmt: skip
            metrics = json.loads(out.read_text())["benchmarks"][0]["metrics"]
            # guidellm's "inter-token latency" of a request is the others' time per output token.
            figures[c] = (
                metrics["time_to_first_token_ms"]["successful"]["median"],
                metrics["inter_token_latency_ms"]["successful"]["median"],
                1000 * metrics["request_latency"]["successful"]["mean"],
                metrics["output_tokens_per_second"]["successful"]["mean"],
            )
        return figures

    return run


def _run(command: list[str], log: Path) -> None:
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
    }  # fmt: skip
    with log.open("ab") as sink:
        subprocess.run(
            command,
            check=True,
            timeout=SECONDS,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def summed_up(out: Path) -> None:
    rounds: dict[tuple[int, str], list[Figures]] = defaultdict(list)
    for line in out.read_text().splitlines():
        row = json.loads(line)
        rounds[row["concurrency"], row["generator"]].append(row["figures"])
    print("| concurrency | generator | rounds | " + " | ".join(METRICS) + " |")
    print("|---" * (len(METRICS) + 3) + "|")
    for (c, name), figures in sorted(rounds.items()):
        cells = []
        for k in range(len(METRICS)):
            values = [f[k] for f in figures]
            mean = statistics.mean(values)
            spread = 100 * statistics.stdev(values) / mean if len(values) > 1 else float("nan")
            other = statistics.mean(f[k] for f in rounds[c, "vllm bench serve"])
            apart = "" if name == "vllm bench serve" else f", {100 * (mean / other - 1):+.1f}%"
            cells.append(f"{mean:.1f} (±{spread:.1f}%{apart})")
        print(f"| {c} | {name} | {len(figures)} | " + " | ".join(cells) + " |")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--guidellm", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    generators = {"lockgate": ours, "vllm bench serve": plain}
    if chosen.guidellm is not None:
        generators["guidellm"] = guidellm(chosen.guidellm.absolute())
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    done = len(chosen.out.read_text().splitlines()) if chosen.out.exists() else 0
    first = done // (len(LOADS) * len(generators))
    with (
        tempfile.TemporaryDirectory() as scratch,
        serve(
            chosen.model, SERVING, python=environments.environment_python("serving"),
            log_path=chosen.out.with_suffix(".server.log"), cpu_pool=CpuPool(),
        ) as server,
        chosen.out.open("a") as lines,
    ):  # fmt: skip
        for number in range(first, first + chosen.rounds):
            names = list(generators)
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                try:
                    figures = generators[name](server, chosen.model, number, Path(scratch))
                except subprocess.SubprocessError as error:
                    log = Path(scratch) / f"{name.split()[-1]}.log"
                    tail = log.read_text()[-3000:] if log.exists() else ""
                    print(f"{name}: {error}\n{tail}", file=sys.stderr)
                    return 1
                for c, found in figures.items():
                    row = {
                        "round": number, "generator": name, "concurrency": c, "figures": found,
                    }  # fmt: skip
                    lines.write(json.dumps(row) + "\n")
                    lines.flush()
    summed_up(chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
