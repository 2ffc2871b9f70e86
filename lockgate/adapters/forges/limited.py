"""A forge whose answers come in time, or not at all.

Clients limit each read of a socket, not a question: an answer that drips in would hold up a driver for hours.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from lockgate.domain.approval import Forge, PullRequest
from lockgate.domain.policy import ForgePolicy
from lockgate.errors import ForgeError

T = TypeVar("T")

AWAY_SECONDS = 60.0
"""For so long a forge that kept somebody waiting is not asked again: who drives many releases does not wait for each of them."""

_away: dict[ForgePolicy, float] = {}
"""When each of them may be asked again (monotonic clock)."""


class Limited:
    """Another forge, with a time limit of `seconds` on every question."""

    def __init__(self, forge: Forge, policy: ForgePolicy, seconds: float) -> None:
        self._forge, self._policy, self._seconds = forge, policy, seconds

    def find(self, branch: str, base: str) -> int | None:
        return self._within(lambda: self._forge.find(branch, base))

    def open(self, branch: str, base: str, title: str, body: str) -> int:
        def ask() -> int:
            try:
                return self._forge.open(branch, base, title, body)
            except ForgeError:
                # Another run was faster, or an answer was lost on the way.
                found = self._forge.find(branch, base)
                if found is None:
                    raise
                return found

        return self._within(ask)

    def look(self, number: int) -> PullRequest:
        return self._within(lambda: self._forge.look(number))

    def _within(self, question: Callable[[], T]) -> T:
        kind, began = self._policy.kind, time.monotonic()
        if began < _away.get(self._policy, 0.0):
            raise ForgeError(f"{kind} kept somebody waiting a moment ago and is let be")
        answers: list[T] = []
        failures: list[BaseException] = []

        def ask() -> None:
            try:
                answers.append(question())
            except BaseException as failure:  # raised again where it was asked
                failures.append(failure)

        asked = threading.Thread(target=ask, name=f"{kind}-question", daemon=True)
        asked.start()
        asked.join(self._seconds)
        if answers:
            return answers[0]
        if not failures or time.monotonic() - began > self._seconds / 2:
            _away[self._policy] = time.monotonic() + AWAY_SECONDS
        if failures:
            raise failures[0]
        raise ForgeError(f"{kind} gave no answer within {self._seconds:g} s")
