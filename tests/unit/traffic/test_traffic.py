"""The traffic driver against a gateway that answers well, cuts answers short, or refuses."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from serving.local.traffic import Row, Summary, drive, plan

Handler = Callable[[dict[str, object], asyncio.StreamWriter], Awaitable[None]]


def chunk(content: str | None, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": content} if content else {}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


def head(status: str, kind: str = "text/event-stream") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\nx-lockgate-slot: b\r\nconnection: close\r\n\r\n".encode()


async def good(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
    if body["stream"]:
        usage = b'data: {"choices": [], "usage": {"completion_tokens": 17}}\n\n'
        writer.write(head("200 OK") + chunk("It") + chunk(" rains", "length") + usage)
        writer.write(b"data: [DONE]\n\n")
    else:
        answer = {"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}]}
        answer["usage"] = {"completion_tokens": 17}
        writer.write(head("200 OK", "application/json") + json.dumps(answer).encode())


async def ends_early(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
    writer.write(head("200 OK") + chunk("It") + chunk(" rains", "length"))


async def aborts(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
    writer.write(head("200 OK") + chunk("It") + chunk(None, "abort") + b"data: [DONE]\n\n")


async def refuses(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
    writer.write(head("503 Service Unavailable"))


async def breaks_off(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n" + chunk("It"))


async def run(
    handler: Handler, *, seconds: float = 1.0, stop: asyncio.Event | None = None
) -> tuple[Summary, list[Row]]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in request.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        )
        await handler(json.loads(await reader.readexactly(length)), writer)
        await writer.drain()
        writer.close()

    rows: list[Row] = []
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        summary = await drive(
            url, "m", rate=20, seconds=seconds, seed=3, on_row=rows.append, stop=stop
        )
    return summary, rows


def test_complete_answers_are_good_and_carry_slot_and_tokens() -> None:
    summary, rows = asyncio.run(run(good))
    assert summary.requests == len(rows) > 10
    assert summary.failed == 0
    assert summary.by_slot == {"b": summary.requests}
    assert all(row.tokens == 17 and row.ttfb is not None for row in rows)


@pytest.mark.parametrize(
    ("handler", "reason"),
    [(ends_early, "stream ended without [DONE]"), (aborts, "finish reason abort")],
)
def test_an_answer_cut_short_after_a_good_status_is_counted(handler: Handler, reason: str) -> None:
    summary, rows = asyncio.run(run(handler))
    streams = [row for row in rows if row.streaming]
    assert summary.failed == summary.requests
    assert summary.cut_short >= len(streams)
    assert {row.reason for row in streams} == {reason}
    assert all(row.status == 200 for row in rows)


@pytest.mark.slow
def test_refused_and_broken_requests_fail_without_ending_the_drive() -> None:
    refused, rows = asyncio.run(run(refuses))
    assert refused.failed == refused.requests > 10
    assert refused.cut_short == 0
    assert {row.reason for row in rows} == {"status 503"}
    broken, _ = asyncio.run(run(breaks_off))
    assert broken.failed == broken.requests > 10


def test_nothing_is_sent_after_the_stop_and_what_is_under_way_is_read_to_its_end() -> None:
    async def stopped() -> tuple[Summary, int]:
        stop = asyncio.Event()
        asked_after_stop = 0

        async def slow(body: dict[str, object], writer: asyncio.StreamWriter) -> None:
            nonlocal asked_after_stop
            asked_after_stop += stop.is_set()
            asyncio.get_running_loop().call_later(0.2, stop.set)
            await stop.wait()
            await asyncio.sleep(0.2)
            await good(body, writer)

        summary, _ = await run(slow, seconds=3600, stop=stop)
        return summary, asked_after_stop

    summary, late = asyncio.run(stopped())
    assert summary.requests >= 1
    assert summary.failed == 0
    assert late <= 1  # one may have been on its way


def test_the_plan_is_seeded_keeps_its_rate_and_streams_more_often_than_not() -> None:
    requests = list(plan(3, 1000, 5))
    assert requests == list(plan(3, 1000, 5))
    assert requests != list(plan(3, 1000, 6))
    assert 2700 < len(requests) < 3300
    assert sum(r.streaming for r in requests) > len(requests) / 2
    assert all(12 <= r.max_tokens <= 32 and 0 < r.at < 1000 for r in requests)
    assert len({r.prompt for r in requests}) > 50


def test_traffic_ends_with_the_process_that_it_runs_beside(tmp_path: Path) -> None:
    beside = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    driver = subprocess.Popen(
        [sys.executable, "-m", "serving.local.traffic", "--url", "http://127.0.0.1:9", "--model", "m",
         "--rate", "5", "--seconds", "3600", "--out", str(tmp_path / "rows"),
         "--beside", str(beside.pid)],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert driver.poll() is None
        beside.kill()
        beside.wait()
        summary, _ = driver.communicate(timeout=60)
    finally:
        driver.kill()
        beside.kill()
    assert "requests" in json.loads(summary)
