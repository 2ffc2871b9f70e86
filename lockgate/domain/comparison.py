"""Two candidates side by side, by the evidence that is kept of each: for a person who asks, never for a gate.

The gates compare a candidate with stable under the spec's margins; here any two are compared, without margins, with
two-sided intervals at 95%, and what cannot be compared says why.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy import stats

from lockgate.domain.base import Frozen
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import (
    BenchmarkEvidence,
    EvaluationEvidence,
    Finding,
    ProfileResult,
    ScanEvidence,
    TaskScore,
)
from lockgate.domain.paired import FEWEST_ITEMS, Pairs
from lockgate.domain.ratios import FEWEST_REQUESTS, ratio_of
from lockgate.domain.spec import ServingSpec

TAIL = 0.025
"""On each side of an interval."""
Interval = tuple[float, float]
_LATENCIES = (
    ("time to first token, median (ms)", "ttft_ms", "p50"),
    ("time per output token, median (ms)", "tpot_ms", "p50"),
    ("end to end, mean (ms)", "e2e_ms", "mean"),
)


class CandidateEvidence(Frozen):
    """What is known of one candidate. None: it is not at hand, or never was."""

    name: str
    """The release that it was found by."""
    candidate: Digest
    evidence: Digest | None = None
    """The signed gate predicate; None for a candidate that was refused."""
    recipe: str | None = None
    size_bytes: int | None = None
    serving: ServingSpec | None = None
    evaluation: EvaluationEvidence | None = None
    benchmark: BenchmarkEvidence | None = None
    scans: tuple[ScanEvidence, ...] | None = None


class ScoreRow(Frozen):
    """One task. `difference` is B minus A on the items that both answered."""

    task: str
    metric: str
    a: float | None = None
    a_interval: Interval | None = None
    b: float | None = None
    b_interval: Interval | None = None
    difference: float | None = None
    interval: Interval | None = None
    items: int = 0
    """That both answered."""
    note: str = ""


class LoadRow(Frozen):
    """One figure under one load. `ratio` is B over A: above 1 B takes longer."""

    profile: str
    metric: str
    a: float | None = None
    b: float | None = None
    ratio: float | None = None
    interval: Interval | None = None
    note: str = ""


class FindingRow(Frozen):
    """One scanner's finding, by what it is about."""

    kind: str
    rule: str
    severity: str
    path: str
    of: str
    """`a`, `b` or `both`."""


class SideRow(Frozen):
    """What the two differ in besides: recipe, size, arguments."""

    what: str
    a: str
    b: str


class Comparison(Frozen):
    """Everything that is kept of two candidates, side by side."""

    a: str
    b: str
    candidates: tuple[Digest, Digest]
    evidence: tuple[Digest | None, Digest | None]
    sides: tuple[SideRow, ...]
    scores: tuple[ScoreRow, ...]
    loads: tuple[LoadRow, ...]
    findings: tuple[FindingRow, ...] | None
    """None where the scans of either are not at hand."""
    notes: tuple[str, ...]


def compare(a: CandidateEvidence, b: CandidateEvidence) -> Comparison:
    """Put `a` and `b` side by side."""
    notes: list[str] = []
    if a.candidate == b.candidate:
        notes.append("both are the same candidate")
    for side in (a, b):
        absent = [
            what
            for what, known in (
                ("evaluation", side.evaluation), ("benchmark", side.benchmark), ("scans", side.scans),
            )
            if known is None
        ]  # fmt: skip
        if absent:
            notes.append(f"{side.name}: no {', no '.join(absent)} at hand")
    findings = None
    if a.scans is not None and b.scans is not None:
        findings = tuple(_findings(a.scans, b.scans))
    return Comparison(
        a=a.name, b=b.name, candidates=(a.candidate, b.candidate), evidence=(a.evidence, b.evidence),
        sides=tuple(_sides(a, b)), scores=tuple(_scores(a.evaluation, b.evaluation)),
        loads=tuple(_loads(a.benchmark, b.benchmark)), findings=findings, notes=tuple(notes),
    )  # fmt: skip


def own_interval(scores: TaskScore) -> Interval | None:
    """The score's own interval: Wilson's for right-or-wrong answers, Student's over documents or graded items otherwise. None
    for fewer items than an interval is good for."""
    values = np.array([item.score for item in scores.items], dtype=np.float64)
    if values.size < FEWEST_ITEMS or not np.isfinite(values).all():
        return None
    labels = [item.cluster or f"\0{item.item}" for item in scores.items]
    number = {label: n for n, label in enumerate(dict.fromkeys(labels))}
    if len(number) == values.size and np.isin(values, (0.0, 1.0)).all():
        exact = stats.binomtest(int(values.sum()), values.size).proportion_ci(method="wilson")
        return float(exact.low), float(exact.high)
    if len(number) < FEWEST_ITEMS:
        return None
    sums = np.bincount([number[label] for label in labels], weights=values - values.mean())
    spread = float((sums**2).sum()) * sums.size / (sums.size - 1)
    reach = float(stats.t.ppf(1 - TAIL, sums.size - 1)) * math.sqrt(spread) / values.size
    return float(values.mean()) - reach, float(values.mean()) + reach


