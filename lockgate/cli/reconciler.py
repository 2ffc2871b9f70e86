"""The workspace's reconciler: takes up releases that nobody drives, as a scheduled deployment does in a cluster."""

from __future__ import annotations

import os
import sys

from lockgate.cli.daemons import Daemon
from lockgate.settings import Settings

EVERY_SECONDS = 10.0


def _daemon(settings: Settings) -> Daemon:
    return Daemon(settings.layout.prefect, "reconciler")


def ensure_reconciler(settings: Settings, every: float = EVERY_SECONDS) -> None:
    """Start the reconciler unless it runs. Prefect's server must run (`PREFECT_API_URL` is handed on)."""
    daemon = _daemon(settings)
    with daemon.exclusively():
        if daemon.process() is None:
            daemon.start(
                [sys.executable, "-m", "lockgate.cli", "reconcile", "--every", f"{every:g}"],
                {**os.environ, "LOCKGATE_WORKSPACE": str(settings.workspace.absolute())},
            )


def stop_reconciler(settings: Settings) -> bool:
    """End the reconciler. A release that it drove goes on from Git when somebody takes it up."""
    return _daemon(settings).stop()
