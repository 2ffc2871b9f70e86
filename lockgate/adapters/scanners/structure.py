"""Lockgate's own checks of a model's files: names, content against ending, headers, configurations, templates, licenses."""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from lockgate import __version__
from lockgate.adapters.scanners.engine import Engine, Look, ScanJob
from lockgate.adapters.scanners.files import Window, head_and_tail, read_range
from lockgate.adapters.scanners.template_render import render_template
from lockgate.domain import scanning
from lockgate.domain.digests import Digest
from lockgate.domain.evidence import Finding, Severity
from lockgate.domain.policy import TemplatePolicy
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
from lockgate.domain.scanning.problems import Problem, critical, high, medium, quoted
from lockgate.domain.sources import BOOKKEEPING, SnapshotFile
from lockgate.errors import ScannerError

NAME = "structure"
LARGEST_READ = gguf.WINDOW
READ_AT_ONCE = 2 * LARGEST_READ
"""Bytes of files that are in memory at one time, however many workers there are."""
SUBSTANCE = 16 << 20
SAMPLES = 64
"""Weights of at least `SUBSTANCE` bytes are looked at in so many places: do they hold anything."""
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


def scan(job: ScanJob) -> Look:
    """Raises `ScannerError` when a file cannot be read or the template renderer does not start."""
    directory, policy = job.directory, job.policy
    found: dict[str, list[Problem]] = {}
    files = {file.path: file for file in job.snapshot.files}
    sizes = {path: file.size for path, file in files.items()}
    collected = _Collected()
    for path, problem in _check_tree(directory, sizes):
        found.setdefault(path, []).append(problem)
    for path, problems in names.check_names(sizes, policy).items():
        found.setdefault(path, []).extend(problems)
    if job.snapshot.size > policy.max_bytes:
        problem = high("model-too-large", f"{job.snapshot.size} bytes, {policy.max_bytes} allowed")
        found.setdefault("", []).append(problem)
    broken = {path for path, problems in found.items() if any(p.rule == "link" for p in problems)}
    window = Window(READ_AT_ONCE)

    def one(file: SnapshotFile) -> tuple[str, list[Problem]]:
        with window.of(min(file.size, LARGEST_READ)):
            return file.path, _check_file(directory, file, sizes, collected)

    with ThreadPoolExecutor(max_workers=max(1, job.workers)) as pool:
        for path, problems in pool.map(one, [files[p] for p in files if p not in broken]):
            found.setdefault(path, []).extend(problems)
    for path, problem in _check_templates(collected, policy.templates, job):
        found.setdefault(path, []).append(problem)
    texts = collected.license_texts
    accepted = {path for path in texts if files[path].digest in policy.license_texts}
    for path, problems in licenses.check_licenses(
        collected.stated, texts, policy, accepted
    ).items():
        found.setdefault(path, []).extend(problems)
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
    return Look(findings, f"{len(sizes)} files")


@functools.cache
def checks_version() -> str:
    """Lockgate's version and a digest over the checks themselves: a scan by other checks is another scan."""
    folder = Path(scanning.__file__).parent
    own = ("structure.py", "template_render.py", "template_worker.py")
    sources = [*sorted(folder.glob("*.py")), *(Path(__file__).with_name(name) for name in own)]
    digest = Digest.of_json([[path.name, Digest.of_bytes(path.read_bytes())] for path in sources])
    return f"{__version__}+{digest.short}"


ENGINE = Engine(name=NAME, version=checks_version, scan=scan)


def _check_tree(directory: Path, sizes: dict[str, int]) -> Iterator[tuple[str, Problem]]:
    """What is in the directory is what the snapshot lists: no link, nothing beside it, nothing of another size."""
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(directory, onerror=_cannot_list):
        base = Path(folder)
        if base == directory:
            subfolders[:] = [name for name in subfolders if name not in BOOKKEEPING]
        for name in [*subfolders, *files]:
            path = base / name
            relative = path.relative_to(directory).as_posix()
            status = path.lstat()
            if stat.S_ISDIR(status.st_mode):
                continue
            seen.add(relative)
            if not stat.S_ISREG(status.st_mode):
                what = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "a special file"
                yield _shown(relative), critical("link", f"{what} in a model directory")
            elif relative not in sizes:
                message = "a file that the snapshot does not list"
                yield _shown(relative), critical("not-in-snapshot", message)
            elif status.st_size != sizes[relative]:
                message = f"{status.st_size} bytes, the snapshot says {sizes[relative]}"
                yield relative, critical("not-in-snapshot", message)
    missing = sorted(set(sizes) - seen)
    if missing:
        raise ScannerError(f"files of the snapshot are missing: {', '.join(missing[:5])}")


