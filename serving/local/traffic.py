"""Traffic for demonstrations and tests: an open loop of requests whose answers are read to their end.

Requests leave at seeded random times that do not wait for answers (Poisson arrivals), so a server that slows down meets the
same load as one that does not, and a stalled gateway shows as requests that take long, not as requests never sent. An
answer counts as good only if it is complete: a stream must end in `[DONE]` after a finish reason of `stop` or `length`.

    python -m serving.local.traffic --url http://127.0.0.1:8080 --model NAME --rate 3 --seconds 60 --out rows.jsonl
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx

from serving.processes import ProcessId, wait_exit

SLOT_HEADER = "x-lockgate-slot"
"""Response header by which the gateway tells the slot that answered."""

REQUEST_SECONDS = 120.0
GOOD_ENDINGS = ("stop", "length")

_SUBJECTS = (
    "a lighthouse", "the tide", "a bakery at dawn", "a long train journey", "an old map", "the first snow",
    "a broken clock", "a quiet library", "a market in the rain", "a chess game", "a ferry across the river",
    "a lost umbrella", "the night shift", "a garden in spring", "a mountain path", "an empty theatre",
)  # fmt: skip
_WISHES = (
    "Describe {} in two sentences.",
    "Write a short poem about {}.",
    "Tell a child what is special about {}.",
    "Give three words that go with {} and say why.",
    "Begin a story with {}.",
    "What could somebody learn from {}?",
    "Write one question about {} and answer it.",
)


@dataclass(frozen=True)
class Request:
    """One request of the plan: when it leaves (seconds after the start) and what it asks."""

    at: float
    prompt: str
    max_tokens: int
    streaming: bool


@dataclass(frozen=True)
class Row:
    """What became of one request. Times in seconds; `start` since the epoch."""

    start: float
    duration: float
    ttfb: float | None
    """Until the first piece of the answer's text (streaming) or the whole of it; None if nothing came."""
    streaming: bool
    status: int | None
    ok: bool
    reason: str
    """The finish reason, or what went wrong."""
    slot: str | None
    tokens: int
    """Tokens of the answer, as far as the server told; pieces of text otherwise."""


@dataclass
class Summary:
    """Counts over all rows."""

    requests: int = 0
    streaming: int = 0
    failed: int = 0
    """Requests without a complete good answer: refused, broken off, or cut short."""
    cut_short: int = 0
    """Failed requests whose answer had begun."""
    by_slot: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        self.requests += 1
        self.streaming += row.streaming
        self.failed += not row.ok
        self.cut_short += not row.ok and row.ttfb is not None
        slot = row.slot or "unknown"
        self.by_slot[slot] = self.by_slot.get(slot, 0) + 1
        self.reasons[row.reason] = self.reasons.get(row.reason, 0) + 1


def plan(rate: float, seconds: float, seed: int, *, streaming: float = 0.7) -> Iterator[Request]:
    """Requests with exponential gaps, `rate` a second for `seconds`; a share of `streaming` asks for a stream."""
    drawn = random.Random(seed)
    at = drawn.expovariate(rate)
    while at < seconds:
        yield Request(
            at=at,
            prompt=drawn.choice(_WISHES).format(drawn.choice(_SUBJECTS)),
            max_tokens=drawn.randint(12, 32),
            streaming=drawn.random() < streaming,
        )
        at += drawn.expovariate(rate)


class _Broken(Exception):
    """The answer is not a complete good one. The message is the row's reason."""


async def _ask(client: httpx.AsyncClient, url: str, model: str, request: Request) -> Row:
    started, clock = time.time(), time.monotonic()
    seen: dict[str, Any] = {"status": None, "slot": None, "ttfb": None, "tokens": 0}
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": request.prompt}],
        "max_tokens": request.max_tokens,
        "stream": request.streaming,
    }
    if request.streaming:
        body["stream_options"] = {"include_usage": True}
    ok = False
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
                seen.update(status=response.status_code, slot=response.headers.get(SLOT_HEADER))
                if response.status_code != 200:
                    raise _Broken(f"status {response.status_code}")
                if request.streaming:
                    reason = await _read_stream(response.aiter_lines(), seen, clock)
                else:
                    reason = _read_whole(await response.aread(), seen, clock)
        ok = True
    except _Broken as broken:
        reason = str(broken)
    except TimeoutError:
        reason = f"no end within {REQUEST_SECONDS:.0f} s"
    except httpx.HTTPError as error:
        reason = type(error).__name__
    duration = time.monotonic() - clock
    return Row(
        start=started, duration=duration, streaming=request.streaming, ok=ok, reason=reason, **seen
    )


