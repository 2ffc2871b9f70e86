"""What a report is made from: data, never a workspace. Whoever writes a report gathers these; nothing here is looked up.

Times are aware datetimes, durations are seconds, latencies in tables are in the unit that the row names. A value that was
not measured is None and is shown as such: a report never fills a gap with a guess.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AwareDatetime, BeforeValidator, Field

from lockgate.domain.base import Frozen
from lockgate.domain.candidates import Candidate
from lockgate.domain.digests import Digest
from lockgate.domain.gates.base import Decision, GateReport, GateResult
from lockgate.domain.gitops import HistoryEntry
from lockgate.domain.judge import JudgeReport, Verdict
from lockgate.domain.release_state import Outcome, Phase, Slot
from lockgate.domain.spec import Recipe
from lockgate.domain.steps import StageSeconds


def _number_or_none(value: Any) -> Any:
    """NaN and infinities become None: a report says "not known", it does not draw them."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


Number = Annotated[float | None, BeforeValidator(_number_or_none)]
"""A finite number, or None where it is not known."""

Interval = tuple[Number, Number]
"""Lower and upper end; None is an open end."""


class CandidateSummary(Frozen):
    """The candidate in the words of a release manager. `of` makes it from a `Candidate`."""

    digest: Digest
    model_digest: Digest
    runtime_digest: Digest
    served_model_name: str
    engine: str = "vllm"
    arguments: tuple[str, ...] = ()
    """Engine arguments as the spec gives them, without those that Lockgate owns."""
    replicas: int = 1
    recipe: Recipe = Recipe.NONE
    source: str = ""
    """Source and revision, e.g. `hf://org/name@<commit>`."""

    @classmethod
    def of(
        cls, candidate: Candidate, *, recipe: Recipe = Recipe.NONE, source: str = ""
    ) -> CandidateSummary:
        serving = candidate.serving
        arguments: list[str] = []
        for option, value in (
            ("--max-model-len", serving.max_model_len),
            ("--max-num-seqs", serving.max_num_seqs),
            ("--dtype", serving.dtype),
        ):
            if value is not None:
                arguments += [option, str(value)]
        return cls(
            digest=candidate.digest,
            model_digest=candidate.model.digest,
            runtime_digest=candidate.runtime.digest,
            served_model_name=serving.served_model_name,
            engine=serving.engine,
            arguments=(*arguments, *serving.args),
            replicas=serving.replicas,
            recipe=recipe,
            source=source,
        )


class EvaluationRow(Frozen):
    """One evaluation task, candidate against stable. Scores are shares (0 to 1)."""

    task: str
    metric: str
    candidate: Number
    stable: Number = None
    """None for a first release: there was nothing to compare with."""
    difference: Number = None
    """Candidate minus stable; negative is worse."""
    interval: Interval | None = None
    """Of the difference."""
    margin: float
    floor: float | None = None
    items: int | None = None
    clusters: int | None = None
    """Documents that the items are about, where several are about one."""
    samples: Digest | None = None
    """Document in the store with every question and answer of the candidate."""
    decision: Decision


class LoadPoint(Frozen):
    """What one level of load gave."""

    profile: str
    in_flight: float
    """Requests under way at once, on average: requests a second times their mean duration (Little's law)."""
    ttft_p50_ms: Number
    ttft_p90_ms: Number = None
    tpot_p50_ms: Number
    tpot_p90_ms: Number = None
    output_tokens_per_second: Number


class RecipeRow(Frozen):
    """What became of one candidate's weights: size, quality, speed."""

    name: str
    recipe: Recipe
    candidate: Digest
    size_bytes: int
    scores: tuple[tuple[str, float], ...]
    """Task and score."""
    output_tokens_per_second: Number
    """Of the load profile with the highest throughput."""
    passed: bool
    """Whether every gate let it through."""

    @property
    def mean_score(self) -> float | None:
        return sum(s for _, s in self.scores) / len(self.scores) if self.scores else None


class BenchmarkRow(Frozen):
    """One figure of one load profile, candidate against stable."""

    profile: str
    metric: str
    """For people, e.g. `TTFT p50`, `output tokens/s`."""
    unit: str
    candidate: Number
    stable: Number = None
    change: Number = None
    """Relative change, positive is worse (0.10 is 10% worse), whichever way the metric points."""
    limit: float | None = None
    """The change (relative) up to which the row passes."""
    absolute_limit: float | None = None
    """A limit on the candidate's own figure, in `unit`, where it was held against one."""
    interval: Interval | None = None
    """Of the change."""
    decision: Decision


class TransitionRow(Frozen):
    """One commit to the release state."""

    time: AwareDatetime
    phase: Phase
    weight: Annotated[int, Field(ge=0, le=100)]
    """Percent of the traffic on the candidate's slot from this commit on (100 once promoted)."""
    subject: str
    commit: str
    verdict: Verdict | None = None
    approved_by: str | None = None


class RequestedApproval(Frozen):
    """A raise that waits for a person."""

    weight: Annotated[int, Field(ge=0, le=100)]
    since: AwareDatetime | None = None
    expires: AwareDatetime | None = None
    command: str = ""
    """What the release manager would run to approve."""


