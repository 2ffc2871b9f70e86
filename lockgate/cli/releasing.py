"""`release`, `plan`, `render`, `rollback`, `promote`, `reconcile`: the commands that run flows."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated

import typer

from lockgate.cli import console
from lockgate.cli.given_specs import Quantize, Target, given_spec
from lockgate.cli.prefect_server import ensure_server
from lockgate.errors import EXIT_REFUSED, UsageError
from lockgate.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
Spec = Annotated[
    Path, typer.Argument(help="Release spec (YAML), or a model's directory.", show_default=False)
]
Model = Annotated[str, typer.Argument(help="Model name, as in the spec.", show_default=False)]
Environment = Annotated[str, typer.Option("--env", help="Environment.")]


def register(app: typer.Typer) -> None:
    app.command()(release)
    app.command()(plan)
    app.command()(render)
    app.command()(rollback)
    app.command()(promote)
    app.command()(reconcile)


def release(
    spec: Spec,
    quantize: Quantize = None,
    target: Target = None,
    wait: Annotated[
        bool,
        typer.Option("--wait", help="Begin when another release of the model there has ended."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Release a model: prepare, measure, gate, sign, commit, raise the canary, promote or roll back.

    Of a directory a first spec is written into the workspace's specs/, once, and read from there from then on. Beside another
    release of the model to the same environment it ends at once, or waits its turn.
    """
    request_spec = given_spec(spec, quantize, target)
    ensure_server(Settings())
    from flows.release import release as flow
    from lockgate.domain.steps import ReleaseRequest
    from tasks.failures import followed
    from tasks.progress import listening
    from tasks.turns import turn

    request = ReleaseRequest(spec=request_spec, requested_by=getpass.getuser())
    with (
        turn(request_spec, wait=wait),
        console.Bars() as bars,
        listening(bars),
        followed(Settings(), request_spec),
    ):
        outcome = flow(request)
    if outcome.result != "already_stable":
        from tasks.reporting import record_outcome

        # Refusals are in no commit, and sizes and speeds neither: the report finds them here.
        record_outcome(Settings(), outcome)
    if as_json:
        console.print_json(outcome.to_data())
    else:
        console.out.print(
            f"{outcome.model}/{outcome.environment} {outcome.candidate.digest.short}: "
            f"{outcome.result}: {outcome.reason}",
            markup=False,
        )
    if not outcome.accepted:
        raise typer.Exit(EXIT_REFUSED)


def plan(
    spec: Annotated[
        Path | None,
        typer.Argument(help="Release spec (YAML), or a model's directory.", show_default=False),
    ] = None,
    quantize: Quantize = None,
    target: Target = None,
    every: Annotated[
        bool, typer.Option("--all", help="The models that today's bases would make others of.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what a release would do and which finished steps it would find, without doing any of it.

    Exits as the release would where it is certain to end early: 1, 2 or 3, as the exit codes say. With --all instead: which
    models' manifests an edit of the GitOps repository's bases would change, each of which becomes a new candidate.
    """
    if every == (spec is not None):
        raise UsageError("plan one release, or --all models", hint="give a release spec or --all")
    if spec is None:
        _plan_bases(as_json)
        return
    request_spec = given_spec(spec, quantize, target)
    from tasks.planning import plan_release

    planned = plan_release(request_spec)
    if as_json:
        console.print_json(planned.to_data())
    else:
        console.out.print(planned.as_text(), markup=False, highlight=False)
    if planned.exit_code:
        raise typer.Exit(planned.exit_code)


def render(
    spec: Spec,
    out: Annotated[
        Path,
        typer.Option("--out", help="Directory to make, for the manifests.", show_default=False),
    ],
    quantize: Quantize = None,
    target: Target = None,
    as_json: Json = False,
) -> None:
    """Write the manifests that a release would commit first, both slots and the route, and change nothing.

    A model image that was not made yet is named by a digest of zeros.
    """
    request_spec = given_spec(spec, quantize, target)
    from tasks.rendering import render_release

    rendered = render_release(request_spec, out)
    if as_json:
        console.print_json(rendered.to_data())
        return
    for file in rendered.files:
        console.out.print(str(out / file), markup=False, highlight=False, soft_wrap=True)
    if not rendered.files:
        console.out.print("nothing: this candidate is committed already")
    elif not rendered.made:
        console.out.print("the model image is not made yet: its digest is written as zeros")


def _plan_bases(as_json: bool) -> None:
    from tasks.bases import plan_bases

    found = plan_bases()
    if as_json:
        console.print_json([item.to_data() for item in found])
        return
    for item in found:
        name = f"{item.model}/{item.environment} {item.candidate.short}"
        if item.problem is not None:
            said = f"cannot be rendered: {item.problem}"
        elif item.files:
            said = "a new candidate: " + ", ".join(Path(file).name for file in item.files)
        else:
            said = "as the bases are"
        console.out.print(f"{name}: {said}", markup=False, highlight=False)
    changed = sum(item.changed for item in found)
    console.out.print(
        f"{changed} of {len(found)} models would be changed by the bases: release each of them",
        markup=False,
    )


def rollback(
    model: Model,
    env: Environment = "local",
    reason: Annotated[
        str, typer.Option(help="Why; goes into the commit.")
    ] = "asked for by a person",
    as_json: Json = False,
) -> None:
    """Send all traffic back to stable by a commit, and denylist the candidate."""
    ensure_server(Settings())
    from flows.rollback import rollback as flow
    from lockgate.domain.steps import RollbackRequest

    state = flow(
        RollbackRequest(model=model, environment=env, reason=reason, requested_by=getpass.getuser())
    )
    if as_json:
        console.print_json(state.to_data())
    else:
        console.out.print(
            f"{model}/{env}: {state.phase}, generation {state.generation}", markup=False
        )


def promote(
    model: Model,
    reason: Annotated[str, typer.Option(help="Why; goes into the commit.")],
    env: Environment = "local",
    resume: Annotated[
        bool, typer.Option("--resume", help="Only lift the hold: the release is judged on.")
    ] = False,
    step: Annotated[
        int | None, typer.Option(min=1, help="Go to this step; without it, to promotion.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Let a held release go on: from where it was held, or without the judge's pass."""
    ensure_server(Settings())
    from flows.promote import promote as flow
    from lockgate.domain.steps import PromoteRequest

    state = flow(
        PromoteRequest(
            model=model, environment=env, reason=reason, requested_by=getpass.getuser(),
            resume=resume, step=step,
        )
    )  # fmt: skip
    if as_json:
        console.print_json(state.to_data())
    else:
        console.out.print(
            f"{model}/{env}: {state.phase}, generation {state.generation}", markup=False
        )


def reconcile(
    model: Annotated[str | None, typer.Argument(help="One model; all if not given.")] = None,
    env: Environment = "local",
    every: Annotated[
        float | None, typer.Option(help="Go on for ever, looking every so many seconds.")
    ] = None,
) -> None:
    """Take up every release that nobody is driving, and go on with it from Git."""
    ensure_server(Settings())
    from flows.reconcile import reconcile as flow
    from flows.reconcile import watch

    if every is not None:
        watch(every)
    else:
        for line in flow(model, env):
            console.out.print(line, markup=False)
