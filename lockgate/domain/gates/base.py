"""What every gate answers, and when a candidate has passed them all."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import field_validator

from lockgate.domain.base import Frozen
from lockgate.domain.digests import Digest


class Decision(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    INSUFFICIENT_DATA = "insufficient_data"


class GateResult(Frozen):
    """One gate's decision with reasons that a release manager can read."""

    gate: str
    decision: Decision
    reasons: tuple[str, ...]
    measurements: tuple[dict[str, Any], ...] = ()
    """Rows for the report: what was compared, estimate, interval, margin."""

    @field_validator("reasons")
    @classmethod
    def _reasons(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("a gate must say why")
        return value


REQUIRED_GATES = ("scan", "evaluation", "benchmark")


class GateReport(Frozen):
    """All gates of one candidate. It passes only if every required gate is there and passed."""

    candidate: Digest
    results: tuple[GateResult, ...]
    required: tuple[str, ...] = REQUIRED_GATES

    @property
    def passed(self) -> bool:
        return not self.refusals

    @property
    def refusals(self) -> tuple[str, ...]:
        """Why the candidate is refused, one line a gate; empty if it passed."""
        if not self.required:
            return ("no gate is required: an empty policy passes nothing",)
        lines = []
        for name in self.required:
            if not any(r.gate == name for r in self.results):
                lines.append(f"{name}: no result")
        for result in self.results:
            if result.decision is not Decision.PASS:
                lines.append(f"{result.gate}: {result.decision}: {'; '.join(result.reasons)}")
        return tuple(lines)
