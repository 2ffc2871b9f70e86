"""`lockgate demo`: the whole of Lockgate on one machine, with a real model, real vLLM, real Envoy and real Git."""

from __future__ import annotations

from typing import Annotated

import typer

from lockgate.cli import console
from lockgate.cli.prefect_server import ensure_server, stop_server
from lockgate.settings import Settings


def register(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    again: Annotated[
        bool,
        typer.Option(
            help="Release anew into an empty GitOps repo; finished offline steps are found again."
        ),
    ] = False,
    keep: Annotated[
        bool, typer.Option(help="Leave the embedded cluster running at the end.")
    ] = False,
    rate: Annotated[float, typer.Option(help="Requests a second of the traffic driver.")] = 2.5,
) -> None:
    """Release a model four times: a first one, a good one, one that is worse in service, one that is worse on paper."""
    settings = Settings()
    ensure_server(settings)
    from lockgate.cli.demonstration import Demonstration
    from tasks.progress import listening

    with console.Bars() as bars, listening(bars):
        demonstration = Demonstration(settings, rate=rate, say=console.out.print)
        try:
            if again:
                demonstration.forget()
            as_expected = demonstration.run()
        finally:
            if not keep:
                demonstration.down()
                stop_server(settings)
    if not as_expected:
        raise typer.Exit(1)
