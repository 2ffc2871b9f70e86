"""What the judge is told: metrics, margins, error rates, and what it may take for granted."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, model_validator

from lockgate.domain.base import Frozen

Probability = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class MetricKind(StrEnum):
    """How a metric is compared."""

    LATENCY = "latency"
    """Ratio of histogram means; replicas may drift; needs equal load a replica."""
    SIZE = "size"
    """Ratio of histogram means in both directions, without drift: lengths of answers."""
    RATIO = "ratio"
    """Difference of shares, events among trials."""
    TAIL = "tail"
    """Difference of shares of slow requests: beyond a bound a few times the usual."""
    MIX = "mix"
    """Largest change of any category's share, in either direction."""
    SPLIT = "split"
    """Canary's share of the requests against the committed weight."""
    CRASH = "crash"
    """Restarts, dead or stalled instances of the canary."""


LARGEST_SHARE_MARGIN = 0.9
"""Beyond it there is hardly a share left that would be worse."""

TIMED = (MetricKind.LATENCY, MetricKind.TAIL)
"""What depends on the load that a replica carries."""


class Criticality(StrEnum):
    """What a metric's verdict does to the whole."""

    REQUIRED = "required"
    """Must be shown to be within its margin before the whole passes."""
    GUARD = "guard"
    """May fail the whole; needs no proof for a pass."""
    ADVISORY = "advisory"
    """Reported only. Takes no share of alpha."""


class PassRule(StrEnum):
    NONINFERIOR = "noninferior"
    """Every required metric was shown to be within its margin."""
    NO_HARM = "no_harm"
    """`hold_s` passed, the canary served `minimum_requests`, nothing failed. For a small safety
    step; proves nothing about margins, and the report says so."""


class MetricConfig(Frozen):
    """One metric.

    Sample selectors are `name` or `name{label="value",...}` and match every sample of that name
    that has these labels. `histogram`, `per_histogram`, and each tuple of `events` and `trials` are
    alternatives in order of preference: the first that the trace has is used throughout.
    """

    kind: MetricKind
    margin: NotNegative = 0.0
    """Relative for LATENCY and SIZE (0.10 = 10%), absolute share otherwise (0.005 = half a point)."""
    criticality: Criticality = Criticality.GUARD
    minimum_samples: Annotated[int, Field(ge=1)] = 20
    """Samples (requests, tokens) that each track needs before this metric can be passed."""
    weight: Positive = 1.0
    """Share of alpha relative to the other metrics."""
    floor: NotNegative = 0.0
    """LATENCY: seconds below which differences do not matter to anybody."""
    dispersion: Annotated[float, Field(ge=1)] = 2.0
    """LATENCY and SIZE: how much more the mean of a block may vary than if its samples were
    independent, before that has been seen. Tokens of one batch hang together: 25."""
    surprise: NotNegative = 0.0
    """LATENCY: `drift_surprise` of this metric where that is larger: the time of a token does not
    jump as the time in a queue does."""
    histogram: tuple[str, ...] = ()
    """LATENCY, SIZE and TAIL."""
    per_histogram: str | None = None
    """LATENCY: divide by the sum of this histogram instead of by the number of observations."""
    events: tuple[tuple[str, ...], ...] = ()
    trials: tuple[tuple[str, ...], ...] = ()
    categories: Mapping[str, str] = {}
    """MIX: name of a category -> selector of its counter."""


def _finished(reason: str) -> str:
    return f'vllm:request_success_total{{finished_reason="{reason}"}}'


GATEWAY_TTFB = "gateway:time_to_first_byte_seconds"
GATEWAY_REQUESTS = "gateway:requests_total"
GATEWAY_SERVER_ERRORS = 'gateway:responses_total{code_class="5"}'
GATEWAY_CLIENT_ERRORS = 'gateway:responses_total{code_class="4"}'
"""What request rows are turned into, so that metrics can name them like scraped samples."""

