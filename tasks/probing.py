"""The quality probe: questions with known answers, asked of the canary and of what it is compared with.

Asked through the gateway by the slot's header, at the same moment and in the same order of both. The counts become lines of the
trace; the judge compares the shares of wrong answers and leaves the probes out of the split.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import httpx

from lockgate.domain.spec import Probe, ProbeSpec
from lockgate.domain.trace import Scrape, Track
from serving.manifests.names import SLOT_HEADER

logger = logging.getLogger("lockgate.release")

ANSWER_SECONDS = 20.0


class Prober:
    """Asks in threads of its own: a slow answer delays no scrape, and the next question waits for it."""

    def __init__(
        self, spec: ProbeSpec, url: str, models: Mapping[str, str], tracks: Mapping[str, Track]
    ) -> None:
        """`url`: of the gateway, without `/v1`; `models`: served model name by slot; `tracks`: which slot is which."""
        self._spec = spec
        self._url = f"{url}/v1/chat/completions"
        self._models = models
        self._tracks = tracks
        self._pool = ThreadPoolExecutor(max_workers=len(tracks), thread_name_prefix="probe")
        self._asked: dict[str, int] = dict.fromkeys(tracks, 0)
        self._wrong: dict[str, int] = dict.fromkeys(tracks, 0)
        self._round: dict[str, Future[bool | None]] = {}
        self._rounds = 0
        self._due = float("-inf")

    def records(self, now: float) -> list[Scrape]:
        """What the answers so far come to, stamped `now`; begins the next question where it is due."""
        if self._round and all(future.done() for future in self._round.values()):
            self._count({slot: future.result() for slot, future in self._round.items()})
            self._round = {}
        if not self._round and time.monotonic() >= self._due:
            question = self._spec.questions[self._rounds % len(self._spec.questions)]
            self._rounds += 1
            self._due = time.monotonic() + self._spec.every_seconds
            self._round = {
                slot: self._pool.submit(self._ask, slot, question) for slot in self._tracks
            }
        return [
            Scrape(
                now, track, f"probe-{slot}", True,
                {
                    "lockgate:probe_total": float(self._asked[slot]),
                    "lockgate:probe_failed_total": float(self._wrong[slot]),
                },
            )
            for slot, track in self._tracks.items()
        ]  # fmt: skip

    def _count(self, right: Mapping[str, bool | None]) -> None:
        """A track that alone gave no answer gave no right one. Where none did, the probe did not reach them."""
        if all(answer is None for answer in right.values()):
            return
        for slot, answer in right.items():
            self._asked[slot] += 1
            self._wrong[slot] += not answer

    def _ask(self, slot: str, question: Probe) -> bool | None:
        """Whether the answer is right; None without one."""
        body = {
            "model": self._models[slot],
            "messages": [{"role": "user", "content": question.prompt}],
            "max_tokens": question.max_tokens,
            "temperature": 0,
        }
        try:
            with httpx.Client(timeout=ANSWER_SECONDS, trust_env=False) as client:
                answer = client.post(self._url, json=body, headers={SLOT_HEADER: slot})
            answer.raise_for_status()
            text = answer.json()["choices"][0]["message"]["content"]
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            logger.debug("no answer to a probe from slot %s: %r", slot, error)
            return None
        return question.expect.casefold() in str(text).casefold()
