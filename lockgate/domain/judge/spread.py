"""How much more shares vary between blocks than chance allows, kept up block by block: a step may have very many."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lockgate.domain.judge.proportion import Counts, dispersion_of_spells
from lockgate.domain.trace import TRACKS, Track

Array = NDArray[np.float64]

_LEAST = 5.0
"""Events and non-events below which there is no over-dispersion to measure."""


class Spread:
    """The over-dispersion of one track's share between blocks: Pearson's statistic a degree of freedom, never below 1; 1 where
    fewer than 5 events or non-events were seen."""

    def __init__(self) -> None:
        self.events = 0.0
        self.trials = 0.0
        self._blocks = 0
        self._squares = 0.0
        """Squared distances of the blocks' shares from that of all, each times the block's trials."""

    def add(self, events: float, trials: float) -> None:
        """Take one block."""
        if trials <= 0:
            return
        if self.trials > 0:
            # without differences of large sums, which would lose digits (West 1979)
            apart = events / trials - self.events / self.trials
            self._squares += apart**2 * trials * self.trials / (trials + self.trials)
        self._blocks += 1
        self.events += events
        self.trials += trials

    @property
    def dispersion(self) -> float:
        freedom = self._blocks - 1
        if min(self.events, self.trials - self.events) < _LEAST or freedom < 3:
            return 1.0
        share = self.events / self.trials
        return max(self._squares / (share * (1.0 - share)) / freedom, 1.0)


class ShareHistory:
    """Events and trials of one pair of tracks, and their over-dispersion."""

    def __init__(self) -> None:
        self.tracks: dict[Track, Spread] = {t: Spread() for t in TRACKS}

    def add(self, block: Counts) -> None:
        """A block."""
        self.tracks["baseline"].add(block.baseline_events, block.baseline_trials)
        self.tracks["canary"].add(block.canary_events, block.canary_trials)

    def skip(self) -> None:
        """A block in which a track had no trials; its counts go to the next."""

    def counts(self) -> Counts:
        """Of all blocks."""
        baseline, canary = self.tracks["baseline"], self.tracks["canary"]
        return Counts(baseline.events, baseline.trials, canary.events, canary.trials)

    def dispersion(self) -> float:
        """The larger of both tracks'."""
        return max(spread.dispersion for spread in self.tracks.values())


class SpellHistory(ShareHistory):
    """The same where an event brings others for a while."""

    def __init__(self) -> None:
        super().__init__()
        self._blocks = 0
        self._table = np.zeros((2, len(TRACKS), 64))
        """Events and trials of both tracks; room for more blocks than there are."""
        self._measured: float | None = 1.0
        """The dispersion after the last block that was not skipped; None where it was not asked for yet."""

    def add(self, block: Counts) -> None:
        super().add(block)
        kb, nb, kc, nc = block.four
        self._note(((kb, kc), (nb, nc)))
        self._measured = None

    def skip(self) -> None:
        self._note(0.0)

    def _note(self, block: float | tuple[tuple[float, float], tuple[float, float]]) -> None:
        if self._blocks == self._table.shape[-1]:
            self._table = np.concatenate([self._table, np.zeros_like(self._table)], axis=-1)
        self._table[..., self._blocks] = block
        self._blocks += 1

    def dispersion(self) -> float:
        if self._measured is None:
            events, trials = self._table[..., : self._blocks]
            self._measured = float(dispersion_of_spells(events, trials).max())
        return self._measured
