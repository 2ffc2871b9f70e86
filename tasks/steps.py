"""Tasks that are steps of a release: what fails in one says which one it was."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import Task, task

from lockgate.errors import LockgateError

P = ParamSpec("P")
R = TypeVar("R")


def step(*, name: str, **options: Any) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Prefect's `task`, whose `LockgateError`s name the step. The innermost step is the one that is named."""

    def decorate(function: Callable[P, R]) -> Task[P, R]:
        @functools.wraps(function)
        def named(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return function(*args, **kwargs)
            except LockgateError as error:
                error.step = error.step or name
                raise

        return task(name=name, **options)(named)

    return decorate