def _shown(path: str) -> str:
    """A path that is in no snapshot, for evidence: as it is where one can write it down."""
    return path if path.isprintable() and "\\" not in path else quoted(path, 300)


def _cannot_list(error: OSError) -> None:
    raise ScannerError(f"cannot list {Path(error.filename).name}: {error.strerror}") from error


def _check_file(
    directory: Path, file: SnapshotFile, sizes: dict[str, int], collected: _Collected
) -> list[Problem]:
    place, path, size = directory / file.path, file.path, file.size
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
        return [*_check_safetensors(place, size), *_check_substance(place, size)]
    if kind is Kind.GGUF:
        return [*_check_gguf(place, path, size, collected), *_check_substance(place, size)]
    if kind is Kind.TEXT:
        return _check_text(place, file, suffix, sizes, collected)
    return []


def _check_substance(place: Path, size: int) -> list[Problem]:
    """Weights that hold nothing: a hole in the file, or zeros wherever one looks."""
    if size < SUBSTANCE:
        return []
    allocated = place.stat().st_blocks * 512
    if allocated < size // 8:
        return [high("sparse-file", f"{size} bytes, of which {allocated} are on the disk")]
    step = size // SAMPLES
    if not any(any(read_range(place, n * step + step // 2, 4096)) for n in range(SAMPLES)):
        return [medium("empty-weights", f"zeros at all of {SAMPLES} places in {size} bytes")]
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
    place: Path, file: SnapshotFile, suffix: str, sizes: dict[str, int], collected: _Collected
) -> list[Problem]:
    path, size = file.path, file.size
    if size > json_shape.MAX_BYTES:
        return [high("text-too-large", f"{size} bytes of text")]
    data = read_range(place, 0, size)
    if Digest.of_bytes(data) != file.digest:
        return [critical("not-in-snapshot", "other bytes than those that were fetched")]
    name = PurePosixPath(path).name
    problems = secrets.check_secrets(data) if name not in model_config.VOCABULARIES else []
    if b"\0" in data:
        problems.append(high("content-mismatch", "text with NUL bytes in it"))
    if suffix == ".json":
        value, wrong = json_shape.parse(data)
        problems += wrong
        if value is None and not wrong and name not in model_config.VOCABULARIES:
            problems.append(high("json-too-large", f"{size} bytes of configuration"))
        if value is not None:
            problems += model_config.check_json(path, value, sizes)
            _collect_json(path, name, value, collected)
        return problems
    text = data.decode("utf-8", "replace")
    if suffix in (".yaml", ".yml"):
        problems += model_config.check_yaml(data)
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
        found = model_config.templates_in(value)
        collected.templates.setdefault(path, []).extend(found)
    if name == "config.json" and path == name and isinstance(value, dict):
        stated = licenses.stated_in_card(value)
        if stated:
            collected.stated[path] = stated


def _check_templates(
    collected: _Collected, policy: TemplatePolicy, job: ScanJob
) -> Iterator[tuple[str, Problem]]:
    pairs = [
        (path, where, text)
        for path, found in sorted(collected.templates.items())
        for where, text in found
    ]
    if len(pairs) > policy.max_count:
        yield pairs[0][0], high("template-count", f"{len(pairs)} chat templates")
        return
    read = {text: templates.check_template(text, policy.max_characters) for _, _, text in pairs}
    # A tree that shows danger is enough: such a template is not run, not even in the sandbox.
    clean = [text for text, problems in read.items() if all(map(_is_low, problems))]

    def render(text: str) -> list[Problem]:
        return render_template(text, job.logs / "templates.log", policy.cpu_seconds)

    with ThreadPoolExecutor(max_workers=max(1, job.workers)) as pool:
        rendered = dict(zip(clean, pool.map(render, clean), strict=True))
    for path, where, text in pairs:
        for problem in [*read[text], *rendered.get(text, ())]:
            yield path, Problem(problem.rule, problem.severity, f"{where}: {problem.message}")


def _is_low(problem: Problem) -> bool:
    return problem.severity is Severity.LOW