DEFAULT_METRICS: Mapping[str, MetricConfig] = {
    "ttft": MetricConfig(
        kind=MetricKind.LATENCY,
        margin=0.10,
        weight=3.0,
        criticality=Criticality.REQUIRED,
        histogram=("vllm:time_to_first_token_seconds", GATEWAY_TTFB),
    ),
    "itl": MetricConfig(
        kind=MetricKind.LATENCY,
        margin=0.10,
        weight=8.0,
        criticality=Criticality.REQUIRED,
        minimum_samples=200,
        dispersion=25.0,
        surprise=4.0,
        histogram=("vllm:inter_token_latency_seconds",),
    ),
    "queue": MetricConfig(
        kind=MetricKind.LATENCY,
        margin=0.10,
        weight=0.5,
        floor=0.05,
        dispersion=4.0,
        histogram=("vllm:request_queue_time_seconds",),
    ),
    "e2e_per_token": MetricConfig(
        kind=MetricKind.LATENCY,
        margin=0.10,
        weight=4.0,
        dispersion=4.0,
        surprise=2.0,
        histogram=("vllm:e2e_request_latency_seconds",),
        per_histogram="vllm:request_generation_tokens",
    ),
    "ttft_tail": MetricConfig(
        kind=MetricKind.TAIL,
        margin=0.005,
        weight=3.0,
        histogram=("vllm:time_to_first_token_seconds",),
    ),
    "gateway_errors": MetricConfig(
        kind=MetricKind.RATIO,
        margin=0.005,
        weight=3.0,
        criticality=Criticality.REQUIRED,
        events=(
            ('envoy_cluster_upstream_rq_xx{envoy_response_code_class="5"}',),
            (GATEWAY_SERVER_ERRORS,),
        ),
        trials=(("envoy_cluster_upstream_rq_total",), (GATEWAY_REQUESTS,)),
    ),
    # An engine counts no request that it refuses: a chat template that is broken, a context that is too short for some. With the
    # errors, since a version that answers 400 where the one before broke down is no worse.
    "gateway_refusals": MetricConfig(
        kind=MetricKind.RATIO,
        margin=0.005,
        weight=0.05,
        events=(
            (
                'envoy_cluster_upstream_rq_xx{envoy_response_code_class="4"}',
                'envoy_cluster_upstream_rq_xx{envoy_response_code_class="5"}',
            ),
            (GATEWAY_CLIENT_ERRORS, GATEWAY_SERVER_ERRORS),
        ),
        trials=(("envoy_cluster_upstream_rq_total",), (GATEWAY_REQUESTS,)),
    ),
    "engine_errors": MetricConfig(
        kind=MetricKind.RATIO,
        margin=0.005,
        weight=0.5,
        events=((_finished("error"),),),
        trials=(("vllm:request_success_total",),),
    ),
    "aborts": MetricConfig(
        kind=MetricKind.RATIO,
        margin=0.005,
        weight=0.5,
        events=((_finished("abort"),),),
        trials=(("vllm:request_success_total",),),
    ),
    "rejections": MetricConfig(
        kind=MetricKind.RATIO,
        margin=0.005,
        weight=0.5,
        events=(("vllm:admission_rejections_total",),),
        trials=(("vllm:request_success_total", "vllm:admission_rejections_total"),),
    ),
    "crashes": MetricConfig(kind=MetricKind.CRASH, minimum_samples=1),
    "finish_reasons": MetricConfig(
        kind=MetricKind.MIX,
        weight=1.0,
        margin=0.05,
        criticality=Criticality.REQUIRED,
        minimum_samples=50,
        categories={r: _finished(r) for r in ("stop", "length", "repetition")},
    ),
    "output_length": MetricConfig(
        kind=MetricKind.SIZE,
        weight=2.0,
        margin=0.15,
        criticality=Criticality.REQUIRED,
        histogram=("vllm:request_generation_tokens",),
    ),
    "split": MetricConfig(
        kind=MetricKind.SPLIT,
        weight=0.5,
        trials=(("envoy_cluster_upstream_rq_total",), (GATEWAY_REQUESTS,)),
    ),
    "quality_probe": MetricConfig(
        kind=MetricKind.RATIO,
        margin=0.05,
        events=(("lockgate:probe_failed_total",),),
        trials=(("lockgate:probe_total",),),
    ),
}
"""Every metric of the product, with its default margin."""


