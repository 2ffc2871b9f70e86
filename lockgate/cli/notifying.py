"""`notifications set`, `notifications remove`: messages to people, sent by the Prefect server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from pydantic import SecretStr

from lockgate.cli import console
from lockgate.errors import UsageError
from lockgate.settings import NotificationSettings, Settings

notifications_app = typer.Typer(
    help="Messages about releases, by Prefect's automations and apprise.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    app.add_typer(notifications_app, name="notifications")


@notifications_app.command("set")
def set_(
    url_file: Annotated[
        Path | None,
        typer.Option(help="File with the address, in place of LOCKGATE_NOTIFICATIONS_URL."),
    ] = None,
    event: Annotated[
        list[str] | None, typer.Option(help="Only this event; may be given several times.")
    ] = None,
    try_it: Annotated[
        bool, typer.Option("--try/--no-try", help="Send a first message from here.")
    ] = True,
) -> None:
    """Have the server of PREFECT_API_URL send a message for each event that a person has to hear of.

    The address is apprise's (slack://…, mailto://…, json://…). It is kept in a block of the server, encrypted. Safe to repeat.
    """
    url = NotificationSettings().url
    if url_file is not None:
        try:
            url = SecretStr(url_file.read_text().strip())
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read {url_file}: {error}") from error
    if url is None or not url.get_secret_value():
        raise UsageError(
            "where to?", hint="set LOCKGATE_NOTIFICATIONS_URL, or give a file with --url-file"
        )
    _need_server()
    from tasks.notifying import set_up

    for name in set_up(url, tuple(event or ()), try_it=try_it):
        console.out.print(name, markup=False, highlight=False)


@notifications_app.command()
def remove() -> None:
    """Send no more messages, and forget the address."""
    _need_server()
    from tasks.notifying import remove as remove_all

    for name in remove_all():
        console.out.print(f"removed {name}", markup=False, highlight=False)


def _need_server() -> None:
    if Settings().prefect_api_url is None:
        # A workspace's own server runs no automations: nothing would ever be sent.
        raise UsageError(
            "notifications are sent by a Prefect server of yours", hint="set PREFECT_API_URL"
        )
