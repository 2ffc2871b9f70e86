"""The canary judge: decides from a trace of metrics whether the canary is worse.

Pure (no I/O, no clock) and anytime-valid: it may be asked after every scrape. docs/judge.md says how
it works and what it promises.
"""

from lockgate.domain.judge.config import (
    DEFAULT_METRICS,
    Criticality,
    JudgeConfig,
    MetricConfig,
    MetricKind,
    PassRule,
)
from lockgate.domain.judge.judge import Follower, Judge, follow, judge_lines, read_trace
from lockgate.domain.judge.report import JudgeReport, MetricVerdict, QuantileBand, Verdict

__all__ = [
    "DEFAULT_METRICS",
    "Criticality",
    "Follower",
    "Judge",
    "JudgeConfig",
    "JudgeReport",
    "MetricConfig",
    "MetricKind",
    "MetricVerdict",
    "PassRule",
    "QuantileBand",
    "Verdict",
    "follow",
    "judge_lines",
    "read_trace",
]
