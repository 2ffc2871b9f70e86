"""Which failures are tried again. A refusal or a usage error is an answer, not a failure."""

from __future__ import annotations

from typing import Any

from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task, exponential_backoff

from lockgate.errors import IntegrityError, Refused, StorageFull, UsageError


def is_transient(task: Task[Any, Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Retry condition: everything but verdicts, wrong bytes, wrong input and a full disk."""
    try:
        state.result()
    except (Refused, UsageError, IntegrityError, StorageFull):
        return False
    except Exception:
        return True
    return False


TRANSIENT: dict[str, Any] = {
    "retries": 3,
    "retry_delay_seconds": exponential_backoff(backoff_factor=2),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": is_transient,
}
"""Keyword arguments of tasks that talk to something which may be away for a moment."""
