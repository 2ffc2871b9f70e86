"""A canary's trace from two real vLLM servers: `python -m benchmarks.record_traces MODEL_DIR --canary KIND --out FILE.jsonl.gz`.

Stable is MODEL_DIR as it is, the canary the same with one thing changed:

* `same`: nothing;
* `one-at-a-time`: slower by configuration, it serves one request after the other;
* `broken-template`: its chat template lost the end of a turn, and with it the engine the token at which an answer ends (that of the
  base model stands there instead): answers run on to the limit of the request. The demonstration's model is meant.

Both stand behind the embedded cluster's own gateway, which sends each of them half of a steady stream of short questions, and are
scraped as a release's driver does it. FILE gets the samples that the judge looks at, one JSON line a scrape and instance, times
from the first scrape. Judge it with `lockgate judge FILE`, unpacked. Takes the seconds asked for and two minutes more.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import json
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import httpx

from lockgate import environments
from lockgate.adapters.metrics import ScrapeTarget, gateway_url, scrape
from lockgate.domain.judge import DEFAULT_METRICS
from lockgate.domain.judge.increments import matches
from lockgate.domain.release_state import Slot
from lockgate.domain.spec import ServingSpec
from lockgate.domain.trace import Scrape, Track, to_line
from lockgate.errors import ClusterError
from serving.ephemeral import Endpoint, serve
from serving.local.desired import DesiredRoute, RouteRule
from serving.local.envoy_config import GatewayModel, cluster_name
from serving.local.gateway import Gateway
from serving.local.traffic import Request, Summary, drive
from serving.ports import LOOPBACK
from serving.processes import end

MODEL = "recorded"
SERVING = ServingSpec(
    served_model_name=MODEL,
    max_model_len=1024,
    max_num_seqs=16,
    dtype="bfloat16",
    args=("--enforce-eager",),
    env={"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1"},
)
TRACKS: Mapping[str, Track] = {Slot.A.value: "baseline", Slot.B.value: "canary"}
SCRAPE_SECONDS = 1.5
GATEWAY_SECONDS = 20.0
LONGEST_ANSWER = 48
"""Tokens. Answers to the questions are shorter, as long as the model knows when it has finished."""
STREAMED = 0.7

_COUNTRIES = (
    "France", "Italy", "Spain", "Japan", "Egypt", "Canada", "Norway", "Peru", "India", "Greece", "Kenya", "Poland",
)  # fmt: skip
_QUESTIONS = (
    "What is the capital of {}?",
    "On which continent is {}?",
    "Which language is spoken in {}? Answer in one word.",
    "Name one city in {}.",
)

END_OF_TURN = "<|im_end|>"
BASE_ENDS = {
    "tokenizer_config.json": ("eos_token", "<|endoftext|>"),
    "config.json": ("eos_token_id", 0),
    "generation_config.json": ("eos_token_id", 0),
}
"""Where the files of a model name the end of an answer, and what stands there before it has learned to chat."""


def unchanged(model: Path, _: Path) -> Path:
    return model


def with_broken_template(model: Path, scratch: Path) -> Path:
    """The same weights; the files that are not broken are linked to."""
    changed = scratch / "broken-template"
    changed.mkdir()
    for path in model.iterdir():
        if path.name == "chat_template.jinja":
            (changed / path.name).write_text(path.read_text().replace(END_OF_TURN, ""))
        elif path.name in BASE_ENDS:
            key, value = BASE_ENDS[path.name]
            (changed / path.name).write_text(
                json.dumps({**json.loads(path.read_text()), key: value})
            )
        else:
            (changed / path.name).symlink_to(path.resolve())
    return changed


CANARIES: Mapping[str, tuple[ServingSpec, Callable[[Path, Path], Path]]] = {
    "same": (SERVING, unchanged),
    "one-at-a-time": (SERVING.model_copy(update={"max_num_seqs": 1}), unchanged),
    "broken-template": (SERVING, with_broken_template),
}


def questions(rate: float, seconds: float, seed: int) -> Iterator[Request]:
    """Requests with exponential gaps, `rate` a second on average."""
    drawn = random.Random(seed)
    at = drawn.expovariate(rate)
    while at < seconds:
        prompt = drawn.choice(_QUESTIONS).format(drawn.choice(_COUNTRIES))
        yield Request(at, prompt, LONGEST_ANSWER, streaming=drawn.random() < STREAMED)
        at += drawn.expovariate(rate)


def _looked_at() -> list[str]:
    """Selectors of all samples that some metric of the judge takes."""
    found = {"process_start_time_seconds", "envoy_cluster_membership_healthy",
             "vllm:num_requests_running", "vllm:num_requests_waiting"}  # fmt: skip
    for metric in DEFAULT_METRICS.values():
        found.update(metric.histogram, metric.categories.values())
        found.update(name for group in (*metric.events, *metric.trials) for name in group)
        if metric.per_histogram is not None:
            found.add(metric.per_histogram)
    return sorted(found)


def cut_down(scrapes: Iterable[Scrape]) -> list[Scrape]:
    """What the judge looks at, with times from the first scrape."""
    selectors = _looked_at()
    began: float | None = None
    kept = []
    for found in scrapes:
        began = found.time if began is None else began
        parts = {
            part: {
                name: value
                for name, value in getattr(found, part).items()
                if any(matches(selector, name) for selector in selectors)
            }
            for part in ("counters", "histograms", "gauges")
        }
        kept.append(replace(found, time=round(found.time - began, 3), **parts))
    return kept


@contextlib.asynccontextmanager
async def gateway_to(servers: Mapping[Slot, Endpoint], directory: Path) -> AsyncIterator[Gateway]:
    """The embedded cluster's gateway with an even share of the requests for each of these servers."""
    share = 100 // len(servers)
    rule = RouteRule(
        headers=(),
        prefix="/",
        weights=tuple((slot, share) for slot in servers),
        timeout_seconds=600,
    )
    ports = {slot: httpx.URL(server.base_url).port or 0 for slot, server in servers.items()}
    async with httpx.AsyncClient(trust_env=False) as client:
        gateway = Gateway(
            directory, cluster=f"record-{os.getpid()}", client=client, wanted_ports={}
        )
        model = GatewayModel(
            model=MODEL,
            port=gateway.port(MODEL),
            route=DesiredRoute(rules=(rule,), failover=()),
            endpoints={slot: ((LOOPBACK, port),) for slot, port in ports.items()},
        )
        running = asyncio.create_task(gateway.process.run())
        try:
            deadline = time.monotonic() + GATEWAY_SECONDS
            while True:
                try:
                    refused = await gateway.apply({MODEL: model})
                except ClusterError as error:
                    refused = {MODEL: error.message}
                if not refused:
                    break
                if time.monotonic() > deadline:
                    raise ClusterError(f"no gateway: {refused[MODEL]}", log=gateway.process.log)
                await asyncio.sleep(0.5)
            yield gateway
        finally:
            running.cancel()
            process = gateway.process.process
            if process is not None:
                await asyncio.to_thread(end, process, term_seconds=5)


