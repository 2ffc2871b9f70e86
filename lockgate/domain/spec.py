"""The release spec: what a user asks Lockgate to release, and how it is to be judged.

One YAML document, `kind: Release`. The spec is read once, when a release starts; what later steps need of it travels in
the release state, so that editing the file changes nothing about a release on its way.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import (
    Field,
    field_validator,
    model_validator,
)

from lockgate.domain.base import Frozen
from lockgate.domain.cost import Demand, Price
from lockgate.domain.images import ImageRef
from lockgate.domain.judge.config import LARGEST_SHARE_MARGIN
from lockgate.domain.load import BenchmarkProfile as BenchmarkProfile
from lockgate.domain.load import ServiceLevel
from lockgate.domain.serving_spec import Hardware as Hardware
from lockgate.domain.serving_spec import Parallel as Parallel
from lockgate.domain.serving_spec import Resources as Resources
from lockgate.domain.serving_spec import ServingSpec as ServingSpec

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")

Seconds = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(gt=0, lt=1)]
Percent = Annotated[int, Field(ge=0, le=100)]


class Recipe(StrEnum):
    """How the weights are quantized. Names follow llm-compressor's schemes: weights/activations, then the method."""

    NONE = "none"
    W8A8_RTN = "w8a8-rtn"
    W8A8_GPTQ = "w8a8-gptq"
    W8A8_SMOOTHQUANT = "w8a8-smoothquant"
    W8A8_SMOOTHQUANT_GPTQ = "w8a8-smoothquant-gptq"
    W4A16_RTN = "w4a16-rtn"
    W4A16_GPTQ = "w4a16-gptq"
    W4A16_AWQ = "w4a16-awq"
    FP8_DYNAMIC = "fp8-dynamic"


class CalibrationSpec(Frozen):
    """Texts that a calibrated recipe (GPTQ, SmoothQuant, AWQ) looks at. The others ignore this."""

    dataset: str = "builtin"
    """`builtin` for the set that ships with Lockgate, or a JSONL file with one `text` or `messages` a line."""
    samples: Annotated[int, Field(ge=1)] = 128
    """How many of them are drawn; all where there are fewer."""
    max_tokens: Annotated[int, Field(ge=8)] = 512
    """Tokens of one text at most."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the draw."""


class EvaluationTask(Frozen):
    """One lm-eval task and how much worse than stable it may be."""

    name: str
    metric: str
    """lm-eval's metric key with its filter, e.g. `exact_match,strip` or `acc,none`."""
    margin: Annotated[float, Field(ge=0, le=1)]
    """Non-inferiority margin, absolute, in the metric's unit."""
    floor: float | None = None
    """Absolute score below which the task fails whatever stable scores; required for a first release."""


class EvaluationSpec(Frozen):
    tasks: tuple[EvaluationTask, ...] = Field(min_length=1)
    """Each must be passed."""
    suite: str = "builtin"
    """`builtin` for the suite that ships with Lockgate, `lm-eval` for the harness's own tasks, or a directory of lm-eval YAML
    tasks."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Items a task at most; none is all."""
    alpha: Probability = 0.05
    """Family-wise chance that a candidate exactly at the margin passes."""
    concurrency: Annotated[int, Field(ge=1)] = 4


BenchmarkMetric = Literal["ttft", "tpot", "e2e", "throughput", "goodput"]


