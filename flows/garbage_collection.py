"""Find what nothing refers to any more, and remove it where it is told to."""

from __future__ import annotations

from datetime import timedelta

from prefect import flow

from tasks import collecting
from tasks.collecting import Collected


@flow(name="garbage-collection")
def garbage_collection(delete: bool = False, older_than_days: float = 30) -> Collected:
    """Of this worker's workspace and its own image store. A dry run unless `delete` is set."""
    return collecting.collect_garbage(delete=delete, older_than=timedelta(days=older_than_days))
