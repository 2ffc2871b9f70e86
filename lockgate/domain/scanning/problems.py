"""What a check found wrong with one file."""

from __future__ import annotations

from dataclasses import dataclass

from lockgate.domain.evidence import Severity


@dataclass(frozen=True)
class Problem:
    """A rule's name, how bad it is, and what was seen, in words without control characters."""

    rule: str
    severity: Severity
    message: str


def critical(rule: str, message: str) -> Problem:
    return Problem(rule, Severity.CRITICAL, message)


def high(rule: str, message: str) -> Problem:
    return Problem(rule, Severity.HIGH, message)


def medium(rule: str, message: str) -> Problem:
    return Problem(rule, Severity.MEDIUM, message)


def low(rule: str, message: str) -> Problem:
    return Problem(rule, Severity.LOW, message)


def quoted(text: object, limit: int = 80) -> str:
    """Untrusted text for a message: escaped and short."""
    shown = ascii(text)
    return shown if len(shown) <= limit else shown[: limit - 4] + "...'"
