"""`track add`, `track list`, `track run`: models that are released unattended."""

from __future__ import annotations

import getpass
import subprocess
from email.utils import parseaddr
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from lockgate.cli import console
from lockgate.cli.documents import read_yaml
from lockgate.cli.prefect_server import ensure_server
from lockgate.domain.tracks import Track
from lockgate.errors import EXIT_REFUSED, UsageError
from lockgate.settings import Settings

Json = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]

track_app = typer.Typer(
    help="Tracked models: released unattended when their source moves on.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    app.add_typer(track_app, name="track")


@track_app.command()
def add(
    file: Annotated[Path, typer.Argument(help="The track (YAML).", show_default=False)],
    spec: Annotated[
        Path | None, typer.Option(help="Release spec to commit where the track says it lies.")
    ] = None,
    author: Annotated[
        str | None,
        typer.Option(help="`Name <address>` for the commit; by default Git's user here."),
    ] = None,
) -> None:
    """Check a track and commit it as models/<model>/track.yaml, over an earlier one."""
    track = read_yaml(file, Track)
    try:
        text = spec.read_text() if spec is not None else None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {spec}: {error}") from error
    name, address = _person(author)
    from lockgate.adapters.git import Author
    from tasks.tracking import add_track

    commit = add_track(track, text, Author(name, address))
    said = f"tracked since commit {commit[:12]}" if commit else "is tracked so already"
    console.out.print(f"{track.model} {said}", markup=False)


@track_app.command("list")
def list_(as_json: Json = False) -> None:
    """Every tracked model: what is followed, where it goes, and which freeze holds now."""
    from tasks.tracking import list_tracks

    rows = list_tracks()
    if as_json:
        console.print_json([row.to_data() for row in rows])
        return
    table = Table("model", "source", "follow", "env", "promotion", "frozen", "phase")
    for row in rows:
        table.add_row(
            row.model, row.source, row.follow, row.environment, row.promotion, row.frozen or "",
            row.phase,
        )  # fmt: skip
    console.out.print(table)


@track_app.command()
def run(
    model: Annotated[str | None, typer.Argument(help="One model; all if not given.")] = None,
    env: Annotated[
        str | None, typer.Option(help="Only this environment, also where promotion is manual.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Look at the source now, and start what is neither released, refused, denied nor frozen."""
    ensure_server(Settings())
    from flows.track import track as flow
    from tasks.progress import listening

    if env is not None and model is None:
        raise UsageError("an environment is named of one model")
    with console.Bars() as bars, listening(bars):
        outcomes = flow(model, env)
    if as_json:
        console.print_json([outcome.to_data() for outcome in outcomes])
    else:
        for outcome in outcomes:
            console.out.print(outcome.as_text(), markup=False)
    if any(outcome.result in ("refused", "rolled_back", "aborted") for outcome in outcomes):
        raise typer.Exit(EXIT_REFUSED)


def _person(given: str | None) -> tuple[str, str]:
    """Name and address of who runs this: as given, as Git knows them, or as the system does."""
    if given is not None:
        name, address = parseaddr(given)
        if not name or "@" not in address:
            raise UsageError(f"{given!r} does not read like `Name <address>`")
        return name, address
    name, address = _git_setting("user.name"), _git_setting("user.email")
    user = getpass.getuser()
    return name or user, address or f"{user}@localhost"


def _git_setting(key: str) -> str:
    try:
        done = subprocess.run(
            ["git", "config", "--get", key], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