class BenchmarkSpec(Frozen):
    profiles: tuple[BenchmarkProfile, ...] = Field(min_length=1)
    compare: Literal["in_turn", "limits"] = "in_turn"
    """`in_turn`: against stable, both served at once and put under load in turn. `limits`: not at all, the absolute limits
    alone decide, of which at least one has to be declared then."""
    margin: Annotated[float, Field(gt=0)] = 0.15
    """How much worse than the stable candidate's on the same hardware a metric may be, relative."""
    margins: dict[BenchmarkMetric, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Margins of single metrics in place of `margin`. `throughput` is judged only where it is named here."""
    blocks: Annotated[int, Field(ge=6, le=200)] = 8
    """Pairs of blocks in which candidate and stable are measured in turn; a profile's requests are shared out to them."""
    service_level: ServiceLevel | None = None
    """Declares goodput: the requests a second that keep it."""
    demand: Demand | None = None
    """The load to be carried, for the number of replicas."""
    prices: dict[str, Price] = Field(default_factory=dict)
    """By accelerator or processor, as the evidence's fingerprint names it."""
    max_failed: Annotated[int, Field(ge=0)] = 0
    """Requests a profile that may fail."""
    max_ttft_p50_ms: float | None = None
    """Absolute limit on the median time to first token, in every profile."""
    max_tpot_p50_ms: float | None = None
    """Absolute limit on the median time per output token, in every profile."""
    min_output_tokens_per_second: float | None = None
    """Absolute limit on the throughput, in every profile."""

    @model_validator(mode="after")
    def _unique_names(self) -> BenchmarkSpec:
        if len({p.name for p in self.profiles}) != len(self.profiles):
            raise ValueError("benchmark profile names must be unique")
        if all(p.sweep is not None for p in self.profiles):
            raise ValueError("a sweep is a curve and is not judged: at least one profile without")
        if self.compare == "limits" and not self.limited:
            raise ValueError("`compare: limits` needs an absolute limit")
        if "goodput" in self.margins and self.service_level is None:
            raise ValueError("a margin of goodput needs a `service_level`")
        return self

    @property
    def limited(self) -> bool:
        """Whether any absolute limit on speed is declared."""
        limits = (self.max_ttft_p50_ms, self.max_tpot_p50_ms, self.min_output_tokens_per_second)
        return any(limit is not None for limit in limits)

    def margin_of(self, metric: BenchmarkMetric) -> float:
        return self.margins.get(metric, self.margin)


ShareMargin = Annotated[float, Field(gt=0, le=LARGEST_SHARE_MARGIN)]


class JudgeMargins(Frozen):
    """What counts as worse. Latencies and length relative, the others in absolute share (0.005 is half a point)."""

    latency: Annotated[float, Field(gt=0)] = 0.10
    """Time to first token, inter-token, queue, end to end per output token."""
    tail: ShareMargin = 0.005
    """Requests whose first token takes a few times as long as usual."""
    errors: ShareMargin = 0.005
    output_length: Annotated[float, Field(gt=0)] = 0.15
    finish_reasons: ShareMargin = 0.05
    probes: ShareMargin = 0.05
    """Share of wrong answers to the quality probe, where the spec has one."""


class StepMargins(Frozen):
    """What differs from the release's margins in one step; what is not given is the release's."""

    latency: Annotated[float, Field(gt=0)] | None = None
    tail: ShareMargin | None = None
    errors: ShareMargin | None = None
    output_length: Annotated[float, Field(gt=0)] | None = None
    finish_reasons: ShareMargin | None = None
    probes: ShareMargin | None = None

    def on(self, release: JudgeMargins) -> JudgeMargins:
        """The margins that count in the step."""
        return release.model_copy(update=self.model_dump(exclude_none=True))


class CanaryStep(Frozen):
    """One raise of the canary's weight."""

    weight: Annotated[int, Field(ge=0, le=100)]
    """Percent of the requests that the gateway sends to the canary; 0 for `mirror` and `header`."""
    traffic: Literal["weighted", "mirror", "header"] = "weighted"
    """`mirror`: users are answered by stable, and the canary gets copies whose answers nobody sees. `header`: only requests
    that ask for the canary's slot by header; nothing is judged but crashes."""
    mirror_percent: Annotated[int, Field(ge=1, le=100)] = 100
    """Percent of the requests that a `mirror` step copies: each costs the canary a whole answer."""
    judge_latency: bool = True
    """False for a small safety step: at unequal load a latency comparison is not like with like."""
    min_seconds: Seconds = 60
    """A pass is not taken earlier."""
    min_requests: Annotated[int, Field(ge=1)] = 20
    """A pass is not taken before the canary has finished so many. A `header` step counts none."""
    margins: Annotated[StepMargins, Field(exclude_if=lambda value: value == StepMargins())] = (
        StepMargins()
    )
    """Wider or narrower margins of this step: a small step proves less in its time, the last one may have to prove more."""
    max_seconds: Seconds = 600
    """Time budget: without a verdict by then the step ends as insufficient data."""
    approval: bool = False
    """Wait for a release manager before this raise."""

    @model_validator(mode="after")
    def _traffic_and_weight(self) -> CanaryStep:
        if (self.weight > 0) != (self.traffic == "weighted"):
            raise ValueError(f"a {self.traffic} step cannot have weight {self.weight}")
        return self


class JudgeTuning(Frozen):
    """What the judge may take for granted about this service. The defaults trust it with little; see docs/judge.md."""

    block_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Requests within one block may depend on each other in any way."""
    drift_sd: Annotated[float, Field(ge=0)] = 0.2
    """How far one replica's log latency wanders of its own, which is not blamed on the candidate."""
    drift_seconds: Annotated[float, Field(gt=0)] = 60.0
    """For how long such a good or bad spell lasts."""
    drift_surprise: Annotated[float, Field(ge=0)] = 1.0
    """How unlikely a drift larger than declared is held to be, in nats for each doubling."""
    max_load_ratio: Annotated[float, Field(gt=1)] = 1.25
    """Requests a replica may differ by this factor between the tracks; beyond it latencies are not compared."""
    guards: tuple[str, ...] = ()
    """Metrics that may fail a step but need not be shown to be within their margin before it passes."""


class LatencyObjective(Frozen):
    """At least the share `quantile` of the requests takes at most `seconds`."""

    quantile: Probability = 0.95
    seconds: Annotated[float, Field(gt=0)]


class Probe(Frozen):
    """One question with a known answer."""

    prompt: Annotated[str, Field(min_length=1)]
    expect: Annotated[str, Field(min_length=1)]
    """What a right answer contains, in capitals or not."""
    max_tokens: Annotated[int, Field(ge=1, le=512)] = 32


class ProbeSpec(Frozen):
    """The quality probe: questions asked of the live canary and of what it is compared with, by turns and of both alike."""

    questions: tuple[Probe, ...] = Field(min_length=1)
    every_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Time between two questions. Each costs both tracks one answer."""


class ServiceLevels(Frozen):
    """Absolute objectives, judged after promotion. What is not given is not judged."""

    ttft: LatencyObjective | None = None
    """Time to first token."""
    e2e: LatencyObjective | None = None
    """From the request to its last token."""
    error_ratio: Probability | None = None
    """Largest share of server errors (5xx) at the gateway."""

    @property
    def empty(self) -> bool:
        return self.ttft is None and self.e2e is None and self.error_ratio is None


class Strategy(StrEnum):
    """Where the candidate's replicas come from."""

    SURGE = "surge"
    """Room for both versions: the candidate stands beside stable in full size."""
    BORROW = "borrow"
    """No room for one more replica: stable lends one of its own while the candidate is judged, and the others are handed over
    one by one before promotion. The sum stays what stable had."""
    RECREATE = "recreate"
    """Room for one version only: the candidate takes stable's place on offline evidence. Users get no answer from the moment
    that stable stops until the candidate is ready, and a rollback takes as long again."""


_STEPS = (CanaryStep(weight=5, judge_latency=False), CanaryStep(weight=50))


class CanarySpec(Frozen):
    strategy: Strategy = Strategy.SURGE
    """`surge`: room for both versions at once. `borrow`: stable lends one of its replicas to the candidate, so that the sum
    stays the same. `recreate`: the candidate replaces stable on offline evidence, without a canary; it takes no steps."""
    steps: tuple[CanaryStep, ...] = _STEPS
    """The raises in weight, in order: at least one, but none for `recreate`."""
    baseline: Literal["stable", "fresh"] = "stable"
    """What the canary is compared with in its steps. `fresh`: servers of the stable candidate that start together with the
    canary, in its size and with its weight, so that stable's warm cache decides nothing. Needs room for a third set."""
    alpha: Probability = 0.01
    """Chance, over the whole canary, of rolling back a candidate that is no worse than the margins."""
    margins: JudgeMargins = JudgeMargins()
    judge: JudgeTuning = JudgeTuning()
    probes: ProbeSpec | None = None
    """Questions with known answers, asked while the canary is judged. None: no quality probe."""
    scrape_seconds: Annotated[float, Field(gt=0)] = 2.0
    """Time between two looks at the metrics."""
    on_insufficient_data: Literal["rollback", "hold"] = "hold"
    """What follows when a step ends without a verdict: back to stable without blame, or hold and page."""
    outage_budget_seconds: Seconds = 120
    """Metrics missing for longer than this send the traffic back to stable without denylisting."""
    ready_seconds: Seconds = 900
    """How long the candidate may take to become ready in its slot."""
    bake_seconds: Seconds = 300
    """How long the old version stays warm after promotion."""
    control_percent: Annotated[int, Field(ge=0, le=50)] = 5
    """Percent of the requests that stay on the old version during the bake, to compare with; 0 for none."""
    slos: ServiceLevels = ServiceLevels()
    """Limits that the new version is held to during the bake, with or without a control."""
    max_verdict_age_seconds: Seconds = 1200
    """After promotion an older `fail` rolls nothing back: the release is held, and a person decides."""

    @property
    def control(self) -> int:
        """Percent of the requests that the old version gets during the bake: none where it does not stand any more."""
        return 0 if self.strategy is Strategy.RECREATE else self.control_percent

    def _check_fresh_baseline(self) -> None:
        if self.strategy is not Strategy.SURGE:
            raise ValueError("`baseline: fresh` needs room: `strategy: surge`")
        if any(step.traffic == "mirror" for step in self.steps):
            raise ValueError("a mirror step is compared with stable: not with `baseline: fresh`")
        if any(step.weight > 50 for step in self.steps):
            raise ValueError("a fresh baseline takes as much as the canary: at most 50% each")

    @model_validator(mode="before")
    @classmethod
    def _steps_of_a_recreation(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("strategy") == Strategy.RECREATE:
            return {"steps": (), **data}
        return data

    @model_validator(mode="after")
    def _rising(self) -> CanarySpec:
        if self.strategy is Strategy.RECREATE:
            if self.steps:
                raise ValueError("`strategy: recreate` has no canary: it takes no steps")
            if self.baseline == "fresh":
                raise ValueError("`strategy: recreate` has no canary to compare a baseline with")
            return self
        if self.baseline == "fresh":
            self._check_fresh_baseline()
        weights = [s.weight for s in self.steps]
        taken = [weight for weight in weights if weight]
        if weights != sorted(weights) or taken != sorted(set(taken)):
            raise ValueError("canary steps must rise in weight, those without any first")
        if not taken:
            raise ValueError("a canary needs a step with weight")
        return self


class ReleaseSpec(Frozen):
    """All of one release. Read with `ReleaseSpec.model_validate(data)`."""

    apiVersion: Literal["lockgate.dev/v1"] = "lockgate.dev/v1"
    kind: Literal["Release"] = "Release"
    model: str
    """DNS label; names the directory in the GitOps repo and the Kubernetes objects."""
    environment: str = "local"
    """DNS label; one directory, one state and one set of slots each."""
    source: str
    """Where the model comes from: `hf://ORG/NAME[@REVISION]`, `dir:PATH`, or `oci://REPOSITORY@sha256:…`."""
    runtime: ImageRef | None = None
    """The engine's image. None: the embedded cluster's own runtime, described and pinned by the digest of its lock file."""
    quantization: Recipe = Recipe.NONE
    """Recipe that the weights go through before they are packaged."""
    calibration: CalibrationSpec = CalibrationSpec()
    hardware: Hardware | None = None
    """What the replicas run on. None: a machine like this one."""
    serving: ServingSpec
    evaluation: EvaluationSpec
    benchmark: BenchmarkSpec
    canary: CanarySpec = CanarySpec()

    @model_validator(mode="after")
    def _room_to_scale(self) -> ReleaseSpec:
        if self.serving.scaling is not None and self.canary.strategy is not Strategy.SURGE:
            raise ValueError(
                f"`strategy: {self.canary.strategy}` counts replicas: it does not go with `serving.scaling`"
            )
        return self

    @field_validator("model", "environment")
    @classmethod
    def _label(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError(
                f"{value!r} must be a DNS label of at most 40 characters (a-z, 0-9, -)"
            )
        return value

    def merged(self, override: dict[str, Any]) -> ReleaseSpec:
        """This spec with top-level keys replaced, validated again."""
        return ReleaseSpec.model_validate({**self.to_data(), **override})
