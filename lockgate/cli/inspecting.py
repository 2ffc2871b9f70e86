"""`judge`, `scan`, `report`: commands on traces, directories and history; no flow runs."""

from __future__ import annotations

import io
import json
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from lockgate.cli import console
from lockgate.cli.documents import policy_or_default, read_yaml
from lockgate.domain.gates import Decision
from lockgate.domain.release_state import Slot
from lockgate.errors import EXIT_FAILURE, EXIT_REFUSED, MetricsError, UsageError
from lockgate.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Directory = Annotated[Path, typer.Argument(help="Directory of a model.", show_default=False)]
PolicyFile = Annotated[
    Path | None, typer.Option("--policy", help="policy.yaml; the GitOps repo's if not given.")
]


def register(app: typer.Typer) -> None:
    for command in (judge, scan, report):
        app.command()(command)


def judge(
    traces: Annotated[list[Path] | None, typer.Argument(help="Trace files (JSON lines).")] = None,
    config: Annotated[Path | None, typer.Option(help="Judge configuration (YAML or JSON).")] = None,
    follow: Annotated[
        bool, typer.Option(help="Read standard input; print after every pair of scrapes.")
    ] = False,
    prometheus: Annotated[
        str | None,
        typer.Option(help="Judge what this Prometheus has stored of `--model`.", metavar="URL"),
    ] = None,
    model: Annotated[str | None, typer.Option(help="With --prometheus: the model.")] = None,
    env: Annotated[
        str | None, typer.Option(help="With --prometheus: environment; the settings' own if not given.")
    ] = None,
    canary: Annotated[
        Slot, typer.Option(help="With --prometheus: the slot that was the canary's.")
    ] = Slot.B,
    baseline: Annotated[
        Slot | None,
        typer.Option(help="With --prometheus: the slot that it is compared with; the other one if not given."),
    ] = None,
    begin: Annotated[
        str | None, typer.Option("--from", help="With --prometheus: RFC 3339, or Unix seconds.")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", help="With --prometheus: likewise; now if not given.")
    ] = None,
) -> None:  # fmt: skip
    """Judge canary traces: one JSON line each, when a verdict is reached. Exits 3 if any of them fails."""
    from lockgate.domain.judge import Follower, JudgeConfig, Verdict, judge_lines

    settings = read_yaml(config, JudgeConfig) if config is not None else JudgeConfig()
    if [follow, bool(traces), prometheus is not None].count(True) != 1:
        raise UsageError(
            "give trace files, or --follow to read standard input, or --prometheus with --model and --from"
        )
    verdicts = []
    if prometheus is not None:
        if model is None or begin is None:
            raise UsageError("--prometheus needs --model and --from")
        from lockgate.adapters.prometheus import without_credentials

        if baseline is None:
            baseline = Slot.A if canary is Slot.B else Slot.B
        lines = _stored_lines(
            prometheus, model, env, canary, baseline,
            _moment(begin), _moment(end) if end is not None else time.time(),
        )  # fmt: skip
        stored = judge_lines(lines, settings)
        verdicts.append(stored.verdict)
        console.print_json({"trace": without_credentials(prometheus), **stored.to_data()})
    if follow:
        follower = Follower(settings)
        for line in io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", errors="replace"):
            answer = follower.feed(line)
            if answer is not None:
                verdicts = [answer.verdict]
                console.print_json({"trace": "-", **answer.to_data()})
    for trace in traces or []:
        try:
            # What is no text is no trace either: the line that it stands on is named.
            with trace.open(encoding="utf-8", errors="replace") as kept:
                answer = judge_lines(kept, settings)
        except OSError as error:
            raise UsageError(f"cannot read {trace}: {error.strerror}") from error
        verdicts.append(answer.verdict)
        console.print_json({"trace": str(trace), **answer.to_data()})
    if Verdict.FAIL in verdicts:
        raise typer.Exit(EXIT_REFUSED)
    if any(verdict is not Verdict.PASS for verdict in verdicts) or not verdicts:
        raise typer.Exit(EXIT_FAILURE)


