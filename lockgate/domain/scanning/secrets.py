"""Credentials that were left in a model's text files. A message never holds what was found."""

from __future__ import annotations

import re

from lockgate.domain.scanning.problems import Problem, high

MAX_BYTES = 4 << 20

_PATTERNS = (
    ("a private key", re.compile(rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----")),
    ("an AWS access key", re.compile(rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    ("a Hugging Face token", re.compile(rb"\bhf_[A-Za-z]{34}\b")),
    (
        "a GitHub token",
        re.compile(rb"\b(?:gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{60,})\b"),
    ),
    ("a Google API key", re.compile(rb"\bAIza[0-9A-Za-z_-]{35}\b")),
    ("a Slack token", re.compile(rb"\bxox[abprs]-[0-9A-Za-z-]{20,}\b")),
    ("an OpenAI key", re.compile(rb"\bsk-(?:proj-)?[A-Za-z0-9_-]{40,}\b")),
)


def check_secrets(data: bytes) -> list[Problem]:
    """Looks at the first `MAX_BYTES` of a text file."""
    window = data[:MAX_BYTES]
    problems = []
    for what, pattern in _PATTERNS:
        match = pattern.search(window)
        if match:
            line = window.count(b"\n", 0, match.start()) + 1
            problems.append(high("secret", f"line {line} holds {what}"))
    return problems