class JudgeConfig(Frozen):
    """How one step of a canary is judged. Unknown keys are refused.

    In data, `metrics` may name only what differs from the default, e.g.
    `{"metrics": {"ttft": {"margin": 0.6}, "queue": {"criticality": "advisory"}}}`.
    """

    alpha: Probability = 0.01
    """Chance of ever failing a canary that is no worse than the margins, over all metrics and looks."""
    beta: Probability = 0.05
    """Chance of passing a canary that truly is at the margin of a required metric."""
    interval_level: Probability = 0.95
    """Coverage, at all looks together, of each metric's displayed interval."""
    pass_rule: PassRule = PassRule.NONINFERIOR
    judge_latency: bool = True
    """False for a small step: at unequal load a latency comparison is not like with like."""
    step_start: float | None = None
    """Time of the step's beginning, on the trace's clock. None: the first line of the trace."""
    settle_s: NotNegative = 0.0
    """Seconds after the beginning that count for nothing but crashes (weights take effect)."""
    hold_s: NotNegative = 0.0
    """A pass is not given earlier than this after the beginning."""
    time_budget_s: Positive = 1800.0
    """Without a decision by then the judge says so (`insufficient_data`, reason `futility`)."""
    block_s: Positive = 5.0
    """Longest block; the first ones are shorter. Requests within one may depend on each other in any
    way."""
    outage_after_s: Positive = 20.0
    """A track without a usable scrape for so long is a metrics outage."""
    down_after_s: NotNegative = 2.0
    """An instance reported `up: false` for so long counts as crashed."""
    absent_after_s: Positive = 10.0
    """A track without one server that the gateway holds to be alive for so long counts as crashed."""
    stall_after_s: Positive = 60.0
    """An instance with requests running or waiting and no counter moving for so long has stalled."""
    canary_weight: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The share of requests that was committed. None: the split is not judged, and a latency fails the canary only once the
    requests counted rule out that it carries much more than the baseline."""
    minimum_requests: Annotated[int, Field(ge=1)] = 20
    """Finished requests of the canary below which nothing passes."""
    max_load_ratio: Annotated[float, Field(gt=1)] = 1.25
    """Requests a replica may differ by this factor between the tracks for a like-with-like latency."""
    drift_sd: NotNegative = 0.2
    """How far a replica's log latency wanders of its own (standard deviation), which is not blamed
    on the candidate. 0 declares that it does not: much more power, and no guarantee if it does."""
    drift_s: Positive = 60.0
    """For how long such a good or bad spell lasts (correlation time, seconds)."""
    drift_surprise: NotNegative = 1.0
    """How unlikely a drift larger than declared is held to be before it was seen: nats for each
    doubling. 0 trusts nothing (no queueing excursion is ever mistaken for a regression), 2.5 fails
    a canary within seconds of a large slow-down."""
    metrics: Mapping[str, MetricConfig] = Field(default_factory=lambda: dict(DEFAULT_METRICS))

    @model_validator(mode="before")
    @classmethod
    def _merge_defaults(cls, data: Any) -> Any:
        """Fill metrics that are given in part from the defaults, and add those not mentioned."""
        if not isinstance(data, Mapping) or not isinstance(data.get("metrics"), Mapping):
            return data
        given: dict[str, Any] = dict(DEFAULT_METRICS)
        for name, value in data["metrics"].items():
            default = DEFAULT_METRICS.get(name)
            if isinstance(value, Mapping) and default is not None:
                given[name] = {**default.model_dump(), **value}
            else:
                given[name] = value
        return {**data, "metrics": given}

    @model_validator(mode="after")
    def _consistent(self) -> JudgeConfig:
        if self.hold_s > self.time_budget_s:
            raise ValueError("hold_s is longer than time_budget_s: the step could never pass")
        for name, metric in self.metrics.items():
            needs: dict[MetricKind, Any] = {
                MetricKind.LATENCY: metric.histogram,
                MetricKind.SIZE: metric.histogram,
                MetricKind.TAIL: metric.histogram,
                MetricKind.RATIO: metric.events and metric.trials,
                MetricKind.MIX: metric.categories,
                MetricKind.SPLIT: metric.trials,
            }
            if metric.kind in needs and not needs[metric.kind]:
                raise ValueError(f"metric {name}: kind {metric.kind} names no samples")
            share = metric.kind in (MetricKind.RATIO, MetricKind.MIX, MetricKind.TAIL)
            if share and metric.margin > LARGEST_SHARE_MARGIN:
                raise ValueError(
                    f"metric {name}: hardly a share can be beyond a margin of {metric.margin}: "
                    "make it advisory, and nothing is decided by it"
                )
            judged = metric.kind not in (MetricKind.CRASH, MetricKind.SPLIT)
            if judged and metric.margin == 0 and metric.criticality is Criticality.REQUIRED:
                raise ValueError(f"metric {name}: nothing can be shown to be within a margin of 0")
            latency = metric.kind in TIMED and metric.criticality is Criticality.REQUIRED
            if latency and not self.judge_latency and self.pass_rule is PassRule.NONINFERIOR:
                raise ValueError(
                    f"metric {name} is required and would not be judged: `judge_latency: false` needs "
                    "`pass_rule: no_harm`, or latencies that are not required"
                )
        return self