async def _read_stream(lines: AsyncIterator[str], seen: dict[str, Any], clock: float) -> str:
    finish: str | None = None
    done = False
    pieces = 0
    async for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            done = True
            continue
        event = _json_object(data)
        if "error" in event:
            raise _Broken("error in the stream")
        for choice in event.get("choices", ()):
            if choice.get("delta", {}).get("content"):
                pieces += 1
                seen["tokens"] = pieces
                if seen["ttfb"] is None:
                    seen["ttfb"] = time.monotonic() - clock
            finish = choice.get("finish_reason") or finish
        seen["tokens"] = (event.get("usage") or {}).get("completion_tokens", seen["tokens"])
    if not done:
        raise _Broken("stream ended without [DONE]")
    return _good(finish)


def _read_whole(body: bytes, seen: dict[str, Any], clock: float) -> str:
    seen["ttfb"] = time.monotonic() - clock
    answer = _json_object(body)
    choices = answer.get("choices")
    if not choices:
        raise _Broken("answer without choices")
    seen["tokens"] = (answer.get("usage") or {}).get("completion_tokens", 0)
    return _good(choices[0].get("finish_reason"))


def _json_object(text: str | bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise _Broken("answer is not JSON") from error
    if not isinstance(value, dict):
        raise _Broken("answer is no JSON object")
    return value


def _good(finish: str | None) -> str:
    if finish not in GOOD_ENDINGS:
        raise _Broken(f"finish reason {finish}")
    return finish


async def drive(
    url: str,
    model: str,
    *,
    rate: float,
    seconds: float,
    seed: int = 0,
    requests: Iterable[Request] | None = None,
    on_row: Callable[[Row], None] | None = None,
    stop: asyncio.Event | None = None,
) -> Summary:
    """Send the plan to the gateway at `url` (without `/v1`) and return the counts once every answer has ended.

    `requests`, in order of time, take the place of the plan of `rate`, `seconds` and `seed`. `on_row` is told of each request as it ends. When `stop` is set nothing new is sent; what is under way is read to its end.
    """
    url = url.rstrip("/").removesuffix("/v1")
    stop = stop or asyncio.Event()
    summary = Summary()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=32)
    timeout = httpx.Timeout(REQUEST_SECONDS, connect=10.0)
    began = time.monotonic()
    async with (
        httpx.AsyncClient(limits=limits, timeout=timeout, trust_env=False) as client,
        asyncio.TaskGroup() as group,
    ):

        async def one(request: Request) -> None:
            row = await _ask(client, url, model, request)
            summary.add(row)
            if on_row is not None:
                on_row(row)

        for request in plan(rate, seconds, seed) if requests is None else requests:
            wait = request.at - (time.monotonic() - began)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), max(0.0, wait))
            if stop.is_set():
                break
            group.create_task(one(request))
    return summary


async def _stop_after(pid: int, stop: asyncio.Event) -> None:
    process = ProcessId.of(pid)
    if process is not None:
        await wait_exit(process)
    stop.set()


async def _main(arguments: argparse.Namespace) -> Summary:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        file = stack.enter_context(arguments.out.open("a", encoding="utf-8"))
        if arguments.beside is not None:
            watching = asyncio.create_task(_stop_after(arguments.beside, stop))
            stack.callback(watching.cancel)

        def write(row: Row) -> None:
            file.write(json.dumps(asdict(row)) + "\n")
            file.flush()

        return await drive(
            arguments.url,
            arguments.model,
            rate=arguments.rate,
            seconds=arguments.seconds,
            seed=arguments.seed,
            on_row=write,
            stop=stop,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 0 if every request got a complete good answer, 1 otherwise; the summary goes to standard output."""
    parser = argparse.ArgumentParser(prog="python -m serving.local.traffic", description=__doc__)
    parser.add_argument("--url", required=True, help="the gateway, without /v1")
    parser.add_argument("--model", required=True, help="served model name")
    parser.add_argument("--rate", type=float, default=3.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to send")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--beside", type=int, metavar="PID", help="stop sending once this process has ended"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON lines, one a request, appended"
    )
    summary = asyncio.run(_main(parser.parse_args(arguments)))
    print(json.dumps(asdict(summary)))
    return 1 if summary.failed else 0


if __name__ == "__main__":
    sys.exit(main())
