"""The load generator: one process of `vllm bench serve` that is given one load after another.

It runs in the serving environment (it needs the model's tokenizer). What it sends is planned here to the single request
(`lockgate.domain.load`) and handed over as a timed trace; how it sends and what it times is vLLM's own code.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from lockgate.domain.load import BenchmarkProfile, PlannedRequest
from lockgate.errors import BenchmarkError
from lockgate.supervision import Ended, log_tail, run_program

IMPORT_SECONDS = 300.0
"""How long the process may take until it can be given work."""

_WORKER = Path(__file__).with_name("_vllm_bench_worker.py")
_SAID = "lockgate-load-generator:"
_CHUNK = 16
"""Tokens that one number of a prompt stands for. A prompt of its own number in every chunk shares no prefix with another."""


class Served(Protocol):
    """A served model: `base_url` without `/v1`, and the name it goes by."""

    @property
    def base_url(self) -> str: ...

    @property
    def model_name(self) -> str: ...


def bench_arguments(
    profile: BenchmarkProfile,
    plan: Sequence[PlannedRequest],
    *,
    endpoint: Served,
    tokenizer: Path,
    trace: Path,
    result: Path,
) -> list[str]:
    """Arguments of `vllm bench serve` for a planned load, of which `trace` holds the requests."""
    arrivals = (
        ["--self-timed"]
        if profile.open_loop
        else ["--no-self-timed", "--max-concurrency", str(profile.concurrency)]
    )
    return [
        *("--backend", "openai", "--endpoint", "/v1/completions"),
        *("--base-url", endpoint.base_url.rstrip("/").removesuffix("/v1")),
        *("--model", endpoint.model_name, "--tokenizer", str(tokenizer)),
        *("--dataset-name", "timed_trace", "--dataset-path", str(trace)),
        *("--timed-trace-chunk-hash-size", str(_CHUNK)),
        *("--num-prompts", str(len(plan))),
        *arrivals,
        *("--temperature", "0", "--ready-check-timeout-sec", "0", "--num-warmups", "0"),
        *("--disable-tqdm", "--save-result", "--save-detailed"),
        *("--result-dir", str(result.parent), "--result-filename", result.name),
    ]


def trace_lines(plan: Sequence[PlannedRequest]) -> str:
    """The plan as `vllm bench serve` reads a timed trace: a prompt is the numbers that its chunks are drawn by."""
    return "".join(
        json.dumps(
            {
                "timestamp": request.at,
                "input_length": request.prompt_tokens,
                "output_length": request.output_tokens,
                "hash_ids": [
                    request.prompt * 4096 + chunk
                    for chunk in range(-(-request.prompt_tokens // _CHUNK))
                ],
            }
        )
        + "\n"
        for request in plan
    )


class LoadGenerator:
    """Made by `load_generator`. Not to be used from several threads at once."""

    def __init__(self, orders: Path, scratch: Path, tokenizer: Path, log: Path) -> None:
        self.log = log
        self._scratch = scratch
        self._tokenizer = tokenizer
        # Opened for both ways, so that neither side waits for the other; the end is said in words.
        self._orders = os.fdopen(os.open(orders, os.O_RDWR), "w")
        self._said: queue.Queue[str | Ended] = queue.Queue()
        self._pid: int | None = None

    def send(
        self,
        endpoint: Served,
        profile: BenchmarkProfile,
        plan: Sequence[PlannedRequest],
        *,
        timeout: float,
    ) -> dict[str, Any]:
        """Put `plan` to `endpoint` and return what `vllm bench serve` saved of it. BenchmarkError if it did not end well."""
        trace, result = self._scratch / "trace.jsonl", self._scratch / "result.json"
        trace.write_text(trace_lines(plan))
        result.unlink(missing_ok=True)
        arguments = bench_arguments(
            profile, plan, endpoint=endpoint, tokenizer=self._tokenizer, trace=trace, result=result
        )
        self._wait(IMPORT_SECONDS, profile.name) if self._pid is None else None
        order = {"arguments": arguments, "seconds": max(1, round(timeout))}
        self._orders.write(json.dumps(order) + "\n")
        self._orders.flush()
        self._wait(timeout + 30.0, profile.name)
        try:
            raw = json.loads(result.read_text(), parse_constant=_as_none)
        except (OSError, ValueError) as error:
            raise BenchmarkError(
                f"the load generator's result is unusable: {error}", log=self.log
            ) from error
        if not isinstance(raw, dict):
            raise BenchmarkError("the load generator's result is no JSON object", log=self.log)
        return raw

    def heard(self, line: str) -> bool:
        """Takes what the process says; True for what was meant for this side."""
        if not line.startswith(_SAID):
            return False
        self._said.put(line.removeprefix(_SAID).strip())
        return True

    def ended(self, how: Ended) -> None:
        self._said.put(how)

    def close(self, *, at_once: bool) -> None:
        """Tells the process to end after what it is doing, or at once."""
        with contextlib.suppress(OSError):
            self._orders.write("null\n")
            self._orders.close()
        if at_once and self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)

    def _wait(self, seconds: float, profile: str) -> None:
        try:
            said = self._said.get(timeout=seconds)
        except queue.Empty:
            raise self._too_slow(profile, seconds) from None
        if isinstance(said, Ended):
            self._said.put(said)
            if said.code == -signal.SIGALRM:
                raise self._too_slow(profile, seconds)
            raise BenchmarkError(
                f"the load generator ended with status {said.code} in profile {profile}:\n"
                f"{log_tail(self.log)}",
                hint="if the server refused or died, its own log says why",
                log=self.log,
            )
        if said.startswith("ready"):
            self._pid = int(said.split()[1])

    def _too_slow(self, profile: str, seconds: float) -> BenchmarkError:
        return BenchmarkError(
            f"load profile {profile} did not end within {seconds:.0f} s",
            hint="fewer requests or shorter answers (`benchmark.profiles`), or more time",
            log=self.log,
        )


@contextlib.contextmanager
def load_generator(
    serving_python: Path, *, tokenizer: Path, log: Path, timeout: float
) -> Iterator[LoadGenerator]:
    """A load generator until the context ends, or for `timeout` seconds at most. `tokenizer`: the model's directory."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="lockgate-benchmark-") as name:
        scratch = Path(name)
        orders = scratch / "orders"
        os.mkfifo(orders, 0o600)
        generator = LoadGenerator(orders, scratch, tokenizer, log)
        environment = {
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            # A timed trace's prompts are drawn by `hash` of text: the same in every process only so.
            "PYTHONHASHSEED": "0",
        }
        # -P: this folder's module names must not shadow those that vLLM imports.
        command = [str(serving_python), "-P", str(_WORKER), str(orders)]

        def run() -> None:
            generator.ended(
                run_program(
                    command,
                    log=log,
                    timeout=timeout,
                    environment=environment,
                    on_line=generator.heard,
                )
            )

        thread = threading.Thread(target=run, name="load-generator", daemon=True)
        thread.start()
        at_once = True
        try:
            yield generator
            at_once = False
        finally:
            generator.close(at_once=at_once)
            thread.join(30.0)


def _as_none(constant: str) -> None:
    """NaN and infinity, which the summary of a load without an answer holds, are no numbers."""
    return