def _sides(a: CandidateEvidence, b: CandidateEvidence) -> Iterable[SideRow]:
    def megabytes(size: int | None) -> str:
        return "not known" if size is None else f"{size / 1e6:.1f} MB"

    yield SideRow(what="recipe", a=a.recipe or "not known", b=b.recipe or "not known")
    yield SideRow(what="model size", a=megabytes(a.size_bytes), b=megabytes(b.size_bytes))
    if a.serving is None or b.serving is None:
        return
    mine, theirs = a.serving.to_data(), b.serving.to_data()
    for key in mine:
        if mine[key] != theirs[key]:
            yield SideRow(what=f"serving.{key}", a=str(mine[key]), b=str(theirs[key]))


def _scores(a: EvaluationEvidence | None, b: EvaluationEvidence | None) -> Iterable[ScoreRow]:
    mine = {(t.task, t.metric): t for t in a.tasks} if a is not None else {}
    theirs = {(t.task, t.metric): t for t in b.tasks} if b is not None else {}
    for key in dict.fromkeys([*mine, *theirs]):
        one, other = mine.get(key), theirs.get(key)
        row = ScoreRow(
            task=key[0], metric=key[1],
            a=one.score if one else None, a_interval=own_interval(one) if one else None,
            b=other.score if other else None, b_interval=own_interval(other) if other else None,
        )  # fmt: skip
        if one is None or other is None or a is None or b is None:
            yield row.model_copy(update={"note": "only one of them was asked"})
        elif (a.suite, a.harness) != (b.suite, b.harness):
            why = "other questions or another harness: the scores are not comparable"
            yield row.model_copy(update={"note": why})
        else:
            yield _paired(row, one, other)


def _paired(row: ScoreRow, a: TaskScore, b: TaskScore) -> ScoreRow:
    pairs = Pairs.of(
        {i.item: i.score for i in b.items},
        {i.item: i.score for i in a.items},
        {i.item: i.cluster for i in b.items if i.cluster is not None},
    )
    if pairs.units < FEWEST_ITEMS:
        return row.model_copy(
            update={"items": pairs.items, "note": f"{pairs.units} items in common are too few"}
        )
    return row.model_copy(
        update={
            "items": pairs.items,
            "difference": pairs.difference,
            "interval": (pairs.lower(TAIL), pairs.upper(TAIL)),
        }
    )


def _loads(a: BenchmarkEvidence | None, b: BenchmarkEvidence | None) -> Iterable[LoadRow]:
    mine = {p.profile: p for p in a.profiles} if a is not None else {}
    theirs = {p.profile: p for p in b.profiles} if b is not None else {}
    note = ""
    if a is not None and b is not None and a.fingerprint.hardware != b.fingerprint.hardware:
        note = "measured on other hardware: not comparable"
    for name in dict.fromkeys([*mine, *theirs]):
        yield from _profile(name, mine.get(name), theirs.get(name), note)


def _profile(
    name: str, a: ProfileResult | None, b: ProfileResult | None, note: str
) -> Iterable[LoadRow]:
    for words, key, statistic in _LATENCIES:
        row = LoadRow(
            profile=name, metric=words, note=note,
            a=getattr(a, key).get(statistic) if a else None,
            b=getattr(b, key).get(statistic) if b else None,
        )  # fmt: skip
        yield row if note or a is None or b is None else _ratio(row, a, b, key, statistic)
    rates = [p.output_tokens_per_second if p else None for p in (a, b)]
    yield LoadRow(profile=name, metric="output tokens/s", a=rates[0], b=rates[1], note=note)


def _ratio(row: LoadRow, a: ProfileResult, b: ProfileResult, key: str, statistic: str) -> LoadRow:
    first = np.array(a.requests.get(key, ()), dtype=np.float64)
    second = np.array(b.requests.get(key, ()), dtype=np.float64)
    fewest = min(first.size, second.size)
    whole = np.concatenate([first, second])
    if fewest < FEWEST_REQUESTS:
        note = f"{fewest} requests are too few for an interval of runs made apart"
    elif not (np.isfinite(whole).all() and whole.min() > 0):
        note = "a timing is not a positive number"
    else:
        ratio = ratio_of(second, first, "p50" if statistic == "p50" else "mean")
        return row.model_copy(
            update={
                "ratio": ratio.estimate,
                "interval": (ratio.lower(TAIL), ratio.upper(TAIL)),
                "note": "runs made apart: the noise between them is not in the interval",
            }
        )
    return row.model_copy(update={"note": note})


def _findings(a: Sequence[ScanEvidence], b: Sequence[ScanEvidence]) -> Iterable[FindingRow]:
    mine, theirs = _by_subject(a), _by_subject(b)
    for key in dict.fromkeys([*mine, *theirs]):
        kind, rule, path = key
        finding = mine.get(key) or theirs[key]
        of = "both" if key in mine and key in theirs else "a" if key in mine else "b"
        yield FindingRow(kind=kind, rule=rule, severity=finding.severity, path=path, of=of)


def _by_subject(scans: Sequence[ScanEvidence]) -> dict[tuple[str, str, str], Finding]:
    return {
        (scan.subject_kind, finding.rule, finding.path): finding
        for scan in scans
        for finding in scan.findings
    }