class Watched(Frozen):
    """Two versions beside each other for a time, and what was seen of them."""

    words: ClassVar[tuple[str, str]] = ("stable", "canary")
    """What the tracks `baseline` and `canary` are to a reader."""

    transitions: tuple[TransitionRow, ...] = ()
    stable_slot: Slot | None = None
    canary_slot: Slot | None = None
    looks: tuple[JudgeReport, ...] = ()
    """The judge's reports over time, of all steps; those without a `time` are left out of the figures."""
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """The judge's chance of passing what is at the margin: a metric passes at an e-value of 1/beta."""
    traces: tuple[Path, ...] = ()
    """Files of trace lines (one JSON object a line), in order of time. Lines that cannot be read are counted and named."""
    trace_lines: tuple[str, ...] = ()
    """Trace lines given directly, after those of the files."""


class Bake(Watched):
    """The time after a promotion: the old version beside the new one. `stable_slot` is the old version's."""

    words: ClassVar[tuple[str, str]] = ("old version", "new version")

    control_percent: Annotated[int, Field(ge=0, le=50)] = 0
    """Percent of the requests that stay on the old version."""


class ReleaseStory(Watched):
    """One release from its source to its end. What is watched is the canary."""

    release: str
    title: str = ""
    """What is released in a few words, e.g. `bf16` or `int8 (llm-compressor)`."""
    candidate: CandidateSummary
    first: bool = False
    """The first release of the model: no stable to compare with, no canary."""
    gates: tuple[GateResult, ...] = ()
    required_gates: tuple[str, ...] = ("scan", "evaluation", "benchmark")
    scan_notes: tuple[str, ...] = ()
    """What was not looked at and what was found but let through, e.g. `image: trivy NOT SCANNED (not installed)`."""
    evaluation: tuple[EvaluationRow, ...] = ()
    benchmark: tuple[BenchmarkRow, ...] = ()
    load: tuple[LoadPoint, ...] = ()
    """The candidate's latencies by load."""
    stable_load: tuple[LoadPoint, ...] = ()
    """The same of the candidate that was stable then, where it was measured on the same hardware."""
    answers: str = ""
    """Where the candidate's answers in the evaluation were put, relative to the report; empty if they were not."""
    outcome: Outcome | None = None
    """None while under way, and for a candidate that the gates refused (it never reached Git's manifests)."""
    phase: Phase | None = None
    """None where the release never got into the release state."""
    verdict: Verdict | None = None
    reasons: tuple[str, ...] = ()
    """Why it ended as it did, most important first."""
    denylisted: bool = False
    approval: RequestedApproval | None = None
    started_at: AwareDatetime | None = None
    stages: tuple[StageSeconds, ...] = ()
    bake: Bake | None = None
    """None where it was not promoted, or nothing of its bake is at hand."""
    seconds_verdict_to_zero: float | None = None
    """From the verdict `fail` to the moment after which no request reached the canary."""

    @property
    def gate_report(self) -> GateReport:
        return GateReport(
            candidate=self.candidate.digest, results=self.gates, required=self.required_gates
        )

    @property
    def refused(self) -> bool:
        """Whether the gates kept it out: a gate spoke, not all passed, and it never got into the release state."""
        return bool(self.gates) and not self.gate_report.passed and not self.transitions

    @property
    def seconds(self) -> float:
        """All stages together."""
        return sum(stage.seconds for stage in self.stages)


class TrafficSummary(Frozen):
    """What the traffic driver, or the gateway's log, saw over all releases of this report."""

    source: str = "traffic driver"
    seconds: Annotated[float, Field(ge=0)]
    requests: Annotated[int, Field(ge=0)]
    streaming: int | None = None
    failed: Annotated[int, Field(ge=0)]
    cut_short: Annotated[int, Field(ge=0)]
    """Answers that began and did not reach their end."""
    by_slot: tuple[tuple[str, int], ...] = ()
    """Requests answered by each slot."""
    longest_gap_seconds: float | None = None
    """Longest time without a finished request."""
    examples: tuple[str, ...] = ()
    """Some failures in words."""


class ReportInput(Frozen):
    title: str
    generated_at: AwareDatetime
    model: str
    environment: str
    releases: tuple[ReleaseStory, ...]
    """In the order in which they were started; the last one leads the report."""
    history: tuple[HistoryEntry, ...] = ()
    """Commits to the GitOps repository for this model and environment, newest first."""
    recipes: tuple[RecipeRow, ...] = ()
    """Of every candidate whose measurements are known, in the order of the releases."""
    traffic: TrafficSummary | None = None
    stable: Digest | None = None
    """Candidate that is stable now, with `stable_slot`."""
    stable_slot: Slot | None = None
    denied: tuple[tuple[Digest, str], ...] = ()
    """The denylist: candidate and reason."""
    notes: tuple[str, ...] = ()
    """Limits of what this report can claim, e.g. the demo's wide margins; printed on the first screen."""
