"""From the outbox to Prefect, as often as it takes."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Collection

from lockgate.adapters.webhooks.outbox import Outbox, Pending
from lockgate.adapters.webhooks.prefect_api import PrefectApi, Unavailable
from lockgate.errors import DeliveryError, LockgateError

logger = logging.getLogger("lockgate.hooks")

DEPLOYMENT = "track/track"
MAX_WAIT_SECONDS = 300.0
LOOK_SECONDS = 0.5
UNTRACKED_SECONDS = 7 * 24 * 3600.0
"""For how long a delivery waits for a model that is not tracked any more."""


class Handover:
    """Creates one run of the track flow for each delivery in the outbox.

    The run's only parameter is the model's name, and only while that model is tracked. Prefect knows the run by the
    delivery's digest: one that was created just before a crash is found, not doubled.
    """

    def __init__(
        self,
        outbox: Outbox,
        prefect: PrefectApi,
        tracked: Callable[[], Collection[str]],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._outbox, self._prefect = outbox, prefect
        self._tracked, self._clock = tracked, clock
        self._failures = 0
        self._not_before = 0.0

    def run(self, stop: threading.Event) -> None:
        """Hand over until `stop` is set."""
        while not stop.wait(LOOK_SECONDS):
            try:
                while self.once() and not stop.is_set():
                    continue
            except LockgateError as error:
                logger.error("%s", error.message)

    def once(self) -> int:
        """Hand over what is due; returns how many Prefect has got: none while it is left alone after a failure."""
        now = self._clock()
        if now < self._not_before:
            return 0
        handed_over = 0
        for pending in self._outbox.due(now):
            try:
                handed_over += self._hand_over(pending)
            except Unavailable as error:
                # Nothing else would fare better: all wait, and none of their turns is used up.
                self._failures += 1
                wait = _wait(self._failures)
                self._not_before = now + wait
                logger.warning(
                    "%s; %d deliveries are kept, next try in %.0f s",
                    error.message, self._outbox.pending(), wait,
                )  # fmt: skip
                break
            self._failures = 0
        return handed_over

    def _hand_over(self, pending: Pending) -> int:
        delivery = pending.delivery
        if delivery.model not in self._tracked():
            self._set_aside(pending)
            return 0
        try:
            run = self._prefect.create_flow_run(
                DEPLOYMENT,
                {"model": delivery.model},
                idempotency_key=f"lockgate-hook-{delivery.key.hex}",
                name=f"track-{delivery.model}",
                tags=("lockgate", "webhook"),
            )
        except Unavailable:
            raise
        except DeliveryError as error:
            due = self._clock() + _wait(pending.attempts + 1)
            self._outbox.postpone(delivery, due, error.message)
            logger.error("%s %s: %s", delivery.model, delivery.source, error.message)
            return 0
        self._outbox.done(delivery, run)
        logger.info("%s: flow run %s (%s)", delivery.model, run, delivery.source)
        return 1

    def _set_aside(self, pending: Pending) -> None:
        """A track that cannot be read today may be mended tomorrow; one that is gone for long is gone."""
        delivery, now = pending.delivery, self._clock()
        if now - pending.received > UNTRACKED_SECONDS:
            self._outbox.drop(delivery, "the model is not tracked any more")
            logger.warning("%s: dropped, the model is not tracked any more", delivery.source)
        else:
            self._outbox.postpone(delivery, now + _wait(pending.attempts + 1), "not tracked now")


def _wait(failures: int) -> float:
    return float(min(MAX_WAIT_SECONDS, 2.0 ** min(failures, 16)) * random.uniform(0.5, 1.0))
