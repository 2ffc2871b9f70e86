"""`hooks`: listen to webhooks and turn them into looks at tracked models."""

from __future__ import annotations

import ipaddress
import logging
import signal
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from pydantic import SecretStr

from lockgate.cli import console
from lockgate.cli.prefect_server import ensure_server
from lockgate.domain.tracks import Track
from lockgate.domain.webhooks import Sender
from lockgate.errors import DeliveryError, GitError, LockgateError, UsageError
from lockgate.settings import HookSettings, Settings

if TYPE_CHECKING:  # Others of the command line need not load a web framework.
    from lockgate.adapters.git import GitOpsRepository
    from lockgate.adapters.webhooks import Outbox

logger = logging.getLogger("lockgate.hooks")

MIN_SECRET = 16
REFRESH_SECONDS = 30.0
CONNECTIONS = 512


def register(app: typer.Typer) -> None:
    app.command()(hooks)


def hooks(
    host: Annotated[
        str, typer.Option(help="Address to listen at; others than loopback belong behind TLS.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8765,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(help="Address of a proxy whose X-Forwarded-For is believed. May be repeated."),
    ] = None,
) -> None:
    """Listen to webhooks. Secrets: LOCKGATE_HOOKS_HUB, …_GITHUB and so on, or files in LOCKGATE_HOOKS_SECRETS."""
    import uvicorn

    from lockgate.adapters.git import GitOpsRepository
    from lockgate.adapters.webhooks import Handover, Outbox, PrefectApi, Reception, create_app

    settings = Settings()
    secrets = read_secrets(HookSettings())
    outbox = Outbox(settings.layout.hooks)
    gitops = GitOpsRepository(
        settings.git_remote, settings.layout.checkout("hooks"), branch=settings.branch
    )
    tracked = TrackedModels(outbox, gitops)
    tracked.look()
    prefect = PrefectApi(
        lambda: ensure_server(settings),
        key=_revealed(settings.prefect_api_key), auth=_revealed(settings.prefect_api_auth_string),
    )  # fmt: skip
    handover = Handover(outbox, prefect, tracked.names)
    stop = threading.Event()
    threads = [
        threading.Thread(target=tracked.refresh, args=(stop,), name="tracks"),
        threading.Thread(target=handover.run, args=(stop,), name="handover"),
    ]
    app = create_app(Reception(secrets, tracked.tracks, outbox))
    config = uvicorn.Config(
        app, host=host, port=port, log_level="warning", access_log=False, server_header=False,
        limit_concurrency=CONNECTIONS, timeout_keep_alive=10, timeout_graceful_shutdown=10,
        proxy_headers=bool(trusted_proxy), forwarded_allow_ips=trusted_proxy or [],
    )  # fmt: skip
    if not _is_loopback(host):
        console.err.print(f"{host} can be reached from elsewhere: put TLS before it", markup=False)
    listening = ", ".join(sorted(secrets))
    console.err.print(f"listening at {host}:{port} to {listening}", markup=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        # uvicorn ends in good order at the first, and afterwards raises it once more.
        signal.signal(number, lambda *_: None)
    for thread in threads:
        thread.start()
    try:
        uvicorn.Server(config).run()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        prefect.close()
        outbox.close()


class TrackedModels:
    """The allow-list: the tracks at the head of the GitOps repository, looked at now and then, and kept for a start without
    Git."""

    def __init__(self, outbox: Outbox, repository: GitOpsRepository) -> None:
        self._outbox, self._repository = outbox, repository
        self._tracks: Sequence[Track] | None = outbox.remembered_tracks() or None

    def tracks(self) -> Sequence[Track]:
        """Raises `DeliveryError` where they were never read: who sends then is to send again."""
        if self._tracks is None:
            raise DeliveryError("the tracked models are not known yet: Git could not be read")
        return self._tracks

    def names(self) -> set[str]:
        return {track.model for track in self._tracks or ()}

    def refresh(self, stop: threading.Event) -> None:
        """Look every half minute until `stop` is set."""
        while not stop.wait(REFRESH_SECONDS):
            self.look()

    def look(self) -> None:
        """Read them now. What cannot be read leaves them as they are known."""
        from lockgate.adapters.git import read_tracks

        def unreadable(error: GitError) -> None:
            logger.warning("not tracked: %s", error.message)

        try:
            tracks = read_tracks(self._repository, unreadable=unreadable)
            if tracks != self._tracks:
                self._outbox.remember_tracks(tracks)
                self._tracks = tracks
                logger.info("tracked: %s", ", ".join(sorted(self.names())) or "nothing")
        except LockgateError as error:
            logger.warning("the tracked models stay as they are known: %s", error.message)


def read_secrets(given: HookSettings) -> dict[Sender, tuple[bytes, ...]]:
    """The secrets of each sender that has any.

    Raises:
        UsageError: there are none at all, one is too short to be one, or a file cannot be read.
    """
    secrets: dict[Sender, tuple[bytes, ...]] = {}
    for sender in Sender:
        text = _revealed(getattr(given, sender.value)) or ""
        file = given.secrets / sender.value if given.secrets is not None else None
        if file is not None and file.exists():
            try:
                text += "\n" + file.read_text()
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"the secret in {file} cannot be read: {error}") from error
        lines = tuple(line.strip().encode() for line in text.splitlines() if line.strip())
        if any(len(line) < MIN_SECRET for line in lines):
            raise UsageError(
                f"a secret of {sender} has less than {MIN_SECRET} characters",
                hint="make one: `openssl rand -hex 32`",
            )
        if lines:
            secrets[sender] = lines
    if not secrets:
        raise UsageError(
            "no sender has a secret, so nobody would be listened to",
            hint="set LOCKGATE_HOOKS_HUB (or another sender's), or LOCKGATE_HOOKS_SECRETS to a directory of files",
        )
    return secrets


def _revealed(secret: object) -> str | None:
    return secret.get_secret_value() if isinstance(secret, SecretStr) else None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
