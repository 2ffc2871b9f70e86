"""All evaluators of a step: what every one of them is told, and what is made of all of them at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lockgate.domain.judge.config import TIMED, JudgeConfig, MetricConfig, MetricKind
from lockgate.domain.judge.evaluators import Evaluator, Pool
from lockgate.domain.judge.increments import Increments
from lockgate.domain.judge.load import Load
from lockgate.domain.judge.ratios import RatioOfMeans, Ratios
from lockgate.domain.judge.shares import CategoryMix, Share, ShareDifference, Shares
from lockgate.domain.judge.split import SplitShare
from lockgate.domain.judge.tails import TailShare
from lockgate.domain.trace import Scrape, Track


class Panel:
    """The evaluators by name, and the pools that keep their evidence."""

    def __init__(self, config: JudgeConfig) -> None:
        made = {name: _evaluator(name, metric, config) for name, metric in config.metrics.items()}
        self.evaluators: dict[str, Evaluator] = {n: e for n, e in made.items() if e is not None}
        self._timed, self._untimed = (
            [e for e in self.evaluators.values() if e.needs_times is timed]
            for timed in (True, False)
        )
        self._pools = tuple(_pools(list(self.evaluators.values())))

    def notice(self, scrape: Scrape, *, lasting: bool = False) -> None:
        """As `Evaluator.notice`."""
        for evaluator in self.evaluators.values():
            evaluator.notice(scrape, lasting=lasting)

    def take(self, track: Track, increments: Increments, *, timed: bool) -> None:
        """Add increments of a track to the open block: for those evaluators that need their times (`timed`), or for the others."""
        for evaluator in self._timed if timed else self._untimed:
            evaluator.take(track, increments)

    def close(self, end: float, load: Load) -> None:
        """The open block has ended at time `end`, under this load."""
        for evaluator in self.evaluators.values():
            if evaluator.metric.kind in TIMED:
                # What shows at another load is the load's: slowness under more of it, and quickness under less.
                if load.surely_heavier:
                    evaluator.discard()
                    continue
                evaluator.at_ease = load.surely_lighter
            evaluator.close(end)
        for pool in self._pools:
            pool.weigh()

    def describe(self) -> None:
        """Bring estimates and intervals of all up to date."""
        for pool in self._pools:
            pool.describe()


def _pools(evaluators: Sequence[Evaluator]) -> Iterator[Pool]:
    if ratios := [e for e in evaluators if isinstance(e, RatioOfMeans)]:
        yield Ratios(ratios)
    if shares := [e for e in evaluators if isinstance(e, Share)]:
        yield Shares(shares)


def _evaluator(name: str, metric: MetricConfig, config: JudgeConfig) -> Evaluator | None:
    """The evaluator of a metric; None for crashes, which the judge watches itself, and for what this step does not judge."""
    match metric.kind:
        case MetricKind.LATENCY | MetricKind.TAIL if not config.judge_latency:
            return None
        case MetricKind.SPLIT if config.canary_weight is None:
            return None
        case MetricKind.LATENCY | MetricKind.SIZE:
            return RatioOfMeans(name, metric, config)
        case MetricKind.RATIO:
            return ShareDifference(name, metric, config)
        case MetricKind.TAIL:
            return TailShare(name, metric, config)
        case MetricKind.MIX:
            return CategoryMix(name, metric, config)
        case MetricKind.SPLIT:
            return SplitShare(name, metric, config)
        case MetricKind.CRASH:
            return None
