"""`rescan` and `gc`: what keeps production and its store in order, by schedule or by hand."""

from __future__ import annotations

from typing import Annotated

import typer

from lockgate.cli import console
from lockgate.cli.prefect_server import ensure_server
from lockgate.errors import EXIT_FAILURE, EXIT_REFUSED
from lockgate.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


def register(app: typer.Typer) -> None:
    app.command()(rescan)
    app.command()(gc)


def rescan(
    model: Annotated[str | None, typer.Argument(help="One model; all if not given.")] = None,
    env: Annotated[str | None, typer.Option("--env", help="Only of this environment.")] = None,
    as_json: Json = False,
) -> None:
    """Scan again, by today's policy and databases, everything that serves. Rolls nothing back.

    Exits 0 if all is clean, 3 with findings that the policy refuses, 1 if a scanner could not do its work.
    """
    ensure_server(Settings())
    from flows.rescan import rescan as flow
    from tasks.progress import listening

    with console.Bars() as bars, listening(bars):
        outcomes = flow(model, env)
    if as_json:
        console.print_json([outcome.to_data() for outcome in outcomes])
    else:
        for outcome in outcomes:
            console.out.print(outcome.as_text(), markup=False, highlight=False)
            for finding in outcome.record.findings:
                mark = "NEW " if finding.new else ""
                console.out.print(f"  {mark}{finding}", markup=False, highlight=False)
            if outcome.record.result == "incomplete":
                for reason in outcome.record.reasons:
                    console.out.print(f"  {reason}", markup=False, highlight=False)
        if not outcomes:
            console.out.print("nothing is in service")
    results = {outcome.record.result for outcome in outcomes}
    if "findings" in results:
        raise typer.Exit(EXIT_REFUSED)
    if "incomplete" in results:
        raise typer.Exit(EXIT_FAILURE)


def gc(
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove it; without, only say so.")
    ] = False,
    older_than: Annotated[
        float, typer.Option(min=1, help="Days in which nothing has touched it.")
    ] = 30,
    as_json: Json = False,
) -> None:
    """Say what nothing refers to any more in the workspace and its image store, and remove it with --delete.

    What Git's state, its denylist, the evidence of its history and every slot refer to stays, whatever its age.
    """
    ensure_server(Settings())
    from flows.garbage_collection import garbage_collection as flow

    done = flow(delete=delete, older_than_days=older_than)
    if as_json:
        console.print_json({**done.to_data(), "bytes": done.bytes})
        return
    kinds: dict[str, list[int]] = {}
    for item in done.garbage:
        kinds.setdefault(item.kind, []).append(item.bytes)
    for kind, sizes in kinds.items():
        console.out.print(f"{kind:12} {len(sizes):6} {sum(sizes) / 1e6:10.1f} MB", highlight=False)
    word = "removed" if delete else "could go: --delete removes them, --json names them"
    console.out.print(
        f"{len(done.garbage)} things, {done.bytes / 1e6:.1f} MB {word}", highlight=False
    )
    if done.note:
        console.out.print(f"note: {done.note}", markup=False, highlight=False)
