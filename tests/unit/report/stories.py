"""Plausible releases for the tests of the report: traces are drawn from known distributions, digests from their names."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from functools import cache

import numpy as np

from lockgate.adapters.report import (
    Bake,
    BenchmarkRow,
    CandidateSummary,
    EvaluationRow,
    LoadPoint,
    RecipeRow,
    ReleaseStory,
    ReportInput,
    TrafficSummary,
    TransitionRow,
)
from lockgate.domain.digests import Digest
from lockgate.domain.gates.base import Decision, GateResult
from lockgate.domain.gitops import HistoryEntry
from lockgate.domain.judge import JudgeConfig, JudgeReport, PassRule, Verdict, follow
from lockgate.domain.release_state import Outcome, Phase, Slot
from lockgate.domain.spec import Recipe
from lockgate.domain.steps import StageSeconds

START = datetime(2026, 11, 23, 20, 4, 12, tzinfo=UTC)
TTFT_BOUNDS = [0.02, 0.03, 0.045, 0.07, 0.1, 0.15, 0.22, 0.33, 0.5, 0.75, 1.1, 1.7, 2.5, 4.0, 6.0]
LENGTHS = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
ITL_BOUNDS = [0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.065, 0.08, 0.1, 0.15, 0.25]


def digest(name: str) -> Digest:
    return Digest.of_bytes(name.encode())


def candidate(
    name: str, recipe: Recipe = Recipe.NONE, arguments: tuple[str, ...] = ()
) -> CandidateSummary:
    return CandidateSummary(
        digest=digest(f"candidate {name}"),
        model_digest=digest(f"model {recipe}"),
        runtime_digest=digest("runtime"),
        served_model_name="smollm2-135m-instruct",
        arguments=("--max-model-len", "2048", "--enforce-eager", *arguments),
        recipe=recipe,
        source="dir:smollm2-135m-instruct@3d1f0c2a",
    )


class Server:
    """Cumulative counters and histograms of one instance, as its scrapes would show them."""

    def __init__(self, instance: str, track: str, seed: int) -> None:
        self.instance, self.track = instance, track
        self._random = np.random.default_rng(seed)
        self._histograms = {
            "vllm:time_to_first_token_seconds": (TTFT_BOUNDS, np.zeros(len(TTFT_BOUNDS) + 1), 0.0),
            "vllm:inter_token_latency_seconds": (ITL_BOUNDS, np.zeros(len(ITL_BOUNDS) + 1), 0.0),
            "vllm:request_queue_time_seconds": (TTFT_BOUNDS, np.zeros(len(TTFT_BOUNDS) + 1), 0.0),
            "vllm:request_generation_tokens": (LENGTHS, np.zeros(len(LENGTHS) + 1), 0.0),
        }
        self.counters: dict[str, float] = {}

    def count(self, sample: str, by: float) -> None:
        self.counters[sample] = self.counters.get(sample, 0.0) + by

    def serve(
        self, requests: int, *, ttft: float, itl: float, tail: float = 0.0, failed: int = 0
    ) -> None:
        """So many requests with these medians (s); a share `tail` of first tokens is five times slower."""
        slow = np.where(self._random.random(requests) < tail, 5.0, 1.0)
        self._observe(
            "vllm:time_to_first_token_seconds",
            ttft * slow * self._random.lognormal(0, 0.35, requests),
        )
        self._observe(
            "vllm:inter_token_latency_seconds", itl * self._random.lognormal(0, 0.25, requests * 40)
        )
        self._observe(
            "vllm:request_queue_time_seconds", ttft * 0.2 * self._random.exponential(1, requests)
        )
        self._observe(
            "vllm:request_generation_tokens", self._random.integers(20, 60, requests).astype(float)
        )
        ended = int(self._random.binomial(requests - failed, 0.7))
        self.count('vllm:request_success_total{finished_reason="stop"}', ended)
        self.count(
            'vllm:request_success_total{finished_reason="length"}', requests - failed - ended
        )
        self.count('vllm:request_success_total{finished_reason="error"}', failed)
        self.count("envoy_cluster_upstream_rq_total", requests)
        self.count('envoy_cluster_upstream_rq_xx{envoy_response_code_class="5"}', failed)

    def line(self, time: float, *, up: bool = True) -> str:
        head = {"time": time, "track": self.track, "instance": self.instance, "up": up}
        if not up:
            return json.dumps(head)
        histograms = {
            name: {"le": [*bounds, "+Inf"], "cumulative": np.cumsum(counts).tolist(), "sum": total}
            for name, (bounds, counts, total) in self._histograms.items()
        }
        return json.dumps(
            {**head, "counters": self.counters, "histograms": histograms, "gauges": {}}
        )

    def _observe(self, name: str, values: np.ndarray) -> None:
        bounds, counts, total = self._histograms[name]
        where = np.searchsorted(bounds, values)
        self._histograms[name] = (
            bounds,
            counts + np.bincount(where, minlength=len(counts)),
            total + float(values.sum()),
        )


def canary_trace(
    segments: list[tuple[float, float]],
    *,
    seed: int = 7,
    slower: float = 1.0,
    tail: float = 0.0,
    failing: float = 0.0,
    rate: float = 14.0,
    start: datetime = START,
    every: float = 4.0,
) -> tuple[str, ...]:
    """Scrapes of two servers over segments of (seconds, canary's share of the traffic)."""
    random = np.random.default_rng(seed)
    stable, canary = Server("slot-b-0", "baseline", seed), Server("slot-a-0", "canary", seed + 1)
    stable.serve(900, ttft=0.11, itl=0.024)
    canary.serve(1, ttft=0.11, itl=0.024)
    time = start.timestamp()
    lines = [stable.line(time), canary.line(time)]
    for seconds, share in segments:
        for _ in range(int(seconds / every)):
            time += every
            requests = int(random.poisson(rate * every))
            to_canary = int(random.binomial(requests, share))
            wander = 1 + 0.12 * np.sin(time / 37)
            stable.serve(requests - to_canary, ttft=0.11 * wander, itl=0.024)
            canary.serve(
                to_canary,
                ttft=0.11 * wander * slower,
                itl=0.024 * (1 + (slower - 1) / 3),
                tail=tail,
                failed=int(random.binomial(to_canary, failing)),
            )
            lines += [stable.line(time), canary.line(time)]
    return tuple(lines)


def transitions(
    rows: list[tuple[float, Phase, int, str]], start: datetime = START
) -> tuple[TransitionRow, ...]:
    return tuple(
        TransitionRow(
            time=start + timedelta(seconds=after),
            phase=phase,
            weight=weight,
            subject=subject,
            commit=digest(f"{subject}{after}").hex[:40],
        )
        for after, phase, weight, subject in rows
    )


def looks(
    lines: tuple[str, ...], steps: list[tuple[float, float, float, bool]], start: datetime = START
) -> tuple[JudgeReport, ...]:
    """What the judge says of each step (from, to, weight, whether latency is judged), in seconds after `start`."""
    found: list[JudgeReport] = []
    for begin, end, weight, latency in steps:
        first = start.timestamp() + begin
        config = JudgeConfig(
            step_start=first,
            judge_latency=latency,
            pass_rule=PassRule.NONINFERIOR if latency else PassRule.NO_HARM,
            canary_weight=weight,
            hold_s=30,
            drift_sd=0.0,
            metrics={"ttft": {"margin": 0.35}, "itl": {"margin": 0.35}, "queue": {"margin": 0.35},
                     "finish_reasons": {"margin": 0.15}, "gateway_errors": {"margin": 0.02}},
        )  # fmt: skip
        step = [
            line for line in lines if first <= json.loads(line)["time"] <= start.timestamp() + end
        ]
        found += follow(step, config)
    return tuple(found)


def gates(**overrides: tuple[Decision, str]) -> tuple[GateResult, ...]:
    said = {
        "scan": (Decision.PASS, "2 scanners completed, no finding of medium severity or above"),
        "evaluation": (Decision.PASS, "no task is worse than stable by more than its margin"),
        "benchmark": (Decision.PASS, "every figure is within 15% of stable's"),
        **overrides,
    }
    return tuple(GateResult(gate=g, decision=d, reasons=(why,)) for g, (d, why) in said.items())


def evaluation(
    decision: Decision = Decision.PASS, difference: float = 0.02
) -> tuple[EvaluationRow, ...]:
    return (
        EvaluationRow(
            task="lockgate_facts", metric="exact_match,strip", candidate=0.66 + difference, stable=0.66,
            difference=difference, interval=(difference - 0.07, difference + 0.07), margin=0.1, floor=0.5,
            items=120, samples=digest("answers"), decision=decision,
        ),
        EvaluationRow(
            task="lockgate_choices", metric="acc,none", candidate=0.9, stable=0.94, difference=-0.04,
            interval=(-0.09, 0.01), margin=0.15, items=120, clusters=40, decision=Decision.PASS,
        ),
    )  # fmt: skip


def load(scale: float = 1.0) -> tuple[LoadPoint, ...]:
    rows = (("single", 0.98, 98, 121, 27.1, 29.0, 37.9), ("four", 3.9, 231, 390, 31.2, 36.4, 128),
            ("eight", 7.8, 412, 730, 36.1, 44.9, 221))  # fmt: skip
    return tuple(
        LoadPoint(
            profile=p, in_flight=n, ttft_p50_ms=t50 * scale, ttft_p90_ms=t90 * scale, tpot_p50_ms=o50 * scale,
            tpot_p90_ms=o90 * scale, output_tokens_per_second=rate / scale,
        )
        for p, n, t50, t90, o50, o90, rate in rows
    )  # fmt: skip


def recipes() -> tuple[RecipeRow, ...]:
    rows = (("bf16", Recipe.NONE, 269, 0.85, 0.87, 217), ("int8", Recipe.W8A8_RTN, 163, 0.83, 0.875, 222),
            ("int4", Recipe.W4A16_RTN, 113, 0.61, 0.79, 162))  # fmt: skip
    return tuple(
        RecipeRow(
            name=name, recipe=recipe, candidate=digest(name), size_bytes=size * 1_000_000,
            scores=(("lockgate_numbers", one), ("lockgate_choice", two)), output_tokens_per_second=rate,
            passed=name != "int4",
        )
        for name, recipe, size, one, two, rate in rows
    )  # fmt: skip


def benchmark() -> tuple[BenchmarkRow, ...]:
    rows = (
        ("single", "TTFT p50", "ms", 98.0, 104.0, -0.058),
        ("single", "output tokens/s", "tok/s", 37.9, 35.2, -0.077),
        ("eight", "TTFT p50", "ms", 412.0, 388.0, 0.062),
        ("eight", "inter-token p50", "ms", 36.1, 35.8, 0.008),
        ("eight", "output tokens/s", "tok/s", 221.0, 217.0, -0.018),
    )
    return tuple(
        BenchmarkRow(
            profile=p, metric=m, unit=u, candidate=c, stable=s, change=change, limit=0.15,
            interval=(change - 0.04, change + 0.04), decision=Decision.PASS,
        )
        for p, m, u, c, s, change in rows
    )  # fmt: skip


def stages(scale: float = 1.0, *, reused: bool = False) -> tuple[StageSeconds, ...]:
    rows = (("resolve", 0.4), ("fetch", 3.1), ("scan weights", 6.2), ("quantize", 31.0), ("package", 4.4),
            ("serve", 33.0), ("evaluate", 41.0), ("benchmark", 38.0), ("gate", 0.1), ("sign and attest", 0.9),
            ("verify", 0.5), ("deploy", 36.0), ("canary", 214.0))  # fmt: skip
    return tuple(
        StageSeconds(stage=s, seconds=0.2 if reused and s in ("fetch", "package") else t * scale,
                     reused=reused and s in ("fetch", "package"))
        for s, t in rows
    )  # fmt: skip


NOT_SCANNED = (
    "Images and manifests NOT SCANNED: trivy is not installed (the policy lets this pass)."
)


@cache
def first_release() -> ReleaseStory:
    return ReleaseStory(
        release="smollm2-20261123-0a11aa01", title="Release 1 (bf16)", candidate=candidate("1"), first=True,
        gates=gates(), scan_notes=(NOT_SCANNED,), outcome=Outcome.PROMOTED, phase=Phase.STABLE,
        stages=stages()[:-1],
        transitions=transitions([(0, Phase.DEPLOYING, 0, "smollm2/local: deploy Release 1 to slot a"),
                                 (38, Phase.STABLE, 100, "smollm2/local: promote the first release")],
                                START - timedelta(minutes=22)),
        canary_slot=Slot.A,
    )  # fmt: skip


@cache
def promoted_release() -> ReleaseStory:
    start = START - timedelta(minutes=12)
    lines = canary_trace([(41, 0), (60, 0.1), (180, 0.5), (60, 1.0)], start=start, slower=1.03)
    return ReleaseStory(
        release="smollm2-20261123-1b22bb02", title="Release 2 (int8)", candidate=candidate("2", Recipe.W8A8_RTN),
        gates=gates(), scan_notes=(NOT_SCANNED,), evaluation=evaluation(), benchmark=benchmark(),
        load=load(), stable_load=load(1.06), answers=f"answers/{digest('answers').hex}.jsonl",
        outcome=Outcome.PROMOTED, phase=Phase.STABLE, verdict=Verdict.PASS,
        reasons=("no metric is worse than its margin at 50% of the traffic",), stages=stages(reused=True),
        transitions=transitions(
            [(0, Phase.DEPLOYING, 0, "smollm2/local: deploy int8 to slot b at weight 0"),
             (41, Phase.CANARY, 10, "smollm2/local: canary at 10%"),
             (101, Phase.CANARY, 50, "smollm2/local: canary at 50%"),
             (281, Phase.BAKING, 100, "smollm2/local: promote slot b"),
             (341, Phase.STABLE, 100, "smollm2/local: stable on slot b")], start),
        stable_slot=Slot.A, canary_slot=Slot.B,
        looks=looks(lines, [(41, 101, 0.1, False), (101, 281, 0.5, True)], start), trace_lines=lines,
    )  # fmt: skip


def baked_release(control: int = 5) -> ReleaseStory:
    """A release of which only the bake is on record."""
    start = START - timedelta(minutes=7)
    lines = canary_trace([(300, 0.95)], start=start, slower=1.05)
    bake = Bake(
        transitions=transitions(
            [(0, Phase.BAKING, 100 - control, "smollm2/local: promote slot b"),
             (300, Phase.BAKING, 100, "smollm2/local: slot b takes all traffic: the bake is over"),
             (345, Phase.STABLE, 100, "smollm2/local: stable on slot b")], start),
        stable_slot=Slot.A, canary_slot=Slot.B, control_percent=control,
        looks=looks(lines, [(0, 300, 0.95, False)], start), trace_lines=lines,
    )  # fmt: skip
    return ReleaseStory(release="smollm2-20261123-1b22bb02", candidate=candidate("2"), bake=bake)


@cache
def rolled_back_release() -> ReleaseStory:
    lines = canary_trace(
        [(39, 0), (60, 0.1), (83, 0.5), (60, 0)], slower=3.2, tail=0.06, failing=0.002
    )
    whole = looks(lines, [(39, 99, 0.1, False), (99, 182, 0.5, True)])
    failed = next(i for i, report in enumerate(whole) if report.verdict is Verdict.FAIL)
    said = whole[: failed + 1]
    over = (said[-1].time or 0.0) - START.timestamp()
    return ReleaseStory(
        release="smollm2-20261123-2c33cc03", title="Release 3 (int8, two sequences at once)",
        candidate=candidate("3", Recipe.W8A8_RTN, ("--max-num-seqs", "2")),
        gates=gates(), scan_notes=(NOT_SCANNED,), evaluation=evaluation(difference=0.0), benchmark=benchmark(),
        outcome=Outcome.ROLLED_BACK, phase=Phase.STABLE, verdict=Verdict.FAIL,
        reasons=said[-1].reasons,
        denylisted=True, stages=stages(0.9, reused=True),
        transitions=transitions(
            [(0, Phase.DEPLOYING, 0, "smollm2/local: deploy int8, 2 sequences to slot a at weight 0"),
             (39, Phase.CANARY, 10, "smollm2/local: canary at 10%"),
             (99, Phase.CANARY, 50, "smollm2/local: canary at 50%"),
             (over + 1, Phase.DRAINING, 0, "smollm2/local: roll back to slot b"),
             (over + 46, Phase.STABLE, 0, "smollm2/local: slot a is empty again")]),
        stable_slot=Slot.B, canary_slot=Slot.A,
        looks=said, trace_lines=lines,
        seconds_verdict_to_zero=0.84,
    )  # fmt: skip


@cache
def refused_release() -> ReleaseStory:
    failed = (
        "lockgate_facts: 20.0 points below stable (28.1 to 11.9 below), the margin is 10 points"
    )
    return ReleaseStory(
        release="smollm2-20261123-3d44dd04", title="Release 4 (int4)", candidate=candidate("4", Recipe.W4A16_RTN),
        gates=gates(evaluation=(Decision.FAIL, failed)), scan_notes=(NOT_SCANNED,),
        evaluation=evaluation(Decision.FAIL, -0.2), benchmark=benchmark(), reasons=(failed,), stages=stages()[:9],
    )  # fmt: skip


@cache
def whole_report() -> ReportInput:
    releases = (first_release(), promoted_release(), rolled_back_release(), refused_release())
    history = [
        HistoryEntry(
            commit=t.commit, at=t.time.strftime("%Y-%m-%dT%H:%M:%SZ"), author="Lockgate", subject=t.subject, body="",
            trailers={"Lockgate-Release": s.release, "Lockgate-Phase": t.phase.value,
                      "Candidate": s.candidate.digest, "Image-Digest": s.candidate.model_digest},
        )
        for s in releases for t in s.transitions
    ]  # fmt: skip
    return ReportInput(
        title="Lockgate demo", generated_at=START + timedelta(minutes=9), model="smollm2", environment="local",
        releases=releases, history=tuple(reversed(history)), recipes=recipes(),
        traffic=TrafficSummary(seconds=1510, requests=4211, streaming=2533, failed=0, cut_short=0,
                               by_slot=(("a", 1702), ("b", 2509)), longest_gap_seconds=1.9),
        stable=promoted_release().candidate.digest, stable_slot=Slot.B,
        denied=((rolled_back_release().candidate.digest, "time to first token 80% above stable"),),
        notes=("Two small servers on two cores: the demo's latency margin is 35%, declared in its spec.",),
    )  # fmt: skip
