"""The offline gates: pure decisions over evidence. A gate that has nothing to look at does not pass."""

from lockgate.domain.gates.base import Decision, GateReport, GateResult

__all__ = ["Decision", "GateReport", "GateResult"]
