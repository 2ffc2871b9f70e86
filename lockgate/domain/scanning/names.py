"""File names: which a model may have at all, and tricks with them."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath

from lockgate.domain.policy import WeightScanPolicy
from lockgate.domain.scanning.problems import Problem, critical, high, medium, quoted

CODE_ENDINGS = frozenset(
    {
        ".py", ".pyc", ".pyo", ".pyd", ".pyw", ".pyi", ".pyx", ".pth.py", ".ipynb", ".so", ".dll",
        ".dylib", ".exe", ".sh", ".bash", ".zsh", ".bat", ".cmd", ".ps1", ".js", ".mjs", ".ts",
        ".rb", ".pl", ".php", ".lua", ".jar", ".class", ".whl", ".egg", ".deb", ".rpm", ".apk",
        ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".wasm", ".vbs", ".scr", ".com", ".msi",
        ".desktop", ".service", ".node", ".a", ".o", ".ko", ".cubin", ".ptx", ".fatbin",
    }
)  # fmt: skip
"""Refused whatever the policy's formats say: a released model carries no code."""

_TRICKS = {"Cf": "an invisible character", "Co": "a private character", "Cn": "an unassigned one"}


def check_names(paths: Iterable[str], policy: WeightScanPolicy) -> dict[str, list[Problem]]:
    """Problems by path; a path without problems is left out."""
    paths = list(paths)
    folded: dict[str, str] = {}
    found: dict[str, list[Problem]] = {}
    for path in paths:
        problems = _check_name(path, policy)
        key = unicodedata.normalize("NFKC", path).casefold()
        other = folded.setdefault(key, path)
        if other != path:
            problems.append(
                medium("name-collision", f"the same name as {quoted(other)} on some systems")
            )
        if problems:
            found[path] = problems
    return found


def is_allowed(path: str, policy: WeightScanPolicy) -> bool:
    """Whether the policy's allow-list of endings and whole names holds this file."""
    name = PurePosixPath(path).name
    return name in policy.names or any(
        name.casefold().endswith(ending.casefold()) for ending in policy.formats
    )


def _check_name(path: str, policy: WeightScanPolicy) -> list[Problem]:
    problems = []
    name = PurePosixPath(path).name
    # Every suffix counts: `model.py.json` is data, `model.json.py` is code, so is `x.so.1`.
    last = PurePosixPath(name.casefold().rstrip(". ")).suffix
    versioned = ".so." in name.casefold()
    if last in CODE_ENDINGS or versioned:
        problems.append(critical("code-file", f"{quoted(name)} is code; a model carries none"))
    elif not is_allowed(path, policy):
        problems.append(
            high("format-not-allowed", f"{quoted(name)} is not among the policy's formats or names")
        )
    for character in path:
        category = unicodedata.category(character)
        if category in _TRICKS:
            problems.append(
                high("name-trick", f"{quoted(path)} has {_TRICKS[category]} in its name")
            )
            break
    if any(part.startswith(" ") or part.endswith((" ", ".")) for part in PurePosixPath(path).parts):
        problems.append(medium("name-trick", f"{quoted(path)} begins or ends with a space or dot"))
    if len(path.encode()) > 512 or any(len(p.encode()) > 255 for p in PurePosixPath(path).parts):
        problems.append(medium("name-too-long", "the path is too long for some file systems"))
    return problems
