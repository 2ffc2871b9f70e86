"""`judge`, `scan`, `package`, `verify`, `report`: commands on traces, directories, images and history; no flow runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lockgate.cli import console
from lockgate.cli.documents import read_yaml
from lockgate.domain.digests import Digest
from lockgate.domain.gates import Decision
from lockgate.domain.images import ImageRef
from lockgate.domain.policy import Policy
from lockgate.errors import EXIT_FAILURE, EXIT_REFUSED, UsageError
from lockgate.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Directory = Annotated[Path, typer.Argument(help="Directory of a model.", show_default=False)]
PolicyFile = Annotated[
    Path | None, typer.Option("--policy", help="policy.yaml; the GitOps repo's if not given.")
]


def register(app: typer.Typer) -> None:
    for command in (judge, scan, package, verify, report):
        app.command()(command)


def judge(
    traces: Annotated[list[Path] | None, typer.Argument(help="Trace files (JSON lines).")] = None,
    config: Annotated[Path | None, typer.Option(help="Judge configuration (YAML or JSON).")] = None,
    follow: Annotated[
        bool, typer.Option(help="Read standard input; print after every pair of scrapes.")
    ] = False,
) -> None:
    """Judge canary traces: one JSON line each, when a verdict is reached. Exits 3 if any of them fails."""
    from lockgate.domain.judge import Follower, JudgeConfig, Verdict, judge_lines

    settings = read_yaml(config, JudgeConfig) if config is not None else JudgeConfig()
    if follow == bool(traces):
        raise UsageError("give trace files, or --follow to read standard input")
    verdicts = []
    if follow:
        follower = Follower(settings)
        for line in sys.stdin:
            answer = follower.feed(line)
            if answer is not None:
                verdicts = [answer.verdict]
                console.print_json({"trace": "-", **answer.to_data()})
    for trace in traces or []:
        try:
            with trace.open() as lines:
                answer = judge_lines(lines, settings)
        except OSError as error:
            raise UsageError(f"cannot read {trace}: {error.strerror}") from error
        verdicts.append(answer.verdict)
        console.print_json({"trace": str(trace), **answer.to_data()})
    if Verdict.FAIL in verdicts:
        raise typer.Exit(EXIT_REFUSED)
    if any(verdict is not Verdict.PASS for verdict in verdicts) or not verdicts:
        raise typer.Exit(EXIT_FAILURE)


def scan(directory: Directory, policy: PolicyFile = None, as_json: Json = False) -> None:
    """Scan a model directory. Exits 0 clean, 3 with findings, 1 if a scanner could not do its work."""
    from lockgate.adapters import scanners, sources
    from lockgate.domain.evidence import ScannerStatus
    from lockgate.domain.gates.scan import scan_gate

    rules = _policy(policy)
    evidence = scanners.scan_weights(
        directory, sources.read_snapshot(directory), rules.weights,
        log_directory=Settings().layout.logs,
    )  # fmt: skip
    result = scan_gate([evidence], rules, required_kinds=("weights",))
    if as_json:
        console.print_json({"result": result.to_data(), "evidence": evidence.to_data()})
    else:
        for finding in evidence.findings:
            console.out.print(
                f"{finding.severity:8} {finding.rule} {finding.path}: {finding.message}",
                markup=False,
            )
        console.out.print(f"{result.decision}: {'; '.join(result.reasons)}", markup=False)
    if any(run.status is not ScannerStatus.COMPLETED for run in evidence.runs):
        raise typer.Exit(EXIT_FAILURE)
    if result.decision is not Decision.PASS:
        raise typer.Exit(EXIT_REFUSED)


def package(
    directory: Directory,
    to: Annotated[
        str | None,
        typer.Option(help="oci:DIRECTORY or HOST[:PORT]; the settings' store if not given."),
    ] = None,
    repository: Annotated[str | None, typer.Option(help="Repository of the image.")] = None,
    as_json: Json = False,
) -> None:
    """Package a model directory as a plain, deterministic OCI image and print its reference."""
    from lockgate.adapters import sources
    from lockgate.adapters.oci import open_store
    from lockgate.adapters.oci.package import push_model

    settings = Settings()
    snapshot = sources.read_snapshot(directory)
    name = directory.absolute().name.lower()
    with console.Bars() as bars:
        image = push_model(
            open_store(to or settings.store_location, plain_http=settings.plain_http),
            repository or settings.model_repository(name), directory, snapshot, labels={},
            progress=lambda done, total: bars.progressed("package", done, total),
        )  # fmt: skip
    if as_json:
        console.print_json({"image": str(image), "snapshot": snapshot.digest})
    else:
        console.out.print(str(image), markup=False, highlight=False)


def verify(
    image: Annotated[str, typer.Argument(help="REPOSITORY@sha256:…", show_default=False)],
    policy: PolicyFile = None,
    candidate: Annotated[
        str | None, typer.Option(help="Candidate digest that the gate attestation must be about.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Verify an image's signatures and attestations against the policy. Exits 3 and names each rule that failed."""
    from lockgate.adapters import signing
    from lockgate.adapters.oci import open_store

    settings = Settings()
    rules = _policy(policy)
    try:
        reference = ImageRef.parse(image)
        subject = Digest(candidate) if candidate is not None else None
    except ValueError as error:
        raise UsageError(str(error)) from error
    store = open_store(settings.store_location, plain_http=settings.plain_http)
    result = signing.verify(
        store, reference, rules.signing, candidate=subject,
        require_gates=rules.gates if subject is not None else (),
    )  # fmt: skip
    if as_json:
        console.print_json({"image": image, "ok": result.ok, "failures": list(result.failures)})
    else:
        for failure in result.failures:
            console.out.print(f"FAILED {failure}", markup=False)
        console.out.print("verified" if result.ok else "NOT verified")
    if not result.ok:
        raise typer.Exit(EXIT_REFUSED)


def report(
    model: Annotated[str, typer.Argument(help="Model name.", show_default=False)],
    env: Annotated[str, typer.Option(help="Environment.")] = "local",
    out: Annotated[Path | None, typer.Option(help="HTML file to write.")] = None,
) -> None:
    """Write the HTML report of a model's releases from Git, the store and the traces."""
    from tasks.reporting import write_model_report

    path = write_model_report(Settings(), model, env, out)
    console.out.print(str(path), markup=False, highlight=False)


def _policy(path: Path | None) -> Policy:
    """The policy in `path`, else the GitOps repository's, else, where there is no repository, the strict default."""
    if path is not None:
        return read_yaml(path, Policy)
    settings = Settings()
    if settings.remote is None and not settings.layout.remote.exists():
        return Policy()
    from tasks.workspace import Workspace

    return Workspace(settings).policy