def _stored_lines(
    url: str, model: str, env: str | None, canary: Slot, baseline: Slot, begin: float, end: float
) -> list[str]:
    """The trace of both slots as a Prometheus has it."""
    from lockgate.domain.trace import to_line
    from tasks.stored_metrics import StoredMetrics

    if canary is baseline:
        raise UsageError(f"slot {canary} is compared with itself: give another --baseline")
    if not begin < end:
        raise UsageError("--from is not before --to")
    settings = Settings().model_copy(update={"prometheus_url": url})
    stored = StoredMetrics(
        settings, model, env or settings.environment,
        {baseline.value: "baseline", canary.value: "canary"},
    )  # fmt: skip
    found = stored.read(begin, end)
    if not found:
        raise MetricsError(
            f"Prometheus has nothing of slots {baseline} and {canary} of {model} in that time",
            hint="compare LOCKGATE_PROMETHEUS_SERVERS and LOCKGATE_PROMETHEUS_GATEWAY with its targets' labels",
        )
    return [to_line(scrape) for scrape in found]


def _moment(text: str) -> float:
    """Unix seconds of a time with its zone."""
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is no time: RFC 3339, or Unix seconds") from error
    if moment.tzinfo is None:
        raise UsageError(f"{text!r} is without a time zone")
    return moment.timestamp()


def scan(
    directory: Directory,
    policy: PolicyFile = None,
    sarif: Annotated[
        Path | None, typer.Option(help="Write the findings as SARIF 2.1.0 to this file.")
    ] = None,
    cyclonedx: Annotated[
        Path | None, typer.Option(help="Write files and findings as CycloneDX 1.6 to this file.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Scan a model directory. Exits 0 clean, 3 with findings, 1 if a scanner could not do its work."""
    from lockgate.adapters import scanners, sources
    from lockgate.domain.evidence import ScannerStatus
    from lockgate.domain.gates.scan import scan_gate
    from lockgate.domain.scanning.cyclonedx import to_cyclonedx
    from lockgate.domain.scanning.sarif import to_sarif

    rules = policy_or_default(policy)
    # Links and odd names are findings here, not errors.
    snapshot = sources.read_snapshot(directory, strict=False)
    evidence = scanners.scan_weights(
        directory, snapshot, rules.weights, log_directory=Settings().layout.logs
    )
    now = datetime.now(UTC)
    result = scan_gate([evidence], rules, now=now, required_kinds=("weights",))
    for path, make in ((sarif, to_sarif), (cyclonedx, to_cyclonedx)):
        if path is not None:
            _write_json(path, make(evidence, snapshot, rules, now))
    if as_json:
        console.print_json({"result": result.to_data(), "evidence": evidence.to_data()})
    else:
        for finding in evidence.findings:
            console.out.print(
                f"{finding.severity:8} {finding.rule} {finding.path}: {finding.message}",
                markup=False,
            )
        console.out.print(f"{result.decision}: {'; '.join(result.reasons)}", markup=False)
    optional = set(rules.weights.optional_scanners) - set(rules.weights.scanners)
    for run in evidence.runs:
        absent = run.status is ScannerStatus.NOT_INSTALLED and run.name in optional
        if run.status is not ScannerStatus.COMPLETED and not absent:
            raise typer.Exit(EXIT_FAILURE)
    if result.decision is not Decision.PASS:
        raise typer.Exit(EXIT_REFUSED)


def _write_json(path: Path, document: dict[str, Any]) -> None:
    try:
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def report(
    model: Annotated[str, typer.Argument(help="Model name.", show_default=False)],
    env: Annotated[str, typer.Option(help="Environment.")] = "local",
    out: Annotated[Path | None, typer.Option(help="HTML file to write.")] = None,
) -> None:
    """Write the HTML report of a model's releases from Git, the store and the traces."""
    from tasks.reporting import write_model_report

    path = write_model_report(Settings(), model, env, out)
    console.out.print(str(path), markup=False, highlight=False)
