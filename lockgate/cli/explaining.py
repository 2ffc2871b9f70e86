"""`explain`, `diff`, `logs`: what became of a release, what two differ in, what their steps said. Only what is kept is read."""

from __future__ import annotations

import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from lockgate.cli import console
from lockgate.errors import UsageError
from lockgate.settings import Settings

if TYPE_CHECKING:
    from lockgate.domain.comparison import Comparison
    from lockgate.domain.explanation import Explanation, Refusal

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
NAMED = "Release id, six or more digits of a candidate's digest, a model (its newest release), or MODEL@stable."
Environment = Annotated[str | None, typer.Option("--env", help="Only of this environment.")]


def register(app: typer.Typer) -> None:
    for command in (explain, diff, logs):
        app.command()(command)


def explain(
    release: Annotated[str, typer.Argument(help=NAMED, show_default=False)],
    env: Environment = None,
    as_json: Json = False,
) -> None:
    """Say what became of a release and why: who refused it, on what evidence, where the logs are, what to try next.

    Exits as the release did: 0 promoted, waiting or under way, 3 refused or rolled back, 1 failed; 2 if there is no such release.
    """
    from tasks.explaining import explain as explained
    from tasks.workspace import Workspace

    said = explained(Workspace(Settings()), release, env)
    if as_json:
        console.print_json({**said.to_data(), "exit_code": said.exit_code})
    else:
        for line in explanation_lines(said):
            console.out.print(line, markup=False, highlight=False)
    if said.exit_code:
        raise typer.Exit(said.exit_code)


def diff(
    a: Annotated[str, typer.Argument(help=NAMED, show_default=False)],
    b: Annotated[str, typer.Argument(help=NAMED, show_default=False)],
    env: Environment = None,
    as_json: Json = False,
) -> None:
    """Put the evidence of two releases side by side: scores, latency, size, findings, recipe. Exits 0 whatever the difference."""
    from tasks.comparing import compare_releases
    from tasks.workspace import Workspace

    found = compare_releases(Workspace(Settings()), a, b, env)
    if as_json:
        console.print_json(found.to_data())
        return
    for table in comparison_tables(found):
        console.out.print(table)
    for note in found.notes:
        console.out.print(f"note: {note}", markup=False, highlight=False)


def logs(
    release: Annotated[str, typer.Argument(help=NAMED, show_default=False)],
    step: Annotated[
        str | None, typer.Option(help="Print the logs of this step instead of the list.")
    ] = None,
    tail: Annotated[
        int | None, typer.Option(min=1, help="With --step: only so many last lines of each.")
    ] = None,
    env: Environment = None,
    as_json: Json = False,
) -> None:
    """List where the steps of a release logged on this machine, or print what a step logged."""
    if tail is not None and step is None:
        raise UsageError("--tail is of a step's logs", hint="add --step")
    from tasks.known_releases import ReleaseIndex
    from tasks.release_logs import chosen, logs_of
    from tasks.workspace import Workspace

    index = ReleaseIndex(Workspace(Settings()), env)
    found = logs_of(index, index.find(release))
    if step is not None:
        found = chosen(found, step)
    if as_json:
        console.print_json([log.to_data() for log in found])
    elif step is None:
        for log in found:
            shared = "  (shared with other releases)" if log.shared else ""
            line = f"{log.step:10} {log.bytes:>10}  {log.path}{shared}"
            console.out.print(line, markup=False, highlight=False)
    else:
        for log in found:
            sys.stdout.write(f"==> {log.path} <==\n")
            _copy(Path(log.path), tail)


def _copy(path: Path, tail: int | None) -> None:
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            sys.stdout.writelines(lines if tail is None else deque(lines, tail))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def explanation_lines(said: Explanation) -> list[str]:
    """For a person."""
    lines = [f"{said.release} ({said.model} in {said.environment}): {said.result}"]
    lines.append(f"why: {said.reason}")
    if said.candidate is not None:
        lines.append(f"candidate: {said.candidate}")
    if said.requested_by is not None:
        lines.append(f"requested by: {said.requested_by}")
    if said.step is not None:
        lines.append(f"step: {said.step}")
    for refusal in said.refusals:
        lines += _refusal_lines(refusal)
    lines += [f"evidence: {item.kind} {item.digest}" for item in said.evidence]
    lines += [f"log: {log.step}: {log.path}" for log in said.logs]
    lines += [f"next: {step}" for step in said.next_steps]
    return lines


def _refusal_lines(refusal: Refusal) -> list[str]:
    lines = [f"{refusal.by}: {refusal.decision}"]
    lines += [f"  {reason}" for reason in refusal.reasons]
    for figures in refusal.figures:
        known = {k: v for k, v in figures.items() if v is not None and k != "samples"}
        lines.append("  " + ", ".join(f"{key} {_figure(value)}" for key, value in known.items()))
    return lines


def comparison_tables(found: Comparison) -> list[Table]:
    """For a person. A is the first that was named."""
    sides = Table("", f"A: {found.a}", f"B: {found.b}")
    sides.add_row("candidate", *(digest.short for digest in found.candidates))
    sides.add_row("evidence", *(e.short if e is not None else "none" for e in found.evidence))
    for row in found.sides:
        sides.add_row(row.what, row.a, row.b)
    scores = Table("score", "A (95%)", "B (95%)", "B - A (95%)", "items", "")
    for score in found.scores:
        scores.add_row(
            score.task, _with(score.a, score.a_interval), _with(score.b, score.b_interval),
            _with(score.difference, score.interval), str(score.items or ""), score.note,
        )  # fmt: skip
    loads = Table("load", "figure", "A", "B", "B / A (95%)", "")
    for load in found.loads:
        loads.add_row(
            load.profile, load.metric, _with(load.a), _with(load.b),
            _with(load.ratio, load.interval), load.note,
        )  # fmt: skip
    tables = [sides, scores, loads]
    if found.findings is not None:
        findings = Table("finding of", "severity", "rule", "where")
        for finding in found.findings:
            of = {"a": "A only", "b": "B only"}.get(finding.of, finding.of)
            findings.add_row(of, finding.severity, finding.rule, f"{finding.kind}: {finding.path}")
        if not found.findings:
            findings.add_row("neither", "", "", "no scanner found anything")
        tables.append(findings)
    return tables


def _with(value: float | None, interval: tuple[float, float] | None = None) -> str:
    if value is None:
        return ""
    shown = _figure(value)
    return f"{shown} ({_figure(interval[0])} to {_figure(interval[1])})" if interval else shown


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
