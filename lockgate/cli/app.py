"""The `lockgate` command: its options that hold for every subcommand, and where the subcommands come from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from lockgate.cli import (
    console,
    deciding,
    demo,
    explaining,
    hooks,
    images,
    inspecting,
    keeping,
    notifying,
    releasing,
    state_metrics,
    tracking,
    workspace,
)

app = typer.Typer(
    name="lockgate",
    help="Take an open-weights LLM from its source to production vLLM replicas, and back out if it turns out worse.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def options(
    workspace: Annotated[
        Path,
        typer.Option(
            envvar="LOCKGATE_WORKSPACE", help="Directory of store, keys, cluster and logs."
        ),
    ] = Path(".lockgate"),
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also debug and Prefect's own lines.")
    ] = False,
) -> None:
    """Settings are read from LOCKGATE_… environment variables; child processes inherit them."""
    os.environ["LOCKGATE_WORKSPACE"] = str(workspace.absolute())
    console.configure_logging(verbose)


workspace.register(app)
releasing.register(app)
deciding.register(app)
inspecting.register(app)
explaining.register(app)
images.register(app)
keeping.register(app)
tracking.register(app)
notifying.register(app)
hooks.register(app)
state_metrics.register(app)
demo.register(app)


def main() -> None:
    """Entry point of the console script."""
    with console.errors_for_people():
        app()
