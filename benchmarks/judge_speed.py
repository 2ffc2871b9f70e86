"""What one look of the judge costs: `python -m benchmarks.judge_speed`.

A look is one scrape of both tracks' engines and gateways, taken in, and the whole report with estimates
and intervals. Twelve metrics have data; every histogram has forty buckets; a probe is sent each second.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np

from lockgate.domain.judge import Judge, JudgeConfig
from lockgate.domain.trace import TRACKS, Histogram, Scrape

BUCKETS = 40
RATE = 4.0
_REASONS = {"stop": 0.67, "length": 0.3, "abort": 0.02, "error": 0.01}
_HISTOGRAMS = {
    "vllm:time_to_first_token_seconds": (0.15, 0.6, 1),
    "vllm:inter_token_latency_seconds": (0.045, 0.3, 30),
    "vllm:request_queue_time_seconds": (0.08, 0.8, 1),
    "vllm:e2e_request_latency_seconds": (1.5, 0.5, 1),
    "vllm:request_generation_tokens": (30.0, 0.5, 1),
}
"""Median, log scatter, and observations a request."""


def scrapes(seconds: int, seed: int) -> list[list[Scrape]]:
    """One list a second: engine and gateway of both tracks."""
    rng = np.random.default_rng(seed)
    edges = {n: np.geomspace(m / 30, m * 30, BUCKETS - 1) for n, (m, _, _) in _HISTOGRAMS.items()}
    buckets = {(t, n): np.zeros(BUCKETS) for t in TRACKS for n in _HISTOGRAMS}
    sums = dict.fromkeys(buckets, 0.0)
    finished = {(t, r): 0.0 for t in TRACKS for r in _REASONS}
    gateway = {t: {"total": 0.0, "bad": 0.0, "probes": 0.0, "wrong": 0.0} for t in TRACKS}
    out: list[list[Scrape]] = []
    for second in range(seconds + 1):
        look: list[Scrape] = []
        for track in TRACKS:
            n = int(rng.poisson(RATE)) if second else 0
            for name, (median, scatter, each) in _HISTOGRAMS.items():
                values = rng.lognormal(math.log(median), scatter, n * each)
                at = np.searchsorted(edges[name], values)
                buckets[track, name] += np.bincount(at, minlength=BUCKETS)
                sums[track, name] += float(values.sum())
            kinds = rng.multinomial(n, list(_REASONS.values()))
            for reason, count in zip(_REASONS, kinds, strict=True):
                finished[track, reason] += float(count)
            here = gateway[track]
            here["total"] += n
            here["bad"] += float(rng.binomial(n, 0.01))
            here["probes"] += 1.0
            here["wrong"] += float(rng.random() < 0.05)
            counters = {
                f'vllm:request_success_total{{finished_reason="{r}"}}': finished[track, r]
                for r in _REASONS
            } | {"vllm:admission_rejections_total": 0.0}
            histograms = {
                name: Histogram(
                    (*edges[name].tolist(), math.inf),
                    tuple(np.cumsum(buckets[track, name]).tolist()),
                    sums[track, name],
                )
                for name in _HISTOGRAMS
            }
            front = {
                "envoy_cluster_upstream_rq_total": here["total"],
                'envoy_cluster_upstream_rq_xx{envoy_response_code_class="5"}': here["bad"],
                "lockgate:probe_total": here["probes"],
                "lockgate:probe_failed_total": here["wrong"],
            }
            now = float(second)
            look.append(Scrape(now, track, f"{track}-0", True, counters, histograms))
            look.append(Scrape(now, track, "gateway", True, front))
        out.append(look)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    took: list[float] = []
    for repeat in range(given.repeats):
        judge = Judge(JudgeConfig(step_start=0.0, canary_weight=0.5))
        for look in scrapes(given.seconds, repeat):
            began = time.process_time()
            for scrape in look:
                judge.observe(scrape)
            report = judge.look()
            took.append(1e3 * (time.process_time() - began))
    speaking = sum(m.n_canary > 0 or m.name == "crashes" for m in report.metrics)
    values = np.array(took)
    print(
        f"{values.size} looks at {speaking} metrics, {BUCKETS} buckets: mean {values.mean():.2f} CPU ms, "
        f"median {np.median(values):.2f} ms, 99% {np.quantile(values, 0.99):.2f} ms, "
        f"largest {values.max():.2f} ms"
    )


if __name__ == "__main__":
    main()
