"""Lockgate's own checks of a model's files: names, content against ending, headers, configurations, templates, licenses."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from lockgate import __version__
from lockgate.adapters.scanners.files import head_and_tail, read_range
from lockgate.adapters.scanners.template_render import render_template
from lockgate.domain.evidence import Finding, ScannerRun, ScannerStatus, Severity
from lockgate.domain.policy import WeightScanPolicy
from lockgate.domain.scanning import (
    gguf,
    json_shape,
    licenses,
    model_config,
    names,
    safetensors,
    secrets,
    templates,
)
from lockgate.domain.scanning.content import Kind, sniff
from lockgate.domain.scanning.problems import Problem, critical, high, quoted
from lockgate.domain.sources import Snapshot
from lockgate.errors import ScannerError

NAME = "structure"
MAX_TEMPLATES = 16
_LICENSE_NAMES = ("license", "licence", "copying")
_EXPECTED = {
    ".safetensors": {Kind.SAFETENSORS},
    ".gguf": {Kind.GGUF},
    ".json": {Kind.TEXT},
    ".txt": {Kind.TEXT},
    ".md": {Kind.TEXT},
    ".jinja": {Kind.TEXT},
    ".yaml": {Kind.TEXT},
    ".tiktoken": {Kind.TEXT},
    ".gitattributes": {Kind.TEXT},
    ".model": {Kind.TEXT, Kind.OTHER},
}
_NEVER = {Kind.EXECUTABLE, Kind.SCRIPT}
_DANGEROUS = _NEVER | {Kind.PICKLE}


@dataclass
class _Collected:
    """What files say that is judged once all were seen."""

    stated: dict[str, list[str]] = field(default_factory=dict)
    license_texts: dict[str, str] = field(default_factory=dict)
    templates: dict[str, list[tuple[str, str]]] = field(default_factory=dict)


def scan(
    directory: Path, snapshot: Snapshot, policy: WeightScanPolicy, log_directory: Path
) -> tuple[ScannerRun, tuple[Finding, ...]]:
    """Raises `ScannerError` when a file cannot be read or the template renderer does not start."""
    found: dict[str, list[Problem]] = {}
    sizes = {file.path: file.size for file in snapshot.files}
    collected = _Collected()
    for path, problem in _check_tree(directory, sizes):
        found.setdefault(path, []).append(problem)
    for path, problems in names.check_names(sizes, policy).items():
        found.setdefault(path, []).extend(problems)
    for path, size in sizes.items():
        if any(problem.rule == "link" for problem in found.get(path, ())):
            continue
        problems = _check_file(directory, path, size, sizes, collected)
        if problems:
            found.setdefault(path, []).extend(problems)
    for path, problem in _check_templates(collected, log_directory):
        found.setdefault(path, []).append(problem)
    for path, problems in licenses.check_licenses(
        collected.stated, collected.license_texts, policy
    ).items():
        found.setdefault(path, []).extend(problems)
    run = ScannerRun(
        name=NAME,
        version=__version__,
        status=ScannerStatus.COMPLETED,
        detail=f"{len(sizes)} files",
    )
    findings = tuple(
        Finding(
            scanner=NAME,
            rule=problem.rule,
            severity=problem.severity,
            path=path,
            message=problem.message[:500],
        )
        for path in sorted(found)
        for problem in dict.fromkeys(found[path])
    )
    return run, findings


def _check_tree(directory: Path, sizes: dict[str, int]) -> Iterator[tuple[str, Problem]]:
    """What is in the directory is what the snapshot lists: no link, nothing beside it, nothing of another size."""
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(directory, onerror=_cannot_list):
        base = Path(folder)
        for name in [*subfolders, *files]:
            path = base / name
            relative = path.relative_to(directory).as_posix()
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                continue
            seen.add(relative)
            if not stat.S_ISREG(status.st_mode):
                what = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "a special file"
                yield relative, critical("link", f"{what} in a model directory")
            elif relative not in sizes:
                yield (
                    relative,
                    critical("not-in-snapshot", "a file that the snapshot does not list"),
                )
            elif status.st_size != sizes[relative]:
                message = f"{status.st_size} bytes, the snapshot says {sizes[relative]}"
                yield relative, critical("not-in-snapshot", message)
    missing = sorted(set(sizes) - seen)
    if missing:
        raise ScannerError(f"files of the snapshot are missing: {', '.join(missing[:5])}")


def _cannot_list(error: OSError) -> None:
    raise ScannerError(f"cannot list {Path(error.filename).name}: {error.strerror}") from error


def _check_file(
    directory: Path, path: str, size: int, sizes: dict[str, int], collected: _Collected
) -> list[Problem]:
    place = directory / path
    head, tail = head_and_tail(place)
    kind = sniff(head, tail)
    suffix = PurePosixPath(path).suffix.casefold() or PurePosixPath(path).name.casefold()
    expected = _EXPECTED.get(suffix)
    if size == 0:
        return []
    if expected is None:
        expected = {Kind.TEXT} if "." not in PurePosixPath(path).name else set(Kind) - _NEVER
    if kind not in expected:
        make = critical if kind in _DANGEROUS else high
        return [make("content-mismatch", f"named {quoted(suffix)}, the content is {kind.value}")]
    if kind is Kind.SAFETENSORS:
        return _check_safetensors(place, size)
    if kind is Kind.GGUF:
        return _check_gguf(place, path, size, collected)
    if kind is Kind.TEXT:
        return _check_text(place, path, suffix, size, sizes, collected)
    return []


def _check_safetensors(place: Path, size: int) -> list[Problem]:
    length = safetensors.header_length(read_range(place, 0, 8), size)
    if isinstance(length, Problem):
        return [length]
    return safetensors.check_header(read_range(place, 8, length), size)


def _check_gguf(place: Path, path: str, size: int, collected: _Collected) -> list[Problem]:
    facts = gguf.read_gguf(read_range(place, 0, min(size, gguf.WINDOW)), size)
    for key, template in facts.templates.items():
        collected.templates.setdefault(path, []).append((key, template))
    stated = facts.metadata.get("general.license")
    if isinstance(stated, str) and stated:
        collected.stated[path] = [stated.strip().lower()]
    return list(facts.problems)


def _check_text(
    place: Path, path: str, suffix: str, size: int, sizes: dict[str, int], collected: _Collected
) -> list[Problem]:
    if size > json_shape.MAX_BYTES:
        return [high("text-too-large", f"{size} bytes of text")]
    data = read_range(place, 0, size)
    name = PurePosixPath(path).name
    problems = secrets.check_secrets(data) if name not in model_config.VOCABULARIES else []
    if b"\0" in data:
        problems.append(high("content-mismatch", "text with NUL bytes in it"))
    if suffix == ".json":
        value, wrong = json_shape.parse(data)
        problems += wrong
        if value is not None:
            problems += model_config.check_json(path, value, sizes)
            _collect_json(path, name, value, collected)
        return problems
    text = data.decode("utf-8", "replace")
    if suffix == ".jinja":
        collected.templates.setdefault(path, []).append((name, text))
    elif name.casefold() == "readme.md" and path == name:
        front, wrong = licenses.front_matter(text[: licenses.MAX_TEXT])
        problems += wrong
        stated = licenses.stated_in_card(front)
        if stated:
            collected.stated[path] = stated
    elif path == name and name.casefold().startswith(_LICENSE_NAMES):
        collected.license_texts[path] = text[: licenses.MAX_TEXT]
    return problems


def _collect_json(path: str, name: str, value: Any, collected: _Collected) -> None:
    if name not in model_config.VOCABULARIES:
        for where, template in model_config.templates_in(value).items():
            collected.templates.setdefault(path, []).append((where, template))
    if name == "config.json" and path == name and isinstance(value, dict):
        stated = licenses.stated_in_card(value)
        if stated:
            collected.stated[path] = stated


def _check_templates(collected: _Collected, log_directory: Path) -> Iterator[tuple[str, Problem]]:
    pairs = [
        (path, where, text) for path, found in collected.templates.items() for where, text in found
    ]
    rendered: dict[str, list[Problem]] = {}
    for number, (path, where, text) in enumerate(pairs):
        if number >= MAX_TEMPLATES:
            yield path, high("template-count", f"{len(pairs)} chat templates")
            return
        problems = templates.check_template(text)
        # A tree that shows danger is enough: such a template is not run, not even in the sandbox.
        if all(problem.severity is Severity.LOW for problem in problems):
            if text not in rendered:
                rendered[text] = render_template(text, log_directory / "templates.log")
            problems = [*problems, *rendered[text]]
        for problem in problems:
            yield path, Problem(problem.rule, problem.severity, f"{where}: {problem.message}")
