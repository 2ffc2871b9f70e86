"""Benchmarks: `vllm bench serve` as the load generator, against a served model.

It runs in the serving environment (it needs the model's tokenizer) and as a process of its own. Prompts are random tokens
of fixed length, the same for every candidate; answers run to their full length, so that every request is the same work.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from lockgate.domain.digests import Digest
from lockgate.domain.evidence import BenchmarkEvidence, Fingerprint, ProfileResult
from lockgate.domain.spec import BenchmarkProfile, BenchmarkSpec
from lockgate.errors import BenchmarkError
from lockgate.supervision import log_tail, run_program

SEED = 20_240

_METRICS = {"ttft_ms": "ttft", "tpot_ms": "tpot", "itl_ms": "itl", "e2e_ms": "e2el"}
_WORKER = Path(__file__).with_name("_vllm_bench_worker.py")

Report = Callable[[float, float | None], None]


class Served(Protocol):
    """A served model: `base_url` without `/v1`, and the name it goes by."""

    @property
    def base_url(self) -> str: ...

    @property
    def model_name(self) -> str: ...


def benchmark(
    endpoint: Served,
    spec: BenchmarkSpec,
    *,
    subject: Digest,
    fingerprint: Fingerprint,
    serving_python: Path,
    model_dir: Path,
    log_dir: Path,
    progress: Report | None = None,
    timeout: float = 1800.0,
) -> BenchmarkEvidence:
    """Put `endpoint` under every load of `spec.profiles`, one after the other; `timeout` seconds for each.

    `model_dir` holds the tokenizer. Failed requests are counted, not raised. `progress(done, total)` counts profiles. Raises
    BenchmarkError if the generator crashed, hung, or reported something incomplete or not a number.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    results = []
    for done, profile in enumerate(spec.profiles):
        if progress is not None:
            progress(float(done), float(len(spec.profiles)))
        log = log_dir / f"benchmark-{profile.name}.log"
        raw = _generate(endpoint, profile, serving_python, model_dir, log, timeout)
        (log_dir / f"benchmark-{profile.name}.json").write_text(json.dumps(raw))
        results.append(_profile_result(profile, raw, log))
    if progress is not None:
        progress(float(len(spec.profiles)), float(len(spec.profiles)))
    return BenchmarkEvidence(
        subject=subject,
        generator=f"vllm bench serve ({fingerprint.engine} {fingerprint.engine_version})",
        fingerprint=fingerprint,
        profiles=tuple(results),
        seconds=round(time.monotonic() - started, 3),
    )


def _generate(
    endpoint: Served,
    profile: BenchmarkProfile,
    serving_python: Path,
    model_dir: Path,
    log: Path,
    timeout: float,
) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="lockgate-benchmark-") as scratch:
        command = [
            # -P: this folder's module names must not shadow those that vLLM imports.
            *(str(serving_python), "-P", str(_WORKER)),
            *("--backend", "openai", "--endpoint", "/v1/completions"),
            *("--base-url", endpoint.base_url.rstrip("/").removesuffix("/v1")),
            *("--model", endpoint.model_name, "--tokenizer", str(model_dir)),
            *("--dataset-name", "random", "--seed", str(SEED)),
            *("--random-input-len", str(profile.prompt_tokens)),
            *("--random-output-len", str(profile.output_tokens), "--ignore-eos"),
            *("--num-prompts", str(profile.requests)),
            *("--max-concurrency", str(profile.concurrency)),
            *("--num-warmups", str(profile.concurrency), "--temperature", "0"),
            *("--percentile-metrics", ",".join(_METRICS.values())),
            *("--metric-percentiles", "50,90,99", "--disable-tqdm"),
            *("--save-result", "--save-detailed"),
            *("--result-dir", scratch, "--result-filename", "result.json"),
        ]
        environment = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        ended = run_program(command, log=log, timeout=timeout, environment=environment)
        if ended.timed_out:
            raise BenchmarkError(
                f"load profile {profile.name} did not end within {timeout:.0f} s",
                hint="fewer requests or shorter answers (`benchmark.profiles`), or more time",
                log=log,
            )
        if ended.code != 0:
            raise BenchmarkError(
                f"the load generator ended with status {ended.code}:\n{log_tail(log)}",
                hint="if the server refused or died, its own log says why",
                log=log,
            )
        try:
            text = (Path(scratch) / "result.json").read_text()
            raw = json.loads(text, parse_constant=_refuse_constant)
        except (OSError, ValueError) as error:
            raise BenchmarkError(
                f"the load generator's result is unusable: {error}", log=log
            ) from error
    if not isinstance(raw, dict):
        raise BenchmarkError("the load generator's result is no JSON object", log=log)
    return raw


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} among the results")


def _profile_result(profile: BenchmarkProfile, raw: dict[str, Any], log: Path) -> ProfileResult:
    try:
        completed, failed = int(raw["completed"]), int(raw["failed"])
        latencies = {
            name: {
                "mean": _number(raw, f"mean_{key}_ms"),
                **{p: _number(raw, f"{p}_{key}_ms") for p in ("p50", "p90", "p99")},
            }
            for name, key in _METRICS.items()
        }
        if completed + failed < profile.requests:
            raise ValueError(
                f"{completed} + {failed} of {profile.requests} requests are accounted for"
            )
        return ProfileResult(
            profile=profile.name,
            completed=completed,
            failed=failed,
            duration_seconds=_number(raw, "duration"),
            output_tokens_per_second=_number(raw, "output_throughput"),
            requests_per_second=_number(raw, "request_throughput"),
            requests=_requests(raw),
            **latencies,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BenchmarkError(
            f"the result of load profile {profile.name} is incomplete: {error}", log=log
        ) from error


def _number(raw: dict[str, Any], key: str) -> float:
    value = float(raw[key])
    if not math.isfinite(value):
        raise ValueError(f"{key} is {value}")
    return value


def _requests(raw: dict[str, Any]) -> dict[str, tuple[float, ...]]:
    """Timings of the requests that were answered, in milliseconds."""
    rows = [
        (first, gaps, whole)
        for first, gaps, whole, error in zip(
            raw["ttfts"], raw["itls"], raw["latencies"], raw["errors"], strict=True
        )
        if not error
    ]
    return {
        "ttft_ms": tuple(round(1000 * first, 3) for first, _, _ in rows),
        "tpot_ms": tuple(round(1000 * sum(gaps) / len(gaps), 3) for _, gaps, _ in rows if gaps),
        "e2e_ms": tuple(round(1000 * whole, 3) for _, _, whole in rows),
    }
