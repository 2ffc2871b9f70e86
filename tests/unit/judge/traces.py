"""Synthetic traces in the judge's JSON line format: two tracks of simulated vLLM servers behind a
gateway. Deterministic for a seed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

TTFT_LE = [0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0]
ITL_LE = [0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0]
TOKENS_LE = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0]


@dataclass
class Server:
    """One track's behaviour. Latencies in seconds, log-normal; `drift_sd` an AR(1) factor."""

    rate: float = 1.5
    ttft: float = 0.15
    itl: float = 0.045
    tokens: float = 30.0
    errors: float = 0.0
    length_share: float = 0.3
    drift_sd: float = 0.0
    drift_s: float = 45.0
    tail: float = 0.0
    """Share of requests whose TTFT is ten times as long."""
    ttft_growth: float = 0.0
    """Seconds of queueing added to TTFT a second of trace: an overloaded server."""


@dataclass
class _State:
    counters: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, dict[str, object]] = field(default_factory=dict)

    def count(self, name: str, by: float = 1.0) -> None:
        self.counters[name] = self.counters.get(name, 0.0) + by

    def observe(self, name: str, le: list[float], values: np.ndarray) -> None:
        h = self.histograms.setdefault(
            name, {"le": [*le, "+Inf"], "cumulative": np.zeros(len(le) + 1), "sum": 0.0}
        )
        edges = np.array([*le, math.inf])
        h["cumulative"] = h["cumulative"] + (values[:, None] <= edges).sum(0)
        h["sum"] = float(h["sum"]) + float(values.sum())


def finished(reason: str) -> str:
    return f'vllm:request_success_total{{engine="0",finished_reason="{reason}",model_name="m"}}'


def rows(state: _State, gateway: _State, t: float, track: str, up: bool = True) -> list[dict]:
    engine = {
        "time": t,
        "track": track,
        "instance": f"{track}-0",
        "up": up,
        "counters": dict(state.counters),
        "histograms": {
            k: {"le": h["le"], "cumulative": [float(c) for c in h["cumulative"]], "sum": h["sum"]}
            for k, h in state.histograms.items()
        },
        "gauges": {"vllm:num_requests_running": 1.0},
    }
    front = {
        "time": t,
        "track": track,
        "instance": "gateway",
        "up": True,
        "counters": dict(gateway.counters),
        "histograms": {},
        "gauges": {},
    }
    return [engine, front]


def trace(
    baseline: Server,
    canary: Server,
    seconds: float,
    seed: int,
    step: float = 1.0,
    edit: Callable[[dict], dict | None] | None = None,
) -> Iterator[str]:
    """JSON lines of a trace; `edit` may change or drop (None) a row."""
    rng = np.random.default_rng(seed)
    servers = {"baseline": baseline, "canary": canary}
    states = {t: (_State(), _State()) for t in servers}
    wander = {t: rng.normal(0, s.drift_sd) if s.drift_sd else 0.0 for t, s in servers.items()}
    for state, gateway in states.values():
        # vLLM exposes its histograms, all zero, from the beginning
        state.observe("vllm:time_to_first_token_seconds", TTFT_LE, np.zeros(0))
        state.observe("vllm:inter_token_latency_seconds", ITL_LE, np.zeros(0))
        state.observe("vllm:request_generation_tokens", TOKENS_LE, np.zeros(0))
        state.observe("vllm:e2e_request_latency_seconds", TTFT_LE, np.zeros(0))
        for reason in ("stop", "length", "abort", "error"):
            state.count(finished(reason), 0.0)
        gateway.count("envoy_cluster_upstream_rq_total", 0.0)
    for i in range(round(seconds / step) + 1):
        t = i * step
        for track, server in servers.items():
            state, gateway = states[track]
            if i:
                keep = math.exp(-step / server.drift_s)
                wander[track] = wander[track] * keep + rng.normal(
                    0, server.drift_sd * math.sqrt(1 - keep**2)
                )
                n = int(rng.poisson(server.rate * step))
                factor = math.exp(wander[track])
                ttft = server.ttft * factor * rng.lognormal(-0.125, 0.5, n)
                if server.tail:
                    ttft = ttft * np.where(rng.random(n) < server.tail, 10.0, 1.0)
                ttft = ttft + server.ttft_growth * t
                tokens = np.maximum(
                    1, rng.lognormal(math.log(server.tokens) - 0.02, 0.2, n).round()
                )
                itl = server.itl * factor * rng.lognormal(-0.02, 0.2, int(tokens.sum()))
                gateway.count("envoy_cluster_upstream_rq_total", n)
                bad = int(rng.binomial(n, server.errors))
                if bad:
                    name = 'envoy_cluster_upstream_rq_xx{envoy_response_code_class="5"}'
                    gateway.count(name, bad)
                good = n - bad
                state.observe("vllm:time_to_first_token_seconds", TTFT_LE, ttft[:good])
                state.observe("vllm:inter_token_latency_seconds", ITL_LE, itl)
                state.observe("vllm:request_generation_tokens", TOKENS_LE, tokens[:good])
                e2e = ttft + tokens * server.itl * factor
                state.observe("vllm:e2e_request_latency_seconds", TTFT_LE, e2e[:good])
                long = int(rng.binomial(good, server.length_share))
                state.count(finished("length"), long)
                state.count(finished("stop"), good - long)
            for row in rows(state, gateway, t, track):
                kept = edit(row) if edit else row
                if kept is not None:
                    yield json.dumps(kept)