def targets(servers: Mapping[Slot, Endpoint], gateway: Gateway) -> list[ScrapeTarget]:
    found = []
    for slot, server in servers.items():
        track, cluster = TRACKS[slot.value], cluster_name(MODEL, slot)
        found.append(ScrapeTarget(f"{track}-engine", slot.value, server.metrics_url))
        url = gateway_url(gateway.admin_url, cluster)
        found.append(ScrapeTarget(f"{track}-gateway", slot.value, url, cluster))
    return found


async def record(
    servers: Mapping[Slot, Endpoint], scratch: Path, requests: Iterable[Request]
) -> tuple[list[Scrape], Summary]:
    """Scrapes of both tracks while the requests run, and what became of these."""
    seen: list[Scrape] = []
    async with gateway_to(servers, scratch) as gateway:
        endpoints = targets(servers, gateway)
        traffic = asyncio.create_task(
            drive(
                f"http://{LOOPBACK}:{gateway.port(MODEL)}", MODEL, rate=0, seconds=0,
                requests=requests,
            )
        )  # fmt: skip
        while not traffic.done():
            seen += await asyncio.to_thread(scrape, endpoints, TRACKS, time=time.time())
            await asyncio.wait([traffic], timeout=SCRAPE_SECONDS)
        return seen, await traffic


def write(scrapes: Sequence[Scrape], out: Path) -> None:
    """The same scrapes give the same bytes."""
    text = "".join(to_line(found) + "\n" for found in scrapes)
    out.write_bytes(gzip.compress(text.encode(), mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--canary", choices=sorted(CANARIES), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=270.0)
    parser.add_argument("--rate", type=float, default=1.0, help="requests a second, both together")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    spec, changed = CANARIES[given.canary]
    python = environments.environment_python("serving")
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lockgate-record-")))
        servers = {
            slot: stack.enter_context(
                serve(model, serving, python=python, log_path=scratch / f"{slot.value}.log")
            )
            for slot, model, serving in (
                (Slot.A, given.model, SERVING),
                (Slot.B, changed(given.model, scratch), spec),
            )
        }
        asked = questions(given.rate, given.seconds, given.seed)
        seen, summary = asyncio.run(record(servers, scratch / "gateway", asked))
    write(cut_down(seen), given.out)
    print(
        f"{given.out}: {len(seen)} scrapes; {summary.requests} requests ({summary.by_slot}), "
        f"{summary.failed} failed; ends: {summary.reasons}"
    )


if __name__ == "__main__":
    main()
